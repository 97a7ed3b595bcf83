// The operators: their schemas, what they do for each device, their registration.
//
// Only this folder sees torch, and of it the stable ABI alone; with Python's limited API
// that makes one binary for every torch from 2.10 on and every Python from 3.10 on.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <exception>
#include <tuple>
#include <utility>

#include "cpu.h"
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
#include "cuda.h"
#endif

namespace labelsmooth {
namespace {

// What all operators take; schema and arguments in the same order.
#define LABELSMOOTH_OPTIONS_SCHEMA                                                      \
  "Tensor? weight, Tensor? prior, Tensor? normalizer, Tensor? row_weight, "             \
  "int ignore_index, int reduction, float label_smoothing, int smooth_over, "           \
  "bool weight_over_target, bool kl_div, bool from_log_probs, float lse_square_scale, " \
  "float logit_scale, float softcap, int class_offset, int num_classes"
#define LABELSMOOTH_OPTIONS                                                                    \
  std::optional<Tensor> weight, std::optional<Tensor> prior, std::optional<Tensor> normalizer, \
      std::optional<Tensor> row_weight, int64_t ignore_index, int64_t reduction,               \
      double label_smoothing, int64_t smooth_over, bool weight_over_target, bool kl_div,       \
      bool from_log_probs, double lse_square_scale, double logit_scale, double softcap,        \
      int64_t class_offset, int64_t num_classes
#define LABELSMOOTH_OPTIONS_FORWARDED                                                     \
  weight, prior, normalizer, row_weight, static_cast<Reduction>(reduction), ignore_index, \
      LossOptions<double>{label_smoothing,                                                \
                          lse_square_scale,                                               \
                          logit_scale,                                                    \
                          softcap,                                                        \
                          0,                                                              \
                          static_cast<SmoothOver>(smooth_over),                           \
                          weight_over_target,                                             \
                          kl_div,                                                         \
                          from_log_probs},                                                \
      class_offset, num_classes

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
  return logits.is_contiguous() ? new_tensor(logits, logits.sizes())
                                : torch::stable::empty_like(logits);
}

Tensor new_empty(Tensor like, std::vector<int64_t> size) { return new_tensor(like, size); }

// Returns loss, row_stats, predicted and the gradient, if it is wanted: `loss` (), or (N,) for
// "none"; `row_stats` (4, N) shift, sum of exponentials, mass and beta, with_stats (6, N) the lse
// and nll too; `predicted` (N,) with_stats.
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor logits, Tensor target,
                                                   std::optional<Tensor> target_probs,
                                                   LABELSMOOTH_OPTIONS, bool with_grad,
                                                   bool with_stats) {
  const auto run = [&](auto& call) {
    const int64_t none = 0;
    Tensor grad_logits =
        with_grad ? new_gradient(logits) : torch::stable::new_empty(logits, {&none, 1});
    if (with_grad) call.write_gradient_to(grad_logits);
    return std::tuple_cat(call.forward(with_stats), std::make_tuple(grad_logits));
  };
  return with_call(run, logits, target, target_probs, LABELSMOOTH_OPTIONS_FORWARDED);
}

// The gradient overwrites the logits.
std::tuple<Tensor, Tensor, Tensor> forward_inplace(Tensor logits, Tensor target,
                                                   std::optional<Tensor> target_probs,
                                                   LABELSMOOTH_OPTIONS, bool with_stats) {
  const auto run = [&](auto& call) {
    call.write_gradient_to(logits);
    return call.forward(with_stats);
  };
  return with_call(run, logits, target, target_probs, LABELSMOOTH_OPTIONS_FORWARDED);
}

Tensor backward(Tensor grad_loss, Tensor logits, Tensor target, std::optional<Tensor> target_probs,
                Tensor row_stats, LABELSMOOTH_OPTIONS) {
  const auto run = [&](auto& call) {
    Tensor grad_logits = new_gradient(logits);
    call.write_gradient_to(grad_logits);
    call.backward(grad_loss, row_stats);
    return grad_logits;
  };
  return with_call(run, logits, target, target_probs, LABELSMOOTH_OPTIONS_FORWARDED);
}

void backward_inplace(Tensor grad_loss, Tensor logits, Tensor target,
                      std::optional<Tensor> target_probs, Tensor row_stats, LABELSMOOTH_OPTIONS) {
  const auto run = [&](auto& call) {
    call.write_gradient_to(logits);
    call.backward(grad_loss, row_stats);
  };
  with_call(run, logits, target, target_probs, LABELSMOOTH_OPTIONS_FORWARDED);
}

// This rank's parts of the rows, (fields, N), of which combine makes the loss.
Tensor partial(Tensor logits, Tensor target, std::optional<Tensor> target_probs,
               LABELSMOOTH_OPTIONS, bool with_stats) {
  const auto run = [&](auto& call) { return call.partial(with_stats); };
  return with_call(run, logits, target, target_probs, LABELSMOOTH_OPTIONS_FORWARDED);
}

// What forward returns, from all ranks' parts, (ranks, fields, N). The logits are not read.
std::tuple<Tensor, Tensor, Tensor> combine(Tensor parts, Tensor logits, Tensor target,
                                           std::optional<Tensor> target_probs, LABELSMOOTH_OPTIONS,
                                           bool with_stats) {
  const auto run = [&](auto& call) { return call.combine(parts, with_stats); };
  return with_call(run, logits, target, target_probs, LABELSMOOTH_OPTIONS_FORWARDED);
}

template <class Library>
void implement(Library& m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("forward_", TORCH_BOX(&forward_inplace));
  m.impl("backward", TORCH_BOX(&backward));
  m.impl("backward_", TORCH_BOX(&backward_inplace));
  m.impl("partial", TORCH_BOX(&partial));
  m.impl("combine", TORCH_BOX(&combine));
}

}  // namespace
}  // namespace labelsmooth

STABLE_TORCH_LIBRARY(labelsmooth, m) {
  m.def("forward(Tensor logits, Tensor target, Tensor? target_probs, " LABELSMOOTH_OPTIONS_SCHEMA
        ", bool with_grad, bool with_stats) -> (Tensor loss, Tensor row_stats, Tensor predicted, "
        "Tensor grad_logits)");
  m.def(
      "forward_(Tensor(a!) logits, Tensor target, Tensor? target_probs, " LABELSMOOTH_OPTIONS_SCHEMA
      ", bool with_stats) -> (Tensor loss, Tensor row_stats, Tensor predicted)");
  m.def(
      "backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? target_probs, Tensor "
      "row_stats, " LABELSMOOTH_OPTIONS_SCHEMA ") -> Tensor grad_logits");
  m.def(
      "backward_(Tensor grad_loss, Tensor(a!) logits, Tensor target, Tensor? target_probs, Tensor "
      "row_stats, " LABELSMOOTH_OPTIONS_SCHEMA ") -> ()");
  m.def("partial(Tensor logits, Tensor target, Tensor? target_probs, " LABELSMOOTH_OPTIONS_SCHEMA
        ", bool with_stats) -> Tensor parts");
  m.def(
      "combine(Tensor parts, Tensor logits, Tensor target, Tensor? "
      "target_probs, " LABELSMOOTH_OPTIONS_SCHEMA
      ", bool with_stats) -> (Tensor loss, Tensor row_stats, Tensor predicted)");
  m.def("scale_(Tensor(a!) grad_logits, Tensor grad_loss) -> ()");
  m.def("new_empty(Tensor like, int[] size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(labelsmooth, CPU, m) {
  labelsmooth::implement(m);
  m.impl("new_empty", TORCH_BOX(&labelsmooth::new_empty));
}
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
STABLE_TORCH_LIBRARY_IMPL(labelsmooth, CUDA, m) {
  labelsmooth::implement(m);
  m.impl("scale_", TORCH_BOX(&labelsmooth::scale));
}
#endif

PyObject* release_memory(PyObject*, PyObject*) {
  labelsmooth::cpu::release_kept();
  Py_RETURN_NONE;
}

PyObject* has_torch_cuda(PyObject*, PyObject*) {
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
  return PyBool_FromLong(labelsmooth::find_ask_stream() != nullptr);
#else
  Py_RETURN_FALSE;
#endif
}

PyObject* cuda_driver_version(PyObject*, PyObject*) {
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
  return PyLong_FromLong(labelsmooth::cuda::driver_version());
#else
  return PyLong_FromLong(0);
#endif
}

// Importing labelsmooth._C registers the operators; the module itself says what was built.
PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef methods[] = {{"release_memory", release_memory, METH_NOARGS,
                                   "Gives memory that is kept between calls to the system."},
                                  {"has_torch_cuda", has_torch_cuda, METH_NOARGS,
                                   "Whether this torch has what the CUDA operators need of it."},
                                  {"cuda_driver_version", cuda_driver_version, METH_NOARGS,
                                   "The newest CUDA that the driver serves, as 13000; or 0."},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  const char* instruction_set = nullptr;
  try {
    instruction_set = labelsmooth::cpu::instruction_set();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
#ifdef LABELSMOOTH_CUDA_ARCHITECTURES
  const char* cuda_architectures = LABELSMOOTH_CUDA_ARCHITECTURES;
  const int cuda_runtime_version = labelsmooth::cuda::runtime_version();
#else
  const char* cuda_architectures = "";
  const int cuda_runtime_version = 0;
#endif
  PyObject* module = PyModule_Create(&definition);
  if (module &&
      (PyModule_AddStringConstant(module, "cpu_instruction_set", instruction_set) != 0 ||
       PyModule_AddStringConstant(module, "cuda_architectures", cuda_architectures) != 0 ||
       PyModule_AddIntConstant(module, "cuda_runtime_version", cuda_runtime_version) != 0)) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
