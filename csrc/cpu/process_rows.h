// From run-time options to a kernel.
#pragma once

#include "group_kernel.h"
#include "tile_kernel.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

template <class Element, bool general, class Probs, bool transformed>
void process_by_row(const LossProblem& problem, int64_t begin, int64_t end) {
  if constexpr (std::is_void_v<Probs>) {
    using Group = GroupKernel<Element, general, transformed>;
    if (Group::takes(problem)) return Group(problem).process(begin, end);
  }
  RowKernel<Element, general, Probs, transformed>(problem).process(begin, end);
}

template <class Element, bool general, class Probs>
void process_by_row(const LossProblem& problem, int64_t begin, int64_t end) {
  TypedProblem<Element>(problem).transformed
      ? process_by_row<Element, general, Probs, true>(problem, begin, end)
      : process_by_row<Element, general, Probs, false>(problem, begin, end);
}

template <class Element, class Probs>
void process_target(const LossProblem& problem, int64_t begin, int64_t end) {
  const bool general = problem.class_coef || problem.weight || problem.options.over_unmasked();
  general ? process_by_row<Element, true, Probs>(problem, begin, end)
          : process_by_row<Element, false, Probs>(problem, begin, end);
}

template <class Element>
void process_probs(const LossProblem& problem, int64_t begin, int64_t end) {
  using T = typename Accumulate<Element>::type;
  const DType own = sizeof(T) == 8 ? DType::float64 : DType::float32;
  problem.probs_dtype == own ? process_target<Element, T>(problem, begin, end)
                             : process_by_row<Element, true, AnyFloat>(problem, begin, end);
}

template <class Element>
void process_element(const LossProblem& problem, int64_t begin, int64_t end) {
  using Group = GroupKernel<Element, false, false>;
  if (!Group::takes(problem) && TileKernel<Element, Kind::soft>::takes(problem)) {
    const bool soft = !problem.target || problem.sparse_probs;
    const bool plain = !problem.class_coef && !problem.options.over_unmasked();
    soft    ? TileKernel<Element, Kind::soft>(problem).process(begin, end)
    : plain ? TileKernel<Element, Kind::plain>(problem).process(begin, end)
            : TileKernel<Element, Kind::one_class>(problem).process(begin, end);
  } else {
    problem.target ? process_target<Element, void>(problem, begin, end)
                   : process_probs<Element>(problem, begin, end);
  }
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
