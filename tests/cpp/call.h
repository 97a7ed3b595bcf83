// One call of the loss on memory of its own, and the comparison of what it made with dense.h.
//
// Buffers end where their rows do, for the address sanitizer; what is to be written is poisoned.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "check.h"
#include "dense.h"
#include "kernels.h"

struct Case {
  int64_t rows, classes;
  int64_t class_stride;  // 1, or rows: the class axis lies across
  bool vectors, probabilities, transformed, inplace, stats;
  int64_t lead = 0;  // elements before the first row, which are NaN
};

// `bits` choose the options.
inline Case case_of(int64_t rows, int64_t classes, int bits) {
  const auto bit = [=](int i) { return (bits >> i & 1) != 0; };
  return {rows, classes, 1, bit(0), bit(1), bit(2), bit(3), bit(4)};
}

// `Element` is the type of the logits.
template <class Element>
class Call {
 public:
  using T = std::conditional_t<sizeof(Element) == 8, double, float>;

  Call(const Case& c, Random& random) : case_(c) {
    const auto rows = static_cast<size_t>(c.rows), classes = static_cast<size_t>(c.classes);
    const auto fill = [&](std::vector<Element>& values, auto draw) {
      values.assign(static_cast<size_t>(c.lead), Element(NAN));
      for (size_t i = 0; i < rows * classes; ++i) values.push_back(Element(draw()));
    };
    fill(logits, [&] { return static_cast<T>(12 * random.uniform() - 6); });
    if (c.probabilities)
      fill(probs,
           [&] { return static_cast<T>(random.uniform() / static_cast<double>(c.classes)); });
    fill(grad, [&] { return T(poison); });
    double prior_sum = 0;
    for (size_t k = 0; k < classes; ++k) {
      weight.push_back(static_cast<T>(c.vectors ? 0.5 + random.uniform() : 1));
      prior.push_back(static_cast<T>(c.vectors ? random.uniform() : 1));
      prior_sum += static_cast<double>(prior[k]);
    }
    for (T& u : prior) u = static_cast<T>(static_cast<double>(u) / prior_sum);
    for (size_t k = 0; k < classes; ++k) coef.push_back(weight[k] * prior[k]);
    for (int64_t row = 0; row < c.rows; ++row) {
      target.push_back(row % 3 == 2 ? -100 : static_cast<int64_t>(random.next()) % c.classes);
    }
    for (auto* values : {&loss, &row_shift, &row_sum_exp, &row_mass, &row_beta, &lse, &nll})
      values->assign(rows, T(poison));
    predicted.assign(rows, static_cast<int64_t>(poison));
  }

  labelsmooth::LossProblem problem(labelsmooth::DType dtype) {
    labelsmooth::LossProblem p;
    p.dtype = dtype;
    p.rows = case_.rows;
    p.classes = p.all_classes = case_.classes;
    const auto matrix = [&](std::vector<Element>& data) {
      return labelsmooth::Matrix{data.data() + case_.lead,
                                 case_.class_stride == 1 ? case_.classes : 1, case_.class_stride,
                                 0};
    };
    p.logits = matrix(logits);
    p.grad_logits = matrix(case_.inplace ? logits : grad);
    case_.probabilities ? void(p.target_probs = matrix(probs)) : void(p.target = target.data());
    p.probs_dtype = dtype;
    if (case_.vectors) {
      p.weight = weight.data();
      p.prior = prior.data();
      p.class_coef = coef.data();
      p.class_sums = {0, 0, 1};
      for (T v : coef) p.class_sums.coef += static_cast<double>(v);
    }
    p.options.label_smoothing = 0.1;
    if (case_.transformed) p.options.logit_scale = 0.8, p.options.softcap = 5;
    p.loss = loss.data();
    p.row_shift = row_shift.data();
    p.row_sum_exp = row_sum_exp.data();
    p.row_mass = row_mass.data();
    p.row_beta = row_beta.data();
    p.with_stats = case_.stats;
    if (case_.stats) {
      p.lse = lse.data();
      p.nll = nll.data();
      p.predicted = predicted.data();
    }
    return p;
  }

  size_t index(int64_t row, int64_t c) const {
    return static_cast<size_t>(case_.lead + (case_.class_stride == 1
                                                 ? row * case_.classes + c
                                                 : row + c * case_.class_stride));
  }

  bool ignored(int64_t row) const {
    return !case_.probabilities && target[static_cast<size_t>(row)] == -100;
  }

  DenseRow dense(int64_t row) const {
    DenseRow d;
    for (int64_t c = 0; c < case_.classes; ++c) {
      d.logits.push_back(wide(logits[index(row, c)]));
      d.weight.push_back(static_cast<double>(weight[static_cast<size_t>(c)]));
      d.prior.push_back(static_cast<double>(prior[static_cast<size_t>(c)]));
      if (case_.probabilities) d.probs.push_back(wide(probs[index(row, c)]));
    }
    d.target = target[static_cast<size_t>(row)];
    d.smoothing = 0.1;
    if (case_.transformed) d.logit_scale = 0.8, d.softcap = 5;
    return d;
  }

  // `before` is a copy from before the call; `scale` is what the gradient was multiplied by,
  // `rounding` what its rounding to the dtype may cost, relatively.
  void compare(const Call& before, double tolerance, double grad_tolerance, double scale = 1,
               double rounding = 0) const {
    const std::vector<Element>& made = case_.inplace ? logits : grad;
    for (int64_t i = 0; i < case_.lead; ++i)
      CHECK(std::isnan(wide(made[static_cast<size_t>(i)])), "written before the first row");
    for (int64_t row = 0; row < case_.rows; ++row) {
      const auto r = static_cast<size_t>(row);
      const DenseRow dense = before.dense(row);
      const double expected_loss = ignored(row) ? 0 : dense.loss();
      CHECK(close(loss[r], expected_loss, tolerance), "C %ld row %ld: %g, expected %g",
            case_.classes, row, wide(loss[r]), expected_loss);
      if (case_.stats)
        CHECK(close(lse[r], dense.lse(), tolerance), "C %ld: lse %g", case_.classes, wide(lse[r]));
      const std::vector<double> grads = dense.grad();
      for (int64_t k = 0; k < case_.classes; k += 1 + case_.classes / 50) {
        const double expected = ignored(row) ? 0 : scale * grads[static_cast<size_t>(k)];
        const double value = wide(made[index(row, k)]);
        const double allowed = grad_tolerance + rounding * std::fabs(expected);
        CHECK(close(value, expected, allowed), "C %ld row %ld class %ld: %g, expected %g",
              case_.classes, row, k, value, expected);
      }
    }
  }

  std::vector<Element> logits, probs, grad;
  std::vector<T> weight, prior, coef, loss, row_shift, row_sum_exp, row_mass, row_beta, lse, nll;
  std::vector<int64_t> target, predicted;

 private:
  static double wide(Element x) { return static_cast<double>(static_cast<T>(x)); }

  Case case_;
};
