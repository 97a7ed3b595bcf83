// The targets of a vector of rows, a lane a row.
#pragma once

#include "typed_problem.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

template <class T>
struct Targets {
  using V = Vec<T>;
  using Index = typename V::Mask;  // classes, in the lanes of V

  Index here;     // the one class, or -1: the row is ignored, or it is not one class of this part
  Index ignored;  // -1, else 0
  Index counts;   // 0 where the row is ignored or of weight 0, else -1
  Index invalid;  // -1 where the target is no class, else 0
  V prior, weight;

  V if_here(V value) const { return select(here < 0, V(T(0)), value); }
  V unless_ignored(V value) const { return select(ignored == 0, value, V(T(0))); }
  static LABELSMOOTH_HD V if_it_counts(V value, Index counts) {
    return V(bit_cast<typename V::Lanes>(bit_cast<Index>(value.lanes) & counts));
  }
  LABELSMOOTH_HD V if_it_counts(V value) const { return if_it_counts(value, counts); }

  // Row by row: at(row, class) where its one class is here, else 0; and use(row, class, value).
  template <class At>
  LABELSMOOTH_HD V gather(const At& at) const {
    T values[V::size];
    const auto classes = bit_cast<Rows>(here);
    for (int i = 0; i < V::size; ++i) values[i] = classes.of[i] < 0 ? T(0) : at(i, classes.of[i]);
    return load(values);
  }
  template <class Use>
  LABELSMOOTH_HD void scatter(V x, const Use& use) const {
    T values[V::size];
    store(values, x);
    const auto classes = bit_cast<Rows>(here);
    for (int i = 0; i < V::size; ++i)
      if (classes.of[i] >= 0) use(i, classes.of[i], values[i]);
  }

 private:
  struct Rows {
    std::conditional_t<sizeof(T) == 4, int32_t, int64_t> of[V::size];
  };
};

// Of targets that are one class.
template <class T>
struct OneClass {
  using V = Vec<T>;
  V logit;
  TargetTerms<V> terms;

  typename V::Mask infinite() const { return ~(logit - logit == V(T(0))); }
};

// `count` values in the accumulate dtype, one a row.
template <class T>
LABELSMOOTH_HD Vec<T> load_rows(const void* values, int64_t row, int64_t count) {
  return load_as<T>(static_cast<const T*>(values) + row, count);
}
template <class T>
LABELSMOOTH_HD void save_rows(void* values, int64_t row, int64_t count, Vec<T> x) {
  store_first(static_cast<T*>(values) + row, x, count);
}

// What forward leaves of the rows for a backward call.
template <class T>
LABELSMOOTH_HD void save_row_stats(const LossProblem& problem, int64_t row, int64_t count,
                                   const RowStats<Vec<T>>& stats, const RowTerms<Vec<T>>& terms) {
  save_rows<T>(problem.row_shift, row, count, stats.shift);
  save_rows<T>(problem.row_sum_exp, row, count, stats.sum_exp);
  save_rows<T>(problem.row_mass, row, count, terms.mass);
  save_rows<T>(problem.row_beta, row, count, terms.beta);
}

// The k-th classes of the rows' targets; those behind the last row are ignored.
template <class Element>
struct TargetClasses {
  static constexpr int size = VecOf<Element>::size;
  Native<int64_t, size> lanes;

  LABELSMOOTH_HD TargetClasses(const TypedProblem<Element>& problem, int64_t row, int64_t count,
                               int64_t k) {
    if (problem.untyped.target_classes == 1 && count == size) {
      std::memcpy(&lanes, problem.untyped.target + row, sizeof(lanes));
    } else {
      lanes = decltype(lanes){} + problem.untyped.ignore_index;
      for (int64_t i = 0; i < count; ++i) lanes[i] = problem.target_of(row + i, k);
    }
  }
};

// soft: probabilities, of all classes or of a few.
template <bool soft, class Element>
LABELSMOOTH_HD Targets<typename TypedProblem<Element>::T> targets_of(
    const TypedProblem<Element>& problem, int64_t row, int64_t count) {
  using T = typename TypedProblem<Element>::T;
  using V = Vec<T>;
  using Index = typename V::Mask;
  const LossProblem& untyped = problem.untyped;
  Targets<T> targets;
  targets.here = targets.ignored = Index{} - 1;
  targets.invalid = Index{};
  targets.prior = V(problem.uniform), targets.weight = V(T(1));
  for (int64_t k = 0; untyped.target && k < untyped.target_classes; ++k) {
    const auto y = TargetClasses<Element>(problem, row, count, k).lanes;
    const auto c = y - untyped.class_offset;
    const auto counts = y != untyped.ignore_index;
    const auto invalid = counts & ((y < 0) | (y >= untyped.all_classes));
    const auto here = counts & (c >= 0) & (c < problem.classes);
    targets.ignored &= ~__builtin_convertvector(counts, Index);
    targets.invalid |= __builtin_convertvector(invalid, Index);
    if (!soft) targets.here = __builtin_convertvector(here ? c : decltype(c){} - 1, Index);
  }
  if (!untyped.target) targets.ignored = Index{};
  targets.counts = ~targets.ignored;
  if (problem.row_weight) targets.counts &= load_rows<T>(problem.row_weight, row, count).lanes != 0;
  if (!soft && (problem.prior || problem.weight))
    for (int64_t i = 0; i < count; ++i) {
      if (targets.ignored[i] || targets.invalid[i]) continue;
      const int64_t c = problem.class_of(problem.target_of(row + i, 0));
      targets.prior.lanes[i] = problem.prior_of(c);
      targets.weight.lanes[i] = problem.weight_of(c);
    }
  return targets;
}

template <class Element>
LABELSMOOTH_HD VecOf<Element> row_weights(const TypedProblem<Element>& problem, int64_t row,
                                          int64_t count) {
  using T = typename TypedProblem<Element>::T;
  return problem.row_weight ? load_rows<T>(problem.row_weight, row, count) : Vec<T>(T(1));
}

// What the gradients of the rows are scaled by.
template <class Element>
LABELSMOOTH_HD VecOf<Element> incoming(const TypedProblem<Element>& problem, int64_t row,
                                       int64_t count) {
  VecOf<Element> scale(problem.incoming(row));
  if (problem.untyped.grad_loss_stride != 0 || problem.row_weight)
    for (int64_t i = 0; i < count; ++i) scale.lanes[i] = problem.incoming(row + i);
  return scale;
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
