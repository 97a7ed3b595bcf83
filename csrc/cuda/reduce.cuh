// One combine at every level: the lanes of a warp, the warps of a block, the blocks of a cluster.
//
// Lanes exchange what they have with the lane across, so all of them end with the same bits, and
// the order is the same in every run.
#pragma once

#include "element.cuh"

namespace labelsmooth::cuda {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int max_warps = 32;

// The largest logit of a part of a row, and the first class that has it. NaN is larger than all.
template <class T>
struct Best {
  T value;
  int64_t index;
};

template <class T>
__device__ Best<T> combine(const Best<T>& a, const Best<T>& b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  const bool larger = a_nan ? false : b_nan || b.value > a.value;
  const bool same = a_nan ? b_nan : a.value == b.value;
  return larger || (same && b.index < a.index) ? b : a;
}

// What only rows with class probabilities t_c need.
template <class T>
struct ProbSums {
  T prob;              // sum_c t_c
  T nll;               // sum_c t_c (reference - x_c)
  T negative_entropy;  // sum_c w_c q_c log q_c
};

template <class T>
__device__ ProbSums<T> combine(const ProbSums<T>& a, const ProbSums<T>& b) {
  return {a.prob + b.prob, a.nll + b.nll, a.negative_entropy + b.negative_entropy};
}

// What adds nothing.
__device__ inline void make_empty(RowStats<float>& stats) { stats = empty_stats<float>(); }
__device__ inline void make_empty(RowStats<double>& stats) { stats = empty_stats<double>(); }
template <class T>
__device__ void make_empty(Best<T>& best) {
  best = {-infinity<T>(), INT64_MAX};
}
template <class T>
__device__ void make_empty(ProbSums<T>& sums) {
  sums = {T(0), T(0), T(0)};
}
template <class Sums>
__device__ Sums empty() {
  Sums sums;
  make_empty(sums);
  return sums;
}

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
