// The launchers of csrc/kernels.h and the plan, by names that Python can call. Linked with the
// kernels' objects, in which they are hidden, by tests/cuda_kernels.py.
#include "../../csrc/cuda/plan.h"

using namespace labelsmooth;

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int launch_run(const LossProblem* problem, int64_t reduction, const void* normalizer,
                        void* reduced_loss, void* workspace) {
  return cuda::run(*problem, static_cast<Reduction>(reduction), normalizer, reduced_loss, workspace,
                   nullptr);
}

EXPORTED int launch_combine(const LossProblem* problem, int64_t reduction, const void* normalizer,
                            void* reduced_loss, void* workspace) {
  return cuda::combine(*problem, static_cast<Reduction>(reduction), normalizer, reduced_loss,
                       workspace, nullptr);
}

EXPORTED int workspace_bytes(const LossProblem* problem, int64_t* bytes) {
  *bytes = cuda::workspace_bytes(*problem);
  return 0;
}

EXPORTED int launch_scale(int64_t dtype, void* values, int64_t count, const void* factor) {
  return cuda::scale(static_cast<DType>(dtype), values, count, factor, nullptr);
}

// On a device that has room for clusters of so many blocks.
EXPORTED void make_plan(const LossProblem* problem, const cuda::DeviceLimits* device,
                        int64_t largest_cluster, cuda::Plan* plan) {
  const auto can_run = [=](const cuda::Plan& plan) { return plan.cluster <= largest_cluster; };
  *plan = cuda::make_plan(*problem, *device, can_run);
}

EXPORTED int driver_version() { return cuda::driver_version(); }

// So that Python's mirrors of the structs cannot drift unseen.
EXPORTED int64_t problem_bytes() { return sizeof(LossProblem); }
EXPORTED int64_t plan_bytes() { return sizeof(cuda::Plan); }
