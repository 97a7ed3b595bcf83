// A row as a thread sees it: what it is, and how classes are added to its sums.
#pragma once

#include "reduce.cuh"
#include "target.cuh"

namespace labelsmooth::cuda {

template <class Element, Kind kind>
struct Row {
  static constexpr bool soft = kind == Kind::soft;
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
  // Of such a row neither loss nor statistics are wanted.
  __device__ bool unread() const { return !counts() && !problem.template counts_stats<kind>(); }

  // Reads the logit that differences are taken to: the target's, or that of this part's class 0.
  // One of the `lanes` that share the row reads it, where they are `active`.
  __device__ void read_reference(int lanes, bool active = true) {
    T given = 0;
    if ((threadIdx.x & (lanes - 1)) == 0 && active && !unread())
      given = T(widen(logits()[(is_here() ? target : 0) * problem.logits.class_stride]));
    if (lanes > 1) given = __shfl_sync(all_lanes, given, 0, lanes);
    const bool transformed = problem.template transforms<kind>();
    target_logit = transformed ? problem.transformed_logit(given) : given;
    reference = reference_from(target_logit);
    if constexpr (soft)
      masked = unless_masked(T(1), given, problem.options) == T(0);
    else if (is_here() && !(target_logit - target_logit == T(0)))
      left_out = target;
  }

  // ---- sums -------------------------------------------------------------------------------------

  // Among these, as given or turned round, the largest logit is found.
  __device__ Packed<Element> turned(const Packed<Element>& logits) const {
    return problem.template reverses<kind>() ? negated(logits) : logits;
  }
  __device__ T largest_of(const Packed<Element>& turned) const {
    T x[Classes::size];
    widen(x, turned);
    T largest = x[0];
#pragma unroll
    for (int i = 1; i < Classes::size; ++i) largest = max(largest, x[i]);
    if (!problem.template transforms<kind>()) return largest;
    return problem.transformed_logit(problem.template reverses<kind>() ? -largest : largest);
  }
  // What a place outside the row holds: not the largest.
  __device__ Element outside() const {
    const float least = -infinity<float>();
    return Element(problem.template reverses<kind>() ? -least : least);
  }

  // Adds the classes of a chunk of which sums.largest knows the largest. Where it is `regular`, all
  // its places are inside the row, and none is left out.
  template <bool regular>
  __device__ void add(Sums& sums, const Powers<T>& powers, const Packed<Element>& logits,
                      const Probs& probs, int chunk, const Span<Element>& span) const {
    const int64_t first = span.first(chunk);
    const int begin = regular ? 0 : span.begin(chunk);
    const int end = regular ? Classes::size : span.end(chunk);
    T x[Classes::size];
    problem.template load_logits<kind>(x, logits);

    T sum_exp = 0;
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) {
      const T exp_x = powers(x[i]);
      if (regular || (i >= begin && i < end)) sum_exp += exp_x;
    }
    sums.totals.exp += sum_exp;

    if (regular && problem.template spreads_evenly<kind>()) {
      sums.totals.spread_dot += problem.uniform * sum_of_differences(x);
    } else {
      T coef[Classes::size];
      problem.template load_spread<kind>(coef, logits, first, begin, end);
#pragma unroll
      for (int i = 0; i < Classes::size; ++i)
        if ((regular || (i >= begin && i < end && first + i != left_out)) && coef[i] != T(0))
          sums.totals.spread_dot += coef[i] * (x[i] - reference);
      if constexpr (soft)
        if (problem.options.over_unmasked())
          accumulate_unmasked(sums.unmasked, logits, coef, first, begin, end);
    }
    if constexpr (soft)
      if (probs.any) accumulate_target(sums.target, x, probs, first, begin, end);
  }

  // Adds any chunk.
  __device__ void accumulate(Sums& sums, const Packed<Element>& logits, const Probs& probs,
                             int chunk, const Span<Element>& span) const {
    sums.raise(largest_of(turned(logits)));
    if (problem.template counts_stats<kind>()) see_best(sums, logits, chunk, span);
    if (span.whole(chunk) && left_out < 0)
      add<true>(sums, sums.powers(), logits, probs, chunk, span);
    else
      add<false>(sums, sums.powers(), logits, probs, chunk, span);
  }

  // Of x_c - reference. The sum of a chunk of 16-bit logits is exact, or nearly so: they have few
  // digits.
  __device__ T sum_of_differences(const T (&x)[Classes::size]) const {
    T sum = 0;
    if (sizeof(Element) == 2 && !problem.template transforms<kind>()) {
#pragma unroll
      for (int i = 0; i < Classes::size; ++i) sum += x[i];
      return sum - Classes::size * reference;
    }
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) sum += x[i] - reference;
    return sum;
  }

  // Sees where the largest logit is, or a NaN. Few chunks have one.
  __device__ void see_best(Sums& sums, const Packed<Element>& logits, int chunk,
                           const Span<Element>& span) const {
    T x[Classes::size];
    problem.template load_logits<kind>(x, logits);
    bool any = false;
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) any = any || !(x[i] < sums.largest);
    if (!any) return;
    const int64_t first = span.first(chunk);
    const int begin = span.begin(chunk), end = span.end(chunk);
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) {
      if (i < begin || i >= end || x[i] < sums.largest) continue;
      sums.best = combine(sums.best, Best{first + i + (x[i] == x[i] ? 0 : Best::nan)});
    }
  }
  // Whether a thread, whose own largest logit is this, has the row's or a NaN.
  __device__ bool may_have_best(const Sums& sums, T own) const {
    return problem.template counts_stats<kind>() &&
           (own == sums.largest || sums.totals.exp != sums.totals.exp);
  }

  __device__ void accumulate_unmasked(ClassSums<T>& sums, const Packed<Element>& logits,
                                      const T (&coef)[Classes::size], int64_t first, int begin,
                                      int end) const {
    T prior[Classes::size];
    load_classes(prior, problem.prior, problem.uniform, first, begin, end);
    T x0[Classes::size];
    widen(x0, logits);
#pragma unroll
    for (int i = 0; i < Classes::size; ++i) {
      if (i < begin || i >= end) continue;
      sums.coef += coef[i];
      sums.prior += unless_masked(prior[i], x0[i], problem.options);
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

  // From the sums of all parts.
  __device__ RowStats<T> close(const Sums& sums) {
    make_terms(class_sums(sums));
    if constexpr (soft) tau = weighted(terms.kappa, sums.target.coef);
    terms.mass += tau;
    if (unread()) return {T(0), T(1), T(0)};
    return {finite_or_zero(sums.largest), sums.totals.exp * sums.powers().correction(),
            sums.totals.spread_dot};
  }

  __device__ ClassSums<T> class_sums(const Sums& sums) const {
    if constexpr (soft)
      if (problem.options.over_unmasked()) return sums.unmasked;
    return problem.sums();
  }

  // ---- gradient ---------------------------------------------------------------------------------

  // A backward call finds what forward left.
  __device__ RowStats<T> recall() {
    make_terms(problem.sums());
    terms.mass = problem.row_mass[index];
    terms.beta = problem.row_beta[index];
    return {problem.row_shift[index], problem.row_sum_exp[index], T(0)};
  }

  // A chunk of the gradient of a row that does not count.
  __device__ Classes filling() const {
    T value[Classes::size];
#pragma unroll
    for (int i = 0; i < Classes::size; ++i)
      value[i] = invalid ? infinity<T>() - infinity<T>() : T(0);
    return narrow<Element>(value);
  }

  // Whether the class of the target is in a regular one of these chunks.
  __device__ bool has_target_in(const Span<Element>& span, const ThreadChunks& chunks) const {
    if (soft) return false;
    const int chunk = span.chunk_of(target);
    return span.whole(chunk) && chunks.has(chunk);
  }
};

}  // namespace labelsmooth::cuda
