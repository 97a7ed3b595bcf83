// A row in parts: what a rank knows of it from its classes, and the row from all ranks' parts.
// Names and mathematics are those of row_math.h.
#pragma once

#include <cstdint>

#include "row_math.h"

namespace labelsmooth {

// Sums are taken to a point of the part's own, finite_or_zero(shift). Where the smoothing leaves
// masked classes out, coef_c is the target's share alone: beta is known only from all ranks.
template <class T>
struct RowPart {
  T shift, sum_exp;                         // -infinity where the sum is 0
  T coef_dot, mass;                         // of coef_c (x_c - point), of coef_c
  T spread_dot, spread_coef, spread_prior;  // over the unmasked: v_c (x_c - point), v_c, u_c
  T entropy;                                // with kl_div: sum_c coef_c log q_c
  T largest, predicted, prob_dot, prob;     // with statistics: the largest logit and its class of
                                            // all, sums of t_c (x_c - point) and t_c
};

// use(field, member) for those that a call has, in the order they are sent in.
template <class Part, class S, class Use>
LABELSMOOTH_HD int for_fields(Part& part, const LossOptions<S>& options, bool with_stats,
                              const Use& use) {
  int field = 0;
  use(field++, part.shift), use(field++, part.sum_exp);
  use(field++, part.coef_dot), use(field++, part.mass);
  if (options.over_unmasked()) {
    use(field++, part.spread_dot);
    use(field++, part.spread_coef), use(field++, part.spread_prior);
  }
  if (options.kl_div) use(field++, part.entropy);
  if (with_stats) {
    use(field++, part.largest), use(field++, part.predicted);
    use(field++, part.prob_dot), use(field++, part.prob);
  }
  return field;
}

// From this rank's sums, taken to the reference; `target_dot` and `target_mass` are those of tau_c
// (x_c - reference) and tau_c.
template <class T, class S>
LABELSMOOTH_HD RowPart<T> row_part(const RowStats<T>& stats, const RowTerms<T>& terms,
                                   const ClassSums<T>& classes, T target_dot, T target_mass,
                                   T reference, const LossOptions<S>& options) {
  RowPart<T> part = {};
  part.sum_exp = stats.sum_exp;
  part.shift = select(stats.sum_exp == T(0), -infinity<T>(), stats.shift);
  const T step = reference - finite_or_zero(part.shift);
  part.coef_dot = target_dot;
  part.mass = target_mass;
  if (options.over_unmasked()) {
    part.spread_dot = stats.spread_dot + weighted(classes.coef, step);
    part.spread_coef = classes.coef;
    part.spread_prior = classes.prior;
  } else {
    part.coef_dot = part.coef_dot + weighted(terms.beta, stats.spread_dot);
    part.mass = part.mass + terms.beta * classes.coef;
  }
  part.coef_dot = part.coef_dot + weighted(part.mass, step);
  return part;
}

template <class T, class S>
LABELSMOOTH_HD void store_part(T* parts, int64_t stride, const RowPart<T>& part,
                               const LossOptions<S>& options, bool with_stats) {
  for_fields(part, options, with_stats,
             [&](int field, const T& value) { parts[field * stride] = value; });
}
template <class T, class S>
LABELSMOOTH_HD RowPart<T> load_part(const T* parts, int64_t stride, const LossOptions<S>& options,
                                    bool with_stats) {
  RowPart<T> part = {};
  for_fields(part, options, with_stats,
             [&](int field, T& value) { value = parts[field * stride]; });
  return part;
}

// A part of no classes, or of a row that is not read; and of one whose target is no class,
// whichever rank sees it.
template <class T>
LABELSMOOTH_HD RowPart<T> empty_part() {
  RowPart<T> part = {};
  part.shift = part.largest = -infinity<T>();
  return part;
}
template <class T>
LABELSMOOTH_HD RowPart<T> invalid_part() {
  RowPart<T> part = empty_part<T>();
  part.sum_exp = T(-1);
  return part;
}
template <class T>
LABELSMOOTH_HD bool is_invalid(const RowPart<T>& part) {
  return part.sum_exp == T(-1);
}

// In the order of ranks, so with the same bits on all of them. The sums are taken to
// finite_or_zero(shift) of all.
template <class T, class PartOf>
LABELSMOOTH_HD RowPart<T> combine_ranks(int64_t ranks, const PartOf& part_of) {
  RowStats<T> stats = empty_stats<T>();
  for (int64_t rank = 0; rank < ranks; ++rank) stats.shift = max(stats.shift, part_of(rank).shift);
  const T point = finite_or_zero(stats.shift);
  RowPart<T> row = empty_part<T>();
  bool invalid = false;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const RowPart<T> part = part_of(rank);
    const T step = finite_or_zero(part.shift) - point;
    stats = combine(stats, {part.shift, part.sum_exp, part.coef_dot + weighted(part.mass, step)});
    invalid = invalid || is_invalid(part);
    row.mass += part.mass;
    row.spread_dot += part.spread_dot + weighted(part.spread_coef, step);
    row.spread_coef += part.spread_coef;
    row.spread_prior += part.spread_prior;
    row.entropy += part.entropy;
    row.prob_dot += part.prob_dot + weighted(part.prob, step);
    row.prob += part.prob;
    // The first of the largest; a NaN is larger than all.
    if (row.largest == row.largest && !(part.largest <= row.largest)) {
      row.largest = part.largest;
      row.predicted = part.predicted;
    }
  }
  row.shift = point;
  row.sum_exp = stats.sum_exp;
  row.coef_dot = stats.spread_dot;
  return invalid ? invalid_part<T>() : row;
}

// ---- a row that is combined --------------------------------------------------------------------

template <class T>
LABELSMOOTH_HD RowStats<T> stats_of(const RowPart<T>& row) {
  return {row.shift, row.sum_exp, row.spread_dot};
}

template <class T, class S>
LABELSMOOTH_HD RowTerms<T> row_terms(T target_prior, const RowPart<T>& row,
                                     const LossOptions<S>& options) {
  const ClassSums<T> sums = {row.spread_coef, T(0), row.spread_prior};
  RowTerms<T> terms = row_terms(target_prior, sums, options);
  terms.mass += row.mass;
  return terms;
}

template <class T, class S>
LABELSMOOTH_HD T row_loss(const RowPart<T>& row, const RowTerms<T>& terms,
                          const LossOptions<S>& options) {
  return row_loss(stats_of(row), terms, row.coef_dot, row.shift, options) + row.entropy;
}

template <class T, class S>
LABELSMOOTH_HD T row_nll(const RowPart<T>& row, const LossOptions<S>& options) {
  return weighted(row.prob, log_sum_exp_from(row.shift, stats_of(row), options)) - row.prob_dot;
}

}  // namespace labelsmooth
