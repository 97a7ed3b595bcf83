// Which kernel takes a problem on a device, and how its work is divided.
#pragma once

#include <cstdint>
#include <functional>

#include "../kernels.h"

namespace labelsmooth::cuda {

constexpr int warp_kernel_threads = 128;
constexpr int portable_cluster = 8;  // blocks that every device with clusters knows
// Of elements of so many bytes.
constexpr int strided_kernel_threads(int64_t bytes) { return bytes == 8 ? 128 : 256; }

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
  int cluster = 1;                // cluster: blocks a row; strided: blocks a tile
  int threads = 0;                // cluster, strided: threads a block
  int capacity = 0;               // chunks of 16 bytes that are held: of a row by a block; strided:
                                  // by a thread
  int positions = 0;              // strided: rows of a tile
  int64_t shared_bytes = 0;       // what a block holds
  int parts = 1;                  // parts: blocks a row; strided: parts of a tile
  int chunks_a_part = 0;          // cluster, parts, strided: of a block
  int64_t most_shared_bytes = 0;  // that a block of any plan for this device holds
};

// Of a row of so many chunks. Parts begin on a boundary of 128 bytes, if the row does.
LABELSMOOTH_HD int64_t chunks_a_part(int64_t chunks, int parts) {
  constexpr int64_t line = 8;
  return parts == 1 ? chunks : (chunks + line * parts - 1) / (line * parts) * line;
}

int64_t element_bytes(DType dtype);

// What a kernel is compiled for: the less a call asks, the fewer instructions each class takes.
enum class Kind {
  plain,  // the target is one class, the smoothing spread evenly, the logits are as they are given
  one_class,  // the target is one class
  soft,       // any target, and smoothing that leaves classes out
};
Kind kind_of(const LossProblem& problem);

// At most: what a call asks beside the plain takes registers, as does float64.
constexpr int cluster_kernel_threads(Kind kind, int64_t element_bytes) {
  return kind == Kind::plain && element_bytes < 8 ? 512 : 256;
}

// Whether v_c is the same for all classes of all rows.
bool spreads_evenly(const LossProblem& problem);

// Whether the device has room for a plan's clusters: it may have less than its kind promises.
using CanRun = std::function<bool(const Plan&)>;

Plan make_plan(const LossProblem& problem, const DeviceLimits& device, const CanRun& can_run);

}  // namespace labelsmooth::cuda
