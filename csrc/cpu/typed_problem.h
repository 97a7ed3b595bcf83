// A problem as the kernels for one dtype read it.
#pragma once

#include "../kernels.h"
#include "vec_memory.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// A buffer that is made when it is first needed, and grows.
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
        uniform(T(1) / static_cast<T>(problem.classes)),
        sums{T(problem.class_sums.coef), T(problem.class_sums.coef_log)},
        options{T(problem.options.label_smoothing), T(problem.options.lse_square_scale),
                T(problem.options.logit_scale),     T(problem.options.softcap),
                problem.options.over_others,        problem.options.kl_div,
                problem.options.from_log_probs},
        transformed(problem.options.logit_scale != 1 || problem.options.softcap > 0) {}

  T prior_of(int64_t c) const { return prior ? prior[c] : uniform; }
  T weight_of(int64_t c) const { return weight ? weight[c] : T(1); }
  T class_coef_of(int64_t c) const { return class_coef ? class_coef[c] : uniform; }

  bool ignored(int64_t row) const { return untyped.target[row] == untyped.ignore_index; }

  // What the gradient of a row is scaled by.
  T incoming(int64_t row) const {
    T scale = untyped.grad_loss
                  ? static_cast<const T*>(untyped.grad_loss)[row * untyped.grad_loss_stride]
                  : T(1);
    if (untyped.denominator) scale /= *static_cast<const T*>(untyped.denominator);
    return scale;
  }

  // The first class of a row.
  Element* row_of(const Matrix& matrix, int64_t row) const {
    Element* data = static_cast<Element*>(matrix.data);
    if (untyped.inner == 1) return data + row * matrix.outer_stride;
    return data + (row / untyped.inner) * matrix.outer_stride +
           (row % untyped.inner) * matrix.inner_stride;
  }

  const LossProblem& untyped;
  const int64_t classes;
  const T* const class_coef;
  const T* const weight;
  const T* const prior;
  const T uniform;  // 1/C
  const ClassSums<T> sums;
  const LossOptions<T> options;
  const bool transformed;  // the logits are scaled or capped
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
