// The mathematics of the loss, once, for every backend.
//
// A row has logits x_c, a target class y, class weights w_c and a prior u_c that sums to 1. Both
// smoothing conventions spread the smoothed target as q_c = beta u_c + kappa [c = y]. With v_c =
// w_c u_c, V = sum_c v_c, tau = kappa w_y, mass = beta V + tau and p_c = exp(x_c - lse):
//
//     loss       = sum_c w_c q_c (lse - x_c) = mass lse - beta sum_c v_c x_c - tau x_y
//     dloss/dx_c = mass p_c - beta v_c - tau [c = y]
//
// So a row is read for a sum of exponentials, sum_c v_c x_c and x_y. The sums form a monoid
// (RowStats, combine) that is the same for a SIMD lane, a warp, a block and a cluster. Every
// difference is taken to a logit of the row, so that a large common offset costs no digits.
//
// With class probabilities t_c for a target, q_c = beta u_c + kappa t_c: the coefficient beta v_c +
// kappa w_c t_c takes the place of beta v_c, its sum is the mass, and tau is 0.
//
// A term of coefficient 0 is 0 whatever it multiplies: a logit of -inf, or the weight of a class
// that no row uses, infinite (1 over its count) or NaN.
//
// T is float or double, or a SIMD vector of them, for which exp, log, tanh, max and select are
// overloaded: its lanes hold classes of one row, or rows. S is float or double: what all rows
// share.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define LABELSMOOTH_HD __host__ __device__ __forceinline__
#else
// always_inline keeps a copy compiled for one instruction set out of code that runs on another.
#define LABELSMOOTH_HD inline __attribute__((always_inline))
#endif

namespace labelsmooth {

template <class T>
struct LossOptions {
  T label_smoothing = 0;
  T lse_square_scale = 0;
  T logit_scale = 1;
  T softcap = 0;             // 0: none
  bool over_others = false;  // smooth_over="others"
  bool kl_div = false;
  bool from_log_probs = false;
};

// Sums over the classes, computed once per call.
template <class T>
struct ClassSums {
  T coef = 1;      // V = sum_c v_c
  T coef_log = 0;  // sum_c v_c log u_c
};

LABELSMOOTH_HD float select(bool condition, float a, float b) { return condition ? a : b; }
LABELSMOOTH_HD double select(bool condition, double a, double b) { return condition ? a : b; }
LABELSMOOTH_HD float max(float a, float b) { return ::fmaxf(a, b); }
LABELSMOOTH_HD double max(double a, double b) { return ::fmax(a, b); }
LABELSMOOTH_HD float exp(float x) { return ::expf(x); }
LABELSMOOTH_HD double exp(double x) { return ::exp(x); }
LABELSMOOTH_HD float log(float x) { return ::logf(x); }
LABELSMOOTH_HD double log(double x) { return ::log(x); }
LABELSMOOTH_HD float tanh(float x) { return ::tanhf(x); }
LABELSMOOTH_HD double tanh(double x) { return ::tanh(x); }

template <class T>
LABELSMOOTH_HD T infinity() {
  return T(HUGE_VALF);
}

// x where it is finite, else 0: a point that differences may be taken to.
template <class T>
LABELSMOOTH_HD T finite_or_zero(T x) {
  return select(x - x == T(0), x, T(0));
}

// coef * x, where a coefficient of 0 contributes 0 even if x is infinite or NaN.
template <class T>
LABELSMOOTH_HD T weighted(T coef, T x) {
  return select(coef == T(0), T(0), coef * x);
}

template <class T>
LABELSMOOTH_HD T x_log_x(T x) {
  return select(x > T(0), x * log(x), T(0));
}

// ---- logits: scale and softcap ------------------------------------------------------------------

// x = k tanh(s x0 / k), or s x0 without a softcap.
template <class T, class S>
LABELSMOOTH_HD T transform_logit(T x0, const LossOptions<S>& options) {
  const T x = x0 * T(options.logit_scale);
  return options.softcap > 0 ? T(options.softcap) * tanh(x / T(options.softcap)) : x;
}

// dx/dx0 = s (1 - (x/k)^2), from the transformed x.
template <class T, class S>
LABELSMOOTH_HD T transform_slope(T x, const LossOptions<S>& options) {
  if (!(options.softcap > 0)) return T(options.logit_scale);
  const T ratio = x / T(options.softcap);
  return T(options.logit_scale) * (T(1) - ratio * ratio);
}

// ---- class vectors ------------------------------------------------------------------------------

// v_c = w_c u_c, for the classes that anything is spread over.
template <class T, class S>
LABELSMOOTH_HD T coef_of_class(T weight, T prior, const LossOptions<S>& options) {
  const T spread = T(options.label_smoothing) > 0 ? prior : T(0);
  return select(weight == T(0), T(0), weighted(spread, weight));
}

// One class of sum_c v_c log u_c.
template <class T>
LABELSMOOTH_HD T coef_log_of_class(T coef, T prior) {
  return weighted(coef, log(prior));
}

// ---- class probabilities as the target ----------------------------------------------------------

// What takes the place of beta v_c: w_c q_c, where `weighted_prob` is kappa w_c t_c.
template <class T, class S>
LABELSMOOTH_HD T soft_coef(T class_coef, T weighted_prob, S beta) {
  return T(beta) * class_coef + weighted_prob;
}

// One class of sum_c w_c q_c log q_c.
template <class T, class S>
LABELSMOOTH_HD T soft_negative_entropy(T weight, T prior, T prob, S beta, S kappa) {
  return weighted(x_log_x(weighted(T(beta), prior) + T(kappa) * prob), weight);
}

// One class of sum_c t_c (lse - x_c), from lse and x_c less the same reference.
template <class T>
LABELSMOOTH_HD T soft_nll(T prob, T lse, T x) {
  return weighted(prob, lse - x);
}

// ---- row statistics -----------------------------------------------------------------------------

// Of a part of a row. `coef_dot` is taken to a reference logit that all parts of the row share.
template <class T>
struct RowStats {
  T shift;     // the maximum, or a point near it
  T sum_exp;   // sum_c exp(x_c - shift)
  T coef_dot;  // sum_c coef_c (x_c - reference)
  T coef_sum;  // sum_c coef_c, where it varies by row (class probabilities)
};

template <class T>
LABELSMOOTH_HD RowStats<T> empty_stats() {
  return {-infinity<T>(), T(0), T(0), T(0)};
}

// Two parts of a row whose exponentials are taken from the same point.
template <class T>
LABELSMOOTH_HD RowStats<T> add(const RowStats<T>& a, const RowStats<T>& b) {
  return {a.shift, a.sum_exp + b.sum_exp, a.coef_dot + b.coef_dot, a.coef_sum + b.coef_sum};
}

// Two parts of a row, each taken from a point of its own. An empty part, or one whose logits are
// all -inf, adds nothing.
template <class T>
LABELSMOOTH_HD RowStats<T> combine(const RowStats<T>& a, const RowStats<T>& b) {
  const T shift = max(a.shift, b.shift);
  const T point = finite_or_zero(shift);
  return add(RowStats<T>{shift, a.sum_exp * exp(a.shift - point), a.coef_dot, a.coef_sum},
             RowStats<T>{shift, b.sum_exp * exp(b.shift - point), b.coef_dot, b.coef_sum});
}

template <class T, class S>
LABELSMOOTH_HD T log_sum_exp(const RowStats<T>& stats, const LossOptions<S>& options) {
  return options.from_log_probs ? T(0) : stats.shift + log(stats.sum_exp);
}

// lse - reference, without forming lse: shift and reference may share a large offset.
template <class T, class S>
LABELSMOOTH_HD T log_sum_exp_from(T reference, const RowStats<T>& stats,
                                  const LossOptions<S>& options) {
  return options.from_log_probs ? -reference : (stats.shift - reference) + log(stats.sum_exp);
}

// ---- row loss -----------------------------------------------------------------------------------

template <class T>
struct RowTerms {
  T beta, kappa, tau, mass;
  T target_prob;  // q_y
  T target_coef;  // w_y q_y = beta v_y + tau, without the rounding of that sum
};

template <class T, class S>
LABELSMOOTH_HD RowTerms<T> row_terms(T target_prior, T target_weight, S coef_sum,
                                     const LossOptions<S>& options) {
  const T a(options.label_smoothing);
  const T spread = options.over_others ? T(1) - target_prior : T(1);
  RowTerms<T> terms;
  terms.beta = options.label_smoothing > 0 ? a / spread : T(0);
  terms.kappa = T(1) - a - (options.over_others ? weighted(terms.beta, target_prior) : T(0));
  terms.tau = weighted(terms.kappa, target_weight);
  terms.mass = terms.beta * T(coef_sum) + terms.tau;
  terms.target_prob =
      options.over_others ? T(1) - a : weighted(terms.beta, target_prior) + terms.kappa;
  terms.target_coef = weighted(terms.target_prob, target_weight);
  return terms;
}

// sum_c w_c q_c (lse - x_c) + lse_square_scale lse^2. Infinite terms of coefficient 0 are left out;
// where x_y is infinite, so that coef_dot is too, but w_y q_y is 0, the caller's coef_dot leaves
// out y.
template <class T, class S>
LABELSMOOTH_HD T row_loss(const RowStats<T>& stats, const RowTerms<T>& terms, T target_logit,
                          T reference, const LossOptions<S>& options) {
  const T spread = weighted(terms.beta, stats.coef_dot);
  const T infinite = select(terms.target_coef == T(0), spread, terms.target_coef * target_logit);
  const T finite = spread + weighted(terms.tau, target_logit - reference);
  const T loss = weighted(terms.mass, log_sum_exp_from(reference, stats, options)) -
                 select(target_logit - target_logit == T(0), finite, infinite);
  if (options.lse_square_scale == 0) return loss;
  const T lse = log_sum_exp(stats, options);
  return loss + T(options.lse_square_scale) * lse * lse;
}

// sum_c w_c q_c log q_c for a target class: what kl_div adds to the cross-entropy.
template <class T, class S>
LABELSMOOTH_HD T negative_entropy(const RowTerms<T>& terms, T target_prior, T target_weight,
                                  const ClassSums<S>& sums) {
  const T spread = weighted(terms.beta, target_prior);
  const T all = x_log_x(terms.beta) * T(sums.coef) + terms.beta * T(sums.coef_log);
  return all + weighted(x_log_x(terms.target_prob) - x_log_x(spread), target_weight);
}

// ---- gradient -----------------------------------------------------------------------------------

// What the gradient of a row needs, scaled by the incoming gradient.
template <class T>
struct GradTerms {
  T shift, exp_scale, beta, kappa, target_coef;
};

template <class T, class S>
LABELSMOOTH_HD GradTerms<T> grad_terms(const RowStats<T>& stats, const RowTerms<T>& terms, T scale,
                                       const LossOptions<S>& options) {
  // d(L lse^2)/dx_c = 2 L lse p_c: more mass, in the gradient only.
  const T extra = options.lse_square_scale != 0
                      ? T(2 * options.lse_square_scale) * log_sum_exp(stats, options)
                      : T(0);
  GradTerms<T> grad;
  grad.shift = options.from_log_probs ? finite_or_zero(stats.shift) : stats.shift;
  grad.exp_scale = options.from_log_probs ? T(0) : scale * (terms.mass + extra) / stats.sum_exp;
  grad.beta = scale * terms.beta;
  grad.kappa = scale * terms.kappa;
  grad.target_coef = scale * terms.target_coef;
  return grad;
}

// dloss/dx_c = mass p_c - coef, from exp(x_c - shift); coef is beta v_c, or target_coef.
template <class T, class S>
LABELSMOOTH_HD T logit_grad(T exp_x, T coef, const GradTerms<S>& grad) {
  return T(grad.exp_scale) * exp_x - coef;
}

}  // namespace labelsmooth
