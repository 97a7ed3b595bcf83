// A column of a tile: C vectors of rows, a lane a row, and sums over their classes.
#pragma once

#include "tile.h"
#include "vec_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Sums over many classes are made of sums of few, which are added up in double, so that rounding
// errors do not grow with the classes.
constexpr int64_t few_classes = 32;
template <class V>
struct LaneSums {
  double lanes[V::size] = {};
  void add(V part) {
    for (int64_t i = 0; i < V::size; ++i) lanes[i] += static_cast<double>(part.lanes[i]);
  }
  V value() const {
    V value;
    for (int64_t i = 0; i < V::size; ++i)
      value.lanes[i] = static_cast<std::decay_t<decltype(value.lanes[i])>>(lanes[i]);
    return value;
  }
};

// soft: the target is probabilities, of all classes or of a few, which the tile has for all.
//
// Loops take a copy of it, so that the compiler knows that no store changes its members.
template <class Element, bool soft>
struct Column {
  using T = typename TypedProblem<Element>::T;
  using V = Vec<T>;
  using Index = typename V::Mask;  // classes, in the lanes of V
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

  int64_t classes;
  T* x;  // C vectors: the logits, then perhaps their exponentials, then the gradient
  const T* probs;
  const T* class_coef;
  const T* weight;
  T uniform;
  LossOptions<T> options;
  Index target;   // -1 where the row is ignored or its target is not one class of this part
  Index ignored;  // -1, else 0
  Index counts;   // 0 where the row is ignored or of weight 0, else -1
  Index invalid;  // -1 where the target is no class, else 0
  V target_prior, target_weight;

  V if_it_counts(V value) const { return select(counts != 0, value, V(T(0))); }
  V if_here(V value) const { return select(target < 0, V(T(0)), value); }
  V unless_ignored(V value) const { return select(ignored == 0, value, V(T(0))); }

  V logit(int64_t c) const { return load(x + c * V::size); }
  V logit_of_target() const {
    V own(T(0));
    for (int64_t i = 0; i < V::size; ++i)
      if (target[i] >= 0) own.lanes[i] = x[target[i] * V::size + i];
    return own;
  }

  // coef_c of a class, from beta, kappa and coef_y, which may be scaled.
  template <class Terms>
  LABELSMOOTH_HD V coef_at(int64_t c, V x, const Terms& terms, V target_coef) const {
    const V spread = unless_masked(V(class_coef ? class_coef[c] : uniform), x, options);
    if constexpr (soft) {
      V prob = terms.kappa * load(probs + c * V::size);
      if (weight) prob = weighted(prob, V(weight[c]));
      return soft_coef(spread, prob, terms.beta);
    } else {
      return select(target == static_cast<Integer>(c), target_coef, terms.beta * spread);
    }
  }

  // ---- sums -------------------------------------------------------------------------------------

  template <class Term>
  V sum_over_classes(const Term& term) const {
    LaneSums<V> sums;
    for (int64_t begin = 0; begin < classes; begin += few_classes) {
      V part(T(0));
      for (int64_t c = begin; c < few_from(begin); ++c) part = part + term(c);
      sums.add(part);
    }
    return sums.value();
  }

  // The sum of term(t_c, x_c).
  template <class Term>
  V sum_over_target(const Term& term) const {
    if constexpr (soft)
      return sum_over_classes([&](int64_t c) { return term(load(probs + c * V::size), logit(c)); });
    else
      return if_here(term(V(T(1)), logit_of_target()));
  }
  // From an lse that is taken to the same point.
  V nll_from(V point, V lse) const {
    return sum_over_target([&](V prob, V x) { return soft_nll(prob, lse, x - point); });
  }

  struct Sums {
    RowStats<V> stats;  // whose spread_dot is of the whole coefficients, the target's too
    V mass;             // their sum
  };

  // Relative to `shift`. keep: the exponentials take the logits' place.
  static Sums sums(const Column column, const RowTerms<V> terms, V target_coef, V shift,
                   bool keep) {
    LaneSums<V> sum_exp, coef_dot, coef_sum;
    for (int64_t begin = 0; begin < column.classes; begin += few_classes) {
      RowStats<V> part = empty_stats<V>();
      V mass(T(0));
      for (int64_t c = begin; c < column.few_from(begin); ++c) {
        const V x = column.logit(c), difference = x - shift;
        const V exp_x = exp_of<Element>(difference);
        if (keep) store(column.x + c * V::size, exp_x);
        const V coef = column.coef_at(c, x, terms, target_coef);
        part = add(part, {shift, exp_x, weighted(coef, difference)});
        if (soft) mass = mass + coef;
      }
      sum_exp.add(part.sum_exp);
      coef_dot.add(part.spread_dot);
      if (soft) coef_sum.add(mass);
    }
    return {{shift, sum_exp.value(), coef_dot.value()}, coef_sum.value()};
  }

  // The class of the largest logit, the first of them, or of the first NaN.
  Index argmax(V largest) const {
    Index first = Index{}, first_nan = Index{} - 1;
    for (int64_t c = classes - 1; c >= 0; --c) {
      const V x = logit(c);
      const auto index = Index{} + static_cast<Integer>(c);
      first = x == largest ? index : first;
      first_nan = x == x ? first_nan : index;
    }
    return first_nan < 0 ? first : first_nan;
  }

 private:
  int64_t few_from(int64_t begin) const {
    return begin + few_classes < classes ? begin + few_classes : classes;
  }
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
