// A row as the kernel reads it: vectors of classes.
#pragma once

#include "vec_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// The hardware's own prefetching ends at the page.
constexpr int64_t prefetch_bytes = 4096;

// has_vectors: the class coefficients are a vector, not the constant 1/C. soft: the target is class
// probabilities. transformed: the logits are scaled or capped.
//
// Loops take a copy of it, so that the compiler knows that no store changes its members.
template <class Element, bool has_vectors, bool soft, bool transformed>
struct Row {
  using T = typename Accumulate<Element>::type;
  using V = Vec<T>;

  const Element* logits;
  const Element* target_probs;
  const T* class_coef;
  const T* weight;
  T* exps;  // where the exponentials are kept for the gradient, or nullptr
  T uniform;
  LossOptions<T> options;

  // A vector of classes from c on. In a row's last one only `count` lanes hold classes.
  template <bool whole, class Source>
  static LABELSMOOTH_HD V classes_at(const Source* source, int64_t c, int64_t count) {
    return whole ? load(source + c) : load_first(source + c, count);
  }

  template <bool whole>
  LABELSMOOTH_HD V logits_at(int64_t c, int64_t count) const {
    const V x = classes_at<whole>(logits, c, count);
    return transformed ? transform_logit(x, options) : x;
  }

  // beta v_c, and kappa w_c t_c on top where the target is class probabilities.
  template <bool whole>
  LABELSMOOTH_HD V coef_at(int64_t c, int64_t count, T beta, T kappa) const {
    V coef = has_vectors ? classes_at<whole>(class_coef, c, count) : V(uniform);
    if constexpr (soft) {
      V probs = V(kappa) * classes_at<whole>(target_probs, c, count);
      if (has_vectors && weight) probs = weighted(probs, classes_at<whole>(weight, c, count));
      coef = soft_coef(coef, probs, beta);
    } else {
      coef = V(beta) * coef;
    }
    return whole ? coef : V::first(count, coef, V(T(0)));
  }

  // One more vector of classes in lanes of row statistics, all relative to `shift`.
  template <bool whole>
  LABELSMOOTH_HD void accumulate(RowStats<V>& stats, int64_t c, int64_t count, T shift, T beta,
                                 T kappa) const {
    __builtin_prefetch(logits + c + prefetch_bytes / static_cast<int64_t>(sizeof(Element)));
    V difference = logits_at<whole>(c, count) - V(shift);
    if constexpr (!whole) difference = V::first(count, difference, V(-infinity<T>()));
    const V exp_x = exp_of<Element>(difference);
    if (exps) store(exps + c, exp_x);
    stats.sum_exp = stats.sum_exp + exp_x;
    const V coef = coef_at<whole>(c, count, beta, kappa);
    constexpr bool never_zero = whole && !has_vectors && !soft;
    stats.coef_dot = stats.coef_dot + (never_zero ? coef * difference : weighted(coef, difference));
    if constexpr (soft) stats.coef_sum = stats.coef_sum + coef;
  }

  // The gradient of a vector of classes.
  template <bool whole>
  LABELSMOOTH_HD V gradient_at(int64_t c, int64_t count, const GradTerms<T>& terms) const {
    const V coef = coef_at<whole>(c, count, terms.beta, terms.kappa);
    if (exps && !transformed) return logit_grad(load(exps + c), coef, terms);
    const V x = logits_at<whole>(c, count);
    const V exp_x = exps ? load(exps + c) : exp_of<Element>(x - V(terms.shift));
    return sloped(logit_grad(exp_x, coef, terms), x);
  }

  template <class X>
  LABELSMOOTH_HD X sloped(X grad, X x) const {
    return transformed ? grad * transform_slope(x, options) : grad;
  }
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
