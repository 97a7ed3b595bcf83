// CUDA sources as plain C++: what the kernels find on a GPU, as far as they use it. Included before
// everything else (-include), with CUDA's own headers for the rest.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "block.h"
#include "launch.h"

// Without nvcc, CUDA's headers make __global__ and __device__ nothing.
#undef __shared__
#define __shared__ thread_local
#define __launch_bounds__(...)
#define __CUDA_ARCH_LIST__ 800

#define cudaLaunchKernelEx simt::launch
#define __syncthreads() (simt::Block::current().sync())
#define __syncthreads_count(vote) (simt::Block::current().sync_count((vote) != 0))
#define __syncwarp() (simt::Block::current().sync_warp())

using std::fma;  // of floats: the C library has that of doubles alone by this name
using std::min;

namespace simt {

template <unsigned (*value)()>
struct Dimensions {
  struct {
    operator unsigned() const { return value(); }
  } x;
};

inline unsigned thread_index() { return static_cast<unsigned>(Block::current().thread().index); }
inline unsigned block_index() { return Block::current().index; }
inline unsigned block_size() { return static_cast<unsigned>(Block::current().threads()); }
inline unsigned grid_size() { return Block::current().blocks; }

template <class Value>
Value from_lane(unsigned mask, Value value, int lane) {
  static_assert(sizeof value <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  word = Block::current().from_lane(mask, word, lane);
  std::memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace simt

inline constexpr simt::Dimensions<simt::thread_index> threadIdx;
inline constexpr simt::Dimensions<simt::block_index> blockIdx;
inline constexpr simt::Dimensions<simt::block_size> blockDim;
inline constexpr simt::Dimensions<simt::grid_size> gridDim;

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int distance) {
  return simt::from_lane(mask, value, static_cast<int>(threadIdx.x % simt::warp_size) ^ distance);
}
template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width) {
  const int lane = static_cast<int>(threadIdx.x % simt::warp_size);
  return simt::from_lane(mask, value, lane / width * width + source);
}

template <class Value>
void __stwb(Value* to, Value value) {
  *to = value;
}
