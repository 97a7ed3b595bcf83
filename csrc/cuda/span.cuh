// Which classes of a row are whose: chunks of 16 bytes, parts of a row, the chunks of a thread.
#pragma once

#include "element.cuh"
#include "plan.h"

namespace labelsmooth::cuda {

// A row, or a part of one, as chunks, which lie so that those of the logits are aligned; the row's
// first and last may reach outside it.
template <class Element>
struct Span {
  static constexpr int size = Chunk<Element>::size;

  int64_t classes;  // of the row
  int64_t origin;   // the class at the first place of chunk 0: before the row, where negative
  int chunks;
  int whole_begin, whole_end;  // the chunks that are inside the row

  __device__ Span(const Element* row, int64_t classes, int part, int chunks_a_part)
      : classes(classes) {
    const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(Element));
    const int64_t all = (classes + lead + size - 1) / size;
    const int64_t begin = min(int64_t(part) * chunks_a_part, all);
    const int64_t end = min(begin + chunks_a_part, all);
    chunks = static_cast<int>(end - begin);
    origin = begin * size - lead;
    whole_begin = origin < 0 ? 1 : 0;
    whole_end = end * size - lead > classes ? chunks - 1 : chunks;
  }

  __device__ bool all_whole() const { return whole_begin == 0 && whole_end == chunks; }
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

  __device__ Chunk<Element> load(const Element* row, int chunk, bool aligned,
                                 Element outside = Element(0.0f)) const {
    row += first(chunk);
    if (aligned && whole(chunk)) return load_aligned<Element>(row);
    const int begin = this->begin(chunk), end = this->end(chunk);
    Chunk<Element> result;
#pragma unroll
    for (int i = 0; i < size; ++i) result.at[i] = i >= begin && i < end ? row[i] : outside;
    return result;
  }

  // The places inside the row.
  __device__ void store(Element* row, int chunk, const Chunk<Element>& values) const {
    row += first(chunk);
    const int begin = this->begin(chunk), end = this->end(chunk);
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (i >= begin && i < end) row[i] = values.at[i];
  }
};

// Every step-th chunk from the first on, below `end`; `step` is a power of 2, and more than the
// first chunk of any thread.
struct ThreadChunks {
  int first, end, step;

  __device__ bool has(int chunk) const {
    return chunk >= first && chunk < end && ((chunk - first) & (step - 1)) == 0;
  }
  // The first of them from `chunk` on.
  __device__ int from(int chunk) const {
    return chunk <= first ? first : first + ((chunk - first + step - 1) & -step);
  }

  template <class Use>
  __device__ void for_all(const Use& use) const {
    for (int chunk = first; chunk < end; chunk += step) use(chunk);
  }

  // Those that are inside the row.
  template <class Element, class Use>
  __device__ void for_whole(const Span<Element>& span, const Use& use) const {
    const int last = min(end, span.whole_end);
    for (int chunk = from(span.whole_begin); chunk < last; chunk += step) use(chunk);
  }
  // The others, or `all`. One loop, so that what is done with them is compiled once.
  template <class Element, class Use>
  __device__ void for_others(const Span<Element>& span, bool all, const Use& use) const {
    if (!all && span.all_whole()) return;
    const int last = span.chunks - 1;
#pragma unroll 1
    for (int chunk = all ? first : 0; chunk < end; chunk += all ? step : (last > 1 ? last : 1))
      if (all || (!span.whole(chunk) && has(chunk))) use(chunk);
  }
};

template <class Element>
__device__ ThreadChunks chunks_of_thread(const Span<Element>& span) {
  return {static_cast<int>(threadIdx.x), span.chunks, static_cast<int>(blockDim.x)};
}

}  // namespace labelsmooth::cuda
