#include "kept_memory.h"

#include <atomic>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace labelsmooth::cpu {

#if defined(__linux__)

namespace {

std::atomic<Block*> kept{nullptr};

void release(Block* block) {
  if (!block) return;
  munmap(block->data, block->bytes);
  delete block;
}

}  // namespace

Block* take_block(size_t bytes) {
  Block* block = kept.exchange(nullptr);
  if (block && block->bytes >= bytes && block->bytes / 2 <= bytes) return block;
  release(block);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, bytes, MADV_HUGEPAGE);  // where it is refused, small pages do
  return new Block{data, bytes};
}

void give_back(Block* block) {
  madvise(block->data, block->bytes, MADV_FREE);
  release(kept.exchange(block));
}

void release_kept() { release(kept.exchange(nullptr)); }

#else

Block* take_block(size_t) { return nullptr; }
void give_back(Block*) {}
void release_kept() {}

#endif

}  // namespace labelsmooth::cpu
