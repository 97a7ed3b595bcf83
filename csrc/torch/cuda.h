// A call on CUDA tensors, on the stream that torch is on; nothing waits for the device.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <utility>

#include "call.h"

namespace labelsmooth {

// torch's function that tells the stream it is on, or nullptr. Looked up by name: a torch without
// CUDA, which has it not, must be able to load this library.
using AskStream = AOTITorchError (*)(int32_t device, void** stream);
inline AskStream find_ask_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return nullptr;
  return reinterpret_cast<AskStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

inline void* current_stream(int32_t device) {
  static const AskStream ask = find_ask_stream();
  STD_TORCH_CHECK(ask, "this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(ask(device, &stream) == 0, "torch does not tell the stream of GPU ", device);
  return stream;
}

inline void check_cuda(int error) {
  STD_TORCH_CHECK(error == 0, "CUDA kernels of labelsmooth: ", cuda::error_string(error));
}

// Makes a tensor's device the current one, for torch until the end, and for the runtime built in,
// which has one of its own that nobody else sets.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    check_cuda(cuda::set_device(tensor.get_device_index()));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

class CudaCall : OnDevice, public Call {
 public:
  template <class... Arguments>
  explicit CudaCall(const Tensor& logits, Arguments&&... arguments)
      : OnDevice(logits), Call(logits, std::forward<Arguments>(arguments)...) {}

  std::tuple<Tensor, Tensor, Tensor> forward(bool with_stats) {
    return run_reduced(cuda::run, with_stats);
  }

  void backward(const Tensor& grad_loss, const Tensor& row_stats) {
    take_inputs(grad_loss, row_stats);
    run(cuda::run, reduction_, nullptr);
  }

  Tensor partial(bool with_stats) {
    const Tensor parts = make_parts(with_stats);
    run(cuda::run, Reduction::none, nullptr);
    return parts;
  }

  std::tuple<Tensor, Tensor, Tensor> combine(const Tensor& parts, bool with_stats) {
    take_parts(parts);
    return run_reduced(cuda::combine, with_stats);
  }

 private:
  template <class Launch>
  std::tuple<Tensor, Tensor, Tensor> run_reduced(Launch launch, bool with_stats) {
    auto [loss, row_stats, predicted] = make_outputs(with_stats);
    if (reduction_ == Reduction::none) {
      run(launch, reduction_, nullptr);
      return {loss, row_stats, predicted};
    }
    Tensor reduced = torch::stable::new_empty(loss, {});
    run(launch, reduction_, reduced.data_ptr());
    return {reduced, row_stats, predicted};
  }

  template <class Launch>
  void run(Launch launch, Reduction reduction, void* reduced_loss) const {
    const int64_t bytes = cuda::workspace_bytes(problem_);
    const Tensor workspace = torch::stable::new_empty(logits_, {&bytes, 1}, ScalarType::Byte);
    check_cuda(launch(problem_, reduction, data_or_null(normalizer_), reduced_loss,
                      workspace.data_ptr(), current_stream(logits_.get_device_index())));
  }
};

// grad_logits *= grad_loss, decided on the device: nothing is read or written if that is 1.
inline void scale(Tensor grad_logits, Tensor grad_loss) {
  const auto factor = converted(grad_loss, accumulate_type(grad_logits), grad_logits);
  STD_TORCH_CHECK(factor->numel() == 1, "grad_loss: expected one value");
  STD_TORCH_CHECK(grad_logits.is_contiguous(), "grad_logits: expected a contiguous tensor");
  const OnDevice on_device(grad_logits);
  check_cuda(cuda::scale(dtype_of(grad_logits), grad_logits.data_ptr(), grad_logits.numel(),
                         factor->data_ptr(), current_stream(grad_logits.get_device_index())));
}

}  // namespace labelsmooth
