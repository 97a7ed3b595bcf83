#include "plan.h"

namespace labelsmooth::cuda {
namespace {

constexpr int64_t chunk_bytes = 16;
constexpr int64_t kib = 1024;
// A block's statically declared shared memory and what the system reserves of it, rounded up.
constexpr int64_t reserved_shared = 4 * kib;
// A part of a row large enough to hide the latency of memory and the exchange of sums, small enough
// that several blocks are on a multiprocessor.
constexpr int64_t part_bytes = 64 * kib;
// Below this, spreading a row wider costs more than idle multiprocessors do.
constexpr int64_t least_part_bytes = 8 * kib;
constexpr int most_parts = 256;
constexpr int portable_cluster = 8;
constexpr int64_t warp_chunks = 8 * 32;  // 4 KB: 1024 classes in float32

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t sum_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// The most that any row spans: a row that begins inside a chunk may span one more.
int64_t chunks_of(const LossProblem& problem) {
  const int64_t bytes = problem.classes * element_bytes(problem.dtype);
  const int64_t step = problem.logits.outer_stride * element_bytes(problem.dtype);
  const bool aligned = reinterpret_cast<uintptr_t>(problem.logits.data) % chunk_bytes == 0 &&
                       step % chunk_bytes == 0 && problem.inner == 1;
  return ceil_div(bytes, chunk_bytes) + (aligned ? 0 : 1);
}

bool adjacent(const Matrix& matrix) { return !matrix.data || matrix.class_stride == 1; }

void make_strided(Plan& plan, const LossProblem& problem, const DeviceLimits& device, bool twice) {
  plan.kernel = Kernel::strided;
  const int64_t prob_bytes = problem.target ? 0 : sum_bytes(problem.dtype);
  const int64_t bytes =
      problem.classes * (element_bytes(problem.dtype) + prob_bytes) * strided_kernel_threads;
  // Four blocks to a multiprocessor, so that enough loads are under way.
  if (twice && bytes <= device.shared_per_multiprocessor / 4 - reserved_shared)
    plan.shared_bytes = bytes;
}

// Blocks a row, or 0 where a row is not held: by a cluster with two blocks to a multiprocessor or,
// without clusters, by one block that may take a whole one.
int cluster_of(int64_t row_bytes, int64_t rows, const DeviceLimits& device) {
  const int64_t limit = device.shared_per_multiprocessor / 2 - reserved_shared;
  if (!device.clusters) return row_bytes <= device.shared_per_block - reserved_shared ? 1 : 0;
  int cluster = 1;
  const auto too_large = [&] {
    return row_bytes > cluster * (limit < part_bytes ? limit : part_bytes);
  };
  const auto too_few = [&] {
    return rows * cluster < 2 * device.multiprocessors &&
           row_bytes > cluster * 2 * least_part_bytes;
  };
  while (cluster < portable_cluster && (too_large() || too_few())) cluster *= 2;
  if (row_bytes > cluster * limit && device.large_clusters) cluster *= 2;
  return row_bytes <= cluster * limit ? cluster : 0;
}

// Of a chunk of the logits in shared memory, with its probabilities: those are held as they are
// where they are as wide as the logits, else in the type of the sums.
int64_t held_bytes(const LossProblem& problem) {
  if (problem.target) return chunk_bytes;
  const int64_t element = element_bytes(problem.dtype);
  const bool as_wide = element_bytes(problem.probs_dtype) == element;
  return chunk_bytes + (as_wide ? chunk_bytes : chunk_bytes / element * sum_bytes(problem.dtype));
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

bool is_soft(const LossProblem& problem) {
  return !problem.target || problem.sparse_probs || problem.options.over_unmasked();
}

Plan make_plan(const LossProblem& problem, const DeviceLimits& device) {
  const bool read_twice = problem.loss && problem.grad_logits.data;  // unless it is held
  const int64_t held = held_bytes(problem);
  Plan plan;
  plan.most_shared_bytes = device.shared_per_block - reserved_shared;
  if (!adjacent(problem.logits) || !adjacent(problem.grad_logits) ||
      !adjacent(problem.target_probs)) {
    make_strided(plan, problem, device, read_twice);
    return plan;
  }

  const int64_t chunks = chunks_of(problem);
  // All rows would pay for what parts add to the kernel of short ones: its loops get slower.
  if (chunks <= warp_chunks + 1 && !problem.parts) {
    plan.kernel = Kernel::warp;
    plan.lanes = 4;
    while (plan.lanes < 32 && plan.lanes < chunks) plan.lanes *= 2;
    plan.chunks = static_cast<int>(ceil_div(chunks, plan.lanes));
    plan.shared_bytes = plan.chunks * warp_kernel_threads * held;
    return plan;
  }

  const int64_t row_bytes = chunks * held;
  if (read_twice) {
    const int cluster = cluster_of(row_bytes, problem.rows, device);
    if (cluster) {
      plan.kernel = Kernel::cluster;
      plan.cluster = cluster;
      plan.chunks = static_cast<int>(chunks_a_part(chunks, cluster));
      plan.shared_bytes = plan.chunks * held;
      plan.threads =
          plan.shared_bytes > part_bytes ? cluster_kernel_threads : cluster_kernel_threads / 2;
      return plan;
    }
  }
  plan.parts = static_cast<int>(
      ceil_div(row_bytes, part_bytes) < most_parts ? ceil_div(row_bytes, part_bytes) : most_parts);
  while (problem.rows * plan.parts < 4 * device.multiprocessors && 2 * plan.parts <= most_parts &&
         row_bytes > plan.parts * 2 * least_part_bytes)
    plan.parts *= 2;
  return plan;
}

}  // namespace labelsmooth::cuda
