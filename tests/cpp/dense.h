// The loss of one row and its gradient, term by term from the definition, in double: no online
// softmax, no shared sums. Sums are long double: many equal terms round to the same side.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

struct DenseRow {
  std::vector<double> logits;  // before scale and softcap
  std::vector<double> weight, prior;
  std::vector<double> probs;  // of all classes, for a few or more that are the target; or empty
  int64_t target = 0;
  double smoothing = 0, lse_square_scale = 0, logit_scale = 1, softcap = 0;
  double lowest = -INFINITY;  // logits are masked from there down
  bool over_others = false, over_unmasked = false, weight_over_target = false;
  bool kl_div = false, from_log_probs = false;

  double x(size_t c) const {
    return softcap > 0 ? softcap * std::tanh(logit_scale * logits[c] / softcap)
                       : logit_scale * logits[c];
  }
  double lse() const {
    if (from_log_probs) return 0;
    double largest = -INFINITY;
    long double sum = 0;
    for (size_t c = 0; c < logits.size(); ++c) largest = std::fmax(largest, x(c));
    for (size_t c = 0; c < logits.size(); ++c) sum += std::exp(x(c) - largest);
    return largest + std::log(static_cast<double>(sum));
  }
  double unsmoothed(size_t c) const {
    return !probs.empty() ? probs[c] : c == static_cast<size_t>(target) ? 1 : 0;
  }
  double beta() const {
    if (over_others) return smoothing / (1 - prior[static_cast<size_t>(target)]);
    if (!over_unmasked) return smoothing;
    double sum = 0;
    for (size_t c = 0; c < logits.size(); ++c) sum += logits[c] > lowest ? prior[c] : 0;
    return sum > 0 ? smoothing / sum : 0;
  }
  // q in its two parts: what is spread, and what stays with the target.
  double spread(size_t c) const {
    if (smoothing == 0) return 0;  // whatever the prior holds
    if (over_others && unsmoothed(c) == 1) return 0;
    return over_unmasked && !(logits[c] > lowest) ? 0 : beta() * prior[c];
  }
  double own(size_t c) const { return (1 - smoothing) * unsmoothed(c); }
  double q(size_t c) const { return spread(c) + own(c); }
  double coef(size_t c) const {
    const auto times_weight = [&](double q) {
      return q == 0 || weight[c] == 0 ? 0 : weight[c] * q;
    };
    return weight_over_target ? spread(c) + times_weight(own(c)) : times_weight(q(c));
  }
  double loss() const {
    const double l = lse();
    long double sum = lse_square_scale == 0 ? 0 : lse_square_scale * l * l;
    for (size_t c = 0; c < logits.size(); ++c) {
      if (coef(c) != 0) sum += coef(c) * (l - x(c));
      if (kl_div && q(c) > 0) sum += coef(c) * std::log(q(c));
    }
    return static_cast<double>(sum);
  }
  std::vector<double> grad() const {
    const double l = lse();
    long double sum = 2 * lse_square_scale * l;
    for (size_t c = 0; c < logits.size(); ++c) sum += coef(c);
    const auto mass = static_cast<double>(sum);
    std::vector<double> grad;
    for (size_t c = 0; c < logits.size(); ++c) {
      const double p = from_log_probs ? 0 : std::exp(x(c) - l);
      const double ratio = softcap > 0 ? x(c) / softcap : 0;
      grad.push_back((mass * p - coef(c)) * logit_scale * (1 - ratio * ratio));
    }
    return grad;
  }
};
