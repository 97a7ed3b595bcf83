// Sums over the rows or the classes of a call, in one order whatever the device does: blocks leave
// partial sums, which one block adds up. In float64, a few thousand additions at most a thread.
#pragma once

#include "problem.cuh"
#include "reduce.cuh"

namespace labelsmooth::cuda {

struct Pair {
  double first, second;
};
__device__ inline Pair combine(const Pair& a, const Pair& b) {
  return {a.first + b.first, a.second + b.second};
}
__device__ inline void make_empty(Pair& pair) { pair = {0, 0}; }

constexpr int sum_threads = 512;
constexpr int64_t sum_elements_per_block = 8 * sum_threads;
constexpr int max_partial_sums = 256;

// Sums value(i) over [0, count). The last step, by one block, hands the sum to value.finish.
template <class Values>
__global__ void __launch_bounds__(sum_threads)
    sum_kernel(Values values, int64_t count, Pair* partial_sums, int partials, bool last) {
  __shared__ Exchange<Pair> exchange;
  Pair sum = {0, 0};
  if (last && partials > 1) {
    for (int i = static_cast<int>(threadIdx.x); i < partials; i += sum_threads)
      sum = combine(sum, partial_sums[i]);
  } else {
    const int64_t step = int64_t(gridDim.x) * sum_threads;
    for (int64_t i = int64_t(blockIdx.x) * sum_threads + threadIdx.x; i < count; i += step)
      sum = combine(sum, values.at(i));
  }
  sum = block_combine(sum, exchange);
  if (threadIdx.x != 0) return;
  if (last)
    values.finish(sum);
  else
    partial_sums[blockIdx.x] = sum;
}

// v_c = w_c u_c, V = sum_c v_c and sum_c v_c log u_c.
template <class T>
struct ClassCoefs {
  const T *weight, *prior;
  T uniform;
  LossOptions<T> options;
  T* class_coef;
  ClassSums<double>* class_sums;

  __device__ Pair at(int64_t c) const {
    const T u = prior ? prior[c] : uniform;
    const T v = coef_of_class(weight ? weight[c] : T(1), u, options);
    class_coef[c] = v;
    return {double(v), coef_log_of_class(double(v), double(u))};
  }
  __device__ void finish(const Pair& sum) const { *class_sums = {sum.first, sum.second, 1}; }
};

// What "mean" divides by: the sum over the rows that count of their weight, times that of the one
// class which is their target.
template <class T>
struct TargetWeights {
  TargetClasses target;
  const T* weight;      // of all classes; nullptr: 1
  const T* row_weight;  // nullptr: 1
  T* denominator;

  __device__ Pair at(int64_t row) const {
    const Standing standing = target.standing(row);
    if (standing.ignored || standing.invalid) return {0, 0};
    const double of_class = weight ? double(weight[standing.first]) : 1;
    return {row_weight ? weighted(double(row_weight[row]), of_class) : of_class, 0};
  }
  // A mean over no weight at all is 0/0, in the gradient too.
  __device__ void finish(const Pair& sum) const {
    *denominator = sum.first == 0 ? infinity<T>() - infinity<T>() : T(sum.first);
  }
};

template <class T>
struct RowLosses {
  const T* loss;
  const T* denominator;  // nullptr: the sum
  T* reduced;

  __device__ Pair at(int64_t row) const { return {double(loss[row]), 0}; }
  __device__ void finish(const Pair& sum) const {
    *reduced = T(denominator ? sum.first / double(*denominator) : sum.first);
  }
};

// Leaves at once if there is nothing to scale.
template <class Element>
__global__ void scale_kernel(Element* values, int64_t count,
                             const typename Accumulate<Element>::type* factor) {
  const auto scale = *factor;
  if (scale == 1) return;
  const Span<Element> span(values, count, static_cast<int>(blockIdx.x),
                           static_cast<int>(gridDim.x));
  const int step = static_cast<int>(blockDim.x);
  for (int chunk = static_cast<int>(threadIdx.x); chunk < span.chunks; chunk += step) {
    const Chunk<Element> read = span.load(values, chunk, true);
    typename Accumulate<Element>::type scaled[Chunk<Element>::size];
#pragma unroll
    for (int i = 0; i < Chunk<Element>::size; ++i) scaled[i] = widen(read.at[i]) * scale;
    span.store(values, chunk, true, narrow<Element>(scaled));
  }
}

}  // namespace labelsmooth::cuda
