// What a thread does with the chunks of a row that it does not hold.
#pragma once

#include "row_gradient.cuh"

namespace labelsmooth::cuda {

template <class Element>
__device__ void fill(Element* grad, const Span<Element>& span, const ThreadChunks& chunks,
                     const Chunk<Element>& with) {
  const bool aligned = span.aligns(grad);
  chunks.for_all([&](int chunk) {
    if (aligned && span.whole(chunk))
      store_aligned(grad + span.first(chunk), with);
    else
      span.store(grad, chunk, with);
  });
}

// ---- read from memory ---------------------------------------------------------------------------

// Chunks whose loads are issued before the first is needed.
template <class Element, bool soft>
constexpr int ahead = (soft ? 2 : 4) / (sizeof(Element) == 8 ? 2 : 1);

// Adds what a thread has of a row.
template <int depth, Kind kind, class Element, class Sums>
__device__ void sum_up(const Row<Element, kind>& row, Sums& sums,
                       const Target<Element, kind == Kind::soft>& target, const Span<Element>& span,
                       const ThreadChunks& chunks) {
  const Element* logits = row.logits();
  const bool irregular = row.left_out >= 0;
  Packed<Element> x[depth];
  typename Target<Element, kind == Kind::soft>::Pieces pieces[depth];
  const auto load = [&](int k, int chunk) {
    x[k] = load_packed<Element>(logits + span.first(chunk));
    pieces[k] = target.load(chunk);
  };
  // The first `count` of those loaded.
  const auto add = [&](int count, int chunk) {
    Packed<Element> largest = row.turned(x[0]);
#pragma unroll
    for (int k = 1; k < depth; ++k)
      if (k < count) largest = larger(largest, row.turned(x[k]));
    sums.raise(row.largest_of(largest));
    const auto powers = sums.powers();
#pragma unroll
    for (int k = 0; k < depth; ++k) {
      const int at = chunk + k * chunks.step;
      if (k < count)
        row.template add<true>(sums, powers, x[k], target.take(pieces[k], at), at, span);
    }
  };
  const int end = min(chunks.end, span.whole_end);
  int chunk = chunks.from(span.whole_begin);
  if (!irregular) {
    for (; chunk + (depth - 1) * chunks.step < end; chunk += depth * chunks.step) {
#pragma unroll
      for (int k = 0; k < depth; ++k) load(k, chunk + k * chunks.step);
      add(depth, chunk);
    }
    for (; chunk < end; chunk += chunks.step) {
      load(0, chunk);
      add(1, chunk);
    }
  }
  chunks.for_others(span, irregular, [&](int at) {
    const Packed<Element> given(span.load(logits, at, false, row.outside()));
    sums.raise(row.largest_of(row.turned(given)));
    row.template add<false>(sums, sums.powers(), given, target.take(target.load(at), at), at, span);
  });
}

// The largest logit that a thread has of a row, and where it is.
template <Kind kind, class Element, class Sums>
__device__ void find_best(const Row<Element, kind>& row, Sums& sums, const Span<Element>& span,
                          const ThreadChunks& chunks) {
  chunks.for_all([&](int chunk) {
    const Packed<Element> given(span.load(row.logits(), chunk, true, row.outside()));
    row.see_best(sums, given, chunk, span);
  });
}

// Writes what a thread has of a row's gradient, last first: what was read last may still be cached.
template <int depth, Kind kind, class Element>
__device__ void write_gradient(const RowGradient<Element, kind>& gradient,
                               const Target<Element, kind == Kind::soft>& target,
                               const Span<Element>& span, const ThreadChunks& chunks,
                               Element* grad) {
  constexpr bool soft = kind == Kind::soft;
  const Row<Element, kind>& row = gradient.row;
  const Element* logits = row.logits();
  const bool irregular = !span.aligns(grad);
  // The gradient may overwrite the logits.
  const bool writes_target = !irregular && row.has_target_in(span, chunks);
  const Element given_target = writes_target ? logits[row.target] : Element(0.0f);
  Packed<Element> x[depth];
  typename Target<Element, soft>::Pieces pieces[depth];
  const auto load = [&](int k, int chunk) {
    x[k] = load_packed<Element>(logits + span.first(chunk));
    pieces[k] = target.load(chunk);
  };
  const auto write = [&](int k, int chunk) {
    const auto probs = target.take(pieces[k], chunk);
    store_aligned(grad + span.first(chunk), gradient.template at<true>(x[k], probs, chunk, span));
  };
  const int begin = chunks.from(span.whole_begin);
  int chunk = begin + ((min(chunks.end, span.whole_end) - 1 - begin) & -chunks.step);
  if (!irregular) {
    for (; chunk - (depth - 1) * chunks.step >= begin; chunk -= depth * chunks.step) {
#pragma unroll
      for (int k = 0; k < depth; ++k) load(k, chunk - k * chunks.step);
#pragma unroll
      for (int k = 0; k < depth; ++k) write(k, chunk - k * chunks.step);
    }
    for (; chunk >= begin; chunk -= chunks.step) {
      load(0, chunk);
      write(0, chunk);
    }
  }
  chunks.for_others(span, irregular, [&](int at) {
    const Packed<Element> given(span.load(logits, at, false, row.outside()));
    const auto probs = target.take(target.load(at), at);
    span.store(grad, at, gradient.template at<false>(given, probs, at, span));
  });
  if (writes_target) grad[row.target] = gradient.at_target(given_target);
}

}  // namespace labelsmooth::cuda
