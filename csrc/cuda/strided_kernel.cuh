// The kernel over rows whose classes are not adjacent in memory, (N, C, d1, ...): a thread a row,
// so that the lanes of a warp take neighbouring rows and read neighbouring elements.
//
// A row stays in shared memory, where no other thread touches it, if it fits, and is read once;
// else it is read again for the gradient.
#pragma once

#include "plan.h"
#include "row_result.cuh"

namespace labelsmooth::cuda {

constexpr int tile_chunks = 64;

// What a thread reads of its row, by source(c), and where it keeps it: class c at held[c *
// threads].
template <class Value, class Source>
struct Column {
  Value* held;  // nullptr: the row is read again
  const Source& source;

  __device__ Value first_read(int64_t c) const {
    const Value value = source(c);
    if (held) held[c * strided_kernel_threads] = value;
    return value;
  }
  __device__ Value again(int64_t c) const {
    return held ? held[c * strided_kernel_threads] : source(c);
  }
};

// Blocks for whose registers a multiprocessor has room.
template <class Element>
constexpr int strided_kernel_blocks = sizeof(Element) == 8 ? 3 : 4;

template <class Element, bool soft>
__global__ void __launch_bounds__(strided_kernel_threads, strided_kernel_blocks<Element>)
    strided_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, bool hold) {
  using T = typename Problem<Element>::T;
  constexpr int size = Chunk<Element>::size;
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  const int64_t index = first_row + int64_t(blockIdx.x) * strided_kernel_threads + threadIdx.x;
  if (index >= problem.rows) return;

  Row<Element, soft> row(problem, index);
  const Span<Element> span(nullptr, problem.classes);
  const Target<Element, soft> target(problem, index, span, 0, 1);
  const Element* row_logits = row.logits();
  const auto logit_at = [&](int64_t c) { return row_logits[c * problem.logits.class_stride]; };
  const auto prob_at = [&](int64_t c) { return target.prob_at(c); };
  Element* held = reinterpret_cast<Element*>(dynamic_shared);
  T* held_probs = reinterpret_cast<T*>(held + problem.classes * strided_kernel_threads);
  const Column<Element, decltype(logit_at)> logits = {hold ? held + threadIdx.x : nullptr,
                                                      logit_at};
  const Column<T, decltype(prob_at)> probs = {hold ? held_probs + threadIdx.x : nullptr, prob_at};

  const auto gather = [&](auto* to, const auto& read, int64_t first) {
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (first + i < problem.classes) to[i] = read(first + i);
  };
  const auto logits_of = [&](const auto& read, int chunk) {
    Chunk<Element> x = {};
    gather(x.at, read, span.first(chunk));
    return x;
  };
  const auto probs_of = [&](const auto& read, int chunk) {
    if constexpr (soft)
      if (!problem.target.data) {
        ChunkProbs<Element, soft> t = {true, {}};
        gather(t.at, read, span.first(chunk));
        return t;
      }
    return target.take({}, chunk);
  };
  const auto read_logit = [&](int64_t c) { return logits.first_read(c); };
  const auto read_prob = [&](int64_t c) { return probs.first_read(c); };
  const auto logit_again = [&](int64_t c) { return logits.again(c); };
  const auto prob_again = [&](int64_t c) { return probs.again(c); };

  RowSums<T, soft> sums;
  if (problem.makes_sums()) {
    if (!row.unread()) {
      row.read_reference(1);
      // In tiles, so that rounding errors do not grow with the classes.
      for (int tile = 0; tile < span.chunks; tile += tile_chunks) {
        RowSums<T, soft> part;
        const int end = min(tile + tile_chunks, span.chunks);
        for (int chunk = tile; chunk < end; ++chunk)
          row.accumulate(part, logits_of(read_logit, chunk), probs_of(read_prob, chunk), chunk,
                         span);
        sums = combine(sums, part);
      }
    }
    row.close(sums);
    RowResult<Element, soft>(row, sums).write();
  } else {
    sums.stats = row.recall();
  }
  if (!problem.grad_logits.data) return;

  Element* grad = row.grad();
  const int64_t stride = problem.grad_logits.class_stride;
  const GradTerms<T> terms = row.grad_terms_from(sums.stats);
  const bool again = problem.loss;
  for (int chunk = 0; chunk < span.chunks; ++chunk) {
    const int64_t first = span.first(chunk);
    Chunk<Element> result = row.filling();
    if (row.counts()) {
      const Chunk<Element> x = again ? logits_of(logit_again, chunk) : logits_of(read_logit, chunk);
      const auto t = again ? probs_of(prob_again, chunk) : probs_of(read_prob, chunk);
      result = row.gradient(x, t, chunk, span, terms);
    }
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (first + i < problem.classes) grad[(first + i) * stride] = result.at[i];
  }
}

}  // namespace labelsmooth::cuda
