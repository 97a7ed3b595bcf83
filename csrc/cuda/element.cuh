// The dtypes of the logits, and 16 bytes of them at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../row_math.h"
#include "plan.h"

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

__device__ inline float exp2_approx(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

// 16-bit logits do not need the last bits of an exponential: the error of this one, some 2^-20
// of the sum, is small beside theirs.
template <class Element, class T>
__device__ T exp_of(T x) {
  constexpr T log2_e = T(1.4426950408889634);
  if constexpr (sizeof(Element) == 2)
    return exp2_approx(x * log2_e);
  else
    return exp(x);
}

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

template <class Element>
__device__ Chunk<Element> load_aligned(const void* source) {
  const uint4 bits = *static_cast<const uint4*>(source);
  Chunk<Element> chunk;
  memcpy(&chunk, &bits, sizeof bits);
  return chunk;
}

// What a vector over all classes, or `otherwise` where there is none, has for those of a chunk,
// whose places [begin, end) are classes.
template <class T, int size>
__device__ void load_classes(T (&values)[size], const T* vector, T otherwise, int64_t first,
                             int begin, int end) {
  constexpr int width = Chunk<T>::size;
  const bool whole = end - begin == size;
  if (vector && whole && reinterpret_cast<uintptr_t>(vector + first) % 16 == 0) {
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

// A row as chunks, or one part of a row that is cut into as many as `parts`. Chunks lie so that
// those of the logits are aligned; the row's first and last chunk may reach outside it.
template <class Element>
struct Span {
  static constexpr int size = Chunk<Element>::size;

  int64_t classes;  // of the row
  int64_t origin;   // the class at the first place of chunk 0: before the row, where negative
  int chunks;
  int whole_begin, whole_end;  // the chunks that are inside the row

  __device__ Span(const Element* row, int64_t classes, int part = 0, int parts = 1)
      : classes(classes) {
    const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(Element));
    const int64_t all = (classes + lead + size - 1) / size, each = chunks_a_part(all, parts);
    const int64_t begin = min(part * each, all), end = min(begin + each, all);
    chunks = static_cast<int>(end - begin);
    origin = begin * size - lead;
    whole_begin = origin < 0 ? 1 : 0;
    whole_end = end * size - lead > classes ? chunks - 1 : chunks;
  }

  __device__ bool whole(int chunk) const { return chunk >= whole_begin && chunk < whole_end; }
  __device__ int64_t first(int chunk) const { return origin + int64_t(chunk) * size; }
  // The places of a chunk that are inside the row: [begin, end).
  __device__ int begin(int chunk) const {
    const int64_t first = this->first(chunk);
    return first < 0 ? static_cast<int>(-first) : 0;
  }
  __device__ int end(int chunk) const {
    const int64_t left = classes - first(chunk);
    return left < size ? static_cast<int>(left) : size;
  }
  // The chunk that holds a class, or -1.
  __device__ int chunk_of(int64_t c) const {
    return c >= origin && c < first(chunks) ? static_cast<int>((c - origin) / size) : -1;
  }
  // Whether another row's chunks are aligned where those of the logits are.
  __device__ bool aligns(const Element* row) const {
    return reinterpret_cast<uintptr_t>(row + origin) % 16 == 0;
  }

  // Places outside the row hold 0.
  __device__ Chunk<Element> load(const Element* row, int chunk, bool aligned) const {
    row += first(chunk);
    if (aligned && whole(chunk)) return load_aligned<Element>(row);
    const int begin = this->begin(chunk), end = this->end(chunk);
    Chunk<Element> result;
#pragma unroll
    for (int i = 0; i < size; ++i) result.at[i] = i >= begin && i < end ? row[i] : Element(0.0f);
    return result;
  }

  __device__ void store(Element* row, int chunk, bool aligned, const Chunk<Element>& values) const {
    row += first(chunk);
    if (aligned && whole(chunk)) return store_aligned(row, values);
    const int begin = this->begin(chunk), end = this->end(chunk);
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (i >= begin && i < end) row[i] = values.at[i];
  }
};

}  // namespace labelsmooth::cuda
