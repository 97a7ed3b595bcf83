// Memory of elements of a dtype that is known when it runs, read and written as double.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "half.h"
#include "kernels.h"

namespace labelsmooth {

// A tensor of any dtype that ends with its last element, for the address sanitizer.
struct Elements {
  Elements(DType type, int64_t count)
      : dtype(type),
        size(type == DType::float64   ? 8
             : type == DType::float32 ? 4
                                      : 2),
        memory(static_cast<size_t>(count) * size) {}

  void set(int64_t i, double value) {
    void* to = &memory[static_cast<size_t>(i) * size];
    const auto single = static_cast<float>(value);
    const uint16_t half = dtype == DType::float16 ? to_float16(value) : to_bfloat16(value);
    if (dtype == DType::float64)
      std::memcpy(to, &value, 8);
    else if (dtype == DType::float32)
      std::memcpy(to, &single, 4);
    else
      std::memcpy(to, &half, 2);
  }

  double get(int64_t i) const {
    const void* from = &memory[static_cast<size_t>(i) * size];
    double value = 0;
    float single = 0;
    uint16_t half = 0;
    switch (dtype) {
      case DType::float64: return std::memcpy(&value, from, 8), value;
      case DType::float32: return std::memcpy(&single, from, 4), single;
      case DType::float16: return std::memcpy(&half, from, 2), from_float16(half);
      case DType::bfloat16: break;
    }
    std::memcpy(&half, from, 2);
    return from_bfloat16(half);
  }

  DType dtype;
  size_t size;
  std::vector<unsigned char> memory;
};

// What rounding to a dtype costs at most, relatively.
inline double rounding_of(DType dtype) {
  switch (dtype) {
    case DType::float64: return 0x1p-53;
    case DType::float32: return 0x1p-24;
    case DType::float16: return 0x1p-11;
    case DType::bfloat16: break;
  }
  return 0x1p-8;
}

}  // namespace labelsmooth
