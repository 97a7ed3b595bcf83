// A column of a tile: C vectors of rows, a lane a row, and sums over their classes.
#pragma once

#include "targets.h"
#include "tile.h"
#include "vec_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// The target: one class, `plain` without class coefficients and masks; or probabilities, of which
// the tile has those of all classes.
enum class Kind { plain, one_class, soft };

// Loops copy it, so that the compiler knows that no store changes its members.
template <class Element, Kind kind>
struct Column {
  static constexpr bool soft = kind == Kind::soft;
  using T = typename TypedProblem<Element>::T;
  using V = Vec<T>;
  using Index = typename V::Mask;
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

  int64_t classes;
  T* x;  // C vectors: the logits, then perhaps their exponentials, then the gradient
  const T* probs;
  const T* class_coef;
  const T* weight;
  const Element* next;  // C vectors of elements to prefetch, or nullptr
  T uniform;
  LossOptions<T> options;

  V logit(int64_t c) const { return load(x + c * V::size); }
  T& at(int64_t row, int64_t c) const { return x[c * V::size + row]; }

  // v_c of a class, from its logit as it was given.
  LABELSMOOTH_HD V spread_at(int64_t c, V x0) const {
    if constexpr (kind == Kind::plain) return V(uniform);
    return unless_masked(V(class_coef ? class_coef[c] : uniform), x0, options);
  }
  // kappa w_c t_c, where the target is probabilities.
  LABELSMOOTH_HD V target_at(int64_t c, V kappa) const {
    const V prob = kappa * load(probs + c * V::size);
    return weight ? weighted(prob, V(weight[c])) : prob;
  }

  // ---- sums -------------------------------------------------------------------------------------

  template <class Term>
  V sum_over_classes(const Term& term) const {
    return sum_of_terms<V>(0, classes, 1, term).value();
  }

  // The sum of term(t_c, x_c).
  template <class Term>
  V sum_over_target(const Targets<T>& targets, const OneClass<T>& one, const Term& term) const {
    if constexpr (soft)
      return sum_over_classes([&](int64_t c) { return term(load(probs + c * V::size), logit(c)); });
    else
      return targets.if_here(term(V(T(1)), one.logit));
  }
  // From an lse that is taken to the same point.
  V nll_from(const Targets<T>& targets, const OneClass<T>& one, V point, V lse) const {
    return sum_over_target(targets, one,
                           [&](V prob, V x) { return soft_nll(prob, lse, x - point); });
  }

  // Where the target is probabilities, spread_dot is of coef_c and `mass` their sum; else it is of
  // v_c, without what the one class has besides.
  struct Sums {
    RowStats<V> stats;
    V mass;
  };

  // Relative to `shift`. keep: the exponentials take the logits' place.
  static Sums sums(const Column column, const RowTerms<V> terms, V shift, bool keep) {
    constexpr bool plain = kind == Kind::plain;
    LaneSums<V> sum_exp, coef_dot, coef_sum;
    for (int64_t begin = 0; begin < column.classes; begin += few_vectors) {
      RowStats<V> part = empty_stats<V>();
      V mass(T(0));
      for (int64_t c = begin; c < column.few_from(begin); ++c) {
        if (column.next) __builtin_prefetch(column.next + c * V::size, 0, 2);
        const V x = column.logit(c), difference = x - shift;
        const V exp_x = exp_of<Element>(difference);
        if (keep) store(column.x + c * V::size, exp_x);
        V coef = column.spread_at(c, x);
        if constexpr (soft) {
          coef = soft_coef(coef, column.target_at(c, terms.kappa), terms.beta);
          mass = mass + coef;
        }
        part = add(part, {shift, exp_x, plain ? difference : weighted(coef, difference)});
      }
      sum_exp.add(part.sum_exp);
      coef_dot.add(plain ? V(column.uniform) * part.spread_dot : part.spread_dot);
      if (soft) coef_sum.add(mass);
    }
    return {{shift, sum_exp.value(), coef_dot.value()}, coef_sum.value()};
  }

  // The sum of v_c (x_c - point) over the other classes.
  V spread_dot_without(Index target, V point) const {
    return sum_over_classes([&](int64_t c) {
      const V x = logit(c), coef = spread_at(c, x);
      return select(target == static_cast<Integer>(c), V(T(0)), weighted(coef, x - point));
    });
  }

  // The class of the first largest logit, or of the first NaN.
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
    return begin + few_vectors < classes ? begin + few_vectors : classes;
  }
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
