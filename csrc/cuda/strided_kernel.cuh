// The kernel over rows whose classes are not adjacent in memory, (N, C, d1, ...): a thread a row,
// so that the lanes of a warp take neighbouring rows and read neighbouring elements.
//
// A row stays in shared memory, where no other thread touches it, if it fits, and is read once;
// else it is read again for the gradient.
#pragma once

#include "plan.h"
#include "row.cuh"

namespace labelsmooth::cuda {

constexpr int tile_chunks = 64;

// Where a thread keeps its row: class c at held[c * threads].
template <class Element>
struct Column {
  Element* held;  // nullptr: the row is read again
  Element* source;
  int64_t stride;  // of the source

  __device__ Element first_read(int64_t c) const {
    const Element value = source[c * stride];
    if (held) held[c * strided_kernel_threads] = value;
    return value;
  }
  __device__ Element again(int64_t c) const {
    return held ? held[c * strided_kernel_threads] : source[c * stride];
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
  Element* held = hold ? reinterpret_cast<Element*>(dynamic_shared) + threadIdx.x : nullptr;
  const Column<Element> logits = {held, row.logits(), problem.logits.class_stride};
  const Column<Element> probs = {hold ? held + problem.classes * strided_kernel_threads : nullptr,
                                 soft ? row.probs() : nullptr, problem.target_probs.class_stride};
  const Span<Element> span(nullptr, problem.classes);
  const bool forward = problem.loss != nullptr;
  const auto gather = [&](const auto& read, int chunk) {
    const int64_t first = span.first(chunk);
    Chunk<Element> result;
#pragma unroll
    for (int i = 0; i < size; ++i)
      result.at[i] = first + i < problem.classes ? read(first + i) : Element(0.0f);
    return result;
  };
  const auto read_logit = [&](int64_t c) { return logits.first_read(c); };
  const auto read_prob = [&](int64_t c) { return probs.first_read(c); };
  const auto logit_again = [&](int64_t c) { return logits.again(c); };
  const auto prob_again = [&](int64_t c) { return probs.again(c); };

  RowSums<T> sums;
  const bool summed = forward || soft;
  if (summed) {
    if (!row.unread()) {
      row.read_reference(1);
      // In tiles, so that rounding errors do not grow with the classes.
      for (int tile = 0; tile < span.chunks; tile += tile_chunks) {
        RowSums<T> part;
        const int end = min(tile + tile_chunks, span.chunks);
        for (int chunk = tile; chunk < end; ++chunk) {
          const Chunk<Element> x = gather(read_logit, chunk);
          Chunk<Element> t = x;
          if constexpr (soft) t = gather(read_prob, chunk);
          row.accumulate(part, x, t, chunk, span);
        }
        sums = combine(sums, part);
      }
    }
    row.close(sums);
    if (forward) row.write_loss(sums);
  } else {
    sums.stats = row.recall();
  }
  if (!problem.grad_logits.data) return;

  Element* grad = row.grad();
  const int64_t stride = problem.grad_logits.class_stride;
  const GradTerms<T> terms = row.grad_terms_from(sums.stats);
  const bool filled = row.ignored || row.invalid;
  for (int chunk = 0; chunk < span.chunks; ++chunk) {
    const int64_t first = span.first(chunk);
    Chunk<Element> result = row.filling();
    if (!filled) {
      const Chunk<Element> x = summed ? gather(logit_again, chunk) : gather(read_logit, chunk);
      Chunk<Element> t = x;
      if constexpr (soft) t = gather(prob_again, chunk);
      result = row.gradient(x, t, chunk, span, terms);
    }
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (first + i < problem.classes) grad[(first + i) * stride] = result.at[i];
  }
}

}  // namespace labelsmooth::cuda
