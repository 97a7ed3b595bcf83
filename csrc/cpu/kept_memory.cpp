#include "kept_memory.h"

#include <array>
#include <atomic>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace labelsmooth::cpu {

#if defined(__linux__)

namespace {

std::array<std::atomic<Block*>, kept_blocks> kept{};

void release(Block* block) {
  if (!block) return;
  munmap(block->data, block->bytes);
  delete block;
}

}  // namespace

Block* take_block(size_t bytes) {
  Block* taken = nullptr;
  for (auto& place : kept) {
    Block* block = place.exchange(nullptr);
    if (!block) continue;
    if (!taken && block->bytes >= bytes && bytes >= least_taken(block->bytes)) {
      taken = block;
      taken->passed_over = 0;
      continue;
    }
    Block* nothing = nullptr;
    if (++block->passed_over == most_passed_over || !place.compare_exchange_strong(nothing, block))
      release(block);
  }
  if (taken) return taken;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, bytes, MADV_HUGEPAGE);  // where it is refused, small pages do
  return new Block{data, bytes, 0};
}

void give_back(Block* block) {
  madvise(block->data, block->bytes, MADV_FREE);
  for (auto& place : kept) {  // the newest first, the oldest goes
    block = place.exchange(block);
    if (!block) return;
  }
  release(block);
}

void release_kept() {
  for (auto& place : kept) release(place.exchange(nullptr));
}

#else

Block* take_block(size_t) { return nullptr; }
void give_back(Block*) {}
void release_kept() {}

#endif

}  // namespace labelsmooth::cpu
