// A call as the kernels take it: a LossProblem with its types.
#pragma once

#include "../kernels.h"
#include "row_sums.cuh"
#include "span.cuh"

namespace labelsmooth::cuda {

// What the classes of a row's target make of the row.
struct Standing {
  int64_t first = -1;    // the first class that counts, of all
  bool ignored = true;   // no class counts
  bool invalid = false;  // one is no class

  __device__ void see(int64_t y, int64_t ignore_index, int64_t all_classes) {
    if (y == ignore_index) return;
    ignored = false;
    invalid = invalid || y < 0 || y >= all_classes;
    if (first < 0) first = y;
  }
};

// The classes of the rows' targets, which lie as entry_of says.
struct TargetClasses {
  const int64_t* data;  // nullptr: the targets are probabilities of all classes
  int64_t target_classes, inner;
  int64_t ignore_index, all_classes;

  __device__ Standing standing(int64_t row) const {
    if (!data) return {0, false, false};
    Standing standing;
    const int64_t* entries = data + entry_of(*this, row, 0);
    for (int64_t k = 0; k < target_classes; ++k)
      standing.see(entries[k * inner], ignore_index, all_classes);
    return standing;
  }
  // Whether a row of this one class counts.
  __device__ bool counts(int64_t y) const { return y != ignore_index && y >= 0 && y < all_classes; }
};

// Classes are counted from this part's first on; targets may name those of other parts.
template <class Element>
struct Problem {
  using T = typename Accumulate<Element>::type;

  int64_t rows, classes, inner;
  int64_t class_offset;
  Matrix logits, grad_logits, target_probs;
  DType probs_dtype;
  int probs_bytes;  // of one
  TargetClasses target;
  const T* sparse_probs;  // nullptr: 1
  const T* row_weight;    // nullptr: 1
  const T *weight, *prior, *class_coef;
  const ClassSums<double>* class_sums;  // nullptr: those of the uniform prior
  T uniform;                            // 1/C
  T share;                              // of all classes, those of this part
  LossOptions<T> options;
  bool transformed;  // the logits are scaled or capped
  const T* grad_loss;
  int64_t grad_loss_stride;
  const T* denominator;  // nullptr: 1
  bool counts_rows;      // the denominator is how many rows count: see denominator.cuh
  T* parts;
  bool with_stats;
  T *loss, *row_shift, *row_sum_exp, *row_mass, *row_beta, *lse, *nll;
  int64_t* predicted;

  // Of the row's class 0, in elements.
  __device__ int64_t offset_of(const Matrix& matrix, int64_t row) const {
    if (inner == 1) return row * matrix.outer_stride;
    return (row / inner) * matrix.outer_stride + (row % inner) * matrix.inner_stride;
  }
  __device__ Element* row_of(const Matrix& matrix, int64_t row) const {
    return static_cast<Element*>(matrix.data) + offset_of(matrix, row);
  }
  __device__ int64_t class_of(int64_t y) const { return y - class_offset; }
  __device__ bool is_here(int64_t c) const { return c >= 0 && c < classes; }
  __device__ bool makes_sums() const { return loss || parts; }

  __device__ T row_weight_of(int64_t row) const { return row_weight ? row_weight[row] : T(1); }
  __device__ T weight_of(int64_t c) const { return weight ? weight[c] : T(1); }
  __device__ T prior_of(int64_t c) const { return prior ? prior[c] : uniform; }
  __device__ ClassSums<T> sums() const {
    if (class_sums) return {T(class_sums->coef), T(class_sums->coef_log), T(1)};
    return {share, share * log(uniform), T(1)};
  }
  template <Kind kind>
  __device__ Wanted wanted() const {
    return {counts_stats<kind>(), options.over_unmasked()};
  }

  // ---- what a plain call has not ----------------------------------------------------------------

  template <Kind kind>
  __device__ bool counts_stats() const {
    return kind != Kind::plain && with_stats;
  }
  template <Kind kind>
  __device__ bool transforms() const {
    return kind != Kind::plain && transformed;
  }
  // Whether the largest logit is that of the smallest one given.
  template <Kind kind>
  __device__ bool reverses() const {
    return transforms<kind>() && options.logit_scale < 0;
  }
  // Whether v_c is 1/C for all classes of all rows.
  template <Kind kind>
  __device__ bool spreads_evenly() const {
    return kind == Kind::plain || (!class_coef && !(kind == Kind::soft && options.over_unmasked()));
  }

  __device__ T transformed_logit(T x0) const {
    return transform_logit(x0, options, tanh_of<Element, T>);
  }

  // ---- chunks of a row, from class `first` on, whose places [begin, end) are inside it ----------

  static constexpr int size = Chunk<Element>::size;

  template <Kind kind>
  __device__ void load_logits(T (&x)[size], const Packed<Element>& given) const {
    widen(x, given);
    if (!transforms<kind>()) return;
    if (options.softcap > 0) {
#pragma unroll
      for (int i = 0; i < size; ++i) x[i] = capped_logit(x[i], options, tanh_of<Element, T>);
    } else {
#pragma unroll
      for (int i = 0; i < size; ++i) x[i] = scaled_logit(x[i], options);
    }
  }
  template <Kind kind>
  __device__ void multiply_by_slopes(T (&values)[size], const T (&x)[size]) const {
    if (!transforms<kind>()) return;
    if (options.softcap > 0) {
#pragma unroll
      for (int i = 0; i < size; ++i) values[i] *= capped_slope(x[i], options);
    } else {
#pragma unroll
      for (int i = 0; i < size; ++i) values[i] *= T(options.logit_scale);
    }
  }

  // v_c.
  template <Kind kind>
  __device__ void load_spread(T (&coef)[size], const Packed<Element>& given, int64_t first,
                              int begin, int end) const {
    load_classes(coef, class_coef, uniform, first, begin, end);
    if constexpr (kind == Kind::soft) {
      if (!options.over_unmasked()) return;
      T x0[size];
      widen(x0, given);
#pragma unroll
      for (int i = 0; i < size; ++i) coef[i] = unless_masked(coef[i], x0[i], options);
    }
  }
  // kappa w_c t_c.
  __device__ void load_target(T (&coef)[size], const T (&probs)[size], T kappa, int64_t first,
                              int begin, int end) const {
#pragma unroll
    for (int i = 0; i < size; ++i) coef[i] = kappa * probs[i];
    if (!weight) return;
    T of_class[size];
    load_classes(of_class, weight, T(1), first, begin, end);
#pragma unroll
    for (int i = 0; i < size; ++i) coef[i] = weighted(coef[i], of_class[i]);
  }
};

}  // namespace labelsmooth::cuda
