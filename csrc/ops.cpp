// The only file that sees torch: checks what the kernels rely on, allocates, runs the kernels,
// registers the operators.
//
// Built against LibTorch's stable ABI and Python's limited API, so that one binary serves every
// torch from 2.10 on and every Python from 3.10 on. What a user may get wrong is checked in Python,
// with better words (functional.py).
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace labelsmooth {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- tensors as the kernels see them ------------------------------------------------------------

DType dtype_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    default: STD_TORCH_CHECK(false, "logits: expected float32, float64, bfloat16 or float16");
  }
}

ScalarType accumulate_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// (N, C) or (N, C, S)
Matrix matrix_of(const Tensor& tensor) {
  const bool spatial = tensor.dim() == 3;
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), spatial ? tensor.stride(2) : 0};
}

// As one vector or scalar of the accumulate dtype that a kernel can point to.
std::optional<Tensor> converted(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, type));
}

const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->data_ptr() : nullptr;
}

// Large tensors on huge pages: most of the time that a fresh N x C tensor costs goes into its page
// faults.
void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t huge_page = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const auto end = begin + static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  const uintptr_t first = (begin + huge_page - 1) & ~(huge_page - 1);
  if (end > first + huge_page) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

// ---- one call -----------------------------------------------------------------------------------

enum class Reduction : int64_t { none, mean, sum };

// What all operators take, in the schema's order.
#define LABELSMOOTH_OPTIONS_SCHEMA                                                             \
  "Tensor? weight, Tensor? prior, Tensor? normalizer, int ignore_index, int reduction, float " \
  "label_smoothing, "                                                                          \
  "bool over_others, bool kl_div, bool from_log_probs, float lse_square_scale, float "         \
  "logit_scale, float softcap"
#define LABELSMOOTH_OPTIONS                                                                    \
  std::optional<Tensor> weight, std::optional<Tensor> prior, std::optional<Tensor> normalizer, \
      int64_t ignore_index, int64_t reduction, double label_smoothing, bool over_others,       \
      bool kl_div, bool from_log_probs, double lse_square_scale, double logit_scale,           \
      double softcap
#define LABELSMOOTH_OPTIONS_FORWARDED                                                            \
  weight, prior, normalizer, static_cast<Reduction>(reduction), ignore_index,                    \
      LossOptions<double> {                                                                      \
    label_smoothing, lse_square_scale, logit_scale, softcap, over_others, kl_div, from_log_probs \
  }

int64_t rows_of(const Tensor& logits) {
  return logits.size(0) * (logits.dim() == 3 ? logits.size(2) : 1);
}

// What the kernels take for granted.
void check_shapes(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& prior, const std::optional<Tensor>& normalizer) {
  STD_TORCH_CHECK(logits.dim() == 2 || logits.dim() == 3, "logits: expected (N, C) or (N, C, S)");
  STD_TORCH_CHECK(logits.size(1) > 0, "logits: expected at least one class");
  if (target.scalar_type() == logits.scalar_type()) {
    bool same = target.dim() == logits.dim();
    for (int64_t d = 0; same && d < logits.dim(); ++d) same = target.size(d) == logits.size(d);
    STD_TORCH_CHECK(same, "target: expected the shape of the logits");
  } else {
    STD_TORCH_CHECK(target.numel() == rows_of(logits), "target: expected one class a row");
  }
  for (const auto& vector : {weight, prior})
    STD_TORCH_CHECK(!vector || (vector->dim() == 1 && vector->size(0) == logits.size(1)),
                    "weight, prior: expected shape (C,)");
  STD_TORCH_CHECK(!normalizer || (normalizer->numel() == 1 && normalizer->is_cpu()),
                  "normalizer: expected one value on the CPU");
}

// A problem for the CPU kernels, with the buffers that it points to.
template <class T>
class CpuCall {
 public:
  CpuCall(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
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
    weight_ = converted(weight, type);
    prior_ = converted(prior, type);
    problem_.weight = data_or_null(weight_);
    problem_.prior = data_or_null(prior_);
    if (weight_ || prior_) make_class_coef();
    if (!prior_)
      problem_.class_sums.coef_log =
          -std::log(static_cast<double>(problem_.classes)) * problem_.class_sums.coef;

    const bool probabilities = target.scalar_type() == logits.scalar_type();
    if (probabilities) {
      problem_.target_probs = matrix_of(target);
    } else {
      target_ = torch::stable::contiguous(torch::stable::to(target, ScalarType::Long));
      problem_.target = static_cast<const int64_t*>(target_->data_ptr());
    }
    const double target_weight =
        probabilities ? static_cast<double>(problem_.rows) : sum_target_weights();
    if (reduction == Reduction::mean) {
      normalizer_ = converted(normalizer, type);
      denominator_ = normalizer_ ? *static_cast<const T*>(normalizer_->data_ptr())
                                 : static_cast<T>(target_weight);
      problem_.denominator = &denominator_;
    }
  }
  CpuCall(const CpuCall&) = delete;
  CpuCall& operator=(const CpuCall&) = delete;

  void write_gradient_to(const Tensor& grad_logits) {
    problem_.grad_logits = matrix_of(grad_logits);
  }

  std::tuple<Tensor, Tensor, Tensor> forward(bool with_stats) {
    std::vector<int64_t> shape = {logits_.size(0)};
    if (logits_.dim() == 3) shape.push_back(problem_.inner);
    const ScalarType type = accumulate_type(logits_);
    const int64_t stats_shape[] = {with_stats ? 4 : 2, problem_.rows};
    Tensor loss = torch::stable::new_empty(logits_, shape, type);
    Tensor row_stats = torch::stable::new_empty(logits_, stats_shape, type);
    const int64_t none = 0;
    Tensor predicted = with_stats ? torch::stable::new_empty(logits_, shape, ScalarType::Long)
                                  : torch::stable::new_empty(logits_, {&none, 1}, ScalarType::Long);
    T* stats = static_cast<T*>(row_stats.data_ptr());
    problem_.loss = loss.data_ptr();
    problem_.row_shift = stats;
    problem_.row_sum_exp = stats + problem_.rows;
    if (with_stats) {
      problem_.lse = stats + 2 * problem_.rows;
      problem_.nll = stats + 3 * problem_.rows;
      problem_.predicted = static_cast<int64_t*>(predicted.data_ptr());
    }
    run();
    return {reduction_ == Reduction::none ? loss : reduced(loss), row_stats, predicted};
  }

  void backward(const Tensor& grad_loss, const Tensor& row_stats) {
    STD_TORCH_CHECK(row_stats.scalar_type() == accumulate_type(logits_) &&
                        row_stats.is_contiguous() && row_stats.numel() >= 2 * problem_.rows,
                    "row_stats: expected what forward returned");
    STD_TORCH_CHECK(grad_loss.numel() == (reduction_ == Reduction::none ? problem_.rows : 1),
                    "grad_loss: expected the shape of the loss");
    const Tensor grad =
        torch::stable::contiguous(torch::stable::to(grad_loss, accumulate_type(logits_)));
    T* stats = static_cast<T*>(row_stats.data_ptr());
    problem_.row_shift = stats;
    problem_.row_sum_exp = stats + problem_.rows;
    problem_.grad_loss = grad.data_ptr();
    problem_.grad_loss_stride = reduction_ == Reduction::none ? 1 : 0;
    run();
  }

 private:
  // v_c = w_c u_c and its sums, in the order of the classes whatever the number of threads.
  void make_class_coef() {
    const int64_t classes = problem_.classes;
    const T* weight = static_cast<const T*>(problem_.weight);
    const T* prior = static_cast<const T*>(problem_.prior);
    class_coef_.resize(static_cast<size_t>(classes));
    double sum = 0, sum_log = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const T u = prior ? prior[c] : T(1) / static_cast<T>(classes);
      const T v = weight ? weight[c] * u : u;
      class_coef_[static_cast<size_t>(c)] = v;
      sum += v;
      if (prior && problem_.options.kl_div && u > 0)
        sum_log += v * std::log(static_cast<double>(u));
    }
    problem_.class_coef = class_coef_.data();
    problem_.class_sums = {sum, sum_log};
  }

  // The sum of w_y over the rows that count; throws where a target is no class.
  double sum_target_weights() const {
    const T* weight = static_cast<const T*>(problem_.weight);
    double sum = 0;
    int64_t count = 0;
    for (int64_t row = 0; row < problem_.rows; ++row) {
      const int64_t y = problem_.target[row];
      if (y == problem_.ignore_index) continue;
      STD_TORCH_CHECK(y >= 0 && y < problem_.classes, "<IndexError>target of row ", row, " is ", y,
                      ": expected a class in [0, ", problem_.classes,
                      ") or ignore_index = ", problem_.ignore_index, "</IndexError>");
      ++count;
      if (weight) sum += weight[y];
    }
    return weight ? sum : static_cast<double>(count);
  }

  void run() const {
    constexpr int64_t elements_a_thread = 32768;
    const int64_t grain =
        std::max<int64_t>(1, elements_a_thread / std::max<int64_t>(1, problem_.classes));
    torch::stable::parallel_for(0, problem_.rows, grain, [this](int64_t begin, int64_t end) {
      cpu::process_rows(problem_, begin, end);
    });
  }

  // The rows' losses summed in their order, so that the result does not depend on the number of
  // threads.
  Tensor reduced(const Tensor& row_loss) const {
    const T* losses = static_cast<const T*>(row_loss.data_ptr());
    double sum = 0;
    for (int64_t row = 0; row < problem_.rows; ++row) sum += losses[row];
    Tensor loss = torch::stable::new_empty(row_loss, {});
    *static_cast<T*>(loss.data_ptr()) = static_cast<T>(
        reduction_ == Reduction::mean ? sum / static_cast<double>(denominator_) : sum);
    return loss;
  }

  LossProblem problem_;
  Reduction reduction_;
  Tensor logits_;
  std::optional<Tensor> weight_, prior_, target_, normalizer_;
  std::vector<T> class_coef_;
  T denominator_ = 1;
};

// run(CpuCall<double>&) or run(CpuCall<float>&)
template <class Run, class... Arguments>
auto with_cpu_call(Run run, const Tensor& logits, Arguments&&... arguments) {
  if (logits.scalar_type() == ScalarType::Double) {
    CpuCall<double> call(logits, std::forward<Arguments>(arguments)...);
    return run(call);
  }
  CpuCall<float> call(logits, std::forward<Arguments>(arguments)...);
  return run(call);
}

// ---- operators ----------------------------------------------------------------------------------

Tensor new_gradient(const Tensor& logits) {
  Tensor grad_logits = torch::stable::empty_like(logits);
  advise_huge_pages(grad_logits);
  return grad_logits;
}

// Returns loss, row_stats, predicted and the gradient, if it is wanted: `loss` (), or (N,) for
// "none"; `row_stats` (2, N) shift and sum of exponentials, with_stats (4, N) the lse and nll
// too; `predicted` (N,) with_stats.
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_cpu(Tensor logits, Tensor target,
                                                       LABELSMOOTH_OPTIONS, bool with_grad,
                                                       bool with_stats) {
  const auto run = [&](auto& call) {
    const int64_t none = 0;
    Tensor grad_logits =
        with_grad ? new_gradient(logits) : torch::stable::new_empty(logits, {&none, 1});
    if (with_grad) call.write_gradient_to(grad_logits);
    return std::tuple_cat(call.forward(with_stats), std::make_tuple(grad_logits));
  };
  return with_cpu_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

// The gradient overwrites the logits.
std::tuple<Tensor, Tensor, Tensor> forward_inplace_cpu(Tensor logits, Tensor target,
                                                       LABELSMOOTH_OPTIONS, bool with_stats) {
  const auto run = [&](auto& call) {
    call.write_gradient_to(logits);
    return call.forward(with_stats);
  };
  return with_cpu_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

Tensor backward_cpu(Tensor grad_loss, Tensor logits, Tensor target, Tensor row_stats,
                    LABELSMOOTH_OPTIONS) {
  const auto run = [&](auto& call) {
    Tensor grad_logits = new_gradient(logits);
    call.write_gradient_to(grad_logits);
    call.backward(grad_loss, row_stats);
    return grad_logits;
  };
  return with_cpu_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

void backward_inplace_cpu(Tensor grad_loss, Tensor logits, Tensor target, Tensor row_stats,
                          LABELSMOOTH_OPTIONS) {
  const auto run = [&](auto& call) {
    call.write_gradient_to(logits);
    call.backward(grad_loss, row_stats);
  };
  with_cpu_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

}  // namespace
}  // namespace labelsmooth

STABLE_TORCH_LIBRARY(labelsmooth, m) {
  m.def("forward(Tensor logits, Tensor target, " LABELSMOOTH_OPTIONS_SCHEMA
        ", bool with_grad, bool with_stats) -> (Tensor loss, Tensor row_stats, Tensor predicted, "
        "Tensor grad_logits)");
  m.def("forward_(Tensor(a!) logits, Tensor target, " LABELSMOOTH_OPTIONS_SCHEMA
        ", bool with_stats) -> (Tensor loss, Tensor row_stats, Tensor predicted)");
  m.def(
      "backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor "
      "row_stats, " LABELSMOOTH_OPTIONS_SCHEMA ") -> Tensor grad_logits");
  m.def(
      "backward_(Tensor grad_loss, Tensor(a!) logits, Tensor target, Tensor "
      "row_stats, " LABELSMOOTH_OPTIONS_SCHEMA ") -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(labelsmooth, CPU, m) {
  m.impl("forward", TORCH_BOX(&labelsmooth::forward_cpu));
  m.impl("forward_", TORCH_BOX(&labelsmooth::forward_inplace_cpu));
  m.impl("backward", TORCH_BOX(&labelsmooth::backward_cpu));
  m.impl("backward_", TORCH_BOX(&labelsmooth::backward_inplace_cpu));
}

// Importing labelsmooth._C registers the operators; the module itself says what was built.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  const char* instruction_set = nullptr;
  try {
    instruction_set = labelsmooth::cpu::instruction_set();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  PyObject* module = PyModule_Create(&definition);
  if (module && PyModule_AddStringConstant(module, "cpu_instruction_set", instruction_set) != 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
