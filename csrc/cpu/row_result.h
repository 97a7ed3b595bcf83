// What a row comes to, from its sums: loss and statistics, or a part of them.
#pragma once

#include "entries.h"
#include "row_sums.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Of the row that the kernel has in hand, to which it refers.
template <class Element, bool general, class Probs, bool transformed>
class RowResult {
  using R = Row<Element, general, Probs, transformed>;
  static constexpr bool dense = R::dense;
  using T = typename R::T;
  using V = typename R::V;

 public:
  RowResult(const TypedProblem<Element>& typed, const Blocks& blocks, const R& row,
            const Entries<Element>& entries, const RowSums<T>& sums, const RowTerms<T>& terms)
      : typed_(typed), blocks_(blocks), row_(row), entries_(entries), sums_(sums), terms_(terms) {}

  TargetTerms<T> terms_of_class(int64_t c, T prob) const {
    return target_terms(prob, typed_.weight_of(c), typed_.prior_of(c), row_.given_logit(c), terms_,
                        typed_.options);
  }

  // The sum of tau_c.
  T tau() const {
    if constexpr (dense) return weighted(terms_.kappa, sums_.target_sum);
    T sum = 0;
    for (const Entry<T>& entry : entries_) sum += entry.terms.tau;
    return sum;
  }

  T loss(const ClassSums<T>& classes) const {
    RowStats<T> stats = sums_.stats;
    const Dots dots = this->dots();
    stats.spread_dot = dots.spread;
    const T loss = row_loss(stats, terms_, dots.target, stats.shift, typed_.options);
    return typed_.options.kl_div ? loss + entropy(classes) : loss;
  }

  T nll() const {
    const T shift = sums_.stats.shift;
    return nll_from(shift, log_sum_exp_from(shift, sums_.stats, typed_.options));
  }

  // But for the largest logit and its class.
  RowPart<T> part(const ClassSums<T>& classes) const {
    const RowStats<T>& stats = sums_.stats;
    const Dots dots = this->dots();
    RowPart<T> part = row_part({stats.shift, stats.sum_exp, dots.spread}, terms_, classes,
                               dots.target, tau(), stats.shift, typed_.options);
    if (typed_.options.kl_div) part.entropy = entropy(classes);
    if (typed_.untyped.with_stats) {
      part.prob = sum_over_target([](auto prob, auto) { return prob; });
      part.prob_dot = -nll_from(finite_or_zero(part.shift), T(0));
    }
    return part;
  }

 private:
  // Sums of v_c (x_c - shift) and tau_c (x_c - shift).
  struct Dots {
    T spread, target;
  };
  Dots dots() const {
    Dots dots = {sums_.stats.spread_dot, dense ? weighted(terms_.kappa, sums_.target_dot) : T(0)};
    for (const Entry<T>& entry : entries_) {
      const bool infinite = !typed_.untyped.sparse_probs && entry.logit - entry.logit != T(0);
      if (infinite && entry.terms.coef == T(0)) dots.spread = spread_dot_without(entry.target);
      dots.target += infinite ? weighted(entry.terms.coef, entry.logit)
                              : weighted(entry.terms.tau, entry.logit - sums_.stats.shift);
    }
    return dots;
  }

  T spread_dot_without(int64_t target) const {
    return static_cast<T>(sum_over_classes([&](int64_t c, int64_t count) {
      const V x0 = R::template classes_at<false>(row_.logits, c, count);
      const V coef = row_.template coef_at<false>(c, count, x0);
      V term = weighted(coef, row_.transform(x0) - V(sums_.stats.shift));
      if (c <= target && target < c + count) term.lanes[target - c] = 0;
      return term;
    }));
  }

  T entropy(const ClassSums<T>& classes) const {
    double sum = 0;
    for (const Entry<T>& entry : entries_) sum += target_entropy(entry.terms);
    if constexpr (dense) sum += entropy_of_probs();
    return smoothing_entropy(terms_, classes) + static_cast<T>(sum);
  }

  double entropy_of_probs() const {
    const R row = row_;
    const RowTerms<V> terms = {V(terms_.beta), V(terms_.kappa), V(terms_.mass)};
    return sum_over_classes([&](int64_t c, int64_t count) {
      const V weight = R::template classes_at<false>(row.weight, T(1), c, count);
      const V prior = R::template classes_at<false>(row.prior, row.uniform, c, count);
      const V x0 = R::template classes_at<false>(row.logits, c, count);
      const V entropy = target_entropy(
          target_terms(row.probs_at(c, count), weight, prior, x0, terms, row.options));
      return V::first(count, entropy, V(T(0)));
    });
  }

  // The sum of term(t_c, x_c), which is 0 where t_c is.
  template <class Term>
  T sum_over_target(const Term& term) const {
    double sum = 0;
    for (const Entry<T>& entry : entries_) sum += term(entry.prob, entry.logit);
    if constexpr (dense)
      sum += sum_over_classes([&](int64_t c, int64_t count) {
        return term(row_.probs_at(c, count), row_.template logits_at<false>(c, count));
      });
    return static_cast<T>(sum);
  }

  // From an lse that is taken to the same point.
  T nll_from(T point, T lse) const {
    return sum_over_target([=](auto prob, auto x) {
      using X = decltype(x);
      return soft_nll(prob, X(lse), x - X(point));
    });
  }

  template <class Term>
  double sum_over_classes(const Term& term) const {
    return cpu::LABELSMOOTH_ISA::sum_over_classes<V>(blocks_, sums_buffer_.get(blocks_.count),
                                                     term);
  }

  const TypedProblem<Element>& typed_;
  const Blocks& blocks_;
  const R& row_;
  const Entries<Element>& entries_;
  const RowSums<T>& sums_;
  const RowTerms<T>& terms_;
  mutable Buffer<double> sums_buffer_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
