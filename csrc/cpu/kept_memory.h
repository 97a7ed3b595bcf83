// Memory for large gradients, slabs of logits and statistics of many rows, kept from one call for
// the next.
//
// The system clears each page of new memory when it is first touched, which takes longer than loss
// and gradient together. So the blocks that were given back last are kept, on huge pages and marked
// as free to take (MADV_FREE): the system takes their pages only where it runs short of memory.
#pragma once

#include <cstddef>

namespace labelsmooth::cpu {

// From here on blocks are kept. malloc itself keeps smaller ones (glibc: at most 32 MiB).
constexpr size_t kept_bytes = 32 << 20;

// As many as a step of the projection gives back: its slab, the float32 sums of the weight's
// gradient, and that gradient. A step of the loss gives back two, the gradient and the statistics.
// Where these are about as large one may take the other's block, and the other then has a new one,
// which serves both from the next step on.
constexpr size_t kept_blocks = 3;
// One that so many calls in turn had no use for goes back to the system.
constexpr int most_passed_over = 16;

struct Block {
  void* data;
  size_t bytes;
  int passed_over;
};

// A block of `bytes` at least, or nullptr: no memory, or a system where this is not done.
Block* take_block(size_t bytes);
void give_back(Block* block);

// Gives the kept blocks to the system.
void release_kept();

}  // namespace labelsmooth::cpu
