// From a plan to the launches of the rows' kernels, for one dtype of the logits.
#pragma once

#include "launch.cuh"
#include "plan.h"
#include "row_kernels.cuh"
#include "strided_kernel.cuh"

namespace labelsmooth::cuda {

// What run() made for the kernels, on the device.
struct Prepared {
  const void* class_coef;               // nullptr: 1/C
  const ClassSums<double>* class_sums;  // nullptr: those of the uniform prior
  const void* denominator;              // nullptr: 1
  void* part_sums;                      // plan.parts RowSums a row
};

inline TargetClasses target_classes(const LossProblem& problem) {
  return {problem.target, problem.target_classes, problem.inner, problem.ignore_index,
          problem.all_classes};
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

template <class Element, bool soft>
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
  using Sums = RowSums<typename Problem<Element>::T, soft>;

  // A grid has at most 2^31 - 1 blocks; more rows than that take several launches.
  // launch(first_row, blocks)
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
    const auto kernel = warp_kernel<Element, soft>;
    if (const cudaError_t error = allow_shared(kernel)) return error;
    return in_grids(warp_kernel_threads / plan_.lanes, 1, [&](int64_t first, int64_t blocks) {
      const Grid grid = {blocks, warp_kernel_threads, plan_.shared_bytes};
      return cuda::launch(kernel, grid, stream_, problem_, first, plan_.lanes, plan_.chunks);
    });
  }

  cudaError_t launch_cluster() const {
    const auto kernel = cluster_kernel<Element, soft>;
    if (const cudaError_t error = allow_shared(kernel)) return error;
    if (plan_.cluster > 8)
      if (const cudaError_t error =
              cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))
        return error;
    return in_grids(1, plan_.cluster, [&](int64_t first, int64_t blocks) {
      const Grid grid = {blocks, plan_.threads, plan_.shared_bytes, plan_.cluster};
      return cuda::launch(kernel, grid, stream_, problem_, first, plan_.cluster, plan_.chunks);
    });
  }

  cudaError_t launch_parts() const {
    if (problem_.parts || problem_.loss) {
      const auto sum_up = sums_kernel<Element, soft>;
      const cudaError_t error = in_grids(1, plan_.parts, [&](int64_t first, int64_t blocks) {
        const Grid grid = {blocks, part_kernel_threads};
        return cuda::launch(sum_up, grid, stream_, problem_, first, plan_.parts, part_sums_);
      });
      if (error) return error;
      constexpr int64_t rows_per_block = part_kernel_threads / 32;
      const Grid grid = {(problem_.rows + rows_per_block - 1) / rows_per_block,
                         part_kernel_threads};
      const auto finish = finish_kernel<Element, soft>;
      if (const cudaError_t error =
              cuda::launch(finish, grid, stream_, problem_, plan_.parts, part_sums_))
        return error;
    }
    if (!problem_.grad_logits.data) return cudaSuccess;
    const auto kernel = gradient_kernel<Element, soft>;
    return in_grids(1, plan_.parts, [&](int64_t first, int64_t blocks) {
      const Grid grid = {blocks, part_kernel_threads};
      return cuda::launch(kernel, grid, stream_, problem_, first, plan_.parts);
    });
  }

  cudaError_t launch_strided() const {
    const auto kernel = strided_kernel<Element, soft>;
    if (const cudaError_t error = allow_shared(kernel)) return error;
    return in_grids(strided_kernel_threads, 1, [&](int64_t first, int64_t blocks) {
      const Grid grid = {blocks, strided_kernel_threads, plan_.shared_bytes};
      return cuda::launch(kernel, grid, stream_, problem_, first, plan_.shared_bytes > 0);
    });
  }

  // Always the same limit, so that no other thread's launch finds a lower one.
  template <class Function>
  cudaError_t allow_shared(Function kernel) const {
    constexpr int64_t allowed_to_all = 44 << 10;  // of 48 KB, beside what a kernel declares
    if (plan_.shared_bytes <= allowed_to_all) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(plan_.most_shared_bytes));
  }

  const Problem<Element> problem_;
  const Plan& plan_;
  Sums* const part_sums_;
  const cudaStream_t stream_;
};

template <class Element>
cudaError_t launch_rows(const LossProblem& problem, const Plan& plan, const Prepared& prepared,
                        cudaStream_t stream) {
  return is_soft(problem) ? RowLauncher<Element, true>(problem, plan, prepared, stream).launch()
                          : RowLauncher<Element, false>(problem, plan, prepared, stream).launch();
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

}  // namespace labelsmooth::cuda
