// What forward writes of rows, from all ranks' parts.
#pragma once

#include "kernels.h"

namespace labelsmooth {

// T is the accumulate dtype.
template <class T>
class RankRows {
 public:
  RankRows(const LossProblem& problem, const LossOptions<T>& options)
      : problem_(problem),
        options_(options),
        uniform_(T(1) / static_cast<T>(problem.all_classes)) {}

  // u_y: the target_prior of a row whose target is, or begins with, class y.
  LABELSMOOTH_HD T prior_of(int64_t y) const {
    return problem_.prior ? static_cast<const T*>(problem_.prior)[y - problem_.class_offset]
                          : uniform_;
  }

  LABELSMOOTH_HD void write(int64_t index, bool ignored, T target_prior) const {
    const RowPart<T> row =
        combine_ranks<T>(problem_.ranks, [&](int64_t rank) { return part_of(rank, index); });
    const bool invalid = is_invalid(row);
    const T row_weight = problem_.row_weight ? at(problem_.row_weight, index) : T(1);
    const bool counts = !ignored && !invalid && row_weight != T(0);
    const T otherwise = invalid ? infinity<T>() - infinity<T>() : T(0);
    const RowTerms<T> terms = row_terms(target_prior, row, options_);
    const bool unread = !counts && !problem_.with_stats;
    at(problem_.row_shift, index) = finite_or_zero(row.shift);
    at(problem_.row_sum_exp, index) = unread ? T(1) : row.sum_exp;
    at(problem_.row_mass, index) = counts ? terms.mass : otherwise;
    at(problem_.row_beta, index) = counts ? terms.beta : otherwise;
    at(problem_.loss, index) = counts ? row_weight * row_loss(row, terms, options_) : otherwise;
    if (problem_.with_stats) {
      at(problem_.lse, index) = log_sum_exp(stats_of(row), options_);
      at(problem_.nll, index) = ignored || invalid ? otherwise : row_nll(row, options_);
      problem_.predicted[index] = static_cast<int64_t>(row.predicted);
    }
  }

 private:
  LABELSMOOTH_HD static T& at(void* rows, int64_t index) { return static_cast<T*>(rows)[index]; }
  LABELSMOOTH_HD static T at(const void* rows, int64_t index) {
    return static_cast<const T*>(rows)[index];
  }
  LABELSMOOTH_HD RowPart<T> part_of(int64_t rank, int64_t index) const {
    const T* parts = static_cast<const T*>(problem_.ranks_parts) + rank * problem_.rank_stride;
    return load_part(parts + index, problem_.rows, options_, problem_.with_stats);
  }

  const LossProblem problem_;
  const LossOptions<T> options_;
  const T uniform_;
};

}  // namespace labelsmooth
