// The dtypes of the logits, and 16 bytes of them at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../row_math.h"

namespace labelsmooth::cuda {

template <class Element>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(double x, double& to) { to = x; }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ inline void narrow(float x, __half& to) { to = __float2half_rn(x); }

// 16-bit logits do not need the last bits of an exponential: the error of this one, some 2^-20
// of the sum, is small beside theirs.
template <class Element, class T>
__device__ T exp_of(T x) {
  if constexpr (sizeof(Element) == 2)
    return __expf(x);
  else
    return exp(x);
}

template <class Element>
struct alignas(16) Chunk {
  static constexpr int size = 16 / sizeof(Element);
  Element at[size];
};

template <class Element>
__device__ Chunk<Element> load_aligned(const void* source) {
  const uint4 bits = *static_cast<const uint4*>(source);
  Chunk<Element> chunk;
  memcpy(&chunk, &bits, sizeof bits);
  return chunk;
}

template <class Element>
__device__ void store_aligned(void* destination, const Chunk<Element>& chunk) {
  uint4 bits;
  memcpy(&bits, &chunk, sizeof bits);
  __stwb(static_cast<uint4*>(destination), bits);  // a plain store is split where it is inlined
}

// A row as chunks, laid so that those of the logits are aligned: chunk k holds the classes from
// first(k) on. The first and the last may reach outside the row.
template <class Element>
struct Span {
  static constexpr int size = Chunk<Element>::size;

  int64_t classes;
  int lead;  // places of chunk 0 before the row

  __device__ Span(const Element* row, int64_t classes)
      : classes(classes),
        lead(static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(Element))) {}

  __device__ int64_t chunks() const { return (classes + lead + size - 1) / size; }
  __device__ int64_t first(int64_t chunk) const { return chunk * size - lead; }
  // The places of a chunk that are inside the row: [begin, end).
  __device__ int begin(int64_t first) const { return first < 0 ? static_cast<int>(-first) : 0; }
  __device__ int end(int64_t first) const {
    return classes - first < size ? static_cast<int>(classes - first) : size;
  }
  __device__ bool whole(int64_t first) const { return first >= 0 && first + size <= classes; }
  // Whether another row's chunks are aligned where this one's are.
  __device__ bool aligns(const Element* row) const {
    return reinterpret_cast<uintptr_t>(row - lead) % 16 == 0;
  }

  // Places outside the row hold 0.
  __device__ Chunk<Element> load(const Element* row, int64_t first, bool aligned) const {
    if (aligned && whole(first)) return load_aligned<Element>(row + first);
    const int begin = this->begin(first), end = this->end(first);
    Chunk<Element> chunk;
#pragma unroll
    for (int i = 0; i < size; ++i)
      chunk.at[i] = i >= begin && i < end ? row[first + i] : Element(0.0f);
    return chunk;
  }

  __device__ void store(Element* row, int64_t first, bool aligned,
                        const Chunk<Element>& chunk) const {
    if (aligned && whole(first)) return store_aligned(row + first, chunk);
    const int begin = this->begin(first), end = this->end(first);
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (i >= begin && i < end) row[first + i] = chunk.at[i];
  }
};

}  // namespace labelsmooth::cuda
