// From a plan to the launches of the rows' kernels, for one dtype of the logits.
#pragma once

#include "device.cuh"
#include "plan.h"
#include "row_kernels.cuh"
#include "strided_kernel.cuh"

namespace labelsmooth::cuda {

// What run() made for the kernels, on the device.
struct Prepared {
  const void* class_coef;               // nullptr: 1/C
  const ClassSums<double>* class_sums;  // nullptr: those of the uniform prior
  const void* denominator;              // nullptr: 1
  bool counts_rows;                     // every block makes the denominator
  void* part_sums;                      // plan.parts RowSums a row
};

inline TargetClasses target_classes(const LossProblem& problem) {
  const int64_t inner = problem.target_classes == 1 ? 1 : problem.inner;  // rows' classes adjoin
  return {problem.target, problem.target_classes, inner, problem.ignore_index, problem.all_classes};
}

template <class Element>
Problem<Element> typed(const LossProblem& problem, const Prepared& prepared) {
  using T = typename Problem<Element>::T;
  Problem<Element> typed = {};
  typed.rows = problem.rows;
  typed.classes = problem.classes;
  typed.inner = problem.inner;
  typed.class_offset = problem.class_offset;
  typed.logits = problem.logits;
  typed.grad_logits = problem.grad_logits;
  typed.target_probs = problem.target_probs;
  typed.probs_dtype = problem.probs_dtype;
  typed.probs_bytes = static_cast<int>(element_bytes(problem.probs_dtype));
  typed.target = target_classes(problem);
  typed.sparse_probs = static_cast<const T*>(problem.sparse_probs);
  typed.row_weight = static_cast<const T*>(problem.row_weight);
  typed.weight = static_cast<const T*>(problem.weight);
  typed.prior = static_cast<const T*>(problem.prior);
  typed.class_coef = static_cast<const T*>(prepared.class_coef);
  typed.class_sums = prepared.class_sums;
  typed.uniform = T(1) / static_cast<T>(problem.all_classes);
  typed.share = static_cast<T>(problem.classes) / static_cast<T>(problem.all_classes);
  typed.options = typed_options<T>(problem.options);
  typed.transformed = problem.options.logit_scale != 1 || problem.options.softcap > 0;
  typed.grad_loss = static_cast<const T*>(problem.grad_loss);
  typed.grad_loss_stride = problem.grad_loss_stride;
  typed.denominator = static_cast<const T*>(prepared.denominator);
  typed.counts_rows = prepared.counts_rows;
  typed.parts = static_cast<T*>(problem.parts);
  typed.with_stats = problem.with_stats;
  typed.loss = static_cast<T*>(problem.loss);
  typed.row_shift = static_cast<T*>(problem.row_shift);
  typed.row_sum_exp = static_cast<T*>(problem.row_sum_exp);
  typed.row_mass = static_cast<T*>(problem.row_mass);
  typed.row_beta = static_cast<T*>(problem.row_beta);
  typed.lse = static_cast<T*>(problem.lse);
  typed.nll = static_cast<T*>(problem.nll);
  typed.predicted = problem.predicted;
  return typed;
}

template <class Kernel>
cudaError_t allow(Kernel kernel, const Grid& grid, const Plan& plan) {
  return allow(reinterpret_cast<const void*>(kernel), grid, plan.most_shared_bytes);
}

// Of a power of 2.
inline int log2_of(int value) {
  int log2 = 0;
  while ((1 << log2) < value) ++log2;
  return log2;
}

// Of one cluster; launches set the blocks.
inline Grid cluster_grid(const Plan& plan) {
  return {plan.cluster, plan.threads, plan.shared_bytes, plan.cluster};
}

template <class Element, Kind kind>
class RowLauncher {
 public:
  RowLauncher(const LossProblem& problem, const Plan& plan, const Prepared& prepared,
              cudaStream_t stream)
      : problem_(typed<Element>(problem, prepared)),
        plan_(plan),
        part_sums_(static_cast<Sums*>(prepared.part_sums)),
        stream_(stream) {}

  cudaError_t launch() const {
    if (problem_.rows == 0) return cudaSuccess;
    switch (plan_.kernel) {
      case Kernel::warp: return launch_warp();
      case Kernel::cluster: return launch_cluster();
      case Kernel::parts: return launch_parts();
      case Kernel::strided: return launch_strided();
    }
    return cudaErrorInvalidValue;
  }

 private:
  static constexpr bool soft = kind == Kind::soft;
  using Sums = RowSums<typename Problem<Element>::T, soft>;

  // launch(first_row, blocks), several times where a grid's 2^31 - 1 blocks are too few.
  template <class Launch>
  cudaError_t in_grids(int64_t rows_per_block, int64_t blocks_per_row, Launch launch) const {
    const int64_t rows_per_grid = ((int64_t(1) << 30) / blocks_per_row) * rows_per_block;
    for (int64_t first = 0; first < problem_.rows; first += rows_per_grid) {
      const int64_t rows =
          problem_.rows - first < rows_per_grid ? problem_.rows - first : rows_per_grid;
      const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block * blocks_per_row;
      if (const cudaError_t error = launch(first, blocks)) return error;
    }
    return cudaSuccess;
  }

  cudaError_t launch_warp() const {
    const auto kernel = warp_kernel<Element, kind>;
    Grid grid = {1, warp_kernel_threads, plan_.shared_bytes};
    if (const cudaError_t error = allow(kernel, grid, plan_)) return error;
    return in_grids(warp_kernel_threads / plan_.lanes, 1, [&](int64_t first, int64_t blocks) {
      grid.blocks = blocks;
      return cuda::launch(kernel, grid, stream_, problem_, first, log2_of(plan_.lanes),
                          plan_.capacity);
    });
  }

  cudaError_t launch_cluster() const {
    const auto kernel = cluster_kernel<Element, kind>;
    Grid grid = cluster_grid(plan_);
    if (const cudaError_t error = allow(kernel, grid, plan_)) return error;
    return in_grids(1, plan_.cluster, [&](int64_t first, int64_t blocks) {
      grid.blocks = blocks;
      return cuda::launch(kernel, grid, stream_, problem_, first, log2_of(plan_.cluster),
                          plan_.capacity, plan_.chunks_a_part);
    });
  }

  cudaError_t launch_parts() const {
    if (problem_.parts || problem_.loss) {
      const auto sum_up = sums_kernel<Element, kind>;
      const cudaError_t error = in_grids(1, plan_.parts, [&](int64_t first, int64_t blocks) {
        const Grid grid = {blocks, part_kernel_threads};
        return cuda::launch(sum_up, grid, stream_, problem_, first, plan_.parts,
                            plan_.chunks_a_part, part_sums_);
      });
      if (error) return error;
      if (const cudaError_t error = launch_finish()) return error;
    }
    if (!problem_.grad_logits.data) return cudaSuccess;
    const auto kernel = gradient_kernel<Element, kind>;
    return in_grids(1, plan_.parts, [&](int64_t first, int64_t blocks) {
      const Grid grid = {blocks, part_kernel_threads};
      return cuda::launch(kernel, grid, stream_, problem_, first, plan_.parts, plan_.chunks_a_part);
    });
  }

  cudaError_t launch_finish() const {
    constexpr int64_t rows_per_block = part_kernel_threads / 32;
    const Grid grid = {(problem_.rows + rows_per_block - 1) / rows_per_block, part_kernel_threads};
    const auto kernel = finish_kernel<Element, kind>;
    return cuda::launch(kernel, grid, stream_, problem_, plan_.parts, part_sums_);
  }

  cudaError_t launch_strided() const {
    if (plan_.parts == 1) return launch_tiles(problem_, plan_.cluster, nullptr);
    if (problem_.parts || problem_.loss) {
      if (const cudaError_t error = launch_tiles(problem_, plan_.parts, part_sums_)) return error;
      if (const cudaError_t error = launch_finish()) return error;
    }
    if (!problem_.grad_logits.data) return cudaSuccess;
    Problem<Element> backward = problem_;
    backward.loss = nullptr;
    return launch_tiles(backward, plan_.parts, nullptr);
  }

  cudaError_t launch_tiles(const Problem<Element>& problem, int blocks, Sums* part_sums) const {
    const auto kernel = strided_kernel<Element, kind>;
    Grid grid = cluster_grid(plan_);
    if (const cudaError_t error = allow(kernel, grid, plan_)) return error;
    const Tiling tiling = {plan_.positions, blocks, plan_.capacity, plan_.chunks_a_part};
    return in_grids(plan_.positions, blocks, [&](int64_t first, int64_t count) {
      grid.blocks = count;
      return cuda::launch(kernel, grid, stream_, problem, first, tiling, part_sums);
    });
  }

  const Problem<Element> problem_;
  const Plan& plan_;
  Sums* const part_sums_;
  const cudaStream_t stream_;
};

// use(an integral_constant of the kind).
template <class Use>
auto with_kind(Kind kind, const Use& use) {
  switch (kind) {
    case Kind::plain: return use(std::integral_constant<Kind, Kind::plain>());
    case Kind::one_class: return use(std::integral_constant<Kind, Kind::one_class>());
    case Kind::soft: break;
  }
  return use(std::integral_constant<Kind, Kind::soft>());
}

template <class Element>
cudaError_t launch_rows(const LossProblem& problem, const Plan& plan, const Prepared& prepared,
                        cudaStream_t stream) {
  return with_kind(kind_of(problem), [&](auto kind) {
    return RowLauncher<Element, decltype(kind)::value>(problem, plan, prepared, stream).launch();
  });
}

template <class Element>
bool can_run(const LossProblem& problem, const Plan& plan) {
  return with_kind(kind_of(problem), [&](auto kind) {
    constexpr Kind value = decltype(kind)::value;
    const void* kernel = plan.kernel == Kernel::strided
                             ? reinterpret_cast<const void*>(strided_kernel<Element, value>)
                             : reinterpret_cast<const void*>(cluster_kernel<Element, value>);
    return has_room(kernel, cluster_grid(plan), plan.most_shared_bytes);
  });
}

// Each in a file of its own, so that they compile side by side.
extern template cudaError_t launch_rows<float>(const LossProblem&, const Plan&, const Prepared&,
                                               cudaStream_t);
extern template cudaError_t launch_rows<double>(const LossProblem&, const Plan&, const Prepared&,
                                                cudaStream_t);
extern template cudaError_t launch_rows<__nv_bfloat16>(const LossProblem&, const Plan&,
                                                       const Prepared&, cudaStream_t);
extern template cudaError_t launch_rows<__half>(const LossProblem&, const Plan&, const Prepared&,
                                                cudaStream_t);
extern template bool can_run<float>(const LossProblem&, const Plan&);
extern template bool can_run<double>(const LossProblem&, const Plan&);
extern template bool can_run<__nv_bfloat16>(const LossProblem&, const Plan&);
extern template bool can_run<__half>(const LossProblem&, const Plan&);

}  // namespace labelsmooth::cuda
