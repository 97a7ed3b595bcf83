// Neighbouring rows with all their classes, in a buffer that stays in cache: columns of vectors, a
// lane a row.
#pragma once

#include "typed_problem.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// A tile has this many rows if it then has no more than this many elements: long runs of memory,
// but what stays in cache. With many classes it has fewer rows, and more elements if it must.
constexpr int64_t rows_wanted = 512;
constexpr int64_t elements_wanted = 1 << 17;
constexpr int64_t most_in_tile = 1 << 19;

template <class Element>
class Tile {
  using T = typename TypedProblem<Element>::T;
  using V = Vec<T>;

 public:
  // Column i of the logits, `with_probs` of the target too, begins at their i * V::size * classes.
  Tile(const TypedProblem<Element>& problem, bool with_probs)
      : typed_(problem),
        problem_(problem.untyped),
        classes_(problem.classes),
        width(rows_in_tile(problem.classes)),
        logits(logits_buffer_.get(width * classes_)),
        probs(with_probs ? probs_buffer_.get(width * classes_) : nullptr) {}

  void read(int64_t row, int64_t count) const {
    read(static_cast<const Element*>(problem_.logits.data), problem_.logits, row, count, logits);
    if (probs) read_probs(row, count);
  }

  void write(int64_t row, int64_t count) const {
    const Matrix& matrix = problem_.grad_logits;
    const int64_t stride = row_stride(matrix);
    Element* destination = typed_.row_of(matrix, row);
    for (int64_t c = 0; c < classes_; ++c, destination += matrix.class_stride) {
      const T* source = logits + c * V::size;
      int64_t i = 0;
      if (stride == 1)
        for (; i + V::size <= count; i += V::size)
          store(destination + i, load(source + i * classes_));
      for (; i < count; i += V::size)
        store_apart(destination + i * stride, load(source + i * classes_), min(count - i, V::size),
                    stride);
    }
  }

 private:
  static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

  static int64_t rows_in_tile(int64_t classes) {
    const int64_t vectors = min(rows_wanted, elements_wanted / classes) / V::size;
    return (vectors > 0 ? vectors : 1) * V::size;
  }

  int64_t row_stride(const Matrix& matrix) const {
    return problem_.inner == 1 ? matrix.outer_stride : matrix.inner_stride;
  }

  template <class X>
  void read(const X* data, const Matrix& matrix, int64_t row, int64_t count, T* tile) const {
    const int64_t stride = row_stride(matrix);
    const X* source = data + typed_.offset_of(matrix, row);
    for (int64_t c = 0; c < classes_; ++c, source += matrix.class_stride) {
      T* destination = tile + c * V::size;
      for (int64_t i = 0; i < count; i += V::size)
        store(destination + i * classes_,
              load_apart_as<T>(source + i * stride, min(count - i, V::size), stride));
    }
  }

  // The place of a row's class in the tile.
  int64_t place_of(int64_t i, int64_t c) const {
    return i / V::size * V::size * classes_ + c * V::size + i % V::size;
  }

  void read_probs(int64_t row, int64_t count) const {
    if (!problem_.target) {
      with_elements(problem_.target_probs.data, problem_.probs_dtype,
                    [&](auto* data) { read(data, problem_.target_probs, row, count, probs); });
      return;
    }
    const int64_t columns = (count + V::size - 1) / V::size;
    std::memset(probs, 0, static_cast<size_t>(columns * V::size * classes_) * sizeof(T));
    for (int64_t k = 0; k < problem_.target_classes; ++k)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t y = typed_.target_of(row + i, k), c = typed_.class_of(y);
        if (y != problem_.ignore_index && typed_.is_here(c))
          probs[place_of(i, c)] += typed_.target_prob_of(row + i, k);
      }
  }

  const TypedProblem<Element>& typed_;
  const LossProblem& problem_;
  const int64_t classes_;
  Buffer<T> logits_buffer_, probs_buffer_;

 public:
  const int64_t width;  // rows
  T* const logits;
  T* const probs;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
