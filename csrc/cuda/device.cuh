// What the current device is asked and told, once each.
#pragma once

#include <algorithm>
#include <tuple>

#include "answers.h"
#include "launch.cuh"
#include "plan.h"

namespace labelsmooth::cuda {

inline int current_device() {
  int device = 0;
  if (cudaGetDevice(&device)) cudaGetLastError();
  return device;
}

// The newest of the architectures built for that a device can take, as nvcc counts them: 900.
inline int code_for(int arch) {
  int newest = 0;
  for (int built : {__CUDA_ARCH_LIST__})
    if (built <= 10 * arch) newest = std::max(newest, built);
  return newest;
}

// Whether all was answered.
inline bool ask_limits(int device, DeviceLimits& limits) {
  cudaError_t error = cudaSuccess;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    if (!error) error = cudaDeviceGetAttribute(&value, which, device);
    return value;
  };
  const int major = attribute(cudaDevAttrComputeCapabilityMajor);
  const int arch = 10 * major + attribute(cudaDevAttrComputeCapabilityMinor);
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  limits.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.shared_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  // Code for older devices knows no clusters, whatever device it runs on.
  limits.clusters = attribute(cudaDevAttrClusterLaunch) != 0 && code_for(arch) >= 900;
  limits.large_clusters = limits.clusters && (major == 9 || major == 10);
  if (error) cudaGetLastError();
  return !error;
}

inline DeviceLimits limits_of_current_device() {
  static auto& limits = *new Answers<int, DeviceLimits>;
  const int device = current_device();
  return limits.to(device, [&](DeviceLimits& answer) { return ask_limits(device, answer); });
}

// ---- kernels ------------------------------------------------------------------------------------

// Always the same value, so that no other thread's launch finds another.
inline cudaError_t tell(const void* kernel, cudaFuncAttribute attribute, int value) {
  using Question = std::tuple<int, const void*, cudaFuncAttribute>;
  static auto& told = *new Answers<Question, cudaError_t>;
  return told.to({current_device(), kernel, attribute}, [&](cudaError_t& error) {
    error = cudaFuncSetAttribute(kernel, attribute, value);
    return error == cudaSuccess;
  });
}

// Allows what a launch takes beyond what every device gives; of shared memory the most that any
// launch takes.
inline cudaError_t allow(const void* kernel, const Grid& grid, int64_t most_bytes) {
  constexpr int64_t given_to_all = 44 << 10;  // of 48 KB, beside what a kernel declares
  if (grid.shared_bytes > given_to_all)
    if (const cudaError_t error =
            tell(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_bytes)))
      return error;
  if (grid.cluster <= portable_cluster) return cudaSuccess;
  return tell(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// Whether the device has room for a cluster of the grid's: fewer multiprocessors may be neighbours,
// or this process's (MIG, MPS), than the architecture promises. An error says no, and is cleared.
inline bool has_room(const void* kernel, const Grid& grid, int64_t most_bytes) {
  using Question = std::tuple<int, const void*, int, int, int64_t>;
  static auto& rooms = *new Answers<Question, bool>;
  const Question question = {current_device(), kernel, grid.cluster, grid.threads,
                             grid.shared_bytes};
  return rooms.to(question, [&](bool& room) {
    cudaLaunchAttribute shape;
    const cudaLaunchConfig_t config = config_of(grid, nullptr, shape);
    int clusters = 0;
    cudaError_t error = allow(kernel, grid, most_bytes);
    if (!error) error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    if (error) cudaGetLastError();
    room = !error && clusters > 0;
    return !error || error == cudaErrorInvalidClusterSize;
  });
}

}  // namespace labelsmooth::cuda
