// The kernel over rows of which all ranks' parts are here: a thread a row, no logits.
#pragma once

#include "../rank_rows.h"
#include "problem.cuh"

namespace labelsmooth::cuda {

constexpr int rank_kernel_threads = 128;

template <class T>
__global__ void __launch_bounds__(rank_kernel_threads)
    rank_kernel(const __grid_constant__ RankRows<T> ranks, TargetClasses target, int64_t rows) {
  const int64_t row = int64_t(blockIdx.x) * rank_kernel_threads + threadIdx.x;
  if (row >= rows) return;
  const Standing standing = target.standing(row);
  const bool has_class = target.data && !standing.ignored && !standing.invalid;
  ranks.write(row, standing.ignored, has_class ? ranks.prior_of(standing.first) : T(0));
}

}  // namespace labelsmooth::cuda
