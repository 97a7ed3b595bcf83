// One combine at every level: the lanes of a warp, the warps of a block, the blocks of a cluster.
//
// Lanes exchange what they have with the lane across, so all of them end with the same bits, and
// the order is the same in every run.
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

// Over groups of `lanes` neighbouring lanes, a power of 2.
template <class Sums>
__device__ Sums warp_combine(Sums sums, int lanes = 32) {
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    sums = combine(sums, from_lane_across(sums, distance));
  return sums;
}

template <class T>
__device__ T warp_largest(T largest, int lanes = 32) {
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    largest = max(largest, from_lane_across(largest, distance));
  return largest;
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

// Where a block's warps leave what they have for each other, and blocks of a cluster for this one.
template <class Value>
struct Exchange {
  Value warps[max_warps];
  Value blocks[max_cluster];
};

// over(value, lanes): of all warps' values.
template <class Value, class Over>
__device__ Value over_block(Value mine, Value none, Exchange<Value>& exchange, const Over& over) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  mine = over(mine, 32);
  if (lane == 0) exchange.warps[threadIdx.x / 32] = mine;
  __syncthreads();
  return over(lane < warps ? exchange.warps[lane] : none, 32);
}

// The blocks of a cluster, which share a row. None writes
// to another before that one has begun, and none ends before it was written to.
struct Blocks {
  int size, mine;

  __device__ void begin() const {
    if (size > 1) cluster_arrive();
  }
  __device__ void await_begin() const {
    if (size > 1) cluster_wait();
  }

  template <class Value, class Over>
  __device__ Value over_all(Value of_block, Value none, Exchange<Value>& exchange,
                            const Over& over) const {
    if (size == 1) return of_block;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    if (thread < size) *in_block(&exchange.blocks[mine], thread) = of_block;
    cluster_arrive();
    cluster_wait();
    return over(lane < size ? exchange.blocks[lane] : none, 32);
  }
};

// Over all threads of a block, a whole number of warps.
template <class Sums>
__device__ Sums block_combine(Sums sums, Exchange<Sums>& exchange) {
  return over_block(sums, empty<Sums>(), exchange,
                    [](const Sums& mine, int lanes) { return warp_combine(mine, lanes); });
}

// Over all threads of a cluster.
template <class Sums>
__device__ Sums cluster_combine(Sums sums, Exchange<Sums>& exchange, const Blocks& blocks) {
  const auto over = [](const Sums& mine, int lanes) { return warp_combine(mine, lanes); };
  return blocks.over_all(over_block(sums, empty<Sums>(), exchange, over), empty<Sums>(), exchange,
                         over);
}
template <class T>
__device__ T cluster_largest(T mine, Exchange<T>& exchange, const Blocks& blocks) {
  const auto over = [](T largest, int lanes) { return warp_largest(largest, lanes); };
  return blocks.over_all(over_block(mine, -infinity<T>(), exchange, over), -infinity<T>(), exchange,
                         over);
}

}  // namespace labelsmooth::cuda
