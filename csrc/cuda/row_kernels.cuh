// The kernels over rows whose classes are adjacent in memory.
//
//   warp_kernel      few classes: a row is a warp's, or a part of one's
//   cluster_kernel   many: a row is a block's, or spread over a cluster of blocks
//   sums_kernel      longer rows, those that need no gradient, and those of which a rank has a part:
//   finish_kernel    summed up in parts by a block each, which are combined by a warp a row
//   gradient_kernel  the gradient from the statistics of a row, in parts
//
// The first two hold the row in shared memory, read it once and write its gradient once. The
// gradient may overwrite the logits: every element is written by the thread that read it, after
// everything that its row needs is read.
#pragma once

#include "plan.h"
#include "row_result.cuh"

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
  __device__ void combine_sums(RowSums<T, soft>& sums, const Wanted& wanted) const {
    for_pieces(sums, wanted, [&](auto& piece) { piece = warp_combine(piece, size); });
    __syncwarp();  // the leader has read the reference before another lane overwrites it
  }
  __device__ void leave() const {}
};

template <class T, bool soft>
struct BlockExchange : Exchange<RowStats<T>>, Exchange<Best<T>> {};
template <class T>
struct BlockExchange<T, true>
    : BlockExchange<T, false>, Exchange<TargetSums<T>>, Exchange<ClassSums<T>> {};

// The threads of `size` blocks, each of which has a part of the row.
template <class T, bool soft>
struct Cluster {
  int size;
  BlockExchange<T, soft>& exchange;

  __device__ int lanes() const { return 32; }
  __device__ int part() const { return static_cast<int>(blockIdx.x) % size; }
  __device__ int parts() const { return size; }
  __device__ int first_chunk() const { return static_cast<int>(threadIdx.x); }
  __device__ int step() const { return static_cast<int>(blockDim.x); }
  __device__ bool leads() const { return part() == 0 && threadIdx.x == 0; }

  __device__ void combine_sums(RowSums<T, soft>& sums, const Wanted& wanted) const {
    for_pieces(sums, wanted, [&](auto& piece) {
      piece = cluster_combine<std::decay_t<decltype(piece)>>(piece, exchange, size);
    });
    if (size > 1) cluster_arrive();
  }
  __device__ void leave() const {
    if (size > 1) cluster_wait();
  }
};

// One chunk of a row on its way to shared memory.
template <class Element>
__device__ void fetch(Chunk<Element>* held, const Element* row, int chunk,
                      const Span<Element>& span) {
  if (span.whole(chunk))
    __pipeline_memcpy_async(held, row + span.first(chunk), sizeof *held);
  else
    *held = span.load(row, chunk, false);
}

// Each thread computes on the chunks that it fetched itself, so that only the sums are exchanged.
// `shared` has a place for each thread of the block, and so on for its second chunk and those
// after, `places` in all; behind them are as many for the first piece of each chunk's
// probabilities, then for the second.
template <class Element, bool soft, class Team>
__device__ void process_held(const Problem<Element>& problem, int64_t index, const Team& team,
                             unsigned char* shared, int places) {
  using T = typename Problem<Element>::T;
  // The lanes of rows beyond the last take part in exchanges and touch nothing.
  const bool active = index < problem.rows;
  Row<Element, soft> row(problem, active ? index : problem.rows - 1);
  const Element* logits = row.logits();
  const Span<Element> span(logits, active ? problem.classes : 0, team.part(), team.parts());
  const int begin = team.first_chunk(), step = team.step();
  const int threads = static_cast<int>(blockDim.x);
  const Target<Element, soft> target(problem, row.index, span, begin, step);
  Chunk<Element>* held = reinterpret_cast<Chunk<Element>*>(shared) + threadIdx.x;
  Chunk<T>* held_probs = reinterpret_cast<Chunk<T>*>(shared) + places + threadIdx.x;

  if (!row.unread()) {
    for (int chunk = begin, place = 0; chunk < span.chunks; chunk += step, place += threads) {
      fetch(held + place, logits, chunk, span);
      target.fetch(held_probs + place, places, chunk);
    }
    __pipeline_commit();
  }

  RowSums<T, soft> sums;
  if (problem.loss) {
    row.read_reference(team.lanes(), active);
    __pipeline_wait_prior(0);
    const int end = row.unread() ? 0 : span.chunks;
    for (int chunk = begin, place = 0; chunk < end; chunk += step, place += threads) {
      row.accumulate(sums, load_aligned<Element>(held + place),
                     target.fetched(held_probs + place, places, chunk), chunk, span);
    }
    team.combine_sums(sums, problem.wanted());
    row.close(sums);
    if (active && team.leads()) RowResult<Element, soft>(row, sums).write_loss();
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
      if (row.counts())
        result =
            row.gradient(load_aligned<Element>(held + place),
                         target.fetched(held_probs + place, places, chunk), chunk, span, terms);
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
  const int rows = warp_kernel_threads / lanes;
  const int64_t index =
      first_row + int64_t(blockIdx.x) * rows + static_cast<int>(threadIdx.x) / lanes;
  process_held<Element, soft>(problem, index, Lanes{lanes}, dynamic_shared,
                              chunks_per_lane * warp_kernel_threads);
}

template <class Element, bool soft>
__global__ void __launch_bounds__(cluster_kernel_threads, cluster_kernel_blocks<Element, soft>)
    cluster_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int size,
                   int chunks_per_block) {
  using T = typename Problem<Element>::T;
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __shared__ BlockExchange<T, soft> exchange;
  process_held<Element, soft>(problem, first_row + blockIdx.x / size,
                              Cluster<T, soft>{size, exchange}, dynamic_shared, chunks_per_block);
}

// ---- rows summed up in parts, written in parts --------------------------------------------------

constexpr int part_kernel_threads = 256;

// Chunks whose loads are under way before the first is needed.
template <class Element, bool soft>
constexpr int ahead = (soft ? 2 : 4) / (sizeof(Element) == 8 ? 2 : 1);

// Of a thread that takes chunks as below.
template <bool soft, class Element>
__device__ Target<Element, soft> target_of_thread(const Problem<Element>& problem, int64_t row,
                                                  const Span<Element>& span) {
  return {problem, row, span, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}

// load(k, chunk) for the chunks of this thread, `depth` of them before take(k, chunk) of the first.
template <int depth, class Load, class Take>
__device__ void for_chunks_ahead(int chunks, const Load& load, const Take& take) {
  const int step = static_cast<int>(blockDim.x);
  int chunk = static_cast<int>(threadIdx.x);
  if constexpr (depth > 1) {
    for (; chunk + (depth - 1) * step < chunks; chunk += depth * step) {
#pragma unroll
      for (int k = 0; k < depth; ++k) load(k, chunk + k * step);
#pragma unroll
      for (int k = 0; k < depth; ++k) take(k, chunk + k * step);
    }
  }
  for (; chunk < chunks; chunk += step) {
    load(0, chunk);
    take(0, chunk);
  }
}

template <class Element, bool soft>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    sums_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int parts,
                RowSums<typename Problem<Element>::T, soft>* part_sums) {
  using T = typename Problem<Element>::T;
  __shared__ BlockExchange<T, soft> exchange;
  Row<Element, soft> row(problem, first_row + blockIdx.x / parts);
  if (row.unread()) return;
  const Element* logits = row.logits();
  const int part = static_cast<int>(blockIdx.x) % parts;
  const Span<Element> span(logits, problem.classes, part, parts);
  const Target<Element, soft> target = target_of_thread<soft>(problem, row.index, span);
  row.read_reference(32);

  constexpr int depth = ahead<Element, soft>;
  Chunk<Element> held[depth];
  typename Target<Element, soft>::Pieces held_probs[depth];
  RowSums<T, soft> sums;
  for_chunks_ahead<depth>(
      span.chunks,
      [&](int k, int chunk) {
        held[k] = span.load(logits, chunk, true);
        held_probs[k] = target.load(chunk);
      },
      [&](int k, int chunk) {
        row.accumulate(sums, held[k], target.take(held_probs[k], chunk), chunk, span);
      });
  Cluster<T, soft>{1, exchange}.combine_sums(sums, problem.wanted());
  if (threadIdx.x == 0) part_sums[row.index * parts + part] = sums;
}

// One warp a row.
template <class Element, bool soft>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    finish_kernel(const __grid_constant__ Problem<Element> problem, int parts,
                  const RowSums<typename Problem<Element>::T, soft>* part_sums) {
  using T = typename Problem<Element>::T;
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= problem.rows) return;
  Row<Element, soft> row(problem, index);
  RowSums<T, soft> sums;
  if (!row.unread()) {
    row.read_reference(32);
    for (int part = static_cast<int>(threadIdx.x % 32); part < parts; part += 32)
      sums = combine(sums, part_sums[index * parts + part]);
    Lanes{32}.combine_sums(sums, problem.wanted());
  }
  row.close(sums);
  if (threadIdx.x % 32 == 0) RowResult<Element, soft>(row, sums).write();
}

// From what forward left of the rows.
template <class Element, bool soft>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    gradient_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row,
                    int parts) {
  using T = typename Problem<Element>::T;
  Row<Element, soft> row(problem, first_row + blockIdx.x / parts);
  const Element* logits = row.logits();
  Element* grad = row.grad();
  const Span<Element> span(logits, problem.classes, static_cast<int>(blockIdx.x) % parts, parts);
  const Target<Element, soft> target = target_of_thread<soft>(problem, row.index, span);
  const bool grad_aligned = span.aligns(grad), counts = row.counts();
  const GradTerms<T> terms = row.grad_terms_from(row.recall());

  constexpr int depth = ahead<Element, soft>;
  Chunk<Element> held[depth];
  typename Target<Element, soft>::Pieces held_probs[depth];
  for_chunks_ahead<depth>(
      span.chunks,
      [&](int k, int chunk) {
        if (!counts) return;
        held[k] = span.load(logits, chunk, true);
        held_probs[k] = target.load(chunk);
      },
      [&](int k, int chunk) {
        const Chunk<Element> result =
            counts ? row.gradient(held[k], target.take(held_probs[k], chunk), chunk, span, terms)
                   : row.filling();
        span.store(grad, chunk, grad_aligned, result);
      });
}

}  // namespace labelsmooth::cuda
