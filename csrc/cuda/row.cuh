// A row as a thread sees it: what it is, how classes are added to its sums, what becomes of them.
#pragma once

#include "../kernels.h"
#include "reduce.cuh"

namespace labelsmooth::cuda {

// A LossProblem with its types, as the kernels take it.
template <class Element>
struct Problem {
  using T = typename Accumulate<Element>::type;

  int64_t rows, classes, inner;
  Matrix logits, grad_logits, target_probs;
  const int64_t* target;
  int64_t ignore_index;
  const T *weight, *prior, *class_coef;
  const ClassSums<double>* class_sums;  // nullptr: 1 and -log C
  T uniform;                            // 1/C
  LossOptions<T> options;
  bool transformed;  // the logits are scaled or capped
  const T* grad_loss;
  int64_t grad_loss_stride;
  const T* denominator;
  T *loss, *row_shift, *row_sum_exp, *lse, *nll;
  int64_t* predicted;

  __device__ Element* row_of(const Matrix& matrix, int64_t row) const {
    Element* data = static_cast<Element*>(matrix.data);
    if (inner == 1) return data + row * matrix.outer_stride;
    return data + (row / inner) * matrix.outer_stride + (row % inner) * matrix.inner_stride;
  }
  __device__ T weight_of(int64_t c) const { return weight ? weight[c] : T(1); }
  __device__ T prior_of(int64_t c) const { return prior ? prior[c] : uniform; }
  __device__ ClassSums<T> sums() const {
    if (class_sums) return {T(class_sums->coef), T(class_sums->coef_log)};
    return {T(1), log(uniform)};
  }
  __device__ T transformed_logit(Element x) const {
    return transformed ? transform_logit(T(widen(x)), options) : T(widen(x));
  }
};

// What the classes of a row, or a part of it, are summed up to.
template <class T>
struct RowSums {
  RowStats<T> stats = empty_stats<T>();
  Best<T> best = empty<Best<T>>();           // where the argmax is wanted
  ProbSums<T> probs = empty<ProbSums<T>>();  // where the target is class probabilities
};

template <class T>
__device__ RowSums<T> combine(const RowSums<T>& a, const RowSums<T>& b) {
  return {combine(a.stats, b.stats), combine(a.best, b.best), combine(a.probs, b.probs)};
}

template <class Element, bool soft>
struct Row {
  using T = typename Accumulate<Element>::type;
  using Classes = Chunk<Element>;

  const Problem<Element>& problem;
  int64_t index;
  int64_t target = -1;
  bool ignored = false, invalid = false;
  RowTerms<T> terms;
  T target_logit = 0, reference = 0;
  int64_t left_out = -1;  // the target, where its logit is infinite: row_loss takes it by itself

  __device__ Row(const Problem<Element>& problem, int64_t index) : problem(problem), index(index) {
    if constexpr (soft) {
      terms = row_terms(T(0), T(1), T(0), problem.options);
      terms.tau = 0;
    } else {
      target = problem.target[index];
      ignored = target == problem.ignore_index;
      invalid = !ignored && (target < 0 || target >= problem.classes);
      if (ignored || invalid) target = 0;
      terms = row_terms(problem.prior_of(target), problem.weight_of(target), problem.sums().coef,
                        problem.options);
    }
  }

  __device__ Element* logits() const { return problem.row_of(problem.logits, index); }
  __device__ Element* grad() const { return problem.row_of(problem.grad_logits, index); }
  __device__ Element* probs() const { return problem.row_of(problem.target_probs, index); }

  // Of such a row no loss and no statistics are wanted, so its logits are not read.
  __device__ bool unread() const { return (ignored || invalid) && !problem.predicted; }

  // Reads the logit that coef_dot is taken to: the target's, or the first. Of `lanes` neighbouring
  // lanes that share the row one reads, where they are `active`.
  __device__ void read_reference(int lanes, bool active = true) {
    T logit = 0;
    if ((threadIdx.x & (lanes - 1)) == 0 && active && !unread())
      logit = problem.transformed_logit(logits()[soft ? 0 : target * problem.logits.class_stride]);
    if (lanes > 1) logit = __shfl_sync(all_lanes, logit, 0, lanes);
    reference = finite_or_zero(logit);
    target_logit = soft ? reference : logit;
    left_out = !soft && reference != logit ? target : -1;
  }

  // ---- sums -------------------------------------------------------------------------------------

  __device__ void transformed_logits(const Classes& logits, T (&x)[Classes::size]) const {
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) x[i] = widen(logits.at[i]);
    if (problem.transformed) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) x[i] = transform_logit(x[i], problem.options);
    }
  }

  // Adds the classes of a chunk. Most chunks are whole, and nothing in them is special.
  __device__ void accumulate(RowSums<T>& sums, const Classes& logits, const Classes& probs,
                             int chunk, const Span<Element>& span) const {
    if (span.whole(chunk) && chunk != span.chunk_of(left_out))
      accumulate_places<true>(sums, logits, probs, chunk, span);
    else
      accumulate_places<false>(sums, logits, probs, chunk, span);
  }

  template <bool whole>
  __device__ void accumulate_places(RowSums<T>& sums, const Classes& logits, const Classes& probs,
                                    int chunk, const Span<Element>& span) const {
    const int64_t first = span.first(chunk);
    const int begin = whole ? 0 : span.begin(chunk), end = whole ? Classes::size : span.end(chunk);
    T x[Classes::size];
    transformed_logits(logits, x);
    if constexpr (!whole) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        if (i < begin || i >= end) x[i] = -infinity<T>();
    }

    RowStats<T>& stats = sums.stats;
    T largest = x[0];
#pragma unroll
    for (int i = 1; i < Classes::size; ++i) largest = max(largest, x[i]);
    if (largest > stats.shift) {
      stats.sum_exp *= exp(stats.shift - finite_or_zero(largest));
      stats.shift = largest;
    }
    const T point = finite_or_zero(stats.shift);
    T sum_exp = 0;
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) sum_exp += exp_of<Element>(x[i] - point);
    stats.sum_exp += sum_exp;

    if (whole && !soft && !problem.class_coef) {
      T differences = 0;
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) differences += x[i] - reference;
      stats.coef_dot += problem.uniform * differences;
    } else {
      T coef[Classes::size];
      load_coefs(coef, probs, first, begin, end, soft ? terms.beta : T(1), terms.kappa);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        if (whole || (i >= begin && i < end && first + i != left_out))
          accumulate_coef(sums, first + i, coef[i], x[i] - reference, probs.at[i]);
    }
    if (problem.predicted) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        if (i >= begin && i < end) sums.best = combine(sums.best, Best<T>{x[i], first + i});
    }
  }

  __device__ void accumulate_coef(RowSums<T>& sums, int64_t c, T coef, T difference,
                                  Element prob) const {
    sums.stats.coef_dot += weighted(coef, difference);
    if constexpr (soft) {
      sums.stats.coef_sum += coef;
      accumulate_prob(sums.probs, c, T(widen(prob)), difference);
    }
  }

  __device__ void accumulate_prob(ProbSums<T>& sums, int64_t c, T prob, T difference) const {
    if (problem.predicted) {
      sums.prob += prob;
      sums.nll += soft_nll(prob, T(0), difference);
    }
    if (problem.options.kl_div)
      sums.negative_entropy += soft_negative_entropy(problem.weight_of(c), problem.prior_of(c),
                                                     prob, terms.beta, terms.kappa);
  }

  // beta v_c of a chunk's classes, or w_c q_c where the target is class probabilities.
  __device__ void load_coefs(T (&coef)[Classes::size], const Classes& probs, int64_t first,
                             int begin, int end, T beta, T kappa) const {
    load_classes(coef, problem.class_coef, problem.uniform, first, begin, end);
    if constexpr (soft) {
      T prob[Classes::size];
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) prob[i] = kappa * T(widen(probs.at[i]));
      if (problem.weight) {
        T weight[Classes::size];
        load_classes(weight, problem.weight, T(1), first, begin, end);
#pragma unroll
        for (int i = 0; i < Classes::size; ++i) prob[i] = weighted(prob[i], weight[i]);
      }
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) coef[i] = soft_coef(coef[i], prob[i], beta);
    } else {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) coef[i] *= beta;
    }
  }

  // ---- loss -------------------------------------------------------------------------------------

  // After the sums of all parts are combined.
  __device__ void close(RowSums<T>& sums) {
    sums.stats.shift = finite_or_zero(sums.stats.shift);
    if constexpr (soft) terms.mass = sums.stats.coef_sum;
    if (unread()) sums.stats = {T(0), T(1), T(0), T(0)};
  }

  // By one thread.
  __device__ void write_loss(const RowSums<T>& sums) const {
    const T nan = infinity<T>() - infinity<T>();
    const RowStats<T>& stats = sums.stats;
    problem.row_shift[index] = stats.shift;
    problem.row_sum_exp[index] = stats.sum_exp;
    problem.loss[index] = ignored ? T(0) : invalid ? nan : loss(sums);
    if (!problem.predicted) return;
    problem.lse[index] = log_sum_exp(stats, problem.options);
    problem.nll[index] = ignored ? T(0) : invalid ? nan : nll(sums);
    problem.predicted[index] = sums.best.index;
  }

  __device__ T loss(const RowSums<T>& sums) const {
    RowTerms<T> own = terms;
    T entropy = 0;
    if constexpr (soft) {
      own.beta = 1;  // coef_dot holds beta and kappa already
      entropy = sums.probs.negative_entropy;
    } else if (problem.options.kl_div) {
      entropy = negative_entropy(own, problem.prior_of(target), problem.weight_of(target),
                                 problem.sums());
    }
    return row_loss(sums.stats, own, target_logit, reference, problem.options) + entropy;
  }

  __device__ T nll(const RowSums<T>& sums) const {
    const T lse = log_sum_exp_from(reference, sums.stats, problem.options);
    return soft ? weighted(sums.probs.prob, lse) + sums.probs.nll
                : lse - (target_logit - reference);
  }

  // ---- gradient ---------------------------------------------------------------------------------

  __device__ T incoming() const {
    T scale = problem.grad_loss ? problem.grad_loss[index * problem.grad_loss_stride] : T(1);
    return problem.denominator ? scale / *problem.denominator : scale;
  }

  // A backward call finds the statistics where forward left them.
  __device__ RowStats<T> recall() const {
    return {problem.row_shift[index], problem.row_sum_exp[index], T(0), T(0)};
  }

  __device__ GradTerms<T> grad_terms_from(const RowStats<T>& stats) const {
    return grad_terms(stats, terms, incoming(), problem.options);
  }

  // A chunk of the gradient of a row that does not count, or whose target is no class.
  __device__ Classes filling() const {
    T value[Classes::size];
#pragma unroll
    for (int i = 0; i < Classes::size; ++i)
      value[i] = ignored ? T(0) : infinity<T>() - infinity<T>();
    return narrow<Element>(value);
  }

  // A chunk of the gradient. Most chunks are whole and hold no target.
  __device__ Classes gradient(const Classes& logits, const Classes& probs, int chunk,
                              const Span<Element>& span, const GradTerms<T>& grad) const {
    if (span.whole(chunk) && chunk != span.chunk_of(target))
      return gradient_of_places<true>(logits, probs, chunk, span, grad);
    return gradient_of_places<false>(logits, probs, chunk, span, grad);
  }

  template <bool whole>
  __device__ Classes gradient_of_places(const Classes& logits, const Classes& probs, int chunk,
                                        const Span<Element>& span, const GradTerms<T>& grad) const {
    const int64_t first = span.first(chunk);
    const int begin = whole ? 0 : span.begin(chunk), end = whole ? Classes::size : span.end(chunk);
    T x[Classes::size], value[Classes::size];
    transformed_logits(logits, x);
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) value[i] = exp_of<Element>(x[i] - grad.shift);
    if (whole && !soft && !problem.class_coef) {
      const T coef = grad.beta * problem.uniform;
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) value[i] = logit_grad(value[i], coef, grad);
    } else {
      T coef[Classes::size];
      load_coefs(coef, probs, first, begin, end, grad.beta, grad.kappa);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        value[i] =
            logit_grad(value[i], !whole && first + i == target ? grad.target_coef : coef[i], grad);
    }
    if (problem.transformed) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) value[i] *= transform_slope(x[i], problem.options);
    }
    return narrow<Element>(value);
  }
};

}  // namespace labelsmooth::cuda
