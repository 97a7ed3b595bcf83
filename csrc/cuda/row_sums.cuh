// What the classes of a row, or a part of it, are summed up to.
#pragma once

#include "element.cuh"

namespace labelsmooth::cuda {

// The largest logit of a part of a row, and the first class that has it. NaN is larger than all.
template <class T>
struct Best {
  T value;
  int64_t index;
};

template <class T>
__device__ Best<T> combine(const Best<T>& a, const Best<T>& b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  const bool larger = a_nan ? false : b_nan || b.value > a.value;
  const bool same = a_nan ? b_nan : a.value == b.value;
  return larger || (same && b.index < a.index) ? b : a;
}

// What the target adds, where it is not one class.
template <class T>
struct TargetSums {
  T dot;       // sum_c w_c t_c (x_c - reference)
  T coef;      // sum_c w_c t_c
  T prob;      // sum_c t_c
  T prob_dot;  // sum_c t_c (x_c - reference)
  T entropy;   // what it changes in the entropy of the smoothing
};

template <class T>
__device__ TargetSums<T> combine(const TargetSums<T>& a, const TargetSums<T>& b) {
  return {a.dot + b.dot, a.coef + b.coef, a.prob + b.prob, a.prob_dot + b.prob_dot,
          a.entropy + b.entropy};
}

template <class T>
__device__ ClassSums<T> combine(const ClassSums<T>& a, const ClassSums<T>& b) {
  return {a.coef + b.coef, a.coef_log + b.coef_log, a.prior + b.prior};
}

// What adds nothing.
__device__ inline void make_empty(RowStats<float>& stats) { stats = empty_stats<float>(); }
__device__ inline void make_empty(RowStats<double>& stats) { stats = empty_stats<double>(); }
template <class T>
__device__ void make_empty(Best<T>& best) {
  best = {-infinity<T>(), INT64_MAX};
}
template <class T>
__device__ void make_empty(TargetSums<T>& sums) {
  sums = {T(0), T(0), T(0), T(0), T(0)};
}
template <class T>
__device__ void make_empty(ClassSums<T>& sums) {
  sums = {T(0), T(0), T(0)};
}
template <class Sums>
__device__ Sums empty() {
  Sums sums;
  make_empty(sums);
  return sums;
}

template <class T, bool soft>
struct RowSums {
  RowStats<T> stats = empty<RowStats<T>>();
  Best<T> best = empty<Best<T>>();  // where the argmax is wanted
};
template <class T>
struct RowSums<T, true> : RowSums<T, false> {
  TargetSums<T> target = empty<TargetSums<T>>();
  ClassSums<T> unmasked = empty<ClassSums<T>>();  // where only those are smoothed over
};

template <class T, bool soft>
__device__ RowSums<T, soft> combine(const RowSums<T, soft>& a, const RowSums<T, soft>& b) {
  RowSums<T, soft> sums;
  sums.stats = combine(a.stats, b.stats);
  sums.best = combine(a.best, b.best);
  if constexpr (soft) {
    sums.target = combine(a.target, b.target);
    sums.unmasked = combine(a.unmasked, b.unmasked);
  }
  return sums;
}

// What a call wants of them, beside what all calls do.
struct Wanted {
  bool best, unmasked;
};

// of(piece) for the pieces that are wanted.
template <class T, bool soft, class Of>
__device__ void for_pieces(RowSums<T, soft>& sums, const Wanted& wanted, const Of& of) {
  of(sums.stats);
  if (wanted.best) of(sums.best);
  if constexpr (soft) {
    of(sums.target);
    if (wanted.unmasked) of(sums.unmasked);
  }
}

}  // namespace labelsmooth::cuda
