// Kernels that are wrong, for the test of the tests: `faults NAME` must end with the message that
// CMakeLists.txt expects.
#include <cuda_pipeline_primitives.h>

#include <cstring>

namespace labelsmooth::cuda {

constexpr int threads = 64;

// The other warp's words, with no barrier before they are read.
__global__ void race(int* out) {
  __shared__ int words[threads];
  words[threadIdx.x] = 1;
  out[threadIdx.x] = words[threads - 1 - threadIdx.x];
}

// Two blocks write the same element.
__global__ void race_of_blocks(int* out) { out[threadIdx.x] = static_cast<int>(threadIdx.x); }

__global__ void beyond_shared(int* out) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  out[threadIdx.x] = dynamic_shared[4 * threads + threadIdx.x];
}

__global__ void beyond_global(int* out) { out[threads * (blockIdx.x + 1) + threadIdx.x] = 1; }

__global__ void misaligned(int* out) { *reinterpret_cast<int2*>(out + 1) = {1, 1}; }

// One thread leaves before the barrier.
__global__ void unreached_barrier(int* out) {
  if (threadIdx.x == 7) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

// One lane leaves before the exchange.
__global__ void unreached_exchange(int* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 16);
}

__global__ void unawaited_copy(int* out) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __pipeline_memcpy_async(dynamic_shared + 4 * threadIdx.x, out + threadIdx.x, 4);
  __pipeline_commit();
}

__global__ void misaligned_copy(int* out) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __pipeline_memcpy_async(dynamic_shared, out + 1, 16);
}

}  // namespace labelsmooth::cuda

using namespace labelsmooth::cuda;

int main(int, char** arguments) {
  const auto run = [&](const char* name, void (*kernel)(int*), unsigned blocks) {
    if (std::strcmp(arguments[1], name) != 0) return;
    int* out = new int[threads]();
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = 4 * threads;
    simt::launch(&config, kernel, out);
    delete[] out;
  };
  run("race", race, 1);
  run("race_of_blocks", race_of_blocks, 2);
  run("beyond_shared", beyond_shared, 1);
  run("beyond_global", beyond_global, 1);
  run("misaligned", misaligned, 1);
  run("unreached_barrier", unreached_barrier, 1);
  run("unreached_exchange", unreached_exchange, 1);
  run("unawaited_copy", unawaited_copy, 1);
  run("misaligned_copy", misaligned_copy, 1);
}
