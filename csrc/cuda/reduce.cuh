// One combine at every level: the lanes of a warp, the warps of a block, the blocks of a cluster.
//
// Lanes exchange what they have with the lane across, so all of them end with the same bits, and
// the order is the same in every run.
#pragma once

#include "row_sums.cuh"

namespace labelsmooth::cuda {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int max_warps = 16;  // a block

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

// ---- blocks and clusters ------------------------------------------------------------------------

// The blocks of a cluster share a row; on devices without clusters there is one.
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
__device__ Value* in_block(Value* mine, int rank) {
#if __CUDA_ARCH__ >= 900
  return static_cast<Value*>(__cluster_map_shared_rank(mine, static_cast<unsigned>(rank)));
#else
  (void)rank;
  return mine;
#endif
}

template <class Sums>
struct Exchange {
  Sums warps[max_warps];
  Sums block;
};

// Over all threads of a block, a whole number of warps.
template <class Sums>
__device__ Sums block_combine(Sums sums, Exchange<Sums>& exchange) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  sums = warp_combine(sums);
  if (lane == 0) exchange.warps[threadIdx.x / 32] = sums;
  __syncthreads();
  return warp_combine(lane < warps ? exchange.warps[lane] : empty<Sums>());
}

// Over all threads of a cluster. No block may end before all have read: cluster_arrive() after
// this, and cluster_wait() at the end.
template <class Sums>
__device__ Sums cluster_combine(Sums sums, Exchange<Sums>& exchange, int cluster) {
  sums = block_combine(sums, exchange);
  if (cluster == 1) return sums;
  if (threadIdx.x == 0) exchange.block = sums;
  cluster_arrive();
  cluster_wait();
  const int lane = static_cast<int>(threadIdx.x % 32);
  return warp_combine(lane < cluster ? *in_block(&exchange.block, lane) : empty<Sums>());
}

}  // namespace labelsmooth::cuda
