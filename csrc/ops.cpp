// The only file that sees torch: checks what the kernels rely on, allocates, runs the kernels,
// registers the operators.
//
// Built against LibTorch's stable ABI and Python's limited API, so that one binary serves every
// torch from 2.10 on and every Python from 3.10 on. What a user may get wrong is checked in Python,
// with better words (functional.py).
#include <Python.h>
#include <torch/csrc/stable/accelerator.h>
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
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
#include <dlfcn.h>
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

// As adjacent elements of a dtype on the logits' device, which a kernel can point to.
std::optional<Tensor> converted(const std::optional<Tensor>& tensor, ScalarType type,
                                const Tensor& logits) {
  if (!tensor) return std::nullopt;
  Tensor result = *tensor;
  if (result.scalar_type() != type) result = torch::stable::to(result, type);
  if (result.is_cuda() != logits.is_cuda()) result = torch::stable::to(result, logits.device());
  return result.is_contiguous() ? result : torch::stable::contiguous(result);
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
                        row_stats.is_contiguous() && row_stats.numel() >= 2 * problem_.rows,
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

// T is the accumulate dtype.
template <class T>
class CpuCall : public Call {
 public:
  template <class... Arguments>
  explicit CpuCall(Arguments&&... arguments) : Call(std::forward<Arguments>(arguments)...) {
    if (weight_ || prior_) make_class_coef();
    if (!prior_)
      problem_.class_sums.coef_log =
          -std::log(static_cast<double>(problem_.classes)) * problem_.class_sums.coef;
    const double target_weight =
        problem_.target ? sum_target_weights() : static_cast<double>(problem_.rows);
    if (reduction_ == Reduction::mean) {
      denominator_ = normalizer_ ? *static_cast<const T*>(normalizer_->data_ptr())
                                 : static_cast<T>(target_weight);
      problem_.denominator = &denominator_;
    }
  }

  std::tuple<Tensor, Tensor, Tensor> forward(bool with_stats) {
    auto [loss, row_stats, predicted] = make_outputs(with_stats);
    run();
    return {reduction_ == Reduction::none ? loss : reduced(loss), row_stats, predicted};
  }

  void backward(const Tensor& grad_loss, const Tensor& row_stats) {
    take_inputs(grad_loss, row_stats);
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

  std::vector<T> class_coef_;
  T denominator_ = 1;
};

#ifdef LABELSMOOTH_CUDA_ARCHITECTURES

// The stream that torch is on. Asked for by name: a torch without CUDA has no such function, and
// must be able to load this library.
void* current_stream(int32_t device) {
  using Ask = AOTITorchError (*)(int32_t, void**);
  const auto ask = reinterpret_cast<Ask>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  STD_TORCH_CHECK(ask, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(ask(device, &stream));
  return stream;
}

void check_cuda(int error) {
  STD_TORCH_CHECK(error == 0, "CUDA kernels of labelsmooth: ", cuda::error_string(error));
}

class CudaCall : public Call {
 public:
  template <class... Arguments>
  explicit CudaCall(const Tensor& logits, Arguments&&... arguments)
      : Call(logits, std::forward<Arguments>(arguments)...), guard_(logits.get_device_index()) {
    check_cuda(cuda::set_device(logits.get_device_index()));
  }

  std::tuple<Tensor, Tensor, Tensor> forward(bool with_stats) {
    auto [loss, row_stats, predicted] = make_outputs(with_stats);
    if (reduction_ == Reduction::none) {
      run(nullptr);
      return {loss, row_stats, predicted};
    }
    Tensor reduced = torch::stable::new_empty(loss, {});
    run(reduced.data_ptr());
    return {reduced, row_stats, predicted};
  }

  void backward(const Tensor& grad_loss, const Tensor& row_stats) {
    take_inputs(grad_loss, row_stats);
    run(nullptr);
  }

 private:
  void run(void* reduced_loss) const {
    const int64_t bytes = cuda::workspace_bytes(problem_);
    const Tensor workspace = torch::stable::new_empty(logits_, {&bytes, 1}, ScalarType::Byte);
    check_cuda(cuda::run(problem_, reduction_, data_or_null(normalizer_), reduced_loss,
                         workspace.data_ptr(), current_stream(logits_.get_device_index())));
  }

  torch::stable::accelerator::DeviceGuard guard_;
};

#endif

// use(call), where call is what the logits' device and dtype ask for.
template <class Use, class... Arguments>
auto with_call(Use use, const Tensor& logits, Arguments&&... arguments) {
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
  if (logits.is_cuda()) {
    CudaCall call(logits, std::forward<Arguments>(arguments)...);
    return use(call);
  }
#endif
  if (logits.scalar_type() == ScalarType::Double) {
    CpuCall<double> call(logits, std::forward<Arguments>(arguments)...);
    return use(call);
  }
  CpuCall<float> call(logits, std::forward<Arguments>(arguments)...);
  return use(call);
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
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor logits, Tensor target,
                                                   LABELSMOOTH_OPTIONS, bool with_grad,
                                                   bool with_stats) {
  const auto run = [&](auto& call) {
    const int64_t none = 0;
    Tensor grad_logits =
        with_grad ? new_gradient(logits) : torch::stable::new_empty(logits, {&none, 1});
    if (with_grad) call.write_gradient_to(grad_logits);
    return std::tuple_cat(call.forward(with_stats), std::make_tuple(grad_logits));
  };
  return with_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

// The gradient overwrites the logits.
std::tuple<Tensor, Tensor, Tensor> forward_inplace(Tensor logits, Tensor target,
                                                   LABELSMOOTH_OPTIONS, bool with_stats) {
  const auto run = [&](auto& call) {
    call.write_gradient_to(logits);
    return call.forward(with_stats);
  };
  return with_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

Tensor backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor row_stats,
                LABELSMOOTH_OPTIONS) {
  const auto run = [&](auto& call) {
    Tensor grad_logits = new_gradient(logits);
    call.write_gradient_to(grad_logits);
    call.backward(grad_loss, row_stats);
    return grad_logits;
  };
  return with_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

void backward_inplace(Tensor grad_loss, Tensor logits, Tensor target, Tensor row_stats,
                      LABELSMOOTH_OPTIONS) {
  const auto run = [&](auto& call) {
    call.write_gradient_to(logits);
    call.backward(grad_loss, row_stats);
  };
  with_call(run, logits, target, LABELSMOOTH_OPTIONS_FORWARDED);
}

#ifdef LABELSMOOTH_CUDA_ARCHITECTURES

// grad_logits *= grad_loss, decided on the device: nothing is read or written if that is 1.
void scale(Tensor grad_logits, Tensor grad_loss) {
  const auto factor = converted(grad_loss, accumulate_type(grad_logits), grad_logits);
  STD_TORCH_CHECK(factor->numel() == 1, "grad_loss: expected one value");
  STD_TORCH_CHECK(grad_logits.is_contiguous(), "grad_logits: expected a contiguous tensor");
  const int32_t device = grad_logits.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check_cuda(cuda::set_device(device));
  check_cuda(cuda::scale(dtype_of(grad_logits), grad_logits.data_ptr(), grad_logits.numel(),
                         factor->data_ptr(), current_stream(device)));
}

#endif

template <class Library>
void implement(Library& m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("forward_", TORCH_BOX(&forward_inplace));
  m.impl("backward", TORCH_BOX(&backward));
  m.impl("backward_", TORCH_BOX(&backward_inplace));
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
  m.def("scale_(Tensor(a!) grad_logits, Tensor grad_loss) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(labelsmooth, CPU, m) { labelsmooth::implement(m); }
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
STABLE_TORCH_LIBRARY_IMPL(labelsmooth, CUDA, m) {
  labelsmooth::implement(m);
  m.impl("scale_", TORCH_BOX(&labelsmooth::scale));
}
#endif

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
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
  const char* cuda_architectures = LABELSMOOTH_CUDA_ARCHITECTURES;
#else
  const char* cuda_architectures = "";
#endif
  PyObject* module = PyModule_Create(&definition);
  if (module &&
      (PyModule_AddStringConstant(module, "cpu_instruction_set", instruction_set) != 0 ||
       PyModule_AddStringConstant(module, "cuda_architectures", cuda_architectures) != 0)) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
