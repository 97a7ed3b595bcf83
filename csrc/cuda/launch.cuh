// How a kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace labelsmooth::cuda {

struct Grid {
  int64_t blocks;
  int threads;               // a block
  int64_t shared_bytes = 0;  // dynamic, a block
  int cluster = 1;           // blocks
};

// cudaLaunchConfig_t points to the shape.
inline cudaLaunchConfig_t config_of(const Grid& grid, cudaStream_t stream,
                                    cudaLaunchAttribute& shape) {
  shape = {};
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(grid.blocks);
  config.blockDim = static_cast<unsigned>(grid.threads);
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = stream;
  config.attrs = &shape;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return config;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
                   Arguments... arguments) {
  cudaLaunchAttribute shape;
  const cudaLaunchConfig_t config = config_of(grid, stream, shape);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace labelsmooth::cuda
