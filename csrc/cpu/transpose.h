// A square of vectors, turned: rows whose elements are adjacent become lanes, and back.
#pragma once

#include "vec.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

template <int... number>
using Numbers = std::integer_sequence<int, number...>;

// The lanes of a and b in turn, of their first halves or of their second ones.
template <bool second, class T, int... lane>
LABELSMOOTH_HD Vec<T> interleave(Vec<T> a, Vec<T> b, Numbers<lane...>) {
  constexpr int size = Vec<T>::size, from = second ? size / 2 : 0;
  return Vec<T>(__builtin_shufflevector(a.lanes, b.lanes, (from + lane / 2 + lane % 2 * size)...));
}

// One round of a perfect shuffle of all elements, vector i + size/2 between the lanes of vector i;
// log2(size) of them transpose.
template <int rounds, class T, int... i>
LABELSMOOTH_HD void turn(const Vec<T>* square, Vec<T>* turned, Numbers<i...> all) {
  constexpr int half = Vec<T>::size / 2;
  if constexpr (rounds == 1) {
    ((turned[i] = interleave<i % 2>(square[i / 2], square[i / 2 + half], all)), ...);
  } else {
    const Vec<T> next[] = {interleave<i % 2>(square[i / 2], square[i / 2 + half], all)...};
    turn<rounds - 1>(next, turned, all);
  }
}

// Lane j of vector i becomes lane i of vector j.
template <class T>
LABELSMOOTH_HD void transpose(const Vec<T> (&square)[Vec<T>::size],
                              Vec<T> (&turned)[Vec<T>::size]) {
  constexpr int size = Vec<T>::size, rounds = size == 16 ? 4 : size == 8 ? 3 : size == 4 ? 2 : 1;
  turn<rounds>(square, turned, std::make_integer_sequence<int, size>());
}

// Lane i: the sum of the lanes of vector i.
template <int count, class T>
LABELSMOOTH_HD Vec<T> lane_sums(const Vec<T>* vectors) {
  if constexpr (count == 1) {
    return vectors[0];
  } else {
    constexpr std::make_integer_sequence<int, Vec<T>::size> all;
    Vec<T> halves[count / 2];
    for (int i = 0; i < count / 2; ++i) {
      const Vec<T> a = vectors[i], b = vectors[i + count / 2];
      halves[i] = interleave<false>(a, b, all) + interleave<true>(a, b, all);
    }
    return lane_sums<count / 2>(halves);
  }
}
template <class T>
LABELSMOOTH_HD Vec<T> lane_sums(const Vec<T> (&vectors)[Vec<T>::size]) {
  return lane_sums<Vec<T>::size>(static_cast<const Vec<T>*>(vectors));
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
