// Tensors as a LossProblem: checked, converted, and the outputs allocated.
//
// Built against LibTorch's stable ABI. What a user may get wrong is checked in Python, with better
// words (_call/checks.py).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "new_tensor.h"

namespace labelsmooth {

using torch::headeronly::ScalarType;

inline bool is_floating_point(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half: return true;
    default: return false;
  }
}

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    default: STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
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

// Adjacent, of this dtype, on the logits' device.
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

inline bool same_shape(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

// What the kernels take for granted.
inline void check_shapes(const Tensor& logits, const Tensor& target,
                         const std::optional<Tensor>& target_probs,
                         const std::optional<Tensor>& weight, const std::optional<Tensor>& prior,
                         const std::optional<Tensor>& normalizer,
                         const std::optional<Tensor>& row_weight, int64_t class_offset,
                         int64_t all_classes) {
  STD_TORCH_CHECK(logits.dim() == 2 || logits.dim() == 3, "logits: expected (N, C) or (N, C, S)");
  STD_TORCH_CHECK(logits.size(1) > 0 && class_offset >= 0 && class_offset < all_classes,
                  "logits: expected at least one class");
  if (target_probs) {
    STD_TORCH_CHECK(same_shape(target, *target_probs) && target.dim() == logits.dim() &&
                        target.size(0) == logits.size(0) && target.size(1) > 0 &&
                        (target.dim() == 2 || target.size(2) == logits.size(2)),
                    "target, target_probs: expected (N, K) or (N, K, S)");
  } else if (is_floating_point(target)) {
    STD_TORCH_CHECK(same_shape(target, logits), "target: expected the shape of the logits");
    STD_TORCH_CHECK(on_one_device(target, logits), "target: expected the device of the logits");
  } else {
    STD_TORCH_CHECK(target.numel() == rows_of(logits), "target: expected one class a row");
  }
  STD_TORCH_CHECK(!row_weight || row_weight->numel() == rows_of(logits),
                  "row_weight: expected one value a row");
  for (const auto& vector : {weight, prior})
    STD_TORCH_CHECK(!vector || (vector->dim() == 1 && vector->size(0) == all_classes),
                    "weight, prior: expected shape (C,)");
  STD_TORCH_CHECK(!normalizer || normalizer->numel() == 1, "normalizer: expected one value");
}

// A problem, with the tensors that it points to.
class Call {
 public:
  Call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& target_probs,
       const std::optional<Tensor>& weight, const std::optional<Tensor>& prior,
       const std::optional<Tensor>& normalizer, const std::optional<Tensor>& row_weight,
       Reduction reduction, int64_t ignore_index, const LossOptions<double>& options,
       int64_t class_offset, int64_t all_classes)
      : reduction_(reduction), logits_(logits) {
    check_shapes(logits, target, target_probs, weight, prior, normalizer, row_weight, class_offset,
                 all_classes);
    problem_.dtype = dtype_of(logits);
    problem_.class_offset = class_offset;
    problem_.all_classes = all_classes;
    problem_.classes = std::min(logits.size(1), all_classes - class_offset);
    problem_.inner = logits.dim() == 3 ? logits.size(2) : 1;
    problem_.rows = rows_of(logits);
    problem_.logits = matrix_of(logits);
    problem_.ignore_index = ignore_index;
    problem_.options = options;
    problem_.options.lowest = lowest_of(problem_.dtype);

    const ScalarType type = accumulate_type(logits);
    weight_ = converted(weight, type, logits);
    prior_ = converted(prior, type, logits);
    if (reduction == Reduction::mean) normalizer_ = converted(normalizer, type, logits);
    problem_.weight = from_first_class(weight_);
    problem_.prior = from_first_class(prior_);
    row_weight_ = converted(row_weight, type, logits);
    problem_.row_weight = data_or_null(row_weight_);
    if (!target_probs && is_floating_point(target)) {
      problem_.target_probs = matrix_of(target);
      problem_.probs_dtype = dtype_of(target);
      return;
    }
    target_ = converted(target, ScalarType::Long, logits);
    problem_.target = static_cast<const int64_t*>(target_->data_ptr());
    if (target_probs) {
      target_probs_ = converted(target_probs, type, logits);
      problem_.sparse_probs = target_probs_->data_ptr();
      problem_.target_classes = target.size(1);
    }
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Columns behind the last class are padding, whose gradient is 0.
  void write_gradient_to(const Tensor& grad_logits) {
    problem_.grad_logits = matrix_of(grad_logits);
    const int64_t padding = grad_logits.size(1) - problem_.classes;
    if (padding == 0) return;
    Tensor columns = grad_logits;
    columns = torch::stable::narrow(columns, 1, problem_.classes, padding);
    torch::stable::zero_(columns);
  }

  // What this rank knows of the rows, (fields, N).
  Tensor make_parts(bool with_stats) {
    RowPart<double> part = {};
    const int fields = for_fields(part, problem_.options, with_stats, [](int, const double&) {});
    const int64_t shape[] = {fields, problem_.rows};
    Tensor parts = torch::stable::new_empty(logits_, shape, accumulate_type(logits_));
    problem_.parts = parts.data_ptr();
    problem_.with_stats = with_stats;
    return parts;
  }

  // That of all ranks, (ranks, fields, N).
  void take_parts(const Tensor& parts) {
    const int64_t rows = problem_.rows;
    STD_TORCH_CHECK(parts.scalar_type() == accumulate_type(logits_) && parts.dim() == 3 &&
                        parts.size(2) == rows && on_one_device(parts, logits_) &&
                        (rows == 0 || (parts.stride(1) == rows && parts.stride(2) == 1)),
                    "parts: expected those of all ranks");
    problem_.ranks_parts = parts.data_ptr();
    problem_.ranks = parts.size(0);
    problem_.rank_stride = parts.stride(0);
  }

 protected:
  // The row losses, row_stats and predicted, for the kernels to write.
  std::tuple<Tensor, Tensor, Tensor> make_outputs(bool with_stats) {
    std::vector<int64_t> shape = {logits_.size(0)};
    if (logits_.dim() == 3) shape.push_back(problem_.inner);
    const int64_t stats_shape[] = {with_stats ? 6 : 4, problem_.rows};
    const ScalarType type = accumulate_type(logits_);
    Tensor loss = torch::stable::new_empty(logits_, shape, type);
    Tensor row_stats = new_tensor(loss, stats_shape);
    if (!with_stats) shape = {0};
    Tensor predicted = torch::stable::new_empty(logits_, shape, ScalarType::Long);
    problem_.loss = loss.data_ptr();
    problem_.with_stats = with_stats;
    point_to(row_stats);
    if (with_stats) {
      problem_.lse = row_of(row_stats, 4);
      problem_.nll = row_of(row_stats, 5);
      problem_.predicted = static_cast<int64_t*>(predicted.data_ptr());
    }
    return {loss, row_stats, predicted};
  }

  void take_inputs(const Tensor& grad_loss, const Tensor& row_stats) {
    STD_TORCH_CHECK(row_stats.scalar_type() == accumulate_type(logits_) &&
                        on_one_device(row_stats, logits_) && row_stats.is_contiguous() &&
                        row_stats.numel() >= 4 * problem_.rows,
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
  std::optional<Tensor> weight_, prior_, target_, target_probs_, normalizer_, row_weight_,
      grad_loss_;

 private:
  const void* from_first_class(const std::optional<Tensor>& vector) const {
    if (!vector) return nullptr;
    return static_cast<const char*>(vector->data_ptr()) +
           problem_.class_offset * static_cast<int64_t>(vector->element_size());
  }
  void* row_of(const Tensor& row_stats, int64_t row) const {
    return static_cast<char*>(row_stats.data_ptr()) +
           row * problem_.rows * static_cast<int64_t>(row_stats.element_size());
  }
  void point_to(const Tensor& row_stats) {
    problem_.row_shift = row_of(row_stats, 0);
    problem_.row_sum_exp = row_of(row_stats, 1);
    problem_.row_mass = row_of(row_stats, 2);
    problem_.row_beta = row_of(row_stats, 3);
  }
};

}  // namespace labelsmooth
