// From run-time options to a kernel.
#pragma once

#include "row_kernel.h"
#include "tile_kernel.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

template <class Element, bool soft, bool has_vectors>
void process_by_row(const LossProblem& problem, int64_t begin, int64_t end) {
  TypedProblem<Element>(problem).transformed
      ? RowKernel<Element, has_vectors, soft, true>(problem).process(begin, end)
      : RowKernel<Element, has_vectors, soft, false>(problem).process(begin, end);
}

template <class Element, bool soft>
void process_target(const LossProblem& problem, int64_t begin, int64_t end) {
  if (TileKernel<Element, soft>::takes(problem)) {
    TileKernel<Element, soft>(problem).process(begin, end);
  } else {
    problem.class_coef ? process_by_row<Element, soft, true>(problem, begin, end)
                       : process_by_row<Element, soft, false>(problem, begin, end);
  }
}

template <class Element>
void process_element(const LossProblem& problem, int64_t begin, int64_t end) {
  problem.target ? process_target<Element, false>(problem, begin, end)
                 : process_target<Element, true>(problem, begin, end);
}

void process_rows(const LossProblem& problem, int64_t begin, int64_t end) {
  switch (problem.dtype) {
    case DType::float32: return process_element<float>(problem, begin, end);
    case DType::float64: return process_element<double>(problem, begin, end);
    case DType::bfloat16: return process_element<BFloat16>(problem, begin, end);
    case DType::float16: return process_element<Float16>(problem, begin, end);
  }
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
