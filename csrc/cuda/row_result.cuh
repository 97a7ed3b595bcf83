// What is written of a row whose sums are made: loss and statistics, or a part of them.
#pragma once

#include "row.cuh"

namespace labelsmooth::cuda {

template <class Element, Kind kind>
class RowResult {
  static constexpr bool soft = kind == Kind::soft;
  using T = typename Accumulate<Element>::type;
  using Sums = RowSums<T, soft>;

 public:
  // Of a row that is closed.
  __device__ RowResult(const Row<Element, kind>& row, const Sums& sums, const RowStats<T>& stats)
      : row_(row), problem_(row.problem), sums_(sums), stats_(stats) {}

  // By one thread.
  __device__ void write() const {
    if (problem_.parts)
      write_part();
    else
      write_loss();
  }

  __device__ void write_loss() const {
    const int64_t index = row_.index;
    const T nan = infinity<T>() - infinity<T>();
    const bool counts = row_.counts();
    problem_.row_shift[index] = stats_.shift;
    problem_.row_sum_exp[index] = stats_.sum_exp;
    problem_.row_mass[index] = counts ? row_.terms.mass : T(0);
    problem_.row_beta[index] = counts ? row_.terms.beta : T(0);
    problem_.loss[index] = counts         ? problem_.row_weight_of(index) * loss()
                           : row_.invalid ? nan
                                          : T(0);
    if (!problem_.template counts_stats<kind>()) return;
    problem_.lse[index] = log_sum_exp(stats_, problem_.options);
    problem_.nll[index] = row_.ignored ? T(0) : row_.invalid ? nan : nll();
    problem_.predicted[index] = sums_.best.index();
  }

 private:
  __device__ void write_part() const {
    const RowPart<T> part = row_.invalid    ? invalid_part<T>()
                            : row_.unread() ? empty_part<T>()
                                            : this->part();
    store_part(problem_.parts + row_.index, problem_.rows, part, problem_.options,
               problem_.with_stats);
  }

  __device__ RowPart<T> part() const {
    RowPart<T> part = row_part(stats_, row_.terms, row_.class_sums(sums_), target_dot(), row_.tau,
                               row_.reference, problem_.options);
    if (problem_.options.kl_div) part.entropy = entropy();
    if (problem_.with_stats) {
      const ProbSums probs = prob_sums();
      const T step = row_.reference - finite_or_zero(part.shift);
      part.largest = sums_.best.is_nan() ? infinity<T>() - infinity<T>() : sums_.largest;
      part.predicted = T(problem_.class_offset + sums_.best.index());
      part.prob = probs.prob;
      part.prob_dot = probs.dot + weighted(probs.prob, step);
    }
    return part;
  }

  __device__ T loss() const {
    const T loss = row_loss(stats_, row_.terms, target_dot(), row_.reference, problem_.options);
    return problem_.options.kl_div ? loss + entropy() : loss;
  }

  // The sum of tau_c (x_c - reference), or as row_loss takes a class by itself.
  __device__ T target_dot() const {
    if constexpr (soft)
      return weighted(row_.terms.kappa, sums_.target.dot);
    else
      return row_.left_out < 0 ? weighted(row_.tau, row_.target_logit - row_.reference)
                               : weighted(row_.target_coef, row_.target_logit);
  }

  // Where beta is known only now, the target is one class.
  __device__ T entropy() const {
    const T smoothing = smoothing_entropy(row_.terms, row_.class_sums(sums_));
    if constexpr (soft)
      if (!problem_.options.over_unmasked()) return smoothing + sums_.target.entropy;
    if (!row_.is_here()) return smoothing;
    return smoothing + target_entropy(row_.terms_of(row_.target, T(1), row_.masked));
  }

  // Sums of t_c and t_c (x_c - reference).
  struct ProbSums {
    T prob, dot;
  };
  __device__ ProbSums prob_sums() const {
    if constexpr (soft) return {sums_.target.prob, sums_.target.prob_dot};
    if (!row_.is_here()) return {T(0), T(0)};
    return {T(1), row_.target_logit - row_.reference};
  }

  __device__ T nll() const {
    const ProbSums probs = prob_sums();
    const T lse = log_sum_exp_from(row_.reference, stats_, problem_.options);
    return weighted(probs.prob, lse) - probs.dot;
  }

  const Row<Element, kind>& row_;
  const Problem<Element>& problem_;
  const Sums& sums_;
  const RowStats<T>& stats_;
};

}  // namespace labelsmooth::cuda
