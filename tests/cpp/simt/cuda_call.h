// A call of the CUDA path on memory of its own, and what is asked of each type of logits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <vector>

#include "../call.h"

namespace labelsmooth {

struct Tolerance {
  double loss, grad;
};

template <class Element>
struct Traits;
template <>
struct Traits<float> {
  static constexpr DType dtype = DType::float32;
  static constexpr Tolerance tolerance = {4e-6, 4e-6};
};
template <>
struct Traits<double> {
  static constexpr DType dtype = DType::float64;
  static constexpr Tolerance tolerance = {1e-13, 1e-13};
};
template <>
struct Traits<__nv_bfloat16> {
  static constexpr DType dtype = DType::bfloat16;
  static constexpr Tolerance tolerance = {4e-6, 0x1p-8};
};
template <>
struct Traits<__half> {
  static constexpr DType dtype = DType::float16;
  static constexpr Tolerance tolerance = {4e-6, 0x1p-11};
};

inline void run(const LossProblem& problem, Reduction reduction, void* reduced_loss,
                decltype(cuda::run)* launcher = cuda::run) {
  std::vector<char> workspace(static_cast<size_t>(cuda::workspace_bytes(problem)));
  const int error = launcher(problem, reduction, nullptr, reduced_loss, workspace.data(), nullptr);
  CHECK(error == 0, "cudaError_t %d", error);
}

}  // namespace labelsmooth
