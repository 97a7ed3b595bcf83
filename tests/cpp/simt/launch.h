// A grid of blocks, each a thread of the system: to the thread sanitizer, blocks of one launch are
// not ordered.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "block.h"

namespace simt {

// A block's dynamic shared memory, by the name that the kernels give it.
constexpr size_t shared_capacity = 40 << 10;
unsigned char* dynamic_shared();

// As many blocks at once as the thread sanitizer has room for.
constexpr unsigned blocks_at_once = 8;

inline std::vector<std::unique_ptr<Fiber>> fibers[blocks_at_once];

// Dynamic shared memory as it is when a block begins: garbage, and of the size asked for.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : begin_(dynamic_shared() + bytes) {
    if (bytes > shared_capacity) fail("more shared memory than there is");
    std::memset(dynamic_shared(), 0xfb, bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(begin_, beyond());
#endif
  }
  ~SharedMemory() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(begin_, beyond());
#endif
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

 private:
  size_t beyond() const { return static_cast<size_t>(dynamic_shared() + shared_capacity - begin_); }
  unsigned char* const begin_;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                   const Arguments&... arguments) {
  if (config->numAttrs != 0) fail("no clusters here");
  const auto run_block = [&](unsigned index) {
    const SharedMemory memory(config->dynamicSmemBytes);
    Block block(index, static_cast<int>(config->blockDim.x), config->gridDim.x);
    block.run([&] { kernel(arguments...); }, fibers[index % blocks_at_once]);
  };
  for (unsigned first = 0; first < config->gridDim.x; first += blocks_at_once) {
    std::vector<std::thread> blocks;
    for (unsigned i = first; i < std::min(first + blocks_at_once, config->gridDim.x); ++i)
      blocks.emplace_back(run_block, i);
    for (std::thread& block : blocks) block.join();
  }
  return cudaSuccess;
}

}  // namespace simt
