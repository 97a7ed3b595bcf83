// One combine at every level: the lanes of a warp, the warps of a block, the blocks of a cluster.
//
// Lanes exchange what they have with the lane across: all end with the same bits, in every run.
#pragma once

#include "row_sums.cuh"

namespace labelsmooth::cuda {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int max_warps = 16;    // a block
constexpr int max_cluster = 16;  // blocks

template <class Sums>
__device__ Sums from_lane_across(const Sums& mine, int distance) {
  constexpr int words = sizeof(Sums) / 4;
  uint32_t sent[words];
  memcpy(sent, &mine, sizeof mine);
#pragma unroll
  for (int i = 0; i < words; ++i) sent[i] = __shfl_xor_sync(all_lanes, sent[i], distance);
  Sums theirs;
  memcpy(&theirs, sent, sizeof theirs);
  return theirs;
}

// What is done with each two values.
struct Combine {
  template <class Sums>
  __device__ Sums operator()(const Sums& a, const Sums& b) const {
    return combine(a, b);
  }
};
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return max(a, b);
  }
};

// Over groups of `lanes` neighbouring lanes, a power of 2.
template <class Value, class Two>
__device__ Value over_lanes(Value value, int lanes, const Two& two) {
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    value = two(value, from_lane_across(value, distance));
  return value;
}

// ---- blocks and clusters ------------------------------------------------------------------------

// On devices without clusters there is one block.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
#endif
}
__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_wait();
#endif
}
template <class Value>
__device__ Value* in_block(Value* here, int block) {
#if __CUDA_ARCH__ >= 900
  return static_cast<Value*>(__cluster_map_shared_rank(here, static_cast<unsigned>(block)));
#else
  (void)block;
  return here;
#endif
}

// Where a block's warps leave what they have, and the cluster's blocks for this one.
template <class Value>
struct Exchange {
  Value warps[max_warps];
  Value blocks[max_cluster];
};

// Over all threads of a block, a whole number of warps; `none` adds nothing.
template <class Value, class Two>
__device__ Value over_block(Value mine, Value none, Exchange<Value>& exchange, const Two& two) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  mine = over_lanes(mine, 32, two);
  if (lane == 0) exchange.warps[threadIdx.x / 32] = mine;
  __syncthreads();
  return over_lanes(lane < warps ? exchange.warps[lane] : none, 32, two);
}

// The blocks of a cluster, which share a row. None writes to another before that one has begun, and
// none ends before it was written to.
struct Blocks {
  int size, mine;

  __device__ void begin() const {
    if (size > 1) cluster_arrive();
  }
  __device__ void await_begin() const {
    if (size > 1) cluster_wait();
  }

  // Over all threads of the cluster.
  template <class Value, class Two>
  __device__ Value over_all(Value value, Value none, Exchange<Value>& exchange,
                            const Two& two) const {
    value = over_block(value, none, exchange, two);
    if (size == 1) return value;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    if (thread < size) *in_block(&exchange.blocks[mine], thread) = value;
    cluster_arrive();
    cluster_wait();
    return over_lanes(lane < size ? exchange.blocks[lane] : none, 32, two);
  }
};

}  // namespace labelsmooth::cuda
