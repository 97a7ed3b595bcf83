// Memory for large gradients, slabs of logits and statistics of many rows, kept from one call for
// the next.
//
// The system clears each page of new memory at its first touch, which takes longer than loss and
// gradient together. So the blocks given back last are kept, on huge pages and marked MADV_FREE:
// the system takes them only where it runs short.
#pragma once

#include <cstddef>

namespace labelsmooth::cpu {

// From here on blocks are kept. malloc itself keeps smaller ones (glibc: at most 32 MiB).
constexpr size_t kept_bytes = 32 << 20;

// As many as a step of the projection gives back: its slab, the float32 sums of the weight's
// gradient, and that gradient. A step of the loss gives back two: gradient and statistics.
constexpr size_t kept_blocks = 3;
// One passed over by so many calls in turn goes back to the system.
constexpr int most_passed_over = 16;
// And goes to no request for less than this, three quarters of it.
constexpr size_t least_taken(size_t block_bytes) { return block_bytes / 4 * 3; }

struct Block {
  void* data;
  size_t bytes;
  int passed_over;
};

// At least `bytes`, or nullptr: no memory, or not Linux.
Block* take_block(size_t bytes);
void give_back(Block* block);

void release_kept();

}  // namespace labelsmooth::cpu
