// The kernels over rows whose classes are adjacent in memory.
//
//   warp_kernel      few classes: a row is a warp's, or a part of one's
//   cluster_kernel   many: a row is a block's, or spread over a cluster of blocks
//   sums_kernel      a few long rows, those that need no gradient, and those of which a rank has a
//   finish_kernel    part: summed up in parts by a block each, which a warp a row combines
//   gradient_kernel  the gradient from the statistics of a row, in parts
//
// The first two hold the row in shared memory, read it once and write its gradient once. Of a
// longer row they hold what they can and read the rest again, last first, while it may be in the L2
// cache. The gradient may overwrite the logits: every element is written by the thread that read
// it, after all that its row needs is read.
#pragma once

#include <climits>

#include "chunks.cuh"
#include "denominator.cuh"
#include "plan.h"
#include "row_result.cuh"
#include "teams.cuh"

namespace labelsmooth::cuda {

// ---- rows held in shared memory -----------------------------------------------------------------

// Each thread computes on the chunks that it fetched, so that only sums are exchanged. `shared` has
// `capacity` places for chunks of each row; behind these are as many for the first piece of each
// chunk's probabilities, then for the second. What is beyond is read twice.
template <class Element, Kind kind, class Team>
__device__ __forceinline__ void process_held(const Problem<Element>& problem, int64_t index,
                                             const Team& team, unsigned char* shared, int capacity,
                                             int chunks_a_part) {
  using T = typename Problem<Element>::T;
  constexpr bool soft = kind == Kind::soft;
  // Lanes beyond the last row take part in exchanges and touch nothing.
  const bool active = index < problem.rows;
  Row<Element, kind> row(problem, active ? index : problem.rows - 1);
  const Element* logits = row.logits();
  const Span<Element> span(logits, active ? problem.classes : 0, team.part(), chunks_a_part);
  const Target<Element, soft> target(problem, row.index, span, team.first_chunk(), team.step());
  const int held_chunks = Team::holds_all ? span.chunks : min(span.chunks, capacity);
  const ThreadChunks held_ones = {team.first_chunk(), held_chunks, team.step()};
  const ThreadChunks all = {team.first_chunk(), span.chunks, team.step()};
  const ThreadChunks rest = {all.from(held_chunks), span.chunks, team.step()};
  const int places = capacity * team.rows();
  Chunk<Element>* held = reinterpret_cast<Chunk<Element>*>(shared) + team.row() * capacity;
  Chunk<T>* held_probs = reinterpret_cast<Chunk<T>*>(shared) + places + team.row() * capacity;

  if (!row.unread()) {
    held_ones.for_whole(span, [&](int chunk) {
      __pipeline_memcpy_async(held + chunk, logits + span.first(chunk), sizeof *held);
      target.fetch(held_probs + chunk, places, chunk);
    });
    held_ones.for_others(span, false, [&](int chunk) {
      held[chunk] = span.load(logits, chunk, false, row.outside());
      target.fetch(held_probs + chunk, places, chunk);
    });
    __pipeline_commit();
  }
  __shared__ RowCount counted;
  counted.look(problem);
  const auto probs_of = [&](int chunk) {
    return target.fetched(held_probs + chunk, places, chunk);
  };

  RowStats<T> stats;
  if (problem.loss) {
    RowSums<T, soft> sums;
    row.read_reference(team.lanes(), active);
    const bool read = !row.unread();
    if (!Team::holds_all && read) sum_up<1>(row, sums, target, span, rest);
    __pipeline_wait_prior(0);
    Packed<Element> largest = row.turned(Packed<Element>(filled_with(row.outside())));
    if (read) {
      held_ones.for_all([&](int chunk) {
        largest = larger(largest, row.turned(load_packed<Element>(held + chunk)));
      });
    }
    sums.raise(row.largest_of(largest));
    const T own = sums.largest;
    sums.raise(team.largest(own));
    if (read) {
      const Powers<T> powers = sums.powers();
      const bool irregular = row.left_out >= 0;
      if (!irregular) {
        held_ones.for_whole(span, [&](int chunk) {
          const auto x = load_packed<Element>(held + chunk);
          row.template add<true>(sums, powers, x, probs_of(chunk), chunk, span);
        });
      }
      held_ones.for_others(span, irregular, [&](int chunk) {
        const auto x = load_packed<Element>(held + chunk);
        row.template add<false>(sums, powers, x, probs_of(chunk), chunk, span);
      });
    }
    if (read && row.may_have_best(sums, own)) find_best(row, sums, span, all);
    team.sum(sums, problem.template wanted<kind>());
    stats = row.close(sums);
    if (active && team.leads()) RowResult<Element, kind>(row, sums, stats).write_loss();
  } else {
    __pipeline_wait_prior(0);
    stats = row.recall();
  }

  if (!problem.grad_logits.data) return;
  Element* grad = row.grad();
  const T denominator = counted.denominator(problem);
  if (!row.counts()) return fill(grad, span, all, row.filling());
  const RowGradient<Element, kind> gradient(row, stats, denominator);
  if (!Team::holds_all) write_gradient<1>(gradient, target, span, rest, grad);
  const bool irregular = !span.aligns(grad);
  if (!irregular) {
    held_ones.for_whole(span, [&](int chunk) {
      const auto x = load_packed<Element>(held + chunk);
      store_aligned(grad + span.first(chunk),
                    gradient.template at<true>(x, probs_of(chunk), chunk, span));
    });
  }
  held_ones.for_others(span, irregular, [&](int chunk) {
    const auto x = load_packed<Element>(held + chunk);
    span.store(grad, chunk, gradient.template at<false>(x, probs_of(chunk), chunk, span));
  });
  if (!irregular && row.has_target_in(span, held_ones)) {
    const int64_t place = row.target - span.origin;
    grad[row.target] = gradient.at_target(reinterpret_cast<const Element*>(held)[place]);
  }
}

// Blocks for whose registers a multiprocessor has room; of the cluster kernel the largest ones.
template <class Element, Kind kind>
constexpr int warp_kernel_blocks = kind == Kind::soft && sizeof(Element) == 8 ? 3 : 4;
template <class Element, Kind kind>
constexpr int cluster_kernel_blocks = kind == Kind::soft    ? (sizeof(Element) == 8 ? 1 : 2)
                                      : kind == Kind::plain ? 2
                                                            : (sizeof(Element) == 8 ? 2 : 3);

template <class Element, Kind kind>
__global__ void __launch_bounds__(warp_kernel_threads, warp_kernel_blocks<Element, kind>)
    warp_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int log2_lanes,
                int capacity) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  const Lanes team = {log2_lanes};
  const int64_t index = first_row + int64_t(blockIdx.x) * team.rows() + team.row();
  process_held<Element, kind>(problem, index, team, dynamic_shared, capacity, INT_MAX);
}

template <class Element, Kind kind>
__global__ void __launch_bounds__(cluster_kernel_threads(kind, sizeof(Element)),
                                  cluster_kernel_blocks<Element, kind>)
    cluster_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row,
                   int log2_size, int capacity, int chunks_a_part) {
  using T = typename Problem<Element>::T;
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __shared__ BlockExchange<T, kind == Kind::soft> exchange;
  const Cluster<T, kind == Kind::soft> team(log2_size, exchange);
  const int64_t index = first_row + (blockIdx.x >> log2_size);
  process_held<Element, kind>(problem, index, team, dynamic_shared, capacity, chunks_a_part);
}

// ---- rows summed up in parts, written in parts --------------------------------------------------

constexpr int part_kernel_threads = 256;

template <class Element, Kind kind>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    sums_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int parts,
                int chunks_a_part,
                RowSums<typename Problem<Element>::T, kind == Kind::soft>* part_sums) {
  using T = typename Problem<Element>::T;
  constexpr bool soft = kind == Kind::soft;
  __shared__ BlockExchange<T, soft> exchange;
  Row<Element, kind> row(problem, first_row + blockIdx.x / parts);
  if (row.unread()) return;
  const int part = static_cast<int>(blockIdx.x) % parts;
  const Span<Element> span(row.logits(), problem.classes, part, chunks_a_part);
  const ThreadChunks chunks = chunks_of_thread(span);
  const Target<Element, soft> target(problem, row.index, span, chunks.first, chunks.step);
  row.read_reference(32);

  RowSums<T, soft> sums;
  sum_up<ahead<Element, soft>>(row, sums, target, span, chunks);
  const Cluster<T, soft> team(0, exchange);
  const T own = sums.largest;
  sums.raise(team.largest(own));
  if (row.may_have_best(sums, own)) find_best(row, sums, span, chunks);
  team.sum(sums, problem.template wanted<kind>());
  if (threadIdx.x == 0) part_sums[row.index * parts + part] = sums;
}

// One warp a row.
template <class Element, Kind kind>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    finish_kernel(const __grid_constant__ Problem<Element> problem, int parts,
                  const RowSums<typename Problem<Element>::T, kind == Kind::soft>* part_sums) {
  using T = typename Problem<Element>::T;
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= problem.rows) return;
  Row<Element, kind> row(problem, index);
  RowSums<T, kind == Kind::soft> sums;
  if (!row.unread()) {
    row.read_reference(32);
    for (int part = static_cast<int>(threadIdx.x % 32); part < parts; part += 32)
      sums = combine(sums, part_sums[index * parts + part]);
    const Lanes team = {5};
    sums.raise(team.largest(sums.largest));
    team.sum(sums, problem.template wanted<kind>());
  }
  const RowStats<T> stats = row.close(sums);
  if (threadIdx.x % 32 == 0) RowResult<Element, kind>(row, sums, stats).write();
}

// From what forward left of the rows.
template <class Element, Kind kind>
__global__ void __launch_bounds__(part_kernel_threads, 2)
    gradient_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row, int parts,
                    int chunks_a_part) {
  constexpr bool soft = kind == Kind::soft;
  Row<Element, kind> row(problem, first_row + blockIdx.x / parts);
  const int part = static_cast<int>(blockIdx.x) % parts;
  const Span<Element> span(row.logits(), problem.classes, part, chunks_a_part);
  const ThreadChunks chunks = chunks_of_thread(span);
  __shared__ RowCount counted;
  counted.look(problem);
  const auto denominator = counted.denominator(problem);
  if (!row.counts()) return fill(row.grad(), span, chunks, row.filling());
  const Target<Element, soft> target(problem, row.index, span, chunks.first, chunks.step);
  const RowGradient<Element, kind> gradient(row, row.recall(), denominator);
  write_gradient<ahead<Element, soft>>(gradient, target, span, chunks, row.grad());
}

}  // namespace labelsmooth::cuda
