// The gradient over the vectors of a row.
#pragma once

#include "row.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Of classes [begin, end); those of `ahead`, the next row or nullptr, are fetched.
template <class R, class Element, class T>
LABELSMOOTH_HD void write_gradient(const R& given_row, const GradTerms<T>& given_terms,
                                   int64_t begin, int64_t end, Element* grad,
                                   const Element* ahead) {
  constexpr int64_t size = R::V::size;
  const R row = given_row;
  const GradTerms<T> terms = given_terms;
  int64_t c = begin;
  for (; c + size <= end; c += size) {
    if (ahead) __builtin_prefetch(ahead + c);
    store(grad + c, row.template gradient_at<true>(c, size, terms));
  }
  if (c < end) store_first(grad + c, row.template gradient_at<false>(c, end - c, terms), end - c);
}

template <class V, class Element>
void write_zeros(int64_t begin, int64_t end, Element* grad) {
  int64_t c = begin;
  for (; c + V::size <= end; c += V::size) store(grad + c, V(0));
  if (c < end) store_first(grad + c, V(0), end - c);
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
