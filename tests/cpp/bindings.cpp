// The CPU kernel on numpy buffers, without torch: labelsmooth_kernels.forward(...).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace py = pybind11;

namespace {

labelsmooth::DType dtype_named(const std::string& name) {
  if (name == "float32") return labelsmooth::DType::float32;
  if (name == "float64") return labelsmooth::DType::float64;
  if (name == "bfloat16") return labelsmooth::DType::bfloat16;
  if (name == "float16") return labelsmooth::DType::float16;
  throw std::invalid_argument("dtype: " + name);
}

// Rows [begin, end) of one-step forward and gradient. logits and grad_logits (N, C) with any
// strides, bfloat16 and float16 as uint16; target (N,) int64; loss (N,), row_stats (4, N) float32,
// or float64 for float64 logits.
void forward(const std::string& dtype, py::array logits, py::array_t<int64_t> target,
             py::array grad_logits, py::array loss, py::array row_stats, double label_smoothing,
             int64_t begin, int64_t end) {
  const auto matrix = [](py::array& array) {
    const int64_t size = array.itemsize();
    return labelsmooth::Matrix{array.mutable_data(), array.strides(0) / size,
                               array.strides(1) / size, 0};
  };
  labelsmooth::LossProblem problem;
  problem.dtype = dtype_named(dtype);
  problem.rows = logits.shape(0);
  problem.classes = problem.all_classes = logits.shape(1);
  problem.logits = matrix(logits);
  problem.grad_logits = matrix(grad_logits);
  problem.target = target.data();
  problem.options.label_smoothing = label_smoothing;
  problem.loss = loss.mutable_data();
  problem.row_shift = row_stats.mutable_data(0);
  problem.row_sum_exp = row_stats.mutable_data(1);
  problem.row_mass = row_stats.mutable_data(2);
  problem.row_beta = row_stats.mutable_data(3);
  labelsmooth::cpu::process_rows(problem, begin, end);
}

}  // namespace

PYBIND11_MODULE(labelsmooth_kernels, module) {
  using namespace pybind11::literals;
  module.def("instruction_set", &labelsmooth::cpu::instruction_set);
  module.def("forward", &forward, "dtype"_a, "logits"_a, "target"_a, "grad_logits"_a, "loss"_a,
             "row_stats"_a, "label_smoothing"_a, "begin"_a, "end"_a);
}
