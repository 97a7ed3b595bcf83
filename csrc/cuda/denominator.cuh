// What a mean divides by, for kernels that write gradients: where few rows have one class each,
// every block counts those that count, which saves a launch.
#pragma once

#include "plan.h"
#include "problem.cuh"

namespace labelsmooth::cuda {

constexpr int most_threads = 512;  // of a block of any kernel

// With more, a launch costs less.
constexpr int64_t most_counted_rows = 1024;

// In shared memory: a thread looks at its rows while logits are on their way, and has no register
// for what it saw.
class RowCount {
 public:
  // By all threads of a block.
  template <class Element>
  __device__ void look(const Problem<Element>& problem) {
    if (!problem.counts_rows || !problem.target.data) return;
    const int rows = static_cast<int>(problem.rows), threads = static_cast<int>(blockDim.x);
    int count = 0;
#pragma unroll 4
    for (int row = static_cast<int>(threadIdx.x); row < rows; row += threads)
      count += problem.target.counts(problem.target.data[row]) ? 1 : 0;
    of_thread_[threadIdx.x] = static_cast<unsigned char>(count);
  }

  // After that, by all threads in one place.
  template <class Element>
  __device__ typename Problem<Element>::T denominator(const Problem<Element>& problem) const {
    using T = typename Problem<Element>::T;
    if (!problem.counts_rows) return problem.denominator ? *problem.denominator : T(1);
    if (!problem.target.data) return T(problem.rows);  // all of them
    const int rows = static_cast<int>(problem.rows), threads = static_cast<int>(blockDim.x);
    const int mine = of_thread_[threadIdx.x];
    int count = 0;
    for (int bit = 1; bit * threads < rows + threads; bit *= 2)  // of the most that a thread has
      count += bit * __syncthreads_count(mine & bit);
    return T(count);
  }

 private:
  unsigned char of_thread_[most_threads];
};

}  // namespace labelsmooth::cuda
