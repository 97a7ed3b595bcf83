// The kernels over rows whose classes are adjacent in memory.
//
//   warp_kernel      few classes: a row is a warp's, or a part of one's
//   cluster_kernel   many: a row is a block's, or spread over a cluster of blocks
//   sums_kernel      longer rows, and rows that need no gradient: each in parts, summed up by a
//   finish_kernel    block each; then the parts are combined, one warp a row
//   gradient_kernel  the gradient from the statistics of a row, in parts
//
// The first two hold the row in shared memory, read it once and write its gradient once. The
// gradient may overwrite the logits: every element is written by the thread that read it, after
// everything that its row needs is read.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "plan.h"
#include "row.cuh"

namespace labelsmooth::cuda {

// ---- rows held in shared memory -----------------------------------------------------------------

// Teams of threads that share a row. A thread takes every step-th chunk from its first on, of its
// team's or, where a row has several parts, of its block's part.

// `size` lanes of a warp, a power of 2.
struct Lanes {
  int size;

  __device__ int lanes() const { return size; }  // of a warp
  __device__ int part() const { return 0; }
  __device__ int parts() const { return 1; }
  __device__ int first_chunk() const { return static_cast<int>(threadIdx.x) & (size - 1); }
  __device__ int step() const { return size; }
  __device__ bool leads() const { return first_chunk() == 0; }

  template <class T, bool soft>
  __device__ void combine_sums(RowSums<T>& sums, bool with_best) const {
    sums.stats = warp_combine(sums.stats, size);
    if (with_best) sums.best = warp_combine(sums.best, size);
    if constexpr (soft) sums.probs = warp_combine(sums.probs, size);
    __syncwarp();  // the leader has read the reference before another lane overwrites it
  }
  __device__ void leave() const {}
};

template <class T>
struct BlockExchange {
  Exchange<RowStats<T>> stats;
  Exchange<Best<T>> best;
  Exchange<ProbSums<T>> probs;
};

// The threads of `size` blocks, each of which has a part of the row.
template <class T>
struct Cluster {
  int size;
  BlockExchange<T>& exchange;

  __device__ int lanes() const { return 32; }
  __device__ int part() const { return static_cast<int>(blockIdx.x) % size; }
  __device__ int parts() const { return size; }
  __device__ int first_chunk() const { return static_cast<int>(threadIdx.x); }
  __device__ int step() const { return static_cast<int>(blockDim.x); }
  __device__ bool leads() const { return part() == 0 && threadIdx.x == 0; }

  template <class Any, bool soft>
  __device__ void combine_sums(RowSums<Any>& sums, bool with_best) const {
    sums.stats = cluster_combine(sums.stats, exchange.stats, size);
    if (with_best) sums.best = cluster_combine(sums.best, exchange.best, size);
    if constexpr (soft) sums.probs = cluster_combine(sums.probs, exchange.probs, size);
    if (size > 1) cluster_arrive();
  }
  __device__ void leave() const {
    if (size > 1) cluster_wait();
  }
};

// One chunk of a row on its way to shared memory.
template <class Element>
__device__ void fetch(Chunk<Element>* held, const Element* row, int chunk, bool aligned,
                      const Span<Element>& span) {
  if (aligned && span.whole(chunk))
    __pipeline_memcpy_async(held, row + span.first(chunk), sizeof *held);
  else
    *held = span.load(row, chunk, false);
}

// Each thread computes on the chunks that it fetched itself, so that only the sums are exchanged.
// `held` has a place for each thread of the block, and so on for its second chunk and those after;
// behind them, from `held_probs` on, are the probabilities.
template <class Element, bool soft, class Team>
__device__ void process_held(const Problem<Element>& problem, int64_t index, const Team& team,
                             Chunk<Element>* held, Chunk<Element>* held_probs) {
  using T = typename Problem<Element>::T;
  // The lanes of rows beyond the last take part in exchanges and touch nothing.
  const bool active = index < problem.rows;
  Row<Element, soft> row(problem, active ? index : problem.rows - 1);
  const Element* logits = row.logits();
  const Element* probs = soft ? row.probs() : logits;
  const Span<Element> span(logits, active ? problem.classes : 0, team.part(), team.parts());
  const bool probs_aligned = span.aligns(probs);
  const int begin = team.first_chunk(), step = team.step();
  const int threads = static_cast<int>(blockDim.x);
  const bool filled = row.ignored || row.invalid;
  held += threadIdx.x;
  held_probs += threadIdx.x;

  if (!row.unread()) {
    for (int chunk = begin, place = 0; chunk < span.chunks; chunk += step, place += threads) {
      fetch(held + place, logits, chunk, true, span);
      if constexpr (soft) fetch(held_probs + place, probs, chunk, probs_aligned, span);
    }
    __pipeline_commit();
  }

  RowSums<T> sums;
  if (problem.loss || soft) {
    row.read_reference(team.lanes(), active);
    __pipeline_wait_prior(0);
    const int end = row.unread() ? 0 : span.chunks;
    for (int chunk = begin, place = 0; chunk < end; chunk += step, place += threads) {
      const Chunk<Element> x = load_aligned<Element>(held + place);
      const Chunk<Element> t = soft ? load_aligned<Element>(held_probs + place) : x;
      row.accumulate(sums, x, t, chunk, span);
    }
    team.template combine_sums<T, soft>(sums, problem.predicted != nullptr);
    row.close(sums);
    if (problem.loss && active && team.leads()) row.write_loss(sums);
  } else {
    __pipeline_wait_prior(0);
    sums.stats = row.recall();
  }

  if (problem.grad_logits.data) {
    Element* grad = row.grad();
    const bool grad_aligned = span.aligns(grad);
    const GradTerms<T> terms = row.grad_terms_from(sums.stats);
    for (int chunk = begin, place = 0; chunk < span.chunks; chunk += step, place += threads) {
      Chunk<Element> result = row.filling();
      if (!filled) {
        const Chunk<Element> x = load_aligned<Element>(held + place);
        const Chunk<Element> t = soft ? load_aligned<Element>(held_probs + place) : x;
        result = row.gradient(x, t, chunk, span, terms);
      }
      span.store(grad, chunk, grad_aligned, result);
    }
  }
  team.leave();
}

// Blocks of that many threads for whose registers a multiprocessor has room.
template <class Element, bool soft>
constexpr int cluster_kernel_blocks = soft || sizeof(Element) == 8 ? 1 : 2;

template <class Element, bool soft>
__global__ void __launch_bounds__(warp_kernel_threads, 4)
    warp_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int lanes,
                int chunks_per_lane) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  Chunk<Element>* held = reinterpret_cast<Chunk<Element>*>(dynamic_shared);
  const int rows = warp_kernel_threads / lanes;
  const int64_t index =
      first_row + int64_t(blockIdx.x) * rows + static_cast<int>(threadIdx.x) / lanes;
  process_held<Element, soft>(problem, index, Lanes{lanes}, held,
                              held + chunks_per_lane * warp_kernel_threads);
}

template <class Element, bool soft>
__global__ void __launch_bounds__(cluster_kernel_threads, cluster_kernel_blocks<Element, soft>)
    cluster_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int size,
                   int chunks_per_block) {
  using T = typename Problem<Element>::T;
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __shared__ BlockExchange<T> exchange;
  Chunk<Element>* held = reinterpret_cast<Chunk<Element>*>(dynamic_shared);
  process_held<Element, soft>(problem, first_row + blockIdx.x / size, Cluster<T>{size, exchange},
                              held, held + chunks_per_block);
}

// ---- rows summed up in parts, written in parts --------------------------------------------------

constexpr int part_kernel_threads = 256;

// Chunks whose loads are under way before the first is needed.
template <class Element, bool soft>
constexpr int ahead = soft || sizeof(Element) == 8 ? 2 : 4;

// load(k, chunk) for the chunks of this thread, `depth` of them before take(k, chunk) of the first.
template <int depth, class Load, class Take>
__device__ void for_chunks_ahead(int chunks, const Load& load, const Take& take) {
  const int step = static_cast<int>(blockDim.x);
  int chunk = static_cast<int>(threadIdx.x);
  for (; chunk + (depth - 1) * step < chunks; chunk += depth * step) {
#pragma unroll
    for (int k = 0; k < depth; ++k) load(k, chunk + k * step);
#pragma unroll
    for (int k = 0; k < depth; ++k) take(k, chunk + k * step);
  }
  for (; chunk < chunks; chunk += step) {
    load(0, chunk);
    take(0, chunk);
  }
}

template <class Element, bool soft>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    sums_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int parts,
                RowSums<typename Problem<Element>::T>* part_sums) {
  using T = typename Problem<Element>::T;
  __shared__ BlockExchange<T> exchange;
  Row<Element, soft> row(problem, first_row + blockIdx.x / parts);
  if (row.unread()) return;
  const Element* logits = row.logits();
  const Element* probs = soft ? row.probs() : logits;
  const int part = static_cast<int>(blockIdx.x) % parts;
  const Span<Element> span(logits, problem.classes, part, parts);
  const bool probs_aligned = span.aligns(probs);
  row.read_reference(32);

  constexpr int depth = ahead<Element, soft>;
  Chunk<Element> held[depth], held_probs[soft ? depth : 1];
  RowSums<T> sums;
  for_chunks_ahead<depth>(
      span.chunks,
      [&](int k, int chunk) {
        held[k] = span.load(logits, chunk, true);
        if constexpr (soft) held_probs[k] = span.load(probs, chunk, probs_aligned);
      },
      [&](int k, int chunk) {
        row.accumulate(sums, held[k], held_probs[soft ? k : 0], chunk, span);
      });
  const Cluster<T> block = {1, exchange};
  block.template combine_sums<T, soft>(sums, problem.predicted != nullptr);
  if (threadIdx.x == 0) part_sums[row.index * parts + part] = sums;
}

// The parts of a row, by one warp.
template <class T, bool soft>
__device__ RowSums<T> combined_parts(const RowSums<T>* part_sums, int parts) {
  RowSums<T> sums;
  for (int part = static_cast<int>(threadIdx.x % 32); part < parts; part += 32)
    sums = combine(sums, part_sums[part]);
  sums.stats = warp_combine(sums.stats);
  sums.best = warp_combine(sums.best);
  if constexpr (soft) sums.probs = warp_combine(sums.probs);
  return sums;
}

template <class Element, bool soft>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    finish_kernel(const __grid_constant__ Problem<Element> problem, int parts,
                  const RowSums<typename Problem<Element>::T>* part_sums) {
  using T = typename Problem<Element>::T;
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= problem.rows) return;
  Row<Element, soft> row(problem, index);
  RowSums<T> sums;
  if (!row.unread()) {
    row.read_reference(32);
    sums = combined_parts<T, soft>(part_sums + index * parts, parts);
  }
  row.close(sums);
  if (threadIdx.x % 32 == 0) row.write_loss(sums);
}

// With part_sums the statistics are those of the parts, else what forward left.
template <class Element, bool soft>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    gradient_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int parts,
                    const RowSums<typename Problem<Element>::T>* part_sums) {
  using T = typename Problem<Element>::T;
  Row<Element, soft> row(problem, first_row + blockIdx.x / parts);
  const Element* logits = row.logits();
  const Element* probs = soft ? row.probs() : logits;
  Element* grad = row.grad();
  const Span<Element> span(logits, problem.classes, static_cast<int>(blockIdx.x) % parts, parts);
  const bool probs_aligned = span.aligns(probs), grad_aligned = span.aligns(grad);
  RowSums<T> sums;
  if (part_sums && !row.unread()) {
    sums = combined_parts<T, soft>(part_sums + row.index * parts, parts);
    row.close(sums);
  } else {
    sums.stats = row.recall();
  }
  const GradTerms<T> terms = row.grad_terms_from(sums.stats);
  const bool filled = row.ignored || row.invalid;

  constexpr int depth = ahead<Element, soft>;
  Chunk<Element> held[depth], held_probs[soft ? depth : 1];
  for_chunks_ahead<depth>(
      span.chunks,
      [&](int k, int chunk) {
        if (filled) return;
        held[k] = span.load(logits, chunk, true);
        if constexpr (soft) held_probs[k] = span.load(probs, chunk, probs_aligned);
      },
      [&](int k, int chunk) {
        const Chunk<Element> result =
            filled ? row.filling()
                   : row.gradient(held[k], held_probs[soft ? k : 0], chunk, span, terms);
        span.store(grad, chunk, grad_aligned, result);
      });
}

}  // namespace labelsmooth::cuda
