// A row as a thread sees it: what it is, how classes are added to its sums, its gradient.
#pragma once

#include "reduce.cuh"
#include "target.cuh"

namespace labelsmooth::cuda {

template <class Element, bool soft>
struct Row {
  using T = typename Accumulate<Element>::type;
  using Classes = Chunk<Element>;
  using Probs = ChunkProbs<Element, soft>;
  using Sums = RowSums<T, soft>;

  const Problem<Element>& problem;
  int64_t index;
  int64_t target = 0;  // a class of the target, of this part or another; of several the first
  bool ignored = false, invalid = false, weightless;
  RowTerms<T> terms;
  T tau;          // of all classes of the target
  T target_coef;  // where it is one class
  T target_logit = 0, reference = 0;
  bool masked = false;    // the target, where the smoothing leaves masked classes out
  int64_t left_out = -1;  // the target, where its logit is infinite: row_loss takes it by itself

  __device__ Row(const Problem<Element>& problem, int64_t index) : problem(problem), index(index) {
    const TargetClasses& targets = problem.target;
    Standing standing;
    if constexpr (soft)
      standing = targets.standing(index);
    else
      standing.see(targets.data[index], targets.ignore_index, targets.all_classes);
    ignored = standing.ignored;
    invalid = standing.invalid;
    weightless = problem.row_weight_of(index) == T(0);
    if (!ignored && !invalid) target = problem.class_of(standing.first);
    if constexpr (soft) make_terms(problem.sums());  // for the entropy of each class
  }

  __device__ void make_terms(const ClassSums<T>& sums) {
    terms = row_terms(soft ? T(0) : problem.prior_of(target), sums, problem.options);
    if constexpr (soft) return;
    const TargetTerms<T> own = terms_of(target, T(1));
    tau = is_here() ? own.tau : T(0);
    target_coef = own.coef;
  }

  // Whether the target is a class of this part.
  __device__ bool is_here() const { return problem.is_here(target); }

  // Of a class of the target.
  __device__ TargetTerms<T> terms_of(int64_t c, T prob, bool masked = false) const {
    const T given = masked ? -infinity<T>() : T(0);  // a logit that tells as much
    return target_terms(prob, problem.weight_of(c), problem.prior_of(c), given, terms,
                        problem.options);
  }

  __device__ Element* logits() const { return problem.row_of(problem.logits, index); }
  __device__ Element* grad() const { return problem.row_of(problem.grad_logits, index); }

  __device__ bool counts() const { return !ignored && !invalid && !weightless; }
  // Of such a row no loss and no statistics are wanted, so its logits are not read.
  __device__ bool unread() const { return !counts() && !problem.with_stats; }

  // Reads the logit that differences are taken to: the target's, or that of this part's class 0. Of
  // `lanes` neighbouring lanes that share the row one reads, where they are `active`.
  __device__ void read_reference(int lanes, bool active = true) {
    T given = 0;
    if ((threadIdx.x & (lanes - 1)) == 0 && active && !unread())
      given = T(widen(logits()[(is_here() ? target : 0) * problem.logits.class_stride]));
    if (lanes > 1) given = __shfl_sync(all_lanes, given, 0, lanes);
    target_logit = problem.transformed ? transform_logit(given, problem.options) : given;
    reference = reference_from(target_logit);
    if constexpr (soft)
      masked = unless_masked(T(1), given, problem.options) == T(0);
    else if (is_here() && !(target_logit - target_logit == T(0)))
      left_out = target;
  }

  // ---- sums -------------------------------------------------------------------------------------

  // Adds the classes of a chunk. Most chunks are whole, and nothing in them is special.
  __device__ void accumulate(Sums& sums, const Classes& logits, const Probs& probs, int chunk,
                             const Span<Element>& span) const {
    if (span.whole(chunk) && (soft || chunk != span.chunk_of(left_out)))
      accumulate_places<true>(sums, logits, probs, chunk, span);
    else
      accumulate_places<false>(sums, logits, probs, chunk, span);
  }

  template <bool whole>
  __device__ void accumulate_places(Sums& sums, const Classes& logits, const Probs& probs,
                                    int chunk, const Span<Element>& span) const {
    const int64_t first = span.first(chunk);
    const int begin = whole ? 0 : span.begin(chunk), end = whole ? Classes::size : span.end(chunk);
    T x[Classes::size];
    problem.load_logits(x, logits);
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

    if (whole && problem.template spreads_evenly<soft>()) {
      T differences = 0;
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) differences += x[i] - reference;
      stats.spread_dot += problem.uniform * differences;
    } else {
      T coef[Classes::size];
      problem.template load_spread<soft>(coef, logits, first, begin, end);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        if (whole || (i >= begin && i < end && first + i != left_out))
          stats.spread_dot += weighted(coef[i], x[i] - reference);
      if constexpr (soft)
        if (problem.options.over_unmasked())
          accumulate_unmasked(sums.unmasked, logits, coef, first, begin, end);
    }
    if (problem.with_stats) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        if (i >= begin && i < end) sums.best = combine(sums.best, Best<T>{x[i], first + i});
    }
    if constexpr (soft)
      if (probs.any) accumulate_target(sums.target, x, probs, first, begin, end);
  }

  __device__ void accumulate_unmasked(ClassSums<T>& sums, const Classes& logits,
                                      const T (&coef)[Classes::size], int64_t first, int begin,
                                      int end) const {
    T prior[Classes::size];
    load_classes(prior, problem.prior, problem.uniform, first, begin, end);
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) {
      if (i < begin || i >= end) continue;
      sums.coef += coef[i];
      sums.prior += unless_masked(prior[i], T(widen(logits.at[i])), problem.options);
      if (problem.options.kl_div) sums.coef_log += coef_log_of_class(coef[i], prior[i]);
    }
  }

  // Places outside the row have probability 0.
  __device__ void accumulate_target(TargetSums<T>& sums, const T (&x)[Classes::size],
                                    const Probs& probs, int64_t first, int begin, int end) const {
    T coef[Classes::size];
    problem.load_target(coef, probs.at, T(1), first, begin, end);
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) {
      sums.dot += weighted(coef[i], x[i] - reference);
      sums.coef += coef[i];
    }
    if (problem.with_stats) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) {
        sums.prob += probs.at[i];
        sums.prob_dot += weighted(probs.at[i], x[i] - reference);
      }
    }
    if (problem.options.kl_div && !problem.options.over_unmasked()) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        if (probs.at[i] != T(0)) sums.entropy += target_entropy(terms_of(first + i, probs.at[i]));
    }
  }

  // After the sums of all parts are combined.
  __device__ void close(Sums& sums) {
    sums.stats.shift = finite_or_zero(sums.stats.shift);
    if (unread()) sums.stats = {T(0), T(1), T(0)};
    make_terms(class_sums(sums));
    if constexpr (soft) tau = weighted(terms.kappa, sums.target.coef);
    terms.mass += tau;
  }

  __device__ ClassSums<T> class_sums(const Sums& sums) const {
    if constexpr (soft)
      if (problem.options.over_unmasked()) return sums.unmasked;
    return problem.sums();
  }

  // ---- gradient ---------------------------------------------------------------------------------

  __device__ T incoming() const {
    T scale = problem.row_weight_of(index);
    if (problem.grad_loss) scale *= problem.grad_loss[index * problem.grad_loss_stride];
    return problem.denominator ? scale / *problem.denominator : scale;
  }

  // A backward call finds what forward left.
  __device__ RowStats<T> recall() {
    make_terms(problem.sums());
    terms.mass = problem.row_mass[index];
    terms.beta = problem.row_beta[index];
    return {problem.row_shift[index], problem.row_sum_exp[index], T(0)};
  }

  __device__ GradTerms<T> grad_terms_from(const RowStats<T>& stats) const {
    return grad_terms(stats, terms, incoming(), problem.options);
  }

  // A chunk of the gradient of a row that does not count, or whose target is no class.
  __device__ Classes filling() const {
    T value[Classes::size];
#pragma unroll
    for (int i = 0; i < Classes::size; ++i)
      value[i] = invalid ? infinity<T>() - infinity<T>() : T(0);
    return narrow<Element>(value);
  }

  // A chunk of the gradient. Most chunks are whole and hold no target.
  __device__ Classes gradient(const Classes& logits, const Probs& probs, int chunk,
                              const Span<Element>& span, const GradTerms<T>& grad) const {
    if (span.whole(chunk) && (soft || chunk != span.chunk_of(target)))
      return gradient_of_places<true>(logits, probs, chunk, span, grad);
    return gradient_of_places<false>(logits, probs, chunk, span, grad);
  }

  template <bool whole>
  __device__ Classes gradient_of_places(const Classes& logits, const Probs& probs, int chunk,
                                        const Span<Element>& span, const GradTerms<T>& grad) const {
    const int64_t first = span.first(chunk);
    const int begin = whole ? 0 : span.begin(chunk), end = whole ? Classes::size : span.end(chunk);
    T x[Classes::size], value[Classes::size];
    problem.load_logits(x, logits);
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) value[i] = exp_of<Element>(x[i] - grad.shift);
    if (whole && problem.template spreads_evenly<soft>() && !has_target(probs)) {
      const T coef = grad.beta * problem.uniform;
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) value[i] = logit_grad(value[i], coef, grad);
    } else {
      T coef[Classes::size];
      problem.template load_spread<soft>(coef, logits, first, begin, end);
      add_target<whole>(coef, probs, first, begin, end, grad);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) value[i] = logit_grad(value[i], coef[i], grad);
    }
    if (problem.transformed) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) value[i] *= transform_slope(x[i], problem.options);
    }
    return narrow<Element>(value);
  }

  __device__ static bool has_target(const Probs& probs) {
    if constexpr (soft) return probs.any;
    return false;  // the place of one class is not in such a chunk
  }

  // From v_c to coef_c, scaled as grad is.
  template <bool whole>
  __device__ void add_target(T (&coef)[Classes::size], const Probs& probs, int64_t first, int begin,
                             int end, const GradTerms<T>& grad) const {
    if constexpr (soft) {
      T own[Classes::size] = {};
      if (probs.any) problem.load_target(own, probs.at, grad.kappa, first, begin, end);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) coef[i] = soft_coef(coef[i], own[i], grad.beta);
    } else {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        coef[i] = !whole && first + i == target ? grad.scale * target_coef : grad.beta * coef[i];
    }
  }
};

}  // namespace labelsmooth::cuda
