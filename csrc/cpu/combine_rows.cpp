// Rows of all ranks' parts (rank_rows.h), one after another.
#include "../rank_rows.h"

namespace labelsmooth::cpu {
namespace {

template <class T>
void combine_typed(const LossProblem& problem, int64_t begin, int64_t end) {
  const RankRows<T> rows(problem, typed_options<T>(problem.options));
  for (int64_t row = begin; row < end; ++row) {
    bool ignored = problem.target;
    T target_prior(0);
    for (int64_t k = 0; problem.target && k < problem.target_classes && ignored; ++k) {
      const int64_t y = problem.target[entry_of(problem, row, k)];
      if (y == problem.ignore_index) continue;
      ignored = false;
      target_prior = rows.prior_of(y);
    }
    rows.write(row, ignored, target_prior);
  }
}

}  // namespace

void combine_rows(const LossProblem& problem, int64_t begin, int64_t end) {
  problem.dtype == DType::float64 ? combine_typed<double>(problem, begin, end)
                                  : combine_typed<float>(problem, begin, end);
}

}  // namespace labelsmooth::cpu
