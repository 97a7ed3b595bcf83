// The part of the CUDA runtime that launchers call, for one device: so small that short rows
// already take every path.
#include "launch.h"

namespace labelsmooth::cuda {
alignas(16) thread_local unsigned char dynamic_shared[simt::shared_capacity];
}

unsigned char* simt::dynamic_shared() { return labelsmooth::cuda::dynamic_shared; }

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 2; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = simt::shared_capacity; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = simt::shared_capacity; break;
    default: *value = 0;  // no clusters, an architecture without a name
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = 0;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) { return ""; }

}  // extern "C"
