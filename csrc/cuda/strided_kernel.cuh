// The kernel over rows whose classes are not adjacent in memory, (N, C, d1, ...).
//
// A block takes a tile: neighbouring rows, or positions, and of them all classes or a part. Its
// threads lie along the positions first, so that a warp's lanes access neighbouring elements, then
// along the classes, in lines: of n lines each takes every n-th chunk of a position.
//
// If the tile fits, a thread keeps its chunks in shared memory, where no other touches them; else
// they are gathered again for the gradient.
#pragma once

#include "denominator.cuh"
#include "plan.h"
#include "row_gradient.cuh"
#include "row_result.cuh"

namespace labelsmooth::cuda {

// How a launch divides its rows.
struct Tiling {
  int positions;  // of a tile, a power of 2
  int blocks;     // which share its classes
  int slots;      // for chunks that a thread holds; 0: none is held
  int chunks_a_part;
};

// ---- a thread's chunks --------------------------------------------------------------------------

// A row by its chunks.
template <class Element>
struct Column {
  static constexpr int size = Chunk<Element>::size;

  Element* data;  // class 0
  int64_t stride;
  const Span<Element>& span;

  __device__ Chunk<Element> gather(int chunk, Element outside) const {
    Chunk<Element> values = {};
    for_places(chunk, [&](int i, const Element* place) { values.at[i] = *place; });
    if (span.whole(chunk)) return values;
    const int end = span.end(chunk);
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (i >= end) values.at[i] = outside;
    return values;
  }
  __device__ void scatter(int chunk, const Chunk<Element>& values) const {
    for_places(chunk, [&](int i, Element* place) { *place = values.at[i]; });
  }

 private:
  template <class Use>
  __device__ void for_places(int chunk, const Use& use) const {
    Element* place = data + span.first(chunk) * stride;
    if (span.whole(chunk)) {
#pragma unroll
      for (int i = 0; i < size; ++i, place += stride) use(i, place);
    } else {
      const int end = span.end(chunk);
#pragma unroll
      for (int i = 0; i < size; ++i, place += stride)
        if (i < end) use(i, place);
    }
  }
};

// `count` times 16 bytes, those of a block's threads side by side.
template <int count>
__device__ void hold_at(uint4* place, const void* values) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    uint4 bits;
    memcpy(&bits, static_cast<const char*>(values) + i * sizeof bits, sizeof bits);
    place[i * blockDim.x] = bits;
  }
}
template <int count>
__device__ void recall_from(const uint4* place, void* values) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const uint4 bits = place[i * blockDim.x];
    memcpy(static_cast<char*>(values) + i * sizeof bits, &bits, sizeof bits);
  }
}

// load(k, slot) for all slots, `depth` of them before take(k, slot) of the first.
template <int depth, class Load, class Take>
__device__ void for_slots(int slots, const Load& load, const Take& take) {
  for (int slot = 0; slot < slots; slot += depth) {
#pragma unroll
    for (int k = 0; k < depth; ++k)
      if (slot + k < slots) load(k, slot + k);
#pragma unroll
    for (int k = 0; k < depth; ++k)
      if (slot + k < slots) take(k, slot + k);
  }
}

// ---- sums over a position -----------------------------------------------------------------------

// What is exchanged at a time.
template <class T>
union Piece {
  T largest;
  Totals<T> totals;
  Best best;
  TargetSums<T> target;
  ClassSums<T> unmasked;
};

// The threads of a position: in the lines of a tile, and the blocks of a cluster. All end with the
// same bits, in every run.
template <class T>
struct Position {
  int positions, cluster;
  Piece<T>* exchange;  // a place for every second thread

  template <bool soft>
  __device__ void combine_sums(RowSums<T, soft>& sums, const Wanted& wanted) const {
    if (positions == static_cast<int>(blockDim.x) && cluster == 1) return;
    sums.raise(over_all(sums.largest, Larger()));
    for_pieces(sums, wanted, [&](auto& piece) { piece = over_all(piece, Combine()); });
  }

 private:
  template <class Sums, class Two>
  __device__ Sums over_all(Sums sums, const Two& two) const {
    const int thread = static_cast<int>(threadIdx.x);
    Sums* places = reinterpret_cast<Sums*>(exchange);
    for (int half = static_cast<int>(blockDim.x) / 2; half >= positions; half /= 2) {
      if (thread >= half && thread < 2 * half) places[thread - half] = sums;
      __syncthreads();
      if (thread < half) sums = two(sums, places[thread]);
      __syncthreads();
    }
    if (thread < positions) places[thread] = sums;
    sync_blocks();
    Sums* mine = places + (thread & (positions - 1));
    sums = cluster == 1 ? *mine : *in_block(mine, 0);
    for (int rank = 1; rank < cluster; ++rank) sums = two(sums, *in_block(mine, rank));
    sync_blocks();  // all have read: the places are free, and blocks may end
    return sums;
  }

  __device__ void sync_blocks() const {
    if (cluster == 1) return __syncthreads();
    cluster_arrive();
    cluster_wait();
  }
};

// ---- the kernel ---------------------------------------------------------------------------------

template <class Element>
constexpr int strided_threads = strided_kernel_threads(sizeof(Element));
// Blocks for whose registers a multiprocessor has room.
template <class Element>
constexpr int strided_kernel_blocks = sizeof(Element) == 8 ? 3 : 2;

// The blocks of a tile are a cluster; or, with part_sums, parts of rows, of which nothing but their
// sums is made.
template <class Element, Kind kind>
__global__ void __launch_bounds__(strided_threads<Element>, strided_kernel_blocks<Element>)
    strided_kernel(const __grid_constant__ Problem<Element> problem, int64_t first_row,
                   Tiling tiling,
                   RowSums<typename Problem<Element>::T, kind == Kind::soft>* part_sums) {
  using T = typename Problem<Element>::T;
  constexpr bool soft = kind == Kind::soft;
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __shared__ Piece<T> exchange[strided_threads<Element> / 2];

  constexpr int threads = strided_threads<Element>;
  const int thread = static_cast<int>(threadIdx.x);
  const int lines = threads / tiling.positions, line = thread / tiling.positions;
  const int part = static_cast<int>(blockIdx.x) % tiling.blocks;
  const int64_t index = first_row + int64_t(blockIdx.x) / tiling.blocks * tiling.positions +
                        (thread & (tiling.positions - 1));
  // Lanes beyond the last row take part in exchanges and touch nothing.
  const bool active = index < problem.rows;
  Row<Element, kind> row(problem, active ? index : problem.rows - 1);
  const Span<Element> span(nullptr, active ? problem.classes : 0, part, tiling.chunks_a_part);
  const Target<Element, soft> target(problem, row.index, span, line, lines);
  const Column<Element> logits = {row.logits(), problem.logits.class_stride, span};
  const int slots = (span.chunks - line + lines - 1) / lines;
  const auto chunk_of = [&](int slot) { return line + slot * lines; };

  // Behind the places for logits are those for probabilities, in the type of the sums.
  constexpr int pieces = soft ? int(sizeof(T) / sizeof(Element)) : 0;  // of a chunk's probabilities
  const bool dense = soft && !problem.target.data;
  uint4* held = reinterpret_cast<uint4*>(dynamic_shared) + thread;
  uint4* held_probs = held + tiling.slots * threads;

  constexpr int depth = soft ? 1 : sizeof(Element) == 8 ? 2 : 4;  // chunks on their way
  Chunk<Element> x[depth];
  ChunkProbs<Element, soft> t[depth];
  const auto gather = [&](int k, int slot) {
    x[k] = logits.gather(chunk_of(slot), row.outside());
    if (dense) t[k] = target.gather(chunk_of(slot));
  };
  const auto hold = [&](int k, int slot) {
    hold_at<1>(held + slot * threads, x[k].at);
    if constexpr (soft)
      if (dense) hold_at<pieces>(held_probs + slot * pieces * threads, t[k].at);
  };
  const auto read = [&](int k, int slot) {
    if (tiling.slots) {
      recall_from<1>(held + slot * threads, x[k].at);
      if constexpr (soft) {
        t[k].any = true;
        if (dense) recall_from<pieces>(held_probs + slot * pieces * threads, t[k].at);
      }
    } else {
      gather(k, slot);
    }
    if (!dense) t[k] = target.take({}, chunk_of(slot));
  };

  __shared__ RowCount counted;
  counted.look(problem);

  RowStats<T> stats;
  if (problem.makes_sums()) {
    RowSums<T, soft> sums;
    if (!row.unread()) {
      if (tiling.slots) for_slots<depth>(slots, gather, hold);
      row.read_reference(1, active);
      for_slots<depth>(slots, read, [&](int k, int slot) {
        row.accumulate(sums, Packed<Element>(x[k]), t[k], chunk_of(slot), span);
      });
    }
    const Position<T> position = {tiling.positions, part_sums ? 1 : tiling.blocks, exchange};
    position.combine_sums(sums, problem.template wanted<kind>());
    if (part_sums) {
      if (active && line == 0) part_sums[row.index * tiling.blocks + part] = sums;
      return;
    }
    stats = row.close(sums);
    if (active && line == 0 && part == 0) RowResult<Element, kind>(row, sums, stats).write();
  } else {
    stats = row.recall();
  }
  if (!problem.grad_logits.data) return;

  const Column<Element> grad = {row.grad(), problem.grad_logits.class_stride, span};
  const RowGradient<Element, kind> gradient(row, stats, counted.denominator(problem));
  const bool counts = row.counts();
  for_slots<depth>(
      slots,
      [&](int k, int slot) {
        if (counts) read(k, slot);
      },
      [&](int k, int slot) {
        const int chunk = chunk_of(slot);
        Chunk<Element> result;
        if (!counts) {
          result = row.filling();
        } else {
          const Packed<Element> given(x[k]);
          result = span.whole(chunk) && (soft || chunk != span.chunk_of(row.target))
                       ? gradient.template at<true>(given, t[k], chunk, span)
                       : gradient.template at<false>(given, t[k], chunk, span);
        }
        grad.scatter(chunk, result);  // by all lanes, wherever their targets are
      });
}

}  // namespace labelsmooth::cuda
