#include "plan.h"

#include <algorithm>

namespace labelsmooth::cuda {
namespace {

constexpr int64_t chunk_bytes = 16;
constexpr int64_t kib = 1024;
// A block's statically declared shared memory and what the system reserves of it, rounded up.
constexpr int64_t reserved_shared = 4 * kib;
// Large enough to hide the latency of memory and the exchange of sums, small enough for several
// blocks on a multiprocessor.
constexpr int64_t part_bytes = 64 * kib;
// Below this, spreading a row wider costs more than idle multiprocessors do.
constexpr int64_t least_part_bytes = 8 * kib;
constexpr int most_parts = 256;
// Chunks that a thread adds up one after the other: more, and rounding errors grow.
constexpr int most_slots = 64;
constexpr int64_t warp_chunks = 8 * 32;  // 4 KB: 1024 classes in float32

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t sum_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// The most that any row spans: one that begins inside a chunk may span one more.
int64_t chunks_of(const LossProblem& problem) {
  const int64_t bytes = problem.classes * element_bytes(problem.dtype);
  const int64_t step = problem.logits.outer_stride * element_bytes(problem.dtype);
  const bool aligned = reinterpret_cast<uintptr_t>(problem.logits.data) % chunk_bytes == 0 &&
                       step % chunk_bytes == 0 && problem.inner == 1;
  return ceil_div(bytes, chunk_bytes) + (aligned ? 0 : 1);
}

bool adjacent(const Matrix& matrix) { return !matrix.data || matrix.class_stride == 1; }

// Of a chunk in shared memory, with its probabilities: as they are, where as wide as the logits and
// side by side, else in the type of the sums.
int64_t held_bytes(const LossProblem& problem, bool gathered = false) {
  if (problem.target) return chunk_bytes;
  const int64_t element = element_bytes(problem.dtype);
  const bool as_they_are = !gathered && element_bytes(problem.probs_dtype) == element;
  return chunk_bytes +
         (as_they_are ? chunk_bytes : chunk_bytes / element * sum_bytes(problem.dtype));
}

// Lanes a row of the warp kernel: few, so that each has many chunks beside what it does for the row
// itself, unless that leaves the device idle.
int lanes_of(const LossProblem& problem, int64_t chunks, const DeviceLimits& device) {
  const int64_t enough_chunks = 64 * element_bytes(problem.dtype) / chunk_bytes;  // 64 logits
  const int64_t enough_lanes = 512 * int64_t(device.multiprocessors);
  const int64_t row_bytes = chunks * held_bytes(problem);
  int lanes = 4;
  while (lanes < 32 && lanes < chunks &&
         (lanes * enough_chunks < chunks || problem.rows * lanes < enough_lanes ||
          warp_kernel_threads / lanes * row_bytes > 32 * kib))
    lanes *= 2;
  return lanes;
}

// Bytes that a block of the cluster kernel may hold: two are on a multiprocessor or, without
// clusters, one.
int64_t most_held(const DeviceLimits& device) {
  const int64_t limit =
      device.clusters ? device.shared_per_multiprocessor / 2 : device.shared_per_block;
  return limit - reserved_shared;
}

// Blocks a row.
int cluster_of(int64_t row_bytes, int64_t rows, const DeviceLimits& device) {
  if (!device.clusters) return 1;
  const int64_t limit = most_held(device);
  int cluster = 1;
  const auto too_large = [&] { return row_bytes > cluster * std::min(limit, part_bytes); };
  const auto too_few = [&] {
    return rows * cluster < 2 * device.multiprocessors &&
           row_bytes > cluster * 2 * least_part_bytes;
  };
  while (cluster < portable_cluster && (too_large() || too_few())) cluster *= 2;
  if (row_bytes > cluster * limit && device.large_clusters) cluster *= 2;
  return cluster;
}

// ---- rows whose classes are not adjacent: tiles of positions and classes ------------------------

class Tiles {
 public:
  Tiles(const LossProblem& problem, const DeviceLimits& device)
      : rows_(problem.rows),
        chunks_(ceil_div(problem.classes * element_bytes(problem.dtype), chunk_bytes)),
        held_bytes_(held_bytes(problem, /*gathered=*/true)),
        sector_(static_cast<int>(32 / element_bytes(problem.dtype))),
        device_(device),
        threads_(strided_kernel_threads(element_bytes(problem.dtype))),
        positions_(threads_) {
    // A block's threads lie along positions as far as these are nearer to each other than classes.
    const Matrix& logits = problem.logits;
    const int64_t step = problem.inner > 1 ? logits.inner_stride : logits.outer_stride;
    const int64_t neighbours = problem.inner > 1 ? problem.inner : problem.rows;
    narrow_to(1, [&] { return step >= logits.class_stride || positions_ >= 2 * neighbours; });
  }

  // So that block or cluster holds the tile. False: it cannot, or too few blocks would.
  bool hold() {
    const int64_t half = device_.shared_per_multiprocessor / 2 - reserved_shared;
    const int64_t limit = device_.clusters ? half : device_.shared_per_block - reserved_shared;
    const int64_t multiprocessors = device_.multiprocessors;
    const auto too_large = [&] { return block_bytes() > half; };
    const auto too_few = [&] { return wants(2 * multiprocessors); };
    const auto mostly_idle = [&] { return wants(multiprocessors / 2); };
    narrow_to(sector_, [&] { return too_large() || too_few(); });
    const int most = device_.large_clusters ? 2 * portable_cluster
                     : device_.clusters     ? portable_cluster
                                            : 1;
    while (lines() > 1 && blocks_ < most && (too_large() || too_few())) blocks_ *= 2;
    // The L2 cache keeps the other half of a sector for a neighbour.
    narrow_to(sector_ / 2, mostly_idle);
    return block_bytes() <= limit && (block_bytes() <= part_bytes || !mostly_idle());
  }

  // For blocks that know nothing of each other.
  void divide() {
    const auto too_large = [&] {
      return slots() > most_slots || wants(4 * device_.multiprocessors);
    };
    narrow_to(32, too_large);
    while (2 * blocks_ <= most_parts && too_large()) blocks_ *= 2;
  }

  int positions() const { return positions_; }
  int blocks() const { return blocks_; }  // a tile
  int chunks_of_block() const { return static_cast<int>(chunks_a_part(chunks_, blocks_)); }
  int64_t slots() const { return ceil_div(chunks_of_block(), lines()); }
  int64_t block_bytes() const { return slots() * threads_ * held_bytes_; }

 private:
  int lines() const { return threads_ / positions_; }
  bool wants(int64_t blocks) const {
    return ceil_div(rows_, positions_) * blocks_ < blocks && block_bytes() > 2 * least_part_bytes;
  }
  template <class Wanted>
  void narrow_to(int positions, const Wanted& wanted) {
    while (positions_ > positions && 2 * lines() <= chunks_ && wanted()) positions_ /= 2;
  }

  const int64_t rows_, chunks_, held_bytes_;
  const int sector_;  // elements
  const DeviceLimits& device_;
  const int threads_;
  int positions_, blocks_ = 1;
};

void make_strided(Plan& plan, const LossProblem& problem, const DeviceLimits& device, bool twice,
                  const CanRun& can_run) {
  plan.kernel = Kernel::strided;
  plan.threads = strided_kernel_threads(element_bytes(problem.dtype));
  Tiles held(problem, device), divided(problem, device);
  if (twice && held.hold()) {
    Plan held_plan = plan;
    held_plan.positions = held.positions();
    held_plan.cluster = held.blocks();
    held_plan.chunks_a_part = held.chunks_of_block();
    held_plan.capacity = static_cast<int>(held.slots());
    held_plan.shared_bytes = held.block_bytes();
    if (held_plan.cluster == 1 || can_run(held_plan)) {
      plan = held_plan;
      return;
    }
  }
  divided.divide();
  plan.positions = divided.positions();
  plan.parts = divided.blocks();
  plan.chunks_a_part = divided.chunks_of_block();
}

}  // namespace

int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::float64: return 8;
    case DType::float32: return 4;
    case DType::bfloat16:
    case DType::float16: return 2;
  }
  return 0;
}

bool spreads_evenly(const LossProblem& problem) {
  return !problem.prior && (!problem.weight || problem.options.weight_over_target);
}

Kind kind_of(const LossProblem& problem) {
  const LossOptions<double>& options = problem.options;
  if (!problem.target || problem.sparse_probs || options.over_unmasked()) return Kind::soft;
  const bool plain = spreads_evenly(problem) && !problem.with_stats && options.logit_scale == 1 &&
                     !(options.softcap > 0);
  return plain ? Kind::plain : Kind::one_class;
}

Plan make_plan(const LossProblem& problem, const DeviceLimits& device, const CanRun& can_run) {
  const bool read_twice = problem.loss && problem.grad_logits.data;  // unless it is held
  const int64_t held = held_bytes(problem);
  Plan plan;
  plan.most_shared_bytes = device.shared_per_block - reserved_shared;
  if (!adjacent(problem.logits) || !adjacent(problem.grad_logits) ||
      !adjacent(problem.target_probs)) {
    make_strided(plan, problem, device, read_twice, can_run);
    return plan;
  }

  const int64_t chunks = chunks_of(problem);
  // Parts would slow down the warp kernel's loops for all rows.
  if (chunks <= warp_chunks + 1 && !problem.parts) {
    plan.kernel = Kernel::warp;
    plan.lanes = lanes_of(problem, chunks, device);
    // Where a row has 4 lanes, those of two rows meet no bank twice.
    plan.capacity = static_cast<int>(plan.lanes == 4 ? ceil_div(chunks, 8) * 8 + 4 : chunks);
    plan.shared_bytes = plan.capacity * (warp_kernel_threads / plan.lanes) * held;
    return plan;
  }

  const int64_t row_bytes = chunks * held;
  if (read_twice) {
    const int64_t most = most_held(device);
    // The largest cluster that the device has room for.
    for (int cluster = cluster_of(row_bytes, problem.rows, device); cluster > 0; cluster /= 2) {
      // A few rows that do not fit are cut into more parts, for all multiprocessors.
      if (row_bytes > cluster * most && problem.rows * cluster < 2 * device.multiprocessors) break;
      Plan held_plan = plan;
      held_plan.kernel = Kernel::cluster;
      held_plan.threads = 256;
      held_plan.cluster = cluster;
      held_plan.chunks_a_part = static_cast<int>(chunks_a_part(chunks, cluster));
      held_plan.capacity =
          static_cast<int>(std::min<int64_t>(held_plan.chunks_a_part, most / held));
      held_plan.shared_bytes = held_plan.capacity * held;
      if (held_plan.shared_bytes > part_bytes)
        held_plan.threads = cluster_kernel_threads(kind_of(problem), element_bytes(problem.dtype));
      if (cluster == 1 || can_run(held_plan)) return held_plan;
    }
  }
  plan.parts = static_cast<int>(std::min<int64_t>(ceil_div(row_bytes, part_bytes), most_parts));
  while (problem.rows * plan.parts < 4 * device.multiprocessors && 2 * plan.parts <= most_parts &&
         row_bytes > plan.parts * 2 * least_part_bytes)
    plan.parts *= 2;
  plan.chunks_a_part = static_cast<int>(chunks_a_part(chunks, plan.parts));
  return plan;
}

}  // namespace labelsmooth::cuda
