// Memory for large gradients, kept from one call for the next.
//
// The system clears each page of new memory when it is first touched, which takes longer than loss
// and gradient together. So the block that was given back last is kept, on huge pages and marked as
// free to take (MADV_FREE): the system takes its pages only where it runs short of memory.
#pragma once

#include <cstddef>

namespace labelsmooth::cpu {

// From here on blocks are kept. malloc itself keeps smaller ones (glibc: at most 32 MiB).
constexpr size_t kept_bytes = 32 << 20;

struct Block {
  void* data;
  size_t bytes;
};

// A block of `bytes` at least, or nullptr: no memory, or a system where this is not done.
Block* take_block(size_t bytes);
void give_back(Block* block);

// Gives the kept block to the system.
void release_kept();

}  // namespace labelsmooth::cpu
