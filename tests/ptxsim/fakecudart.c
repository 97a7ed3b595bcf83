/* A stand-in for libcudart: code that nvcc compiled for the host runs with no GPU. Kernel
 * launches and queries go to hooks; see cuda_runtime.py, which sets them.
 */
#include <stddef.h>
#include <string.h>

typedef struct {
  unsigned x, y, z;
} dim3;

typedef struct {
  int device; /* the current one */
  int (*launch)(const char* kernel, const dim3* grid, const dim3* block, const dim3* cluster,
                void** args, size_t shared_bytes);
  int (*device_attribute)(int attribute, int device);
  int (*set_function_attribute)(const char* kernel, int attribute, int value);
  int (*active_blocks)(const char* kernel, int threads, size_t shared_bytes);
  int (*active_clusters)(const char* kernel, int cluster, int threads, size_t shared_bytes,
                         int* clusters);
  int driver_version;
} Hooks;

enum { success = 0, invalid_value = 1, insufficient_driver = 35, invalid_device_function = 98 };
enum { max_kernels = 8192, max_nested = 16, cluster_dimension = 4 };
enum { runtime_version = 13000 }; /* what this stands in for */

static Hooks hooks;
static struct {
  const void* host;
  const char* name;
} kernels[max_kernels];
static int kernel_count;
static int last_error;
static struct {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
} configurations[max_nested];
static int depth;

void ptxsim_set_hooks(const Hooks* given) { hooks = *given; }

static int remember(int status) {
  if (status != success) last_error = status;
  return status;
}

/* A driver serves the runtimes of its major version and of those before. */
static int driver_status(void) {
  return hooks.driver_version / 1000 < runtime_version / 1000 ? insufficient_driver : success;
}

static const char* name_of(const void* function) {
  for (int i = 0; i < kernel_count; ++i)
    if (kernels[i].host == function || kernels[i].name == function) return kernels[i].name;
  return NULL;
}

/* Registration, called by constructors that nvcc generates. */

void** __cudaRegisterFatBinary(void* binary) {
  static void* handle;
  (void)binary;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void** handle) { (void)handle; }
void __cudaUnregisterFatBinary(void** handle) { (void)handle; }

void __cudaRegisterFunction(void** handle, const char* host, char* device, const char* name,
                            int limit, void* tid, void* bid, void* block, void* grid, int* size) {
  (void)handle, (void)device, (void)limit, (void)tid, (void)bid, (void)block, (void)grid;
  (void)size;
  if (kernel_count < max_kernels) {
    kernels[kernel_count].host = host;
    kernels[kernel_count++].name = name;
  }
}

void __cudaRegisterVar(void** handle, char* host, char* device, const char* name, int external,
                       size_t size, int constant, int global) {
  (void)handle, (void)host, (void)device, (void)name, (void)external, (void)size;
  (void)constant, (void)global;
}

/* Launches: <<<>>> pushes a configuration, which the kernel's stub pops. */

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
  if (depth == max_nested) return 1;
  configurations[depth].grid = grid;
  configurations[depth].block = block;
  configurations[depth].shared_bytes = shared_bytes;
  configurations[depth++].stream = stream;
  return 0;
}

int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  if (depth == 0) return invalid_value;
  --depth;
  *grid = configurations[depth].grid;
  *block = configurations[depth].block;
  *shared_bytes = configurations[depth].shared_bytes;
  memcpy(stream, &configurations[depth].stream, sizeof(void*));
  return success;
}

int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return success;
}

static int launch(const void* function, dim3 grid, dim3 block, dim3 cluster, void** args,
                  size_t shared_bytes) {
  const char* name = name_of(function);
  if (driver_status()) return remember(driver_status());
  if (!name || !hooks.launch) return remember(invalid_device_function);
  return remember(hooks.launch(name, &grid, &block, &cluster, args, shared_bytes));
}

int cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args, size_t shared_bytes,
                     void* stream) {
  /* No cluster stated: the kernel's own attribute decides. */
  const dim3 none = {0, 0, 0};
  (void)stream;
  return launch(function, grid, block, none, args, shared_bytes);
}

int __cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args,
                       size_t shared_bytes, void* stream) {
  return cudaLaunchKernel(function, grid, block, args, shared_bytes, stream);
}

typedef struct {
  int id;
  char padding[4];
  union {
    char bytes[64];
    dim3 dimension;
  } value;
} Attribute;

typedef struct {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
  Attribute* attributes;
  unsigned attribute_count;
} Configuration;

static dim3 cluster_of(const Configuration* configuration) {
  dim3 cluster = {0, 0, 0};
  for (unsigned i = 0; i < configuration->attribute_count; ++i)
    if (configuration->attributes[i].id == cluster_dimension)
      cluster = configuration->attributes[i].value.dimension;
  return cluster;
}

int cudaLaunchKernelExC(const Configuration* configuration, const void* function, void** args) {
  return launch(function, configuration->grid, configuration->block, cluster_of(configuration),
                args, configuration->shared_bytes);
}

/* Queries. */

int cudaGetLastError(void) {
  const int error = last_error;
  last_error = success;
  return error;
}

int cudaPeekAtLastError(void) { return last_error; }

int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  const char* name = name_of(function);
  if (driver_status()) return remember(driver_status());
  if (!name || !hooks.set_function_attribute) return remember(invalid_device_function);
  return remember(hooks.set_function_attribute(name, attribute, value));
}

int cudaGetDevice(int* device) {
  *device = hooks.device;
  return remember(driver_status());
}

int cudaSetDevice(int device) {
  if (driver_status()) return remember(driver_status());
  return device == hooks.device ? success : remember(invalid_value);
}

int cudaDriverGetVersion(int* version) {
  *version = hooks.driver_version;
  return success;
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (driver_status()) return remember(driver_status());
  *value = hooks.device_attribute ? hooks.device_attribute(attribute, device) : 0;
  return success;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                           int threads, size_t shared_bytes,
                                                           unsigned flags) {
  const char* name = name_of(function);
  (void)flags;
  if (!name || !hooks.active_blocks) return remember(invalid_device_function);
  *blocks = hooks.active_blocks(name, threads, shared_bytes);
  return success;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                  size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads,
                                                                shared_bytes, 0);
}

int cudaOccupancyMaxActiveClusters(int* clusters, const void* function,
                                   const Configuration* configuration) {
  const dim3 shape = cluster_of(configuration), block = configuration->block;
  const unsigned size = shape.x ? shape.x * shape.y * shape.z : 1;
  const char* name = name_of(function);
  if (driver_status()) return remember(driver_status());
  if (!name || !hooks.active_clusters) return remember(invalid_device_function);
  return remember(hooks.active_clusters(name, (int)size, (int)(block.x * block.y * block.z),
                                        configuration->shared_bytes, clusters));
}

int cudaMemsetAsync(void* memory, int value, size_t count, void* stream) {
  (void)stream;
  memset(memory, value, count);
  return success;
}

int cudaStreamSynchronize(void* stream) {
  (void)stream;
  return success;
}

int cudaDeviceSynchronize(void) { return success; }

const char* cudaGetErrorName(int error) { return error ? "simulated error" : "no error"; }
const char* cudaGetErrorString(int error) { return cudaGetErrorName(error); }
