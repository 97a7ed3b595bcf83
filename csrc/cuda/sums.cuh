// Sums over the rows or the classes of a call, in float64 and in one order whatever the device
// does: of few values one block takes all; of more, blocks leave partial sums, which one adds up.
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
constexpr int sum_ahead = 8;  // elements that a thread has under way
constexpr int64_t sum_elements_per_block = sum_ahead * sum_threads;
constexpr int max_partial_sums = 256;

// Sums values.of(i, values.read(i)) over [0, count). The last step, by one block, hands the sum to
// values.finish.
template <class Values>
__global__ void __launch_bounds__(sum_threads, 1)
    sum_kernel(Values values, int64_t count, Pair* partial_sums, int partials, bool last) {
  __shared__ Exchange<Pair> exchange;
  Pair sum = {0, 0};
  if (last && partials > 1) {
    for (int i = static_cast<int>(threadIdx.x); i < partials; i += sum_threads)
      sum = combine(sum, partial_sums[i]);
  } else {
    const int64_t step = int64_t(gridDim.x) * sum_threads;
    int64_t first = int64_t(blockIdx.x) * sum_threads + threadIdx.x;
    for (; first < count; first += sum_ahead * step) {
      typename Values::Read read[sum_ahead];
#pragma unroll
      for (int k = 0; k < sum_ahead; ++k)
        if (first + k * step < count) read[k] = values.read(first + k * step);
#pragma unroll
      for (int k = 0; k < sum_ahead; ++k)
        if (first + k * step < count) sum = combine(sum, values.of(first + k * step, read[k]));
    }
  }
  sum = over_block(sum, empty<Pair>(), exchange, Combine());
  if (threadIdx.x != 0) return;
  if (last)
    values.finish(sum);
  else
    partial_sums[blockIdx.x] = sum;
}

// v_c = w_c u_c, V = sum_c v_c and, for kl_div, sum_c v_c log u_c.
template <class T>
struct ClassCoefs {
  static constexpr int64_t most_by_one_block = sum_elements_per_block;  // they take logarithms

  const T *weight, *prior;
  T uniform;
  LossOptions<T> options;
  T* class_coef;
  ClassSums<double>* class_sums;

  struct Read {
    T weight, prior;
  };
  __device__ Read read(int64_t c) const {
    return {weight ? weight[c] : T(1), prior ? prior[c] : uniform};
  }
  __device__ Pair of(int64_t c, const Read& read) const {
    const T v = coef_of_class(read.weight, read.prior, options);
    class_coef[c] = v;
    const double coef = v, prior = read.prior;
    return {coef, options.kl_div ? coef_log_of_class(coef, prior) : 0};
  }
  __device__ void finish(const Pair& sum) const { *class_sums = {sum.first, sum.second, 1}; }
};

constexpr int64_t most_rows_by_one_block = 32768;

// What "mean" divides by: the sum over the rows that count of their weight, times that of their one
// class.
template <class T>
struct TargetWeights {
  static constexpr int64_t most_by_one_block = most_rows_by_one_block;

  TargetClasses target;
  const T* weight;      // of all classes, where each row has one; nullptr: 1
  const T* row_weight;  // nullptr: 1
  T* denominator;

  struct Read {
    int64_t only_class;
    T row_weight;
  };
  __device__ Read read(int64_t row) const {
    return {has_one_class() ? target.data[row] : 0, row_weight ? row_weight[row] : T(1)};
  }
  __device__ Pair of(int64_t row, const Read& read) const {
    if (!counts(row, read)) return {0, 0};
    const double of_class = weight ? double(weight[read.only_class]) : 1;
    return {weighted(double(read.row_weight), of_class), 0};
  }
  // A mean over no weight at all is 0/0, in the gradient too.
  __device__ static T divisor(double sum) {
    return sum == 0 ? infinity<T>() - infinity<T>() : T(sum);
  }
  __device__ void finish(const Pair& sum) const { *denominator = divisor(sum.first); }

 private:
  __device__ bool has_one_class() const { return target.data && target.target_classes == 1; }
  __device__ bool counts(int64_t row, const Read& read) const {
    if (has_one_class()) return target.counts(read.only_class);
    const Standing standing = target.standing(row);
    return !standing.ignored && !standing.invalid;
  }
};

template <class T>
struct RowLosses {
  static constexpr int64_t most_by_one_block = most_rows_by_one_block;

  const T* loss;
  const T* denominator;  // nullptr: the sum
  T* reduced;

  using Read = T;
  __device__ Read read(int64_t row) const { return loss[row]; }
  __device__ Pair of(int64_t, Read loss) const { return {double(loss), 0}; }
  __device__ void finish(const Pair& sum) const {
    *reduced = T(denominator ? sum.first / double(*denominator) : sum.first);
  }
};

// Their mean, where its denominator is made nowhere else.
template <class T>
struct MeanLoss {
  static constexpr int64_t most_by_one_block = most_rows_by_one_block;

  const T* loss;
  TargetWeights<T> weights;
  T* reduced;

  struct Read {
    T loss;
    typename TargetWeights<T>::Read weight;
  };
  __device__ Read read(int64_t row) const { return {loss[row], weights.read(row)}; }
  __device__ Pair of(int64_t row, const Read& read) const {
    return {double(read.loss), weights.of(row, read.weight).first};
  }
  __device__ void finish(const Pair& sum) const {
    *reduced = T(sum.first / double(weights.divisor(sum.second)));
  }
};

template <class Element>
__global__ void scale_kernel(Element* values, int64_t count,
                             const typename Accumulate<Element>::type* factor) {
  const auto scale = *factor;
  if (scale == 1) return;
  constexpr int64_t size = Chunk<Element>::size;
  const int64_t each = chunks_a_part((count + 2 * size - 2) / size, static_cast<int>(gridDim.x));
  const Span<Element> span(values, count, static_cast<int>(blockIdx.x), static_cast<int>(each));
  const int step = static_cast<int>(blockDim.x);
  for (int chunk = static_cast<int>(threadIdx.x); chunk < span.chunks; chunk += step) {
    const Chunk<Element> read = span.load(values, chunk, true);
    typename Accumulate<Element>::type scaled[Chunk<Element>::size];
#pragma unroll
    for (int i = 0; i < Chunk<Element>::size; ++i) scaled[i] = widen(read.at[i]) * scale;
    if (span.whole(chunk))
      store_aligned(values + span.first(chunk), narrow<Element>(scaled));
    else
      span.store(values, chunk, narrow<Element>(scaled));
  }
}

}  // namespace labelsmooth::cuda
