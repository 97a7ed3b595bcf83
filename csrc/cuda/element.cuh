// The dtypes of the logits, and 16 bytes of them at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../row_math.h"

namespace labelsmooth::cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

template <class Element>
struct alignas(16) Chunk {
  static constexpr int size = 16 / sizeof(Element);
  Element at[size];
};

__device__ inline void narrow_pair(float a, float b, float* to) { to[0] = a, to[1] = b; }
__device__ inline void narrow_pair(double a, double b, double* to) { to[0] = a, to[1] = b; }
__device__ inline void narrow_pair(float a, float b, __nv_bfloat16* to) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  to[0] = pair.x, to[1] = pair.y;
}
__device__ inline void narrow_pair(float a, float b, __half* to) {
  const __half2 pair = __floats2half2_rn(a, b);
  to[0] = pair.x, to[1] = pair.y;
}

template <class Element, class T>
__device__ Chunk<Element> narrow(const T (&values)[Chunk<Element>::size]) {
  Chunk<Element> chunk;
#pragma unroll
  for (int i = 0; i < Chunk<Element>::size; i += 2)
    narrow_pair(values[i], values[i + 1], chunk.at + i);
  return chunk;
}

// A chunk in registers, taken apart no sooner than it must be.
template <class Element>
struct Packed {
  static constexpr int words = 16 / 4;
  uint32_t word[words];

  Packed() = default;
  __device__ explicit Packed(const uint4& bits) : word{bits.x, bits.y, bits.z, bits.w} {}
  __device__ explicit Packed(const Chunk<Element>& chunk) { memcpy(word, &chunk, sizeof word); }
};

template <class To, class From>
__device__ To with_bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof from);
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}

template <class Element, class T>
__device__ void widen(T (&values)[Chunk<Element>::size], const Packed<Element>& packed) {
#pragma unroll
  for (int i = 0; i < Packed<Element>::words; ++i) {
    const uint32_t word = packed.word[i];
    if constexpr (std::is_same_v<Element, __nv_bfloat16>) {  // the upper half of a float32
      values[2 * i] = with_bits_of<float>(word << 16);
      values[2 * i + 1] = with_bits_of<float>(word & 0xffff0000u);
    } else if constexpr (std::is_same_v<Element, __half>) {
      const float2 pair = __half22float2(with_bits_of<__half2>(word));
      values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
    } else if constexpr (sizeof(Element) == 4) {
      values[i] = with_bits_of<float>(word);
    } else if (i % 2) {
      values[i / 2] = with_bits_of<double>(uint64_t(word) << 32 | packed.word[i - 1]);
    }
  }
}

// Of two logits in each place; beside a NaN, the number.
template <class Element>
__device__ Packed<Element> larger(Packed<Element> a, const Packed<Element>& b) {
  using Pair = std::conditional_t<std::is_same_v<Element, __half>, __half2, __nv_bfloat162>;
  if constexpr (sizeof(Element) == 2) {
#pragma unroll
    for (int i = 0; i < Packed<Element>::words; ++i)
      a.word[i] = with_bits_of<uint32_t>(
          __hmax2(with_bits_of<Pair>(a.word[i]), with_bits_of<Pair>(b.word[i])));
    return a;
  } else {
    Element of_a[Chunk<Element>::size], of_b[Chunk<Element>::size];
    widen(of_a, a), widen(of_b, b);
    Chunk<Element> result;
#pragma unroll
    for (int i = 0; i < Chunk<Element>::size; ++i) result.at[i] = max(of_a[i], of_b[i]);
    return Packed<Element>(result);
  }
}
template <class Element>
__device__ Packed<Element> negated(Packed<Element> packed) {
#pragma unroll
  for (int i = 0; i < Packed<Element>::words; ++i) {
    if (sizeof(Element) == 2)
      packed.word[i] ^= 0x80008000u;
    else if (sizeof(Element) == 4 || i % 2)
      packed.word[i] ^= 0x80000000u;
  }
  return packed;
}

template <class Element>
__device__ Chunk<Element> filled_with(Element value) {
  Chunk<Element> chunk;
#pragma unroll
  for (int i = 0; i < Chunk<Element>::size; ++i) chunk.at[i] = value;
  return chunk;
}

template <class Element>
__device__ Chunk<Element> load_aligned(const void* source) {
  const uint4 bits = *static_cast<const uint4*>(source);
  Chunk<Element> chunk;
  memcpy(&chunk, &bits, sizeof bits);
  return chunk;
}

template <class Element>
__device__ Packed<Element> load_packed(const void* source) {
  return Packed<Element>(*static_cast<const uint4*>(source));
}

// A chunk of a vector over all classes; `otherwise` where there is none, and outside [begin, end).
template <class T, int size>
__device__ void load_classes(T (&values)[size], const T* vector, T otherwise, int64_t first,
                             int begin, int end) {
  constexpr int width = Chunk<T>::size;
  const bool wide =
      vector && end - begin == size && reinterpret_cast<uintptr_t>(vector + first) % 16 == 0;
  if (__builtin_expect(wide, 1)) {  // else the loads of both ways would be issued
#pragma unroll
    for (int i = 0; i < size; i += width) {
      const Chunk<T> chunk = load_aligned<T>(vector + first + i);
#pragma unroll
      for (int k = 0; k < width; ++k) values[i + k] = chunk.at[k];
    }
  } else {
#pragma unroll
    for (int i = 0; i < size; ++i)
      values[i] = vector && i >= begin && i < end ? vector[first + i] : otherwise;
  }
}

template <class Element>
__device__ void store_aligned(void* destination, const Chunk<Element>& chunk) {
  uint4 bits;
  memcpy(&bits, &chunk, sizeof bits);
  __stwb(static_cast<uint4*>(destination), bits);  // a plain store is split where it is inlined
}

}  // namespace labelsmooth::cuda
