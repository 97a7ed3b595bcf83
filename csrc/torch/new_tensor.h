// New tensors for what a call returns.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "cpu/kept_memory.h"

namespace labelsmooth {

using torch::stable::Tensor;

// From torch 2.11 on; weak, so that the binary loads into 2.10 too, where it is null.
extern "C" __attribute__((weak, visibility("default"))) AOTITorchError
torch_from_blob(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides,
                int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* tensor, int32_t layout, const uint8_t* metadata,
                int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

// Uninitialized and contiguous, of the dtype and device of `like`; on the CPU large ones in kept
// memory.
inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  int64_t count = 1;
  std::vector<int64_t> strides(sizes.size());
  for (size_t d = sizes.size(); d-- > 0; count *= sizes[d]) strides[d] = count;
  const size_t bytes = static_cast<size_t>(count) * like.element_size();
  const bool is_kept = like.is_cpu() && bytes >= cpu::kept_bytes && torch_from_blob;
  cpu::Block* block = is_kept ? cpu::take_block(bytes) : nullptr;
  if (!block) return torch::stable::new_empty(like, sizes);
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(torch_from_blob(
      block->data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, dtype,
      aoti_torch_device_type_cpu(), -1, &tensor, aoti_torch_layout_strided(), nullptr, 0,
      [](void*, void* context) { cpu::give_back(static_cast<cpu::Block*>(context)); }, block));
  return Tensor(tensor);
}

}  // namespace labelsmooth
