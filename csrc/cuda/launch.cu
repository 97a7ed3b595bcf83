// A call: what the kernels need beside the problem's memory is made, they run, the loss is reduced.
// All on one stream, and nothing waits for the device.
#include <algorithm>

#include "launch_rows.cuh"
#include "rank_kernel.cuh"
#include "sums.cuh"

namespace labelsmooth::cuda {
namespace {

// ---- plan ---------------------------------------------------------------------------------------

bool can_run_on_current_device(const LossProblem& problem, const Plan& plan) {
  switch (problem.dtype) {
    case DType::float32: return can_run<float>(problem, plan);
    case DType::float64: return can_run<double>(problem, plan);
    case DType::bfloat16: return can_run<__nv_bfloat16>(problem, plan);
    case DType::float16: return can_run<__half>(problem, plan);
  }
  return false;
}

Plan plan_for_current_device(const LossProblem& problem) {
  return make_plan(problem, limits_of_current_device(),
                   [&](const Plan& plan) { return can_run_on_current_device(problem, plan); });
}

// ---- workspace ----------------------------------------------------------------------------------

template <class T>
int64_t sums_bytes(const LossProblem& problem) {
  return kind_of(problem) == Kind::soft ? sizeof(RowSums<T, true>) : sizeof(RowSums<T, false>);
}

// The pieces of a workspace, each on a boundary of 16 bytes.
struct Workspace {
  ClassSums<double>* class_sums;
  double* denominator;
  Pair* partial_sums;
  void* class_coef;
  void* part_sums;
  int64_t bytes;

  Workspace(const LossProblem& problem, const Plan& plan, void* memory) {
    const bool wide = problem.dtype == DType::float64;
    const bool combines = problem.ranks_parts;
    const bool has_coefs = !combines && !spreads_evenly(problem);
    const bool in_parts =
        !combines && (plan.kernel == Kernel::parts || plan.parts > 1) && makes_sums(problem);
    const int64_t part = wide ? sums_bytes<double>(problem) : sums_bytes<float>(problem);
    bytes = 0;
    const auto take = [&](int64_t size) -> void* {
      void* piece = memory ? static_cast<char*>(memory) + bytes : nullptr;
      bytes += (size + 15) / 16 * 16;
      return piece;
    };
    class_sums = static_cast<ClassSums<double>*>(take(sizeof *class_sums));
    denominator = static_cast<double*>(take(sizeof *denominator));
    partial_sums = static_cast<Pair*>(take(max_partial_sums * sizeof *partial_sums));
    class_coef = take(has_coefs ? problem.classes * (wide ? 8 : 4) : 0);
    part_sums = take(in_parts ? problem.rows * plan.parts * part : 0);
  }
};

// ---- sums ---------------------------------------------------------------------------------------

template <class Values>
cudaError_t sum(const Values& values, int64_t count, Pair* partial_sums, cudaStream_t stream) {
  const int64_t blocks = (count + sum_elements_per_block - 1) / sum_elements_per_block;
  const int partials = count <= Values::most_by_one_block
                           ? 1
                           : static_cast<int>(std::min<int64_t>(blocks, max_partial_sums));
  const auto add = [&](int64_t blocks, bool last) {
    return launch(sum_kernel<Values>, {blocks, sum_threads}, stream, values, count, partial_sums,
                  partials, last);
  };
  if (partials > 1)
    if (const cudaError_t error = add(partials, false)) return error;
  return add(1, true);
}

template <class T>
cudaError_t make_class_coef(const LossProblem& problem, const Workspace& workspace,
                            cudaStream_t stream, Prepared& prepared) {
  if (spreads_evenly(problem)) return cudaSuccess;
  const ClassCoefs<T> coefs = {
      static_cast<const T*>(problem.weight),      static_cast<const T*>(problem.prior),
      T(1) / static_cast<T>(problem.all_classes), typed_options<T>(problem.options),
      static_cast<T*>(workspace.class_coef),      workspace.class_sums};
  prepared.class_coef = workspace.class_coef;
  prepared.class_sums = workspace.class_sums;
  return sum(coefs, problem.classes, workspace.partial_sums, stream);
}

// Whether the weight of a row's class is in the mean.
bool weighs_by_class(const LossProblem& problem) {
  return problem.target && !problem.sparse_probs && problem.weight;
}

template <class T>
TargetWeights<T> target_weights(const LossProblem& problem, const Workspace& workspace) {
  const T* weight = static_cast<const T*>(problem.weight);
  return {target_classes(problem),
          weighs_by_class(problem) ? weight - problem.class_offset : nullptr,
          static_cast<const T*>(problem.row_weight), reinterpret_cast<T*>(workspace.denominator)};
}

// Whether every block that writes gradients makes the denominator itself.
bool counts_rows(const LossProblem& problem) {
  if (weighs_by_class(problem) || problem.row_weight) return false;
  return !problem.target || (problem.target_classes == 1 && problem.rows <= most_counted_rows);
}

// For the gradients: without them reduce_loss makes it with the mean.
template <class T>
cudaError_t make_denominator(const LossProblem& problem, Reduction reduction,
                             const void* normalizer, const Workspace& workspace,
                             cudaStream_t stream, Prepared& prepared) {
  if (reduction != Reduction::mean) return cudaSuccess;
  prepared.denominator = normalizer;
  if (normalizer || !problem.grad_logits.data) return cudaSuccess;
  prepared.counts_rows = counts_rows(problem);
  if (prepared.counts_rows) return cudaSuccess;
  prepared.denominator = workspace.denominator;
  return sum(target_weights<T>(problem, workspace), problem.rows, workspace.partial_sums, stream);
}

template <class T>
cudaError_t reduce_loss(const LossProblem& problem, Reduction reduction, const Prepared& prepared,
                        void* reduced_loss, const Workspace& workspace, cudaStream_t stream) {
  if (!reduced_loss) return cudaSuccess;
  const auto reduce = [&](const auto& losses) {
    return sum(losses, problem.rows, workspace.partial_sums, stream);
  };
  const T* loss = static_cast<const T*>(problem.loss);
  const T* denominator = static_cast<const T*>(prepared.denominator);
  T* reduced = static_cast<T*>(reduced_loss);
  if (reduction == Reduction::mean && !denominator)
    return reduce(MeanLoss<T>{loss, target_weights<T>(problem, workspace), reduced});
  return reduce(RowLosses<T>{loss, denominator, reduced});
}

// ---- calls --------------------------------------------------------------------------------------

cudaError_t launch_rows_of_dtype(const LossProblem& problem, const Plan& plan,
                                 const Prepared& prepared, cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::float32: return launch_rows<float>(problem, plan, prepared, stream);
    case DType::float64: return launch_rows<double>(problem, plan, prepared, stream);
    case DType::bfloat16: return launch_rows<__nv_bfloat16>(problem, plan, prepared, stream);
    case DType::float16: return launch_rows<__half>(problem, plan, prepared, stream);
  }
  return cudaErrorInvalidValue;
}

template <class T>
cudaError_t run_accumulating(const LossProblem& problem, Reduction reduction,
                             const void* normalizer, void* reduced_loss, void* memory,
                             cudaStream_t stream) {
  const Plan plan = plan_for_current_device(problem);
  const Workspace workspace(problem, plan, memory);
  Prepared prepared = {};
  prepared.part_sums = workspace.part_sums;
  if (const cudaError_t error = make_class_coef<T>(problem, workspace, stream, prepared))
    return error;
  if (const cudaError_t error =
          make_denominator<T>(problem, reduction, normalizer, workspace, stream, prepared))
    return error;
  if (const cudaError_t error = launch_rows_of_dtype(problem, plan, prepared, stream)) return error;
  return reduce_loss<T>(problem, reduction, prepared, reduced_loss, workspace, stream);
}

template <class T>
cudaError_t launch_ranks(const LossProblem& problem, cudaStream_t stream) {
  if (problem.rows == 0) return cudaSuccess;
  const Grid grid = {(problem.rows + rank_kernel_threads - 1) / rank_kernel_threads,
                     rank_kernel_threads};
  return launch(rank_kernel<T>, grid, stream,
                RankRows<T>(problem, typed_options<T>(problem.options)), target_classes(problem),
                problem.rows);
}

template <class T>
cudaError_t combine_accumulating(const LossProblem& problem, Reduction reduction,
                                 const void* normalizer, void* reduced_loss, void* memory,
                                 cudaStream_t stream) {
  const Workspace workspace(problem, Plan(), memory);
  Prepared prepared = {};
  if (const cudaError_t error =
          make_denominator<T>(problem, reduction, normalizer, workspace, stream, prepared))
    return error;
  if (const cudaError_t error = launch_ranks<T>(problem, stream)) return error;
  return reduce_loss<T>(problem, reduction, prepared, reduced_loss, workspace, stream);
}

template <class Element>
cudaError_t launch_scale(void* values, int64_t count, const void* factor, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  constexpr int threads = 256;
  const int64_t wanted = count / (threads * Chunk<Element>::size) + 1;
  const int64_t most = 8 * int64_t(limits_of_current_device().multiprocessors);
  return launch(scale_kernel<Element>, {std::min(wanted, most), threads}, stream,
                static_cast<Element*>(values), count,
                static_cast<const typename Accumulate<Element>::type*>(factor));
}

}  // namespace

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version)) cudaGetLastError();
  return version;
}

int set_device(int device) { return cudaSetDevice(device); }

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int64_t workspace_bytes(const LossProblem& problem) {
  return Workspace(problem, plan_for_current_device(problem), nullptr).bytes;
}

int run(const LossProblem& problem, Reduction reduction, const void* normalizer, void* reduced_loss,
        void* workspace, void* stream) {
  const auto run_typed =
      problem.dtype == DType::float64 ? run_accumulating<double> : run_accumulating<float>;
  return run_typed(problem, reduction, normalizer, reduced_loss, workspace,
                   static_cast<cudaStream_t>(stream));
}

int combine(const LossProblem& problem, Reduction reduction, const void* normalizer,
            void* reduced_loss, void* workspace, void* stream) {
  const auto combine_typed =
      problem.dtype == DType::float64 ? combine_accumulating<double> : combine_accumulating<float>;
  return combine_typed(problem, reduction, normalizer, reduced_loss, workspace,
                       static_cast<cudaStream_t>(stream));
}

int scale(DType dtype, void* values, int64_t count, const void* factor, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case DType::float32: return launch_scale<float>(values, count, factor, on);
    case DType::float64: return launch_scale<double>(values, count, factor, on);
    case DType::bfloat16: return launch_scale<__nv_bfloat16>(values, count, factor, on);
    case DType::float16: return launch_scale<__half>(values, count, factor, on);
  }
  return cudaErrorInvalidValue;
}

}  // namespace labelsmooth::cuda
