// Which kernel takes a problem on a device, and how its work is divided.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace labelsmooth::cuda {

// What a plan depends on.
struct DeviceLimits {
  int multiprocessors;
  int shared_per_block;  // bytes, after opting in
  int shared_per_multiprocessor;
  bool clusters;
  bool large_clusters;  // of 16 blocks, with 64 KB each, as well
};

enum class Kernel { warp, cluster, parts, strided };

struct Plan {
  Kernel kernel = Kernel::parts;
  int lanes = 32;            // warp: lanes a row
  int cluster = 1;           // cluster: blocks a row
  int threads = 0;           // cluster: threads a block
  int chunks = 0;            // warp: chunks of 16 bytes a thread; cluster: a block
  int64_t shared_bytes = 0;  // what a block holds
  int parts = 1;             // parts: blocks a row
};

Plan make_plan(const LossProblem& problem, const DeviceLimits& device);

}  // namespace labelsmooth::cuda
