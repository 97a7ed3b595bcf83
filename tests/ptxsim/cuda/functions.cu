// What nvcc makes of ordinary CUDA C++: the mathematical library in both precisions, 64-bit
// division, a switch, arrays in local memory, and launches with attributes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

template <class T>
__device__ T apply(int which, T x) {
  switch (which) {
    case 0: return exp(x);
    case 1: return log(x);
    case 2: return tanh(x);
    case 3: return log1p(x);
    case 4: return exp2(x);
    case 5: return log2(x);
    case 6: return sqrt(x);
    case 7: return T(1) / x;
    case 8: return expm1(x);
    default: return x;
  }
}

template <class T>
__global__ void map(const T* x, T* y, int which, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = apply(which, x[i]);
}

extern "C" int launch_float(const float* x, float* y, int which, int n) {
  map<<<(n + 127) / 128, 128>>>(x, y, which, n);
  return cudaGetLastError();
}

extern "C" int launch_double(const double* x, double* y, int which, int n) {
  map<<<(n + 127) / 128, 128>>>(x, y, which, n);
  return cudaGetLastError();
}

struct Divisions {
  const int64_t* a;
  const int64_t* b;
  int64_t* quotient;
  uint64_t* remainder;
};

__global__ void divide(Divisions d, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  d.quotient[i] = d.a[i] / d.b[i];
  d.remainder[i] = uint64_t(d.a[i]) % uint64_t(d.b[i]) + uint64_t(d.a[i]) % 1000003u;
}

int launch_divide(const Divisions& d, int n) {
  divide<<<(n + 63) / 64, 64>>>(d, n);
  return cudaGetLastError();
}

// Half and bfloat16 pairs, eight elements a thread, through an array indexed at run time.
template <class Pair>
__global__ void halves(const uint4* x, uint4* y, int turn) {
  uint4 words = x[threadIdx.x];
  Pair pairs[4];
  for (int i = 0; i < 4; ++i) pairs[i] = reinterpret_cast<Pair*>(&words)[i];
  Pair turned[4];
  for (int i = 0; i < 4; ++i) turned[i] = __hfma2(pairs[(i + turn) & 3], pairs[i], pairs[i]);
  y[threadIdx.x] = *reinterpret_cast<uint4*>(turned);
}

extern "C" int launch_halves(const uint4* x, uint4* y, int turn, int bfloat16) {
  if (bfloat16)
    halves<__nv_bfloat162><<<1, 32>>>(x, y, turn);
  else
    halves<__half2><<<1, 32>>>(x, y, turn);
  return cudaGetLastError();
}

// A launch with attributes: so many bytes of dynamic shared memory in clusters of so many blocks.
__global__ void reverse(const int* x, int* y, int n) {
  extern __shared__ int keep[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) keep[i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[blockIdx.x * n + i] = keep[n - 1 - i];
}

extern "C" int launch_reverse(const int* x, int* y, int n, int cluster, int opt_in, int grid) {
  int device = 0, largest = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&largest, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (opt_in) {
    const auto dynamic = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t status = cudaFuncSetAttribute(reverse, dynamic, n * 4);
    if (status != cudaSuccess) return cudaGetLastError();
    cudaFuncSetAttribute(reverse, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  cudaLaunchAttribute shape{};
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(grid);
  launch.blockDim = dim3(64);
  launch.dynamicSmemBytes = n * 4;
  launch.attrs = &shape;
  launch.numAttrs = cluster > 0;
  return cudaLaunchKernelEx(&launch, reverse, x, y, n);
}
