// What the classes of a row, or a part of it, are summed up to.
#pragma once

#include <cstdint>

#include "powers.cuh"

namespace labelsmooth::cuda {

// From a largest logit that all who add them up share.
template <class T>
struct Totals {
  T exp;         // of Powers(finite_or_zero(largest))
  T spread_dot;  // sum_c v_c (x_c - reference)
};

template <class T>
__device__ Totals<T> combine(const Totals<T>& a, const Totals<T>& b) {
  return {a.exp + b.exp, a.spread_dot + b.spread_dot};
}

// The first class of the largest logit; a NaN is larger than all.
struct Best {
  static constexpr int64_t none = INT64_MAX, nan = INT64_MIN / 2;
  int64_t key;

  __device__ bool is_nan() const { return key < 0; }
  __device__ int64_t index() const { return is_nan() ? key - nan : key; }
};

__device__ inline Best combine(const Best& a, const Best& b) { return {min(a.key, b.key)}; }

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
template <class T>
__device__ void make_empty(Totals<T>& totals) {
  totals = {T(0), T(0)};
}
__device__ inline void make_empty(Best& best) { best = {Best::none}; }
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
  T largest = -infinity<T>();
  Totals<T> totals = empty<Totals<T>>();
  Best best = empty<Best>();  // where the argmax is wanted

  __device__ Powers<T> powers() const { return Powers<T>(finite_or_zero(largest)); }
  // Sums are then from this logit, if it is larger.
  __device__ void raise(T x) {
    if (x > largest && !best.is_nan()) best = empty<Best>();
    const Powers<T> before = powers();
    largest = max(largest, x);
    if (totals.exp != T(0)) totals.exp *= powers().from(before);
  }
};
template <class T>
struct RowSums<T, true> : RowSums<T, false> {
  TargetSums<T> target = empty<TargetSums<T>>();
  ClassSums<T> unmasked = empty<ClassSums<T>>();  // where only those are smoothed over
};

template <class T, bool soft>
__device__ RowSums<T, soft> combine(RowSums<T, soft> a, RowSums<T, soft> b) {
  a.raise(b.largest);
  b.raise(a.largest);
  a.totals = combine(a.totals, b.totals);
  a.best = combine(a.best, b.best);
  if constexpr (soft) {
    a.target = combine(a.target, b.target);
    a.unmasked = combine(a.unmasked, b.unmasked);
  }
  return a;
}

// Pieces that not all calls want.
struct Wanted {
  bool best, unmasked;
};

// of(piece) for those wanted.
template <class T, bool soft, class Of>
__device__ void for_pieces(RowSums<T, soft>& sums, const Wanted& wanted, const Of& of) {
  of(sums.totals);
  if (wanted.best) of(sums.best);
  if constexpr (soft) {
    of(sums.target);
    if (wanted.unmasked) of(sums.unmasked);
  }
}

}  // namespace labelsmooth::cuda
