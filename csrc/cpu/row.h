// A row as the kernel reads it: vectors of classes.
#pragma once

#include "typed_problem.h"
#include "vec_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// The hardware's own prefetching ends at the page.
constexpr int64_t prefetch_bytes = 4096;

// What the classes of a row, or a part of it, are summed up to.
template <class T>
struct RowSums {
  RowStats<T> stats;
  T target_dot, target_sum;  // of w_c t_c, with probabilities of all classes
  ClassSums<T> classes;      // of the unmasked classes, where that is asked for
};

template <class T>
LABELSMOOTH_HD RowSums<T> empty_sums() {
  return {empty_stats<T>(), T(0), T(0), {T(0), T(0), T(0)}};
}

// Probabilities of a dtype known at run time.
struct AnyFloat;

// general: there are class coefficients, class weights or masks; else all v_c are 1/C. Probs: the
// target's dtype where it is probabilities of all classes, else void. transformed: the logits are
// scaled or capped.
//
// Loops copy it, so that the compiler knows that no store changes its members.
template <class Element, bool general, class Probs, bool transformed>
struct Row {
  using T = typename Accumulate<Element>::type;
  using V = Vec<T>;
  static constexpr bool is_general = general;
  static constexpr bool dense = !std::is_void_v<Probs>;

  const Element* logits = nullptr;
  const void* target_probs = nullptr;
  T* exps = nullptr;  // where the exponentials are kept for the gradient, or nullptr
  T* kept = nullptr;  // and the transformed logits
  DType probs_dtype;
  const T* class_coef;
  const T* weight;
  const T* prior;
  T uniform;
  LossOptions<T> options;
  Transform<Element> transform_of;

  explicit Row(const TypedProblem<Element>& problem)
      : probs_dtype(problem.untyped.probs_dtype),
        class_coef(problem.class_coef),
        weight(problem.weight),
        prior(problem.prior),
        uniform(problem.uniform),
        options(problem.options),
        transform_of(problem.options) {}

  // A vector of classes from c on. In a row's last one only `count` lanes hold classes.
  template <bool whole, class Source>
  static LABELSMOOTH_HD V classes_at(const Source* source, int64_t c, int64_t count) {
    return whole ? load(source + c) : load_first(source + c, count);
  }
  template <bool whole>
  static LABELSMOOTH_HD V classes_at(const T* source, T otherwise, int64_t c, int64_t count) {
    return source ? classes_at<whole>(source, c, count) : V(otherwise);
  }

  LABELSMOOTH_HD V transform(V x0) const { return transformed ? transform_of(x0) : x0; }
  template <bool whole>
  LABELSMOOTH_HD V logits_at(int64_t c, int64_t count) const {
    return transform(classes_at<whole>(logits, c, count));
  }
  LABELSMOOTH_HD bool masks() const { return general && options.over_unmasked(); }

  // v_c.
  template <bool whole>
  LABELSMOOTH_HD V coef_at(int64_t c, int64_t count, V x0) const {
    V coef = general ? classes_at<whole>(class_coef, uniform, c, count) : V(uniform);
    if (masks()) coef = unless_masked(coef, x0, options);
    return whole ? coef : V::first(count, coef, V(T(0)));
  }

  // t_c.
  LABELSMOOTH_HD V probs_at(int64_t c, int64_t count) const {
    const auto load = [&](auto* probs) { return load_as<T>(probs + c, count); };
    if constexpr (std::is_same_v<Probs, AnyFloat>)
      return with_elements(target_probs, probs_dtype, load);
    else
      return load(static_cast<const Probs*>(target_probs));
  }

  // Of one class.
  T given_logit(int64_t c) const { return load_one(logits + c); }
  T logit(int64_t c) const { return transform(V(given_logit(c))).lanes[0]; }

  // factor w_c t_c.
  template <bool whole>
  LABELSMOOTH_HD V weighted_probs_at(int64_t c, int64_t count, T factor) const {
    const V probs = V(factor) * probs_at(c, whole ? V::size : count);
    return general && weight ? weighted(probs, classes_at<whole>(weight, c, count)) : probs;
  }

  // Adds a vector of classes to sums relative to `shift`, which are then to be finished.
  template <bool whole>
  LABELSMOOTH_HD void accumulate(RowSums<V>& sums, int64_t c, int64_t count, T shift) const {
    const V x0 = given_at<whole>(c, count);
    accumulate<whole>(sums, c, count, x0, transform(x0), shift);
  }

  // Several, step by step: independent work stands together.
  template <int several>
  LABELSMOOTH_HD void accumulate(RowSums<V> (&sums)[several], int64_t c, T shift) const {
    V x0[several], x[several];
    for (int i = 0; i < several; ++i) x0[i] = given_at<true>(c + i * V::size, V::size);
    for (int i = 0; i < several; ++i) x[i] = transform(x0[i]);
    for (int i = 0; i < several; ++i)
      accumulate<true>(sums[i], c + i * V::size, V::size, x0[i], x[i], shift);
  }

  template <bool whole>
  LABELSMOOTH_HD V given_at(int64_t c, int64_t count) const {
    __builtin_prefetch(logits + c + prefetch_bytes / static_cast<int64_t>(sizeof(Element)));
    return classes_at<whole>(logits, c, count);
  }

  template <bool whole>
  LABELSMOOTH_HD void accumulate(RowSums<V>& sums, int64_t c, int64_t count, V x0, V x,
                                 T shift) const {
    V difference = x - V(shift);
    if constexpr (!whole) difference = V::first(count, difference, V(-infinity<T>()));
    const V exp_x = exp_of<Element>(difference);
    if (exps) store(exps + c, exp_x);
    if (transformed && exps) store(kept + c, x);
    RowStats<V>& stats = sums.stats;
    stats.sum_exp = stats.sum_exp + exp_x;
    const V coef = coef_at<whole>(c, count, x0);
    if constexpr (general)
      stats.spread_dot = stats.spread_dot + weighted(coef, difference);
    else
      stats.spread_dot =
          stats.spread_dot + (whole ? difference : V::first(count, difference, V(T(0))));
    if constexpr (dense) {
      const V probs = weighted_probs_at<whole>(c, count, T(1));
      sums.target_dot = sums.target_dot + weighted(probs, difference);
      sums.target_sum = sums.target_sum + probs;
    }
    if (masks()) accumulate_classes<whole>(sums.classes, c, count, x0, coef);
  }

  template <bool whole>
  LABELSMOOTH_HD void accumulate_classes(ClassSums<V>& sums, int64_t c, int64_t count, V x0,
                                         V coef) const {
    V spread = classes_at<whole>(prior, uniform, c, count);
    if constexpr (!whole) spread = V::first(count, spread, V(T(0)));
    sums.prior = sums.prior + unless_masked(spread, x0, options);
    sums.coef = sums.coef + coef;
    if (options.kl_div) sums.coef_log = sums.coef_log + coef_log_of_class(coef, spread);
  }

  // Where all v_c are 1/C, differences are summed by themselves.
  LABELSMOOTH_HD RowSums<V> finished(RowSums<V> sums) const {
    if (!general) sums.stats.spread_dot = V(uniform) * sums.stats.spread_dot;
    return sums;
  }

  template <class X>
  static LABELSMOOTH_HD void add(RowSums<X>& sums, const RowSums<X>& part) {
    sums.stats = labelsmooth::add(sums.stats, part.stats);
    if constexpr (dense) {
      sums.target_dot = sums.target_dot + part.target_dot;
      sums.target_sum = sums.target_sum + part.target_sum;
    }
    if constexpr (general) {
      sums.classes.coef = sums.classes.coef + part.classes.coef;
      sums.classes.coef_log = sums.classes.coef_log + part.classes.coef_log;
      sums.classes.prior = sums.classes.prior + part.classes.prior;
    }
  }

  // The gradient of a vector of classes, without what a target of one or a few has at its own.
  template <bool whole>
  LABELSMOOTH_HD V gradient_at(int64_t c, int64_t count, const GradTerms<T>& terms) const {
    const bool again = !exps || masks();
    const V x0 = again ? classes_at<whole>(logits, c, count) : V(T(0));
    V coef = V(terms.beta) * coef_at<whole>(c, count, x0);
    if constexpr (dense) coef = coef + weighted_probs_at<whole>(c, count, terms.kappa);
    const V x = transformed && exps ? load(kept + c) : transform(x0);
    const V exp_x = exps ? load(exps + c) : exp_of<Element>(x - V(terms.shift));
    return sloped(logit_grad(exp_x, coef, terms), x);
  }

  template <class X>
  LABELSMOOTH_HD X sloped(X grad, X x) const {
    return transformed ? grad * transform_of.slope(x) : grad;
  }
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
