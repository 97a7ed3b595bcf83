// Neighbouring rows with all their classes, in a buffer that stays in cache: columns of vectors, a
// lane a row.
#pragma once

#include "transpose.h"
#include "typed_problem.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Where a row's classes lie apart, a tile has rows_wanted, for long runs of memory, or fewer, so
// that its elements stay in cache, but at least a column. Where they are adjacent, one column is a
// long run.
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
        width(problem.untyped.logits.class_stride == 1 ? V::size : rows_in_tile(problem.classes)),
        logits(logits_buffer_.get(width * classes_ + V::size * V::size)),
        probs(with_probs ? probs_buffer_.get(width * classes_ + V::size * V::size) : nullptr) {}

  void read(int64_t row, int64_t count) const {
    read(static_cast<const Element*>(problem_.logits.data), problem_.logits, row, count, logits);
    if (probs) read_probs(row, count);
  }

  void write(int64_t row, int64_t count) const {
    const Matrix& matrix = problem_.grad_logits;
    Element* destination = typed_.row_of(matrix, row);
    const int64_t stride = row_stride(matrix);
    matrix.class_stride == 1 ? write_rows(destination, stride, count)
                             : write_classes(destination, matrix.class_stride, stride, count);
  }

 private:
  static int64_t rows_in_tile(int64_t classes) {
    const int64_t vectors = min(rows_wanted, elements_wanted / classes) / V::size;
    return (vectors > 0 ? vectors : 1) * V::size;
  }

  int64_t row_stride(const Matrix& matrix) const {
    return problem_.inner == 1 ? matrix.outer_stride : matrix.inner_stride;
  }

  template <class X>
  void read(const X* data, const Matrix& matrix, int64_t row, int64_t count, T* tile) const {
    const X* source = data + typed_.offset_of(matrix, row);
    const int64_t stride = row_stride(matrix);
    matrix.class_stride == 1 ? read_rows(source, stride, count, tile)
                             : read_classes(source, matrix.class_stride, stride, count, tile);
  }

  // ---- classes lie apart: class by class, a vector of rows at a time ----------------------------

  template <class X>
  void read_classes(const X* source, int64_t class_stride, int64_t stride, int64_t count,
                    T* tile) const {
    for (int64_t c = 0; c < classes_; ++c, source += class_stride)
      for (int64_t i = 0; i < count; i += V::size)
        store(tile + i * classes_ + c * V::size,
              load_apart_as<T>(source + i * stride, min(count - i, V::size), stride));
  }

  void write_classes(Element* destination, int64_t class_stride, int64_t stride,
                     int64_t count) const {
    for (int64_t c = 0; c < classes_; ++c, destination += class_stride) {
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

  // ---- classes are adjacent: row by row, a square of rows and classes at a time -----------------

  // How many of a square's rows have a vector's elements in this tile: where rows follow each
  // other, those behind a row's last class are the next rows'.
  int64_t whole_rows(int64_t stride, int64_t rows_left, int64_t c) const {
    if (c + V::size <= classes_) return min(rows_left, V::size);
    if (stride != classes_) return 0;
    const int64_t elements = rows_left * stride - c;  // from the square's first one on
    return elements < V::size ? 0 : min((elements - V::size) / stride + 1, V::size);
  }

  template <class X>
  void read_rows(const X* source, int64_t stride, int64_t count, T* tile) const {
    for (int64_t first = 0; first < count; first += V::size, tile += V::size * classes_)
      for (int64_t c = 0; c < classes_; c += V::size) {
        const X* place = source + first * stride + c;
        const int64_t whole = whole_rows(stride, count - first, c);
        V square[V::size], turned[V::size];
        if (whole == V::size)
          for (int k = 0; k < V::size; ++k) square[k] = load_as<T>(place + k * stride, V::size);
        else
          for (int64_t k = 0; k < V::size; ++k)
            square[k] = load_as<T>(place + min(k, count - 1 - first) * stride,
                                   k < whole ? V::size : min(classes_ - c, V::size));
        transpose(square, turned);
        for (int k = 0; k < V::size; ++k) store(tile + (c + k) * V::size, turned[k]);
      }
  }

  // From the last classes to the first, row after row: what a vector leaves in the next rows is
  // overwritten by what belongs there.
  void write_rows(Element* destination, int64_t stride, int64_t count) const {
    const T* source = logits;
    for (int64_t first = 0; first < count; first += V::size, source += V::size * classes_)
      for (int64_t c = (classes_ - 1) / V::size * V::size; c >= 0; c -= V::size) {
        Element* place = destination + first * stride + c;
        const int64_t whole = whole_rows(stride, count - first, c);
        V square[V::size], turned[V::size];
        for (int k = 0; k < V::size; ++k) square[k] = load(source + (c + k) * V::size);
        transpose(square, turned);
        if (whole == V::size)
          for (int k = 0; k < V::size; ++k) store(place + k * stride, turned[k]);
        else
          for (int64_t k = 0; k < min(count - first, V::size); ++k)
            k < whole ? store(place + k * stride, turned[k])
                      : store_first(place + k * stride, turned[k], min(classes_ - c, V::size));
      }
  }

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
