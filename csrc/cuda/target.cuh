// A row's target where it is not one class: what each class of a chunk has of it.
//
// Probabilities of all classes are read beside the logits. A few classes are gone over first for
// which of a thread's chunks hold any, then once more in each of those. So the other chunks are
// none the slower, and threads share nothing.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "problem.cuh"

namespace labelsmooth::cuda {

// use(zero), a zero of that type.
template <class Use>
__device__ void with_type(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::float32: return use(float());
    case DType::float64: return use(double());
    case DType::bfloat16: return use(__nv_bfloat16());
    case DType::float16: return use(__half());
  }
}

// t_c of a chunk's classes; 0 for places outside the row.
template <class Element, bool soft>
struct ChunkProbs {
  using T = typename Accumulate<Element>::type;
  bool any = false;  // else all are 0, and not set
  T at[Chunk<Element>::size];
};
template <class Element>
struct ChunkProbs<Element, false> {};

template <class Element, bool soft>
class Target {
 public:
  using T = typename Accumulate<Element>::type;
  using Probs = ChunkProbs<Element, soft>;
  static constexpr int size = Chunk<Element>::size;

  // Probabilities on their way from memory: as they lie there, if as wide as the logits, else in
  // the type of the sums.
  static constexpr int most_pieces = sizeof(T) / sizeof(Element);
  struct Pieces {
    Chunk<T> at[most_pieces];
  };

  // Of a thread's chunks, as in ThreadChunks.
  __device__ Target(const Problem<Element>& problem, int64_t row, const Span<Element>& span,
                    int first, int step)
      : problem_(problem), span_(span), step_(step) {
    while ((1 << log2_step_) < step) ++log2_step_;
    if (problem.target.data) {
      start_ = entry_of(problem.target, row, 0);
      mark_chunks(first);
    } else {
      start_ = problem.offset_of(problem.target_probs, row);
      const int bytes = size * problem.probs_bytes;
      aligned_ = reinterpret_cast<uintptr_t>(at(span.origin)) % (bytes < 16 ? bytes : 16) == 0;
    }
  }

  // A chunk on its way to shared memory, whose pieces are `stride` apart. Nobody waits for them
  // where they are aligned and held in the type they lie in.
  __device__ void fetch(Chunk<T>* held, int stride, int chunk) const {
    if (problem_.target.data) return;
    if (aligned_ && as_held() && span_.whole(chunk)) {
      const Chunk<T>* source = static_cast<const Chunk<T>*>(at(span_.first(chunk)));
#pragma unroll
      for (int p = 0; p < most_pieces; ++p)
        if (p < pieces()) __pipeline_memcpy_async(held + p * stride, source + p, sizeof *held);
    } else {
      const Pieces loaded = load(chunk);
#pragma unroll
      for (int p = 0; p < most_pieces; ++p)
        if (p < pieces()) held[p * stride] = loaded.at[p];
    }
  }
  __device__ Probs fetched(const Chunk<T>* held, int stride, int chunk) const {
    Pieces pieces = {};
    if (!problem_.target.data) {
#pragma unroll
      for (int p = 0; p < most_pieces; ++p)
        if (p < this->pieces()) pieces.at[p] = load_aligned<T>(held + p * stride);
    }
    return take(pieces, chunk);
  }

  // A chunk of those of all classes, in any layout.
  __device__ Probs gather(int chunk) const {
    Probs probs;
    probs.any = true;
    const int64_t stride = problem_.target_probs.class_stride;
    const void* first = at(span_.first(chunk) * stride);
    const int end = span_.end(chunk);
    with_type(problem_.probs_dtype, [&](auto zero) {
      const auto* source = static_cast<const decltype(zero)*>(first);
#pragma unroll
      for (int i = 0; i < size; ++i) probs.at[i] = i < end ? T(widen(source[i * stride])) : T(0);
    });
    return probs;
  }

  // A chunk on its way to registers.
  __device__ Pieces load(int chunk) const {
    Pieces pieces = {};
    if (problem_.target.data) return pieces;
    if (as_wide_as_logits()) {
      const Chunk<Element> loaded = span_.load(static_cast<const Element*>(at(0)), chunk, aligned_);
      memcpy(&pieces, &loaded, sizeof loaded);
      return pieces;
    }
    with_type(problem_.probs_dtype, [&](auto zero) {
      using Source = decltype(zero);
      if constexpr (sizeof(Source) != sizeof(Element)) {
        T t[size];
        load_places<Source>(t, chunk);
        memcpy(&pieces, &t, sizeof t);
      }
    });
    return pieces;
  }
  __device__ Probs take(const Pieces& pieces, int chunk) const {
    Probs probs;
    probs.any = true;
    if (problem_.target.data) {
      probs.any = marked(chunk);
      if (probs.any) add_entries(probs.at, span_.first(chunk));
    } else if (as_wide_as_logits()) {
      with_type(problem_.probs_dtype, [&](auto zero) {
        using Source = decltype(zero);
        if constexpr (sizeof(Source) == sizeof(Element)) {
          Chunk<Source> given;
          memcpy(&given, &pieces, sizeof given);
#pragma unroll
          for (int i = 0; i < size; ++i) probs.at[i] = T(widen(given.at[i]));
        }
      });
    } else {
      memcpy(&probs.at, &pieces, sizeof probs.at);
    }
    return probs;
  }

 private:
  // ---- all classes ------------------------------------------------------------------------------

  __device__ const void* at(int64_t c) const {
    return static_cast<const char*>(problem_.target_probs.data) +
           (start_ + c) * problem_.probs_bytes;
  }
  __device__ bool as_wide_as_logits() const { return problem_.probs_bytes == sizeof(Element); }
  __device__ bool as_held() const {
    return as_wide_as_logits() || (sizeof(T) == 4 && problem_.probs_dtype == DType::float32);
  }
  __device__ int pieces() const { return as_wide_as_logits() ? 1 : most_pieces; }

  template <class Source>
  __device__ void load_places(T (&t)[size], int chunk) const {
    const Source* source = static_cast<const Source*>(at(span_.first(chunk)));
    if (aligned_ && span_.whole(chunk)) {
      constexpr int bytes = size * sizeof(Source);
      struct alignas(bytes < 16 ? bytes : 16) Vector {
        Source at[size];
      };
      const Vector vector = *reinterpret_cast<const Vector*>(source);
#pragma unroll
      for (int i = 0; i < size; ++i) t[i] = T(widen(vector.at[i]));
    } else {
      const int begin = span_.begin(chunk), end = span_.end(chunk);
#pragma unroll
      for (int i = 0; i < size; ++i) t[i] = i >= begin && i < end ? T(widen(source[i])) : T(0);
    }
  }

  // ---- a few ------------------------------------------------------------------------------------

  // take(k, class) for those that count and are of this part.
  template <class Take>
  __device__ void for_entries(const Take& take) const {
    const TargetClasses& target = problem_.target;
    for (int64_t k = 0; k < target.target_classes; ++k) {
      const int64_t y = target.data[start_ + k * target.inner];
      const int64_t c = problem_.class_of(y);
      if (y != target.ignore_index && problem_.is_here(c)) take(k, c);
    }
  }
  // A bit for each chunk of the thread; more than 32 share them.
  __device__ uint32_t mark_of(int chunk) const { return 1u << ((chunk >> log2_step_) % 32); }
  __device__ bool marked(int chunk) const { return (marks_ & mark_of(chunk)) != 0; }
  __device__ void mark_chunks(int first) {
    for_entries([&](int64_t, int64_t c) {
      const int chunk = span_.chunk_of(c);
      if (chunk >= 0 && (chunk & (step_ - 1)) == first) marks_ |= mark_of(chunk);
    });
  }
  __device__ void add_entries(T (&t)[size], int64_t first) const {
#pragma unroll
    for (int i = 0; i < size; ++i) t[i] = T(0);
    for_entries([&](int64_t k, int64_t c) {
      if (c < first || c >= first + size) return;
      const T prob =
          problem_.sparse_probs ? problem_.sparse_probs[start_ + k * problem_.target.inner] : T(1);
#pragma unroll
      for (int i = 0; i < size; ++i)
        if (first + i == c) t[i] += prob;
    });
  }

  const Problem<Element>& problem_;
  const Span<Element>& span_;
  const int step_;
  int64_t start_;  // of the row: its first class, or first entry
  int log2_step_ = 0;
  uint32_t marks_ = 0;
  bool aligned_ = false;
};

// One class, which the row knows by itself.
template <class Element>
class Target<Element, false> {
 public:
  using T = typename Accumulate<Element>::type;
  using Probs = ChunkProbs<Element, false>;
  struct Pieces {};

  __device__ Target(const Problem<Element>&, int64_t, const Span<Element>&, int, int) {}
  __device__ Probs gather(int) const { return {}; }
  __device__ void fetch(Chunk<T>*, int, int) const {}
  __device__ Probs fetched(const Chunk<T>*, int, int) const { return {}; }
  __device__ Pieces load(int) const { return {}; }
  __device__ Probs take(const Pieces&, int) const { return {}; }
};

}  // namespace labelsmooth::cuda
