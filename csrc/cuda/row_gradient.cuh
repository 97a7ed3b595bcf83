// The gradient of a row, a chunk at a time.
#pragma once

#include "row.cuh"

namespace labelsmooth::cuda {

template <class Element, Kind kind>
class RowGradient {
  static constexpr bool soft = kind == Kind::soft;
  using T = typename Accumulate<Element>::type;
  using Classes = Chunk<Element>;
  using Probs = ChunkProbs<Element, soft>;

 public:
  const Row<Element, kind>& row;

  __device__ RowGradient(const Row<Element, kind>& row, const RowStats<T>& stats, T denominator)
      : row(row),
        terms(grad_terms(stats, row.terms, incoming(denominator), row.problem.options)),
        powers(terms.shift) {
    terms.exp_scale *= powers.correction();
  }

  // A chunk of the gradient. Where it is `regular`, all its places are inside the row, and the
  // target's one class is like the others: it is written by itself, after its chunk.
  template <bool regular>
  __device__ Classes at(const Packed<Element>& logits, const Probs& probs, int chunk,
                        const Span<Element>& span) const {
    const int64_t first = span.first(chunk);
    const int begin = regular ? 0 : span.begin(chunk);
    const int end = regular ? Classes::size : span.end(chunk);
    T x[Classes::size], value[Classes::size];
    row.problem.template load_logits<kind>(x, logits);
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) value[i] = powers(x[i]);
    if (regular && row.problem.template spreads_evenly<kind>() && !has_target(probs)) {
      const T coef = terms.beta * row.problem.uniform;
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) value[i] = logit_grad(value[i], coef, terms);
    } else {
      T coef[Classes::size];
      row.problem.template load_spread<kind>(coef, logits, first, begin, end);
      add_target<regular>(coef, probs, first, begin, end);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) value[i] = logit_grad(value[i], coef[i], terms);
    }
    row.problem.template multiply_by_slopes<kind>(value, x);
    return narrow<Element>(value);
  }

  // Of the one class of the target, from its logit as it was given.
  __device__ Element at_target(Element given) const {
    const T x0 = T(widen(given)), coef = terms.scale * row.target_coef;
    if (!row.problem.template transforms<kind>())
      return Element(logit_grad(powers(x0), coef, terms));
    const T x = row.problem.transformed_logit(x0);
    return Element(logit_grad(powers(x), coef, terms) * transform_slope(x, row.problem.options));
  }

 private:
  __device__ T incoming(T denominator) const {
    T scale = row.problem.row_weight_of(row.index);
    if (row.problem.grad_loss)
      scale *= row.problem.grad_loss[row.index * row.problem.grad_loss_stride];
    return scale / denominator;
  }

  __device__ static bool has_target(const Probs& probs) {
    if constexpr (soft) return probs.any;
    return false;  // the place of one class is not in such a chunk
  }

  // From v_c to coef_c, scaled as the terms are.
  template <bool regular>
  __device__ void add_target(T (&coef)[Classes::size], const Probs& probs, int64_t first, int begin,
                             int end) const {
    if constexpr (soft) {
      T own[Classes::size] = {};
      if (probs.any) row.problem.load_target(own, probs.at, terms.kappa, first, begin, end);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) coef[i] = soft_coef(coef[i], own[i], terms.beta);
    } else {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        coef[i] = !regular && first + i == row.target ? terms.scale * row.target_coef
                                                      : terms.beta * coef[i];
    }
  }

  GradTerms<T> terms;
  Powers<T> powers;
};

}  // namespace labelsmooth::cuda
