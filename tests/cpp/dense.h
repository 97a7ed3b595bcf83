// The loss of one row and its gradient, term by term from the definition, in double: no online
// softmax, no shared sums. Sums are long double: many equal terms round to the same side.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

struct DenseRow {
  std::vector<double> logits;  // before scale and softcap
  std::vector<double> weight, prior;
  std::vector<double> probs;  // class probabilities, or empty
  int64_t target = 0;
  double smoothing = 0, lse_square_scale = 0, logit_scale = 1, softcap = 0;
  bool over_others = false, kl_div = false, from_log_probs = false;

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
  double q(size_t c) const {
    const auto y = static_cast<size_t>(target);
    const double unsmoothed = !probs.empty() ? probs[c] : c == y ? 1 : 0;
    if (smoothing == 0) return unsmoothed;  // whatever the prior holds
    if (!over_others) return (1 - smoothing) * unsmoothed + smoothing * prior[c];
    return c == y ? 1 - smoothing : smoothing * prior[c] / (1 - prior[y]);
  }
  double coef(size_t c) const { return q(c) == 0 || weight[c] == 0 ? 0 : weight[c] * q(c); }
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
