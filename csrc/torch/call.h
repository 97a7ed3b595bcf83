// Tensors as a LossProblem: checked, converted, and the outputs allocated.
//
// Built against LibTorch's stable ABI. What a user may get wrong is checked in Python, with better
// words (_call/checks.py).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace labelsmooth {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    default: STD_TORCH_CHECK(false, "logits: expected float32, float64, bfloat16 or float16");
  }
}

inline ScalarType accumulate_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// (N, C) or (N, C, S)
inline Matrix matrix_of(const Tensor& tensor) {
  const bool spatial = tensor.dim() == 3;
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), spatial ? tensor.stride(2) : 0};
}

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// As adjacent elements of a dtype on the logits' device, which a kernel can point to.
inline std::optional<Tensor> converted(const std::optional<Tensor>& tensor, ScalarType type,
                                       const Tensor& logits) {
  if (!tensor) return std::nullopt;
  Tensor result = *tensor;
  if (result.scalar_type() != type) result = torch::stable::to(result, type);
  if (!on_one_device(result, logits)) result = torch::stable::to(result, logits.device());
  return result.is_contiguous() ? result : torch::stable::contiguous(result);
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->data_ptr() : nullptr;
}

inline int64_t rows_of(const Tensor& logits) {
  return logits.size(0) * (logits.dim() == 3 ? logits.size(2) : 1);
}

// What the kernels take for granted.
inline void check_shapes(const Tensor& logits, const Tensor& target,
                         const std::optional<Tensor>& weight, const std::optional<Tensor>& prior,
                         const std::optional<Tensor>& normalizer) {
  STD_TORCH_CHECK(logits.dim() == 2 || logits.dim() == 3, "logits: expected (N, C) or (N, C, S)");
  STD_TORCH_CHECK(logits.size(1) > 0, "logits: expected at least one class");
  if (target.scalar_type() == logits.scalar_type()) {
    bool same = target.dim() == logits.dim();
    for (int64_t d = 0; same && d < logits.dim(); ++d) same = target.size(d) == logits.size(d);
    STD_TORCH_CHECK(same, "target: expected the shape of the logits");
    STD_TORCH_CHECK(on_one_device(target, logits), "target: expected the device of the logits");
  } else {
    STD_TORCH_CHECK(target.numel() == rows_of(logits), "target: expected one class a row");
  }
  for (const auto& vector : {weight, prior})
    STD_TORCH_CHECK(!vector || (vector->dim() == 1 && vector->size(0) == logits.size(1)),
                    "weight, prior: expected shape (C,)");
  STD_TORCH_CHECK(!normalizer || normalizer->numel() == 1, "normalizer: expected one value");
}

// A problem made of tensors, with the buffers that it points to.
class Call {
 public:
  Call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
       const std::optional<Tensor>& prior, const std::optional<Tensor>& normalizer,
       Reduction reduction, int64_t ignore_index, const LossOptions<double>& options)
      : reduction_(reduction), logits_(logits) {
    check_shapes(logits, target, weight, prior, normalizer);
    problem_.dtype = dtype_of(logits);
    problem_.classes = logits.size(1);
    problem_.inner = logits.dim() == 3 ? logits.size(2) : 1;
    problem_.rows = rows_of(logits);
    problem_.logits = matrix_of(logits);
    problem_.ignore_index = ignore_index;
    problem_.options = options;

    const ScalarType type = accumulate_type(logits);
    weight_ = converted(weight, type, logits);
    prior_ = converted(prior, type, logits);
    if (reduction == Reduction::mean) normalizer_ = converted(normalizer, type, logits);
    problem_.weight = data_or_null(weight_);
    problem_.prior = data_or_null(prior_);
    if (target.scalar_type() == logits.scalar_type()) {
      problem_.target_probs = matrix_of(target);
    } else {
      target_ = converted(target, ScalarType::Long, logits);
      problem_.target = static_cast<const int64_t*>(target_->data_ptr());
    }
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void write_gradient_to(const Tensor& grad_logits) {
    problem_.grad_logits = matrix_of(grad_logits);
  }

 protected:
  // The row losses, row_stats and predicted, for the kernels to write.
  std::tuple<Tensor, Tensor, Tensor> make_outputs(bool with_stats) {
    std::vector<int64_t> shape = {logits_.size(0)};
    if (logits_.dim() == 3) shape.push_back(problem_.inner);
    const int64_t stats_shape[] = {with_stats ? 4 : 2, problem_.rows};
    const ScalarType type = accumulate_type(logits_);
    Tensor loss = torch::stable::new_empty(logits_, shape, type);
    Tensor row_stats = torch::stable::new_empty(logits_, stats_shape, type);
    if (!with_stats) shape = {0};
    Tensor predicted = torch::stable::new_empty(logits_, shape, ScalarType::Long);
    problem_.loss = loss.data_ptr();
    point_to(row_stats);
    if (with_stats) {
      problem_.lse = row_of(row_stats, 2);
      problem_.nll = row_of(row_stats, 3);
      problem_.predicted = static_cast<int64_t*>(predicted.data_ptr());
    }
    return {loss, row_stats, predicted};
  }

  void take_inputs(const Tensor& grad_loss, const Tensor& row_stats) {
    STD_TORCH_CHECK(row_stats.scalar_type() == accumulate_type(logits_) &&
                        on_one_device(row_stats, logits_) && row_stats.is_contiguous() &&
                        row_stats.numel() >= 2 * problem_.rows,
                    "row_stats: expected what forward returned");
    STD_TORCH_CHECK(grad_loss.numel() == (reduction_ == Reduction::none ? problem_.rows : 1),
                    "grad_loss: expected the shape of the loss");
    grad_loss_ = converted(grad_loss, accumulate_type(logits_), logits_);
    problem_.grad_loss = grad_loss_->data_ptr();
    problem_.grad_loss_stride = reduction_ == Reduction::none ? 1 : 0;
    point_to(row_stats);
  }

  LossProblem problem_;
  Reduction reduction_;
  Tensor logits_;
  std::optional<Tensor> weight_, prior_, target_, normalizer_, grad_loss_;

 private:
  void* row_of(const Tensor& row_stats, int64_t row) const {
    return static_cast<char*>(row_stats.data_ptr()) +
           row * problem_.rows * static_cast<int64_t>(row_stats.element_size());
  }
  void point_to(const Tensor& row_stats) {
    problem_.row_shift = row_of(row_stats, 0);
    problem_.row_sum_exp = row_of(row_stats, 1);
  }
};

}  // namespace labelsmooth
