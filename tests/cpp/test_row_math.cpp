// row_math.h alone, on rows small enough to follow.
#include "row_math.h"

#include <vector>

#include "check.h"
#include "dense.h"

using namespace labelsmooth;

namespace {

LossOptions<double> options_of(const DenseRow& row) {
  const SmoothOver over = row.over_others     ? SmoothOver::others
                          : row.over_unmasked ? SmoothOver::unmasked
                                              : SmoothOver::all;
  return {row.smoothing, row.lse_square_scale,   row.logit_scale, row.softcap,       row.lowest,
          over,          row.weight_over_target, row.kl_div,      row.from_log_probs};
}

double spread_coef(const DenseRow& row, size_t c) {
  const double v = coef_of_class(row.weight[c], row.prior[c], options_of(row));
  return unless_masked(v, row.logits[c], options_of(row));
}

// Of the classes [begin, end) without `left_out`.
RowStats<double> stats_of(const DenseRow& row, size_t begin, size_t end, double reference,
                          size_t left_out = SIZE_MAX) {
  RowStats<double> stats = empty_stats<double>();
  for (size_t c = begin; c < end; ++c) {
    const double v = c == left_out ? 0 : spread_coef(row, c);
    stats = combine(stats, {row.x(c), 1, weighted(v, row.x(c) - reference)});
  }
  return stats;
}

ClassSums<double> sums_of(const DenseRow& row) {
  const LossOptions<double> options = options_of(row);
  ClassSums<double> sums = {0, 0, 0};
  for (size_t c = 0; c < row.logits.size(); ++c) {
    sums.coef += spread_coef(row, c);
    sums.coef_log += coef_log_of_class(spread_coef(row, c), row.prior[c]);
    sums.prior += unless_masked(row.prior[c], row.logits[c], options);
  }
  return sums;
}

DenseRow random_row(Random& random, size_t classes) {
  DenseRow row;
  double sum = 0;
  for (size_t c = 0; c < classes; ++c) {
    row.logits.push_back(8 * random.uniform() - 4);
    row.weight.push_back(0.5 + random.uniform());
    row.prior.push_back(0.1 + random.uniform());
    sum += row.prior[c];
  }
  for (double& u : row.prior) u /= sum;
  row.target = static_cast<int64_t>(random.next() % classes);
  return row;
}

void check_row(const DenseRow& row) {
  const LossOptions<double> options = options_of(row);
  const size_t classes = row.logits.size();
  const bool one_class = row.probs.empty();
  const size_t y = one_class ? static_cast<size_t>(row.target) : 0;
  const double reference = finite_or_zero(row.x(y));
  const bool infinite = one_class && reference != row.x(y);
  const auto stats = stats_of(row, 0, classes, reference, infinite ? y : SIZE_MAX);
  const ClassSums<double> sums = sums_of(row);

  auto terms = row_terms(row.prior[y], sums, options);
  std::vector<TargetTerms<double>> targets(classes);
  double target_dot = 0, entropy = smoothing_entropy(terms, sums);
  for (size_t c = 0; c < classes; ++c) {
    if (row.unsmoothed(c) == 0) continue;
    targets[c] =
        target_terms(row.unsmoothed(c), row.weight[c], row.prior[c], row.logits[c], terms, options);
    terms.mass += targets[c].tau;
    target_dot += infinite ? weighted(targets[c].coef, row.x(c))
                           : weighted(targets[c].tau, row.x(c) - reference);
    entropy += target_entropy(targets[c]);
  }
  double loss = row_loss(stats, terms, target_dot, reference, options);
  if (row.kl_div) loss += entropy;
  CHECK(close(loss, row.loss(), 1e-13), "%.17g, expected %.17g", loss, row.loss());

  const double scale = 0.25;
  const auto grad = grad_terms(stats, terms, scale, options);
  const std::vector<double> expected = row.grad();
  for (size_t c = 0; c < classes; ++c) {
    const double tau = weighted(grad.kappa * row.unsmoothed(c), row.weight[c]);
    const double coef = one_class && c == y ? grad.scale * targets[c].coef
                                            : soft_coef(spread_coef(row, c), tau, grad.beta);
    const double g = logit_grad(labelsmooth::exp(row.x(c) - grad.shift), coef, grad) *
                     transform_slope(row.x(c), options);
    CHECK(close(g, scale * expected[c], 1e-13), "class %zu: %.17g, expected %.17g", c, g,
          scale * expected[c]);
  }
}

void every_convention() {
  Random random;
  for (const SmoothOver over : {SmoothOver::all, SmoothOver::others, SmoothOver::unmasked})
    for (int bits = 0; bits < 256; ++bits) {
      DenseRow row = random_row(random, 7);
      row.smoothing = bits & 1 ? 0.1 : 0;
      row.kl_div = bits & 2;
      row.from_log_probs = bits & 4;
      row.lse_square_scale = bits & 8 ? 0.01 : 0;
      row.logit_scale = bits & 16 ? 0.7 : 1;
      row.softcap = bits & 32 ? 3 : 0;
      row.weight_over_target = bits & 64;
      row.over_others = over == SmoothOver::others;
      row.over_unmasked = over == SmoothOver::unmasked;
      if (bits & 128 && !row.over_others) row.probs = {0, 0.5, 0, 0, 0.25, 0, 0.125};
      if (row.over_unmasked) {
        row.lowest = -4;
        row.logits[0] = -5;
        row.logits[5] = -INFINITY;
        row.target = 1;
      }
      check_row(row);
    }
}

// Three classes, smoothing 0.01 over the others: q = 0.005, 0.99, 0.005.
void by_hand() {
  DenseRow row;
  row.logits = {0.1796, -0.0440, 0.4484};
  row.weight = {1, 1, 1};
  row.prior = {1. / 3, 1. / 3, 1. / 3};
  row.target = 1;
  row.smoothing = 0.01;
  row.over_others = true;
  const double expected = 0.005 * 1.1340 + 0.99 * 1.3576 + 0.005 * 0.8652;
  CHECK(close(row.loss(), expected, 1e-4), "%g, expected %g", row.loss(), expected);
  check_row(row);
}

void parts_in_any_grouping() {
  Random random;
  const DenseRow row = random_row(random, 12);
  const auto whole = stats_of(row, 0, 12, 0);
  const auto left =
      combine(combine(stats_of(row, 0, 3, 0), stats_of(row, 3, 4, 0)), stats_of(row, 4, 12, 0));
  const auto right =
      combine(stats_of(row, 0, 3, 0), combine(stats_of(row, 3, 4, 0), stats_of(row, 4, 12, 0)));
  for (const auto& stats : {left, right}) {
    CHECK(stats.shift == whole.shift, "%g, expected %g", stats.shift, whole.shift);
    CHECK(close(stats.sum_exp, whole.sum_exp, 1e-14), "%g, expected %g", stats.sum_exp,
          whole.sum_exp);
    CHECK(close(stats.spread_dot, whole.spread_dot, 1e-14), "%g, expected %g", stats.spread_dot,
          whole.spread_dot);
  }
}

// A part without classes, or all of whose logits are -inf, changes nothing, whichever side it
// stands on.
void empty_and_masked_parts() {
  const RowStats<float> part = {2, 1.5f, 0.25f};
  const RowStats<float> masked = {-INFINITY, 0, 0};
  for (const auto& stats :
       {combine(part, masked), combine(masked, part), combine(empty_stats<float>(), part)}) {
    CHECK(stats.shift == 2 && stats.sum_exp == 1.5f, "max %g, sum %g", stats.shift, stats.sum_exp);
  }
  const auto none = combine(masked, masked);
  CHECK(none.shift == -INFINITY && none.sum_exp == 0, "max %g, sum %g", none.shift, none.sum_exp);
}

void infinite_losses() {
  DenseRow row;
  row.logits = {1, -INFINITY, 2};
  row.weight = {1, 1, 1};
  row.prior = {0.5, 0, 0.5};
  row.target = 0;
  row.smoothing = 0.1;
  check_row(row);  // the masked class has no mass: finite
  row.prior = {0.4, 0.2, 0.4};
  CHECK(row.loss() == INFINITY, "%g", row.loss());
  check_row(row);  // it has: infinite, with a finite gradient
  row.smoothing = 0.9;
  row.over_others = true;  // kappa is negative
  row.target = 1;
  CHECK(row.loss() == INFINITY, "%g", row.loss());
  check_row(row);
  row.over_others = false;
  row.smoothing = 0;
  CHECK(row.loss() == INFINITY, "%g", row.loss());
  check_row(row);
}

// The weight of a class without a coefficient, and the prior where nothing is spread, may be
// anything.
void zero_coefficients() {
  for (const double value : {static_cast<double>(INFINITY), static_cast<double>(NAN)})
    for (int bits = 0; bits < 16; ++bits) {
      DenseRow row;
      row.logits = {1, -0.5, 2, 0.25};
      row.weight = {0.5, value, 2, 1.5};
      row.prior = {0.25, bits & 1 ? 0 : 0.25, 0.25, 0.25};
      row.target = bits & 2 ? 2 : 3;
      row.smoothing = bits & 1 ? 0.1 : 0;
      row.over_others = bits & 4;
      row.kl_div = bits & 8;
      CHECK(std::isfinite(row.loss()), "%g", row.loss());
      check_row(row);
      if (bits & 1) {  // nothing is left of the target, which no prior gives anything
        row.target = 1;
        row.smoothing = 1;
        CHECK(std::isfinite(row.loss()), "%g", row.loss());
        check_row(row);
      } else {
        row.prior[0] = value;
        check_row(row);
      }
    }
  const LossOptions<double> options;
  CHECK(coef_of_class<double>(NAN, 0.5, options) == 0, "spread by a smoothing of 0");
  // What has a coefficient shows.
  DenseRow row;
  row.logits = {1, -0.5};
  row.weight = {1, INFINITY};
  row.prior = {0.5, 0.5};
  row.smoothing = 0.1;
  const auto terms = row_terms(0.5, sums_of(row), options_of(row));
  const double loss = row_loss(stats_of(row, 0, 2, 1), terms, 0.0, 1.0, options_of(row));
  CHECK(!std::isfinite(loss), "a weight is lost");
}

// In float, an offset of 2^14 is shared by all logits and costs nothing.
void large_offset() {
  LossOptions<float> options;
  options.label_smoothing = 0.1f;
  float losses[2];
  for (int i = 0; i < 2; ++i) {
    const float offset = i == 0 ? 0.f : 16384.f;
    const float x[] = {offset + 1.5f, offset - 0.25f, offset + 3.0f};
    RowStats<float> stats = empty_stats<float>();
    for (float logit : x) stats = combine(stats, {logit, 1, (logit - x[1]) / 3});
    auto terms = row_terms(1.f / 3, ClassSums<float>{1, 0, 1}, options);
    terms.mass += terms.kappa;
    losses[i] = row_loss(stats, terms, 0.f, x[1], options);
  }
  CHECK(losses[0] == losses[1], "%.9g without, %.9g with the offset", losses[0], losses[1]);
}

}  // namespace

int main() {
  by_hand();
  every_convention();
  parts_in_any_grouping();
  empty_and_masked_parts();
  infinite_losses();
  zero_coefficients();
  large_offset();
}
