// The mathematics of the loss, once, for every backend.
//
// A row has logits x_c, a target t_c, class weights w_c and a prior u_c that sums to 1. All
// smoothing conventions spread the target as q_c = beta u_c + kappa t_c. With v_c = w_c u_c (or
// u_c, where the weights are the target's alone), coef_c = beta v_c + kappa w_c t_c, their sum the
// mass, and p_c = exp(x_c - lse):
//
//     loss       = sum_c coef_c (lse - x_c)
//                = mass lse - beta sum_c v_c x_c - kappa sum_c w_c t_c x_c
//     dloss/dx_c = mass p_c - coef_c
//
// So a row is read for a sum of exponentials, sum_c v_c x_c and what its target asks for: one class
// y (t_y = 1), a few, or all. The sums form a monoid (RowStats, combine), the same for a SIMD lane,
// a warp, a block, a cluster and a rank. Every difference is taken to a logit of the row, so that a
// large common offset costs no digits.
//
// Where the smoothing leaves masked classes out, sums over classes, beta and mass are those of each
// row's unmasked ones.
//
// A term of coefficient 0 is 0 whatever it multiplies: a logit of -inf, or the weight of a class
// that no row uses, infinite (1 over its count) or NaN.
//
// T is float or double, or a SIMD vector of them with overloads of what scalar_math.h has: its
// lanes hold classes of one row, or rows. S is float or double: what all rows share.
#pragma once

#include "scalar_math.h"

namespace labelsmooth {

enum class SmoothOver { all, others, unmasked };

template <class T>
struct LossOptions {
  T label_smoothing = 0;
  T lse_square_scale = 0;
  T logit_scale = 1;
  T softcap = 0;  // 0: none
  T lowest = 0;   // lowest finite number of the logits' dtype: from there down they are masked
  SmoothOver smooth_over = SmoothOver::all;
  bool weight_over_target = false;
  bool kl_div = false;
  bool from_log_probs = false;

  LABELSMOOTH_HD bool over_others() const { return smooth_over == SmoothOver::others; }
  LABELSMOOTH_HD bool over_unmasked() const { return smooth_over == SmoothOver::unmasked; }
};

// Sums over a call's classes, or over a row's unmasked ones.
template <class T>
struct ClassSums {
  T coef;      // V = sum_c v_c
  T coef_log;  // sum_c v_c log u_c
  T prior;     // sum_c u_c
};

// A point that differences may be taken to.
template <class T>
LABELSMOOTH_HD T finite_or_zero(T x) {
  return select(x - x == T(0), x, T(0));
}

// The same from a logit that may be a mask, beside which the others would lose all their digits.
template <class T>
LABELSMOOTH_HD T reference_from(T x) {
  return finite_or_zero(select(x > T(-30000), x, T(0)));
}

// coef * x, but 0 where coef is 0, whatever x.
template <class T>
LABELSMOOTH_HD T weighted(T coef, T x) {
  return select(coef == T(0), T(0), coef * x);
}

template <class T>
LABELSMOOTH_HD T x_log_x(T x) {
  return select(x > T(0), x * log(x), T(0));
}

// ---- logits: scale and softcap ------------------------------------------------------------------

// x = s x0 and, with a softcap, x = k tanh(s x0 / k). tanh_of(a, b) is tanh(a b).
template <class T, class S>
LABELSMOOTH_HD T scaled_logit(T x0, const LossOptions<S>& options) {
  return x0 * T(options.logit_scale);
}
template <class T, class S, class Tanh>
LABELSMOOTH_HD T capped_logit(T x0, const LossOptions<S>& options, const Tanh& tanh_of) {
  return T(options.softcap) * tanh_of(x0, T(options.logit_scale / options.softcap));
}
template <class T, class S, class Tanh>
LABELSMOOTH_HD T transform_logit(T x0, const LossOptions<S>& options, const Tanh& tanh_of) {
  return options.softcap > 0 ? capped_logit(x0, options, tanh_of) : scaled_logit(x0, options);
}
template <class T, class S>
LABELSMOOTH_HD T transform_logit(T x0, const LossOptions<S>& options) {
  return transform_logit(x0, options, [](T a, T b) { return tanh(a * b); });
}

// dx/dx0 = s (1 - (x/k)^2), from the transformed x, with a softcap: exactly 0 where x is k or -k.
template <class T>
LABELSMOOTH_HD T capped_slope(T x, T cap, T factor) {
  return factor * ((cap - x) * (cap + x));
}
template <class S>
LABELSMOOTH_HD S slope_factor(const LossOptions<S>& options) {
  return options.logit_scale / (options.softcap * options.softcap);
}
template <class T, class S>
LABELSMOOTH_HD T capped_slope(T x, const LossOptions<S>& options) {
  return capped_slope(x, T(options.softcap), T(slope_factor(options)));
}
template <class T, class S>
LABELSMOOTH_HD T transform_slope(T x, const LossOptions<S>& options) {
  return options.softcap > 0 ? capped_slope(x, options) : T(options.logit_scale);
}

// ---- classes ------------------------------------------------------------------------------------

// v_c; 0 where nothing is smoothed.
template <class T, class S>
LABELSMOOTH_HD T coef_of_class(T weight, T prior, const LossOptions<S>& options) {
  const T spread = T(options.label_smoothing) > 0 ? prior : T(0);
  if (options.weight_over_target) return spread;
  return select(weight == T(0), T(0), weighted(spread, weight));
}

// One class of sum_c v_c log u_c.
template <class T>
LABELSMOOTH_HD T coef_log_of_class(T coef, T prior) {
  return weighted(coef, log(prior));
}

// v_c or u_c of a class, by its logit as it was given.
template <class T, class S>
LABELSMOOTH_HD T unless_masked(T value, T x0, const LossOptions<S>& options) {
  return options.over_unmasked() ? select(x0 > T(options.lowest), value, T(0)) : value;
}

// coef_c of a class, from v_c and kappa w_c t_c.
template <class T, class S>
LABELSMOOTH_HD T soft_coef(T class_coef, T weighted_prob, S beta) {
  return T(beta) * class_coef + weighted_prob;
}

// One class of sum_c t_c (lse - x_c), from lse and x_c less the same reference.
template <class T>
LABELSMOOTH_HD T soft_nll(T prob, T lse, T x) {
  return weighted(prob, lse - x);
}

// ---- row statistics -----------------------------------------------------------------------------

// Of a part of a row; all parts share the reference.
template <class T>
struct RowStats {
  T shift;       // the maximum, or a point near it
  T sum_exp;     // sum_c exp(x_c - shift)
  T spread_dot;  // sum_c v_c (x_c - reference)
};

template <class T>
LABELSMOOTH_HD RowStats<T> empty_stats() {
  return {-infinity<T>(), T(0), T(0)};
}

// Two parts whose exponentials are taken from the same point.
template <class T>
LABELSMOOTH_HD RowStats<T> add(const RowStats<T>& a, const RowStats<T>& b) {
  return {a.shift, a.sum_exp + b.sum_exp, a.spread_dot + b.spread_dot};
}

// Two parts, each taken from a point of its own. An empty one, or one of -inf alone, adds nothing.
template <class T>
LABELSMOOTH_HD RowStats<T> combine(const RowStats<T>& a, const RowStats<T>& b) {
  const T shift = max(a.shift, b.shift);
  const T point = finite_or_zero(shift);
  return add(RowStats<T>{shift, a.sum_exp * exp(a.shift - point), a.spread_dot},
             RowStats<T>{shift, b.sum_exp * exp(b.shift - point), b.spread_dot});
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
  T beta, kappa;
  T mass;  // of the smoothing, beta V; the target's is added to it
};

// target_prior is u_y, for "others", which has one class for a target.
template <class T, class Sum, class S>
LABELSMOOTH_HD RowTerms<T> row_terms(T target_prior, const ClassSums<Sum>& sums,
                                     const LossOptions<S>& options) {
  const T a(options.label_smoothing);
  RowTerms<T> terms = {a, T(1) - a, T(0)};
  if (options.over_others() && options.label_smoothing > 0) {
    terms.beta = a / (T(1) - target_prior);
    terms.kappa = terms.kappa - weighted(terms.beta, target_prior);
  }
  if (options.over_unmasked())  // where all are masked nothing is spread
    terms.beta = select(T(sums.prior) > T(0), a / T(sums.prior), T(0));
  terms.mass = terms.beta * T(sums.coef);
  return terms;
}

// Of a class of the target.
template <class T>
struct TargetTerms {
  T tau;           // coef_c - beta v_c
  T prob;          // q_c
  T coef;          // coef_c, without the rounding of the sum beta v_c + tau
  T spread_prior;  // beta u_c
  T spread_coef;   // beta v_c
};

// From t_c, w_c, u_c and the logit as it was given.
template <class T, class S>
LABELSMOOTH_HD TargetTerms<T> target_terms(T target_prob, T weight, T prior, T x0,
                                           const RowTerms<T>& terms,
                                           const LossOptions<S>& options) {
  TargetTerms<T> target;
  target.tau = weighted(terms.kappa * target_prob, weight);
  target.spread_prior = weighted(terms.beta, unless_masked(prior, x0, options));
  target.prob = options.over_others() ? T(1) - T(options.label_smoothing)
                                      : target.spread_prior + terms.kappa * target_prob;
  target.spread_coef = target.spread_prior;
  target.coef = weighted(target.prob, weight);
  if (!options.weight_over_target)
    target.spread_coef = weighted(target.spread_prior, weight);
  else if (options.over_others())  // nothing is spread over the target: all it has is weighted
    target.tau = target.coef - target.spread_coef;
  else
    target.coef = target.spread_coef + target.tau;
  return target;
}

// sum_c coef_c (lse - x_c) + lse_square_scale lse^2, where target_dot is the sum of tau_c (x_c -
// reference) over the target's classes. A caller may take the one class y by itself, and must where
// its logit is infinite: then spread_dot leaves out y, and target_dot is coef_y (x_y - reference).
template <class T, class S>
LABELSMOOTH_HD T row_loss(const RowStats<T>& stats, const RowTerms<T>& terms, T target_dot,
                          T reference, const LossOptions<S>& options) {
  const T loss = weighted(terms.mass, log_sum_exp_from(reference, stats, options)) -
                 (weighted(terms.beta, stats.spread_dot) + target_dot);
  if (options.lse_square_scale == 0) return loss;
  const T lse = log_sum_exp(stats, options);
  return loss + T(options.lse_square_scale) * lse * lse;
}

// sum_c coef_c log q_c, which kl_div adds to the cross-entropy: of the smoothing alone, and what a
// class of the target changes.
template <class T, class Sum>
LABELSMOOTH_HD T smoothing_entropy(const RowTerms<T>& terms, const ClassSums<Sum>& sums) {
  return x_log_x(terms.beta) * T(sums.coef) + terms.beta * T(sums.coef_log);
}
template <class T>
LABELSMOOTH_HD T target_entropy(const TargetTerms<T>& target) {
  return weighted(target.coef, log(target.prob)) -
         weighted(target.spread_coef, log(target.spread_prior));
}

// ---- gradient -----------------------------------------------------------------------------------

// All but `shift` scaled by the incoming gradient.
template <class T>
struct GradTerms {
  T shift, exp_scale, beta, kappa, scale;
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
  grad.scale = scale;
  return grad;
}

// dloss/dx_c, from exp(x_c - shift); coef is scaled as grad is.
template <class T, class S>
LABELSMOOTH_HD T logit_grad(T exp_x, T coef, const GradTerms<S>& grad) {
  return T(grad.exp_scale) * exp_x - coef;
}

}  // namespace labelsmooth
