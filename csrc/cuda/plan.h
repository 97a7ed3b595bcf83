// Which kernel takes a problem on a device, and how its work is divided.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace labelsmooth::cuda {

constexpr int warp_kernel_threads = 128;
constexpr int cluster_kernel_threads = 512;  // at most
constexpr int strided_kernel_threads = 128;

// What a plan depends on.
struct DeviceLimits {
  int multiprocessors;
  int shared_per_block;  // bytes, after opting in
  int shared_per_multiprocessor;
  bool clusters;
  bool large_clusters;  // of 16 blocks too
};

enum class Kernel { warp, cluster, parts, strided };

struct Plan {
  Kernel kernel = Kernel::parts;
  int lanes = 32;                 // warp: lanes a row
  int cluster = 1;                // cluster: blocks a row
  int threads = 0;                // cluster: threads a block
  int chunks = 0;                 // warp: chunks of 16 bytes a thread; cluster: a block
  int64_t shared_bytes = 0;       // what a block holds
  int parts = 1;                  // parts: blocks a row
  int64_t most_shared_bytes = 0;  // that a block of any plan for this device holds
};

// Of a row of so many chunks. Parts begin on a boundary of 128 bytes, if the row does.
LABELSMOOTH_HD int64_t chunks_a_part(int64_t chunks, int parts) {
  constexpr int64_t line = 8;
  return parts == 1 ? chunks : (chunks + line * parts - 1) / (line * parts) * line;
}

int64_t element_bytes(DType dtype);

// Whether the kernels are those for any target: probabilities of all classes or of a few, or one
// class where the smoothing leaves classes out.
bool is_soft(const LossProblem& problem);

Plan make_plan(const LossProblem& problem, const DeviceLimits& device);

}  // namespace labelsmooth::cuda
