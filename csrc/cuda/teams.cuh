// Teams of threads that share a row, or a part of one. A thread takes every step-th chunk of its
// part from its first on.
#pragma once

#include "plan.h"
#include "reduce.cuh"

namespace labelsmooth::cuda {

// Some lanes of a warp, 2^log2_size; a block has several such teams.
struct Lanes {
  static constexpr bool holds_all = true;
  int log2_size;

  __device__ int lanes() const { return 1 << log2_size; }  // of a warp
  __device__ int part() const { return 0; }
  __device__ int first_chunk() const { return static_cast<int>(threadIdx.x) & (lanes() - 1); }
  __device__ int step() const { return lanes(); }
  __device__ bool leads() const { return first_chunk() == 0; }
  // Rows of a block, and the team's among them.
  __device__ int rows() const { return warp_kernel_threads >> log2_size; }
  __device__ int row() const { return static_cast<int>(threadIdx.x) >> log2_size; }

  template <class T>
  __device__ T largest(T mine) const {
    return over_lanes(mine, lanes(), Larger());
  }
  template <class T, bool soft>
  __device__ void sum(RowSums<T, soft>& sums, const Wanted& wanted) const {
    for_pieces(sums, wanted, [&](auto& piece) { piece = over_lanes(piece, lanes(), Combine()); });
    __syncwarp();  // the leader has read the reference before another lane overwrites it
  }
};

template <class T, bool soft>
struct BlockExchange : Exchange<T>, Exchange<Totals<T>>, Exchange<Best> {};
template <class T>
struct BlockExchange<T, true>
    : BlockExchange<T, false>, Exchange<TargetSums<T>>, Exchange<ClassSums<T>> {};

// The threads of 2^log2_size blocks, each of which has a part of the row.
template <class T, bool soft>
class Cluster {
 public:
  static constexpr bool holds_all = false;

  __device__ Cluster(int log2_size, BlockExchange<T, soft>& exchange)
      : exchange_(exchange),
        blocks_{1 << log2_size, static_cast<int>(blockIdx.x) & ((1 << log2_size) - 1)} {
    blocks_.begin();
  }

  __device__ int lanes() const { return 32; }
  __device__ int part() const { return blocks_.mine; }
  __device__ int first_chunk() const { return static_cast<int>(threadIdx.x); }
  __device__ int step() const { return static_cast<int>(blockDim.x); }
  __device__ bool leads() const { return part() == 0 && threadIdx.x == 0; }
  __device__ int rows() const { return 1; }
  __device__ int row() const { return 0; }

  __device__ T largest(T mine) const {
    blocks_.await_begin();
    return blocks_.template over_all<T>(mine, -infinity<T>(), exchange_, Larger());
  }
  __device__ void sum(RowSums<T, soft>& sums, const Wanted& wanted) const {
    for_pieces(sums, wanted, [&](auto& piece) {
      using Piece = std::decay_t<decltype(piece)>;
      piece = blocks_.template over_all<Piece>(piece, empty<Piece>(), exchange_, Combine());
    });
  }

 private:
  BlockExchange<T, soft>& exchange_;
  const Blocks blocks_;
};

}  // namespace labelsmooth::cuda
