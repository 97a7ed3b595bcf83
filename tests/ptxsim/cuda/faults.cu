// A row-wise log-sum-exp, right or with one fault: what the simulator must see.
// launch_rows(fault, ...): one block a row; launch_clusters(fault, ...): four blocks a row.
#include <math_constants.h>
#include <stdint.h>

#define ROW_FAULTS(F)    \
  F(none)                \
  F(missing_sync)        \
  F(missing_second_sync) \
  F(out_of_bounds)       \
  F(misaligned)          \
  F(wrong_mask) F(wrong_stride) F(uninitialised) F(lost_tail) F(nan_on_inf) F(uncoalesced)
#define CLUSTER_FAULTS(F) F(missing_first_cluster_sync) F(missing_last_cluster_sync)
#define NAME(name) name,
enum Fault { ROW_FAULTS(NAME) CLUSTER_FAULTS(NAME) };
#undef NAME

struct Sum {
  float max, sum;
};

template <Fault fault>
__device__ Sum combine(Sum a, Sum b) {
  const float max = fmaxf(a.max, b.max);
  const float safe = fault != nan_on_inf && max == -CUDART_INF_F ? 0.0f : max;
  return {max, a.sum * expf(a.max - safe) + b.sum * expf(b.max - safe)};
}

template <Fault fault>
__device__ Sum combine_warp(Sum s) {
  const unsigned mask = fault == wrong_mask ? 0xffffu : 0xffffffffu;
  for (int offset = 16; offset; offset >>= 1)
    s = combine<fault>(
        s, {__shfl_xor_sync(mask, s.max, offset), __shfl_xor_sync(mask, s.sum, offset)});
  return s;
}

template <Fault fault>
__device__ Sum combine_block(Sum s, Sum* partial) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  s = combine_warp<fault>(s);
  if (lane == 0) partial[warp] = s;
  if (fault != missing_sync) __syncthreads();
  const bool used = fault == uninitialised || lane < warps;
  s = combine_warp<fault>(used ? partial[lane] : Sum{-CUDART_INF_F, 0.0f});
  if (fault != missing_second_sync) __syncthreads();  // `partial` is used again
  if (threadIdx.x == 0) partial[0] = s;
  __syncthreads();
  return partial[0];
}

template <Fault fault>
__device__ Sum sum_row(const float* row, int first, int last) {
  Sum s{-CUDART_INF_F, 0.0f};
  const bool vectors = fault == misaligned || reinterpret_cast<uintptr_t>(row + first) % 16 == 0;
  int c = first;
  if (vectors) {
    for (int i = threadIdx.x; i < (last - first) / 4; i += blockDim.x) {
      const float4 x = reinterpret_cast<const float4*>(row + first)[i];
      s = combine<fault>(combine<fault>(s, {x.x, 1.0f}), {x.y, 1.0f});
      s = combine<fault>(combine<fault>(s, {x.z, 1.0f}), {x.w, 1.0f});
    }
    c = first + (last - first) / 4 * 4;
    if (fault == lost_tail) return s;
  }
  if (fault == uncoalesced) {
    const int share = (last - c + blockDim.x - 1) / blockDim.x;
    for (int i = 0; i < share; ++i)
      if (c + threadIdx.x * share + i < last)
        s = combine<fault>(s, {row[c + threadIdx.x * share + i], 1.0f});
    return s;
  }
  const int end = fault == out_of_bounds ? last + 1 : last;
  for (c += threadIdx.x; c < end; c += blockDim.x) s = combine<fault>(s, {row[c], 1.0f});
  return s;
}

template <Fault fault>
__global__ void row_lse(const float* x, float* lse, int columns) {
  __shared__ Sum partial[32];
  const int64_t stride = fault == wrong_stride ? (columns + 3) / 4 * 4 : columns;
  Sum s = sum_row<fault>(x + blockIdx.x * stride, 0, columns);
  s = combine_block<fault>(s, partial);
  if (threadIdx.x == 0) lse[blockIdx.x] = s.max + logf(s.sum);
}

__device__ void sync_cluster() {
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

template <Fault fault>
__global__ void __cluster_dims__(4) cluster_lse(const float* x, float* lse, int columns) {
  __shared__ Sum partial[32];
  __shared__ Sum own;
  const int rank = __clusterRelativeBlockRank(), share = columns / 4;
  const Sum s = sum_row<fault>(x + int64_t(blockIdx.x / 4) * columns, rank * share,
                               rank == 3 ? columns : (rank + 1) * share);
  const Sum mine = combine_block<fault>(s, partial);
  if (threadIdx.x == 0) own = mine;
  if (fault != missing_first_cluster_sync) sync_cluster();
  Sum all{-CUDART_INF_F, 0.0f};
  for (int r = 0; r < 4; ++r)
    all = combine<fault>(all, *static_cast<Sum*>(__cluster_map_shared_rank(&own, r)));
  if (fault != missing_last_cluster_sync) sync_cluster();
  if (rank == 0 && threadIdx.x == 0) lse[blockIdx.x / 4] = all.max + logf(all.sum);
}

#define CASE(name) \
  if (fault == name) KERNEL(name);

#define KERNEL(name) row_lse<name><<<rows, 128>>>(x, lse, columns)
extern "C" int launch_rows(int fault, const float* x, float* lse, int rows, int columns) {
  ROW_FAULTS(CASE)
  return cudaGetLastError();
}
#undef KERNEL

#define KERNEL(name) cluster_lse<name><<<4 * rows, 128>>>(x, lse, columns)
extern "C" int launch_clusters(int fault, const float* x, float* lse, int rows, int columns) {
  CASE(none)
  CLUSTER_FAULTS(CASE)
  return cudaGetLastError();
}
#undef KERNEL

#define TEXT(name) #name " "
extern "C" const char* fault_names() { return ROW_FAULTS(TEXT) CLUSTER_FAULTS(TEXT); }
