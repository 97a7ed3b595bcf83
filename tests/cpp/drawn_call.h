// A call of the kernel that bytes decide, and its rows for the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <vector>

#include "check.h"
#include "dense.h"
#include "elements.h"
#include "kernels.h"

namespace labelsmooth {

// What the bytes decide; past their end everything is 0, and numbers are random.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  int64_t below(int64_t n) { return byte() % n; }
  bool flag() { return byte() % 2 != 0; }
  double number() { return at_ < size_ ? (byte() - 128) / 32.0 : 8 * random_.uniform() - 4; }
  bool rarely() { return at_ < size_ && byte() >= 250; }

 private:
  int byte() { return at_ < size_ ? data_[at_++] : 0; }

  const uint8_t* data_;
  size_t size_, at_ = 0;
  Random random_;
};

// An (outer, classes, inner) tensor with one of its axes innermost, and a gap.
struct Layout {
  Layout(Bytes& bytes, int64_t outer, int64_t classes, int64_t inner) : inner_size(inner) {
    const int64_t gap = bytes.below(3);
    switch (bytes.below(3)) {
      case 0: matrix = {nullptr, inner * (classes + gap), 1, classes + gap}; break;
      case 1: matrix = {nullptr, classes * (inner + gap), inner + gap, 1}; break;
      default: matrix = {nullptr, 1, outer * inner + gap, outer};
    }
    count = 1 + (outer - 1) * matrix.outer_stride + (classes - 1) * matrix.class_stride +
            (inner - 1) * matrix.inner_stride;
  }
  int64_t at(int64_t row, int64_t c) const {
    return row / inner_size * matrix.outer_stride + row % inner_size * matrix.inner_stride +
           c * matrix.class_stride;
  }
  Matrix of(Elements& elements) const {
    Matrix m = matrix;
    m.data = elements.memory.data();
    return m;
  }
  // From a class on.
  Matrix from(Elements& elements, int64_t c) const {
    Matrix m = of(elements);
    m.data = elements.memory.data() + static_cast<size_t>(c * m.class_stride) * elements.size;
    return m;
  }
  Matrix matrix;
  int64_t inner_size, count;
};

// T is the accumulate dtype.
template <class T>
struct DrawnCall {
  static constexpr int64_t ignore_index = -100;
  enum class Kind { one, few, all };  // classes that a row's target names

  DrawnCall(DType dtype, Bytes& bytes)
      : dtype(dtype),
        classes(1 + bytes.below(bytes.flag() ? 256 : 20)),
        outer(1 + bytes.below(4)),
        inner(1 + bytes.below(bytes.flag() ? 40 : 2)),
        rows(outer * inner),
        layout(bytes, outer, classes, inner),
        logits(dtype, layout.count),
        grad(dtype, layout.count),
        probs(static_cast<DType>(bytes.below(4)), layout.count) {
    options.lowest = lowest_of(dtype);
    draw_options(bytes);
    draw_classes(bytes);
    draw_rows(bytes);
  }

  LossProblem problem() {
    LossProblem p;
    p.dtype = dtype;
    p.rows = rows;
    p.classes = p.all_classes = classes;
    p.inner = inner;
    p.logits = layout.of(logits);
    if (kind == Kind::all)
      p.target_probs = layout.of(probs);
    else
      p.target = target.data();
    p.probs_dtype = probs.dtype;
    if (kind == Kind::few) p.sparse_probs = sparse_probs.data();
    p.target_classes = entries;
    p.ignore_index = ignore_index;
    if (with_row_weight) p.row_weight = row_weight.data();
    if (weighted) p.weight = weight.data();
    if (with_prior) p.prior = prior.data();
    if ((weighted && !options.weight_over_target) || with_prior) p.class_coef = coef.data();
    p.class_sums = sums;
    p.options = options;
    p.loss = loss.data();
    p.row_shift = shift.data();
    p.row_sum_exp = sum_exp.data();
    p.row_mass = mass.data();
    p.row_beta = beta.data();
    p.with_stats = stats;
    if (stats) {
      p.lse = lse.data();
      p.nll = nll.data();
      p.predicted = predicted.data();
    }
    return p;
  }

  // Ranks may have no classes.
  LossProblem problem_of(int64_t rank) {
    const int64_t begin = rank == 0 ? 0 : cuts[rank - 1];
    LossProblem p = problem();
    p.class_offset = begin;
    p.classes = (rank + 1 == ranks ? classes : cuts[rank]) - begin;
    p.logits = layout.from(logits, begin);
    if (kind == Kind::all) p.target_probs = layout.from(probs, begin);
    const auto skip = [&](const void*& vector) {
      if (vector) vector = static_cast<const T*>(vector) + begin;
    };
    skip(p.weight), skip(p.prior), skip(p.class_coef);
    p.class_sums = {0, 0, 1};
    for (int64_t c = begin; c < begin + p.classes; ++c) {
      const auto v = static_cast<double>(coef[static_cast<size_t>(c)]);
      p.class_sums.coef += v;
      p.class_sums.coef_log += v * std::log(static_cast<double>(prior[static_cast<size_t>(c)]));
    }
    return p;
  }

  void ask_for_gradient(LossProblem& p, int64_t first_class) {
    p.grad_logits = layout.from(inplace ? logits : grad, first_class);
    if (two_phases) p.grad_loss = grad_loss.data(), p.grad_loss_stride = 1;
    p.denominator = &denominator;
  }

  std::vector<DenseRow> dense_rows() const {
    std::vector<DenseRow> dense(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) {
      DenseRow& d = dense[static_cast<size_t>(row)];
      for (int64_t c = 0; c < classes; ++c) {
        d.logits.push_back(logits.get(layout.at(row, c)));
        if (kind == Kind::all) d.probs.push_back(probs.get(layout.at(row, c)));
      }
      d.weight.assign(weight.begin(), weight.end());
      d.prior.assign(prior.begin(), prior.end());
      if (kind == Kind::one) d.target = target[static_cast<size_t>(row)];
      if (kind == Kind::few) {
        d.probs.assign(static_cast<size_t>(classes), 0);
        for (int64_t k = 0; k < entries; ++k)
          if (target[entry(row, k)] != ignore_index)
            d.probs[static_cast<size_t>(target[entry(row, k)])] +=
                static_cast<double>(sparse_probs[entry(row, k)]);
      }
      d.smoothing = options.label_smoothing;
      d.lse_square_scale = options.lse_square_scale;
      d.logit_scale = options.logit_scale;
      d.softcap = options.softcap;
      d.lowest = options.lowest;
      d.over_others = options.over_others();
      d.over_unmasked = options.over_unmasked();
      d.weight_over_target = options.weight_over_target;
      d.kl_div = options.kl_div;
      d.from_log_probs = options.from_log_probs;
    }
    return dense;
  }

  bool transformed() const {
    return options.softcap > 0 || options.logit_scale != 1 || options.from_log_probs;
  }

  size_t entry(int64_t row, int64_t k) const {
    return static_cast<size_t>((row / inner * entries + k) * inner + row % inner);
  }
  bool ignored(int64_t row) const {
    for (int64_t k = 0; k < entries; ++k)
      if (kind == Kind::all || target[entry(row, k)] != ignore_index) return false;
    return true;
  }

  DType dtype;
  int64_t classes, outer, inner, rows;
  Layout layout;
  Elements logits, grad, probs;
  LossOptions<double> options;
  Kind kind = Kind::one;
  int64_t entries = 1, ranks = 1, cuts[2] = {};
  bool weighted = false, with_prior = false, with_row_weight = false, stats = false;
  bool inplace = false, two_phases = false, threads = false;
  T denominator = 1;
  std::vector<T> weight, prior, coef, row_weight, sparse_probs, grad_loss;
  std::vector<T> loss, shift, sum_exp, mass, beta, lse, nll;
  ClassSums<double> sums = {1, 0, 1};
  std::vector<int64_t> target, predicted;

 private:
  void draw_options(Bytes& bytes) {
    options.label_smoothing = static_cast<double>(bytes.below(11)) / 10;
    kind = static_cast<Kind>(bytes.below(3));
    options.smooth_over = static_cast<SmoothOver>(bytes.below(3));
    if (options.over_others() && (kind != Kind::one || classes == 1))
      options.smooth_over = SmoothOver::all;
    options.weight_over_target = bytes.flag();
    options.kl_div = bytes.flag();
    options.from_log_probs = bytes.flag();
    if (bytes.flag()) options.lse_square_scale = 0.125;
    if (bytes.flag()) options.logit_scale = 0.75;
    if (bytes.flag()) options.softcap = 8;
    stats = bytes.flag();
    inplace = bytes.flag();
    two_phases = bytes.flag();
    threads = bytes.flag();
    denominator = static_cast<T>(1 + bytes.below(3));
    const bool known = !(options.over_unmasked() && options.kl_div);  // beta, by an entropy
    ranks = known && bytes.flag() ? 2 + bytes.below(2) : 1;
    for (int64_t& cut : cuts) cut = bytes.below(classes + 1);
    std::sort(std::begin(cuts), std::end(cuts) - (ranks == 2 ? 1 : 0));
  }

  void draw_classes(Bytes& bytes) {
    weighted = bytes.flag();
    with_prior = bytes.flag();
    with_row_weight = bytes.flag();
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      weight.push_back(static_cast<T>(weighted ? 0.25 + std::fabs(bytes.number()) : 1));
      prior.push_back(static_cast<T>(with_prior ? 1 + std::fabs(bytes.number()) : 1));
      if (weighted && bytes.rarely()) weight.back() = 0;
      sum += static_cast<double>(prior.back());
    }
    for (T& u : prior) u = static_cast<T>(static_cast<double>(u) / sum);
    long double sum_of_coef = 0, sum_of_logs = 0;
    for (size_t c = 0; c < prior.size(); ++c) {
      coef.push_back(options.weight_over_target ? prior[c] : weight[c] * prior[c]);
      const auto v = static_cast<double>(coef[c]);
      sum_of_coef += v;
      sum_of_logs += v * std::log(static_cast<double>(prior[c]));
    }
    sums = {static_cast<double>(sum_of_coef), static_cast<double>(sum_of_logs), 1};
  }

  void draw_rows(Bytes& bytes) {
    const double masking = bytes.flag() ? 0.3 : 0;
    // In double the definition itself would lose the offset's digits.
    const bool apart = bytes.flag() && !transformed() && dtype != DType::float64;
    const double offset = apart ? 512 : 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t never_masked = bytes.below(classes);
      for (int64_t c = 0; c < classes; ++c) {
        const double x = bytes.number();
        const bool masked = c != never_masked && std::fabs(x) < masking;
        const double odd = bytes.rarely() ? (x > 0 ? INFINITY : NAN) : x + offset;
        logits.set(layout.at(row, c), masked ? -INFINITY : odd);
        probs.set(layout.at(row, c), std::fabs(bytes.number()) / static_cast<double>(classes));
      }
      grad_loss.push_back(static_cast<T>(bytes.number()));
      row_weight.push_back(static_cast<T>(bytes.rarely() ? 0 : 1 + bytes.number()));
    }
    entries = kind == Kind::few ? 1 + bytes.below(5) : 1;
    for (int64_t i = 0; i < rows * entries; ++i) {
      target.push_back(bytes.rarely() ? ignore_index : bytes.below(classes));
      sparse_probs.push_back(static_cast<T>(std::fabs(bytes.number()) / 4));
    }
    for (auto* values : {&loss, &shift, &sum_exp, &mass, &beta, &lse, &nll})
      values->assign(static_cast<size_t>(rows), T(poison));
    predicted.assign(static_cast<size_t>(rows), static_cast<int64_t>(poison));
  }
};

}  // namespace labelsmooth
