// A problem as the kernels for one dtype read it.
#pragma once

#include "vec_memory.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

LABELSMOOTH_HD int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Made when it is first needed; grows.
template <class T>
class Buffer {
 public:
  Buffer() {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  T* get(int64_t size) {
    if (size > size_) {
      std::free(data_);
      data_ = static_cast<T*>(std::malloc(static_cast<size_t>(size) * sizeof(T)));
      if (!data_) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

template <class Element>
class TypedProblem {
 public:
  using T = typename Accumulate<Element>::type;

  explicit TypedProblem(const LossProblem& problem)
      : untyped(problem),
        classes(problem.classes),
        class_coef(static_cast<const T*>(problem.class_coef)),
        weight(static_cast<const T*>(problem.weight)),
        prior(static_cast<const T*>(problem.prior)),
        row_weight(static_cast<const T*>(problem.row_weight)),
        uniform(T(1) / static_cast<T>(problem.all_classes)),
        sums{T(problem.class_sums.coef), T(problem.class_sums.coef_log), T(1)},
        options(typed_options<T>(problem.options)),
        transformed(problem.options.logit_scale != 1 || problem.options.softcap > 0) {}

  // Classes are counted from this part's first on: those that targets name may be in other parts.
  int64_t class_of(int64_t y) const { return y - untyped.class_offset; }
  bool is_here(int64_t c) const { return c >= 0 && c < classes; }

  T prior_of(int64_t c) const { return prior ? prior[c] : uniform; }
  T weight_of(int64_t c) const { return weight ? weight[c] : T(1); }
  T class_coef_of(int64_t c) const { return class_coef ? class_coef[c] : uniform; }

  T row_weight_of(int64_t row) const { return row_weight ? row_weight[row] : T(1); }
  T& at(void* rows, int64_t row) const { return static_cast<T*>(rows)[row]; }

  // The k-th class of a row's target, as named, and its t_c.
  int64_t target_of(int64_t row, int64_t k) const {
    return untyped.target[entry_of(untyped, row, k)];
  }
  T target_prob_of(int64_t row, int64_t k) const {
    if (!untyped.sparse_probs) return T(1);
    return static_cast<const T*>(untyped.sparse_probs)[entry_of(untyped, row, k)];
  }

  // What the gradient of a row is scaled by.
  T incoming(int64_t row) const {
    T scale = untyped.grad_loss
                  ? static_cast<const T*>(untyped.grad_loss)[row * untyped.grad_loss_stride]
                  : T(1);
    if (untyped.denominator) scale /= *static_cast<const T*>(untyped.denominator);
    return scale * row_weight_of(row);
  }

  // Where the first class of a row lies.
  int64_t offset_of(const Matrix& matrix, int64_t row) const {
    if (untyped.inner == 1) return row * matrix.outer_stride;
    return (row / untyped.inner) * matrix.outer_stride +
           (row % untyped.inner) * matrix.inner_stride;
  }
  Element* row_of(const Matrix& matrix, int64_t row) const {
    return static_cast<Element*>(matrix.data) + offset_of(matrix, row);
  }

  const LossProblem& untyped;
  const int64_t classes;
  const T* const class_coef;
  const T* const weight;
  const T* const prior;
  const T* const row_weight;
  const T uniform;  // 1/C
  const ClassSums<T> sums;
  const LossOptions<T> options;
  const bool transformed;  // the logits are scaled or capped
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
