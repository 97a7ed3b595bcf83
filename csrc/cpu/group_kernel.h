// The CPU kernel for rows of not too many adjacent classes, whose target is one: as row_kernel.h,
// but what is done once a row, sums across lanes, a logarithm and divisions, is done for a group of
// rows, a lane each.
//
// Rows that are not plain, or must be read again, are left to row_kernel.h.
#pragma once

#include "row_kernel.h"
#include "targets.h"
#include "transpose.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Rows of fewer classes are faster in tiles (tile_kernel.h); in rows of more, what is done once
// does not show.
constexpr int64_t fewest_in_group_row = 24;
constexpr int64_t most_in_group_row = 4096;
// The exponentials of a group stay in cache.
constexpr int64_t most_in_group = 16384;

template <class Element, bool general, bool transformed>
class GroupKernel {
  using R = Row<Element, general, void, transformed>;
  using T = typename R::T;
  using V = typename R::V;
  using Mask = typename V::Mask;
  using Targets = cpu::LABELSMOOTH_ISA::Targets<T>;
  using OneClass = cpu::LABELSMOOTH_ISA::OneClass<T>;

 public:
  explicit GroupKernel(const LossProblem& problem)
      : problem_(problem),
        typed_(problem),
        classes_(problem.classes),
        row_(typed_),
        by_row_(problem) {}

  static bool takes(const LossProblem& problem) {
    const bool one_class = problem.target && !problem.sparse_probs;
    const bool adjacent = problem.logits.class_stride == 1 &&
                          (!problem.grad_logits.data || problem.grad_logits.class_stride == 1);
    return one_class && adjacent && problem.classes >= fewest_in_group_row &&
           problem.classes <= most_in_group_row && problem.loss &&
           !problem.options.over_unmasked() && !problem.options.kl_div;
  }

  void process(int64_t begin, int64_t end) {
    int64_t size = V::size;
    if (problem_.grad_logits.data) {
      size = min(size, most_in_group / classes_);
      stride_ = (classes_ + V::size - 1) / V::size * V::size;
      row_.exps = exps_.get(size * stride_);
      row_.kept = transformed ? kept_.get(size * stride_) : nullptr;
    }
    for (int64_t row = begin; row < end; row += size) {
      fetch_targets(row + size, end);
      process_group(row, min(size, end - row));
    }
  }

 private:
  // What the next group begins with: the logits of its targets.
  void fetch_targets(int64_t row, int64_t end) const {
    for (int64_t i = row; i < end && i < row + V::size; ++i) {
      const int64_t c = typed_.class_of(problem_.target[i]);
      if (typed_.is_here(c)) __builtin_prefetch(typed_.row_of(problem_.logits, i) + c);
    }
  }

  void process_group(int64_t row, int64_t count) {
    const Targets targets = targets_of<false>(typed_, row, count);
    const V given = targets.gather([&](int64_t i, int64_t c) {
      return load_one(typed_.row_of(problem_.logits, row + i) + c);
    });
    RowTerms<V> terms = row_terms(targets.prior, typed_.sums, typed_.options);
    const OneClass one = {
        row_.transform(given),
        target_terms(V(T(1)), targets.weight, targets.prior, given, terms, typed_.options)};
    terms.mass = terms.mass + one.terms.tau;
    const RowStats<V> stats = sums(row, count, one.logit, targets.counts);
    save_row_stats(problem_, row, count, stats, terms);
    save_rows<T>(problem_.loss, row, count,
                 row_weights(typed_, row, count) *
                     row_loss(stats, terms, V(T(0)), stats.shift, typed_.options));

    if (problem_.with_stats) save_statistics(row, count, one, stats);

    const Mask plain = targets.counts & ~one.infinite() & is_well_scaled(stats.sum_exp);
    const bool all_plain = !any_lane<T>(~plain);
    if (!all_plain)
      for (int64_t i = 0; i < count; ++i)
        if (!plain[i]) by_row_.process(row + i, row + i + 1);
    if (!problem_.grad_logits.data) return;
    const GradTerms<V> grad =
        grad_terms(stats, terms, incoming(typed_, row, count), typed_.options);
    const V at_target =
        row_.sloped(target_grad<Element>(one.logit, one.terms.coef, grad), one.logit);
    write_gradients(row, count, grad, [&](int64_t i) { return all_plain || plain[i]; });
    targets.scatter(at_target, [&](int64_t i, int64_t c, T value) {
      if (all_plain || plain[i]) store_one(typed_.row_of(problem_.grad_logits, row + i) + c, value);
    });
  }

  // use(i, row)
  template <class Use>
  LABELSMOOTH_HD void for_rows(int64_t first, int64_t count, const Use& use) const {
    R row = row_;
    for (int64_t i = 0; i < count; ++i) {
      row.logits = typed_.row_of(problem_.logits, first + i);
      if (row_.exps) row.exps = row_.exps + i * stride_;
      if (row_.kept) row.kept = row_.kept + i * stride_;
      use(i, row);
    }
  }

  // Relative to the logits of the targets.
  RowStats<V> sums(int64_t first, int64_t count, V shift, Mask counts) const {
    T shifts[V::size];
    store(shifts, shift);
    V sum_exp[V::size], spread_dot[V::size];
    for_rows(first, count, [&](int64_t i, const R& row) {
      if (!counts[i] && !problem_.with_stats) {
        sum_exp[i] = spread_dot[i] = V(T(1));
        return;
      }
      const RowSums<V> sums = is_short<R>(classes_) ? short_sums(row, classes_, shifts[i])
                                                    : block_sums(row, 0, classes_, shifts[i]);
      sum_exp[i] = sums.stats.sum_exp;
      spread_dot[i] = sums.stats.spread_dot;
    });
    for (int64_t i = count; i < V::size; ++i) sum_exp[i] = spread_dot[i] = V(T(1));
    return {shift, lane_sums(sum_exp), lane_sums(spread_dot)};
  }

  void save_statistics(int64_t first, int64_t count, const OneClass& one,
                       const RowStats<V>& stats) const {
    const V lse = log_sum_exp_from(stats.shift, stats, typed_.options);
    save_rows<T>(problem_.lse, first, count, log_sum_exp(stats, typed_.options));
    save_rows<T>(problem_.nll, first, count, soft_nll(V(T(1)), lse, one.logit - stats.shift));
    for_rows(first, count, [&](int64_t i, const R& row) {
      problem_.predicted[first + i] =
          find_logit(row, 0, classes_, largest_in(row, 0, classes_)) % classes_;
    });
  }

  template <class Wanted>
  void write_gradients(int64_t first, int64_t count, const GradTerms<V>& grad,
                       const Wanted& wanted) const {
    T shift[V::size], exp_scale[V::size], beta[V::size];
    store(shift, grad.shift), store(exp_scale, grad.exp_scale), store(beta, grad.beta);
    for_rows(first, count, [&](int64_t i, const R& row) {
      const GradTerms<T> terms = {shift[i], exp_scale[i], beta[i], T(0), T(0)};
      if (wanted(i))
        write_gradient(row, terms, 0, classes_, typed_.row_of(problem_.grad_logits, first + i),
                       static_cast<const Element*>(nullptr));
    });
  }

  const LossProblem& problem_;
  const TypedProblem<Element> typed_;
  const int64_t classes_;
  R row_;  // with exps and kept of the group's first row
  int64_t stride_ = 0;
  RowKernel<Element, general, void, transformed> by_row_;
  Buffer<T> exps_, kept_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
