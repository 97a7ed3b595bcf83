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
    if (!probs.empty()) return (1 - smoothing) * probs[c] + smoothing * prior[c];
    const auto y = static_cast<size_t>(target);
    if (!over_others) return (c == y ? 1 - smoothing : 0) + smoothing * prior[c];
    return c == y ? 1 - smoothing : smoothing * prior[c] / (1 - prior[y]);
  }
  double loss() const {
    const double l = lse();
    long double sum = lse_square_scale == 0 ? 0 : lse_square_scale * l * l;
    for (size_t c = 0; c < logits.size(); ++c) {
      const double coef = weight[c] * q(c);
      if (coef != 0) sum += coef * (l - x(c));
      if (kl_div && q(c) > 0) sum += coef * std::log(q(c));
    }
    return static_cast<double>(sum);
  }
  std::vector<double> grad() const {
    const double l = lse();
    long double sum = 2 * lse_square_scale * l;
    for (size_t c = 0; c < logits.size(); ++c) sum += weight[c] * q(c);
    const auto mass = static_cast<double>(sum);
    std::vector<double> grad;
    for (size_t c = 0; c < logits.size(); ++c) {
      const double p = from_log_probs ? 0 : std::exp(x(c) - l);
      const double ratio = softcap > 0 ? x(c) / softcap : 0;
      grad.push_back((mass * p - weight[c] * q(c)) * logit_scale * (1 - ratio * ratio));
    }
    return grad;
  }
};
