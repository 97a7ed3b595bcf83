// Any bytes are read as a call of the kernel, which is compared with the definition: every dtype,
// layout, option and phase, masked classes, logits that are not finite, rows split over threads,
// classes over ranks.
// libFuzzer drives it where the compiler has one (the preset "fuzz"), else fuzz_main.cpp.
// LABELSMOOTH_CPU chooses the instruction set.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "dense.h"
#include "kernels.h"

using namespace labelsmooth;

namespace {

// ---- bytes as numbers ---------------------------------------------------------------------------

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

// ---- elements of a dtype ------------------------------------------------------------------------

// Bits below the ten that float16 keeps are cut off; numbers here are neither tiny nor huge.
uint16_t to_half(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(value), &exponent);
  if (exponent < -13) return sign;
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 |
                               (static_cast<int>(fraction * 2048) & 1023));
}

double from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double value = exponent == 31  ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(fraction, -24)
                                       : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -value : value;
}

template <class To, class From>
To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &value, sizeof to);
  return to;
}

// A tensor of any dtype that ends with its last element, for the address sanitizer.
struct Elements {
  Elements(DType type, int64_t count)
      : dtype(type),
        size(type == DType::float64   ? 8
             : type == DType::float32 ? 4
                                      : 2),
        memory(static_cast<size_t>(count) * size) {}

  void set(int64_t i, double value) {
    void* to = &memory[static_cast<size_t>(i) * size];
    const auto single = static_cast<float>(value);
    const uint16_t half = dtype == DType::float16
                              ? to_half(value)
                              : static_cast<uint16_t>(bits_of<uint32_t>(single) >> 16);
    if (dtype == DType::float64)
      std::memcpy(to, &value, 8);
    else if (dtype == DType::float32)
      std::memcpy(to, &single, 4);
    else
      std::memcpy(to, &half, 2);
  }

  double get(int64_t i) const {
    const void* from = &memory[static_cast<size_t>(i) * size];
    double value = 0;
    float single = 0;
    uint16_t half = 0;
    switch (dtype) {
      case DType::float64: return std::memcpy(&value, from, 8), value;
      case DType::float32: return std::memcpy(&single, from, 4), single;
      case DType::float16: return std::memcpy(&half, from, 2), from_half(half);
      case DType::bfloat16: break;
    }
    std::memcpy(&half, from, 2);
    return bits_of<float>(uint32_t(half) << 16);
  }

  DType dtype;
  size_t size;
  std::vector<unsigned char> memory;
};

// The rows' rounding to the dtype, and that of the arithmetic.
double rounding_of(DType dtype) {
  switch (dtype) {
    case DType::float64: return 0x1p-53;
    case DType::float32: return 0x1p-24;
    case DType::float16: return 0x1p-11;
    case DType::bfloat16: break;
  }
  return 0x1p-8;
}

// ---- a call -------------------------------------------------------------------------------------

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
class Call {
 public:
  Call(DType dtype, Bytes& bytes)
      : dtype_(dtype),
        classes_(1 + bytes.below(bytes.flag() ? 256 : 20)),
        outer_(1 + bytes.below(4)),
        inner_(1 + bytes.below(bytes.flag() ? 40 : 2)),
        rows_(outer_ * inner_),
        layout_(bytes, outer_, classes_, inner_),
        logits_(dtype, layout_.count),
        grad_(dtype, layout_.count),
        probs_(static_cast<DType>(bytes.below(4)), layout_.count) {
    options_.lowest = lowest_of(dtype);
    draw_options(bytes);
    draw_classes(bytes);
    draw_rows(bytes);
  }

  void run() {
    const DenseRows before = dense_rows();
    ranks_ > 1 ? run_over_ranks() : run_alone();
    for (int64_t row = 0; row < rows_; ++row) check(row, before[static_cast<size_t>(row)]);
  }

 private:
  using DenseRows = std::vector<DenseRow>;

  void run_alone() {
    LossProblem p = problem();
    if (two_phases_) {
      process(p);
      p.loss = nullptr;
    }
    ask_for_gradient(p, 0);
    process(p);
  }

  // As ranks would, one after the other.
  void run_over_ranks() {
    std::vector<LossProblem> ranks;
    std::vector<T> parts;
    RowPart<T> part = {};
    const int fields = for_fields(part, options_, stats_, [](int, T) {});
    const auto each = static_cast<size_t>(fields * rows_);
    parts.resize(static_cast<size_t>(ranks_) * each, T(-77));
    for (int64_t rank = 0; rank < ranks_; ++rank) {
      ranks.push_back(problem_of(rank));
      LossProblem p = ranks.back();
      T* const own = &parts[static_cast<size_t>(rank) * each];
      p.loss = nullptr;
      p.parts = own;
      if (p.classes > 0) process(p);
      for (int64_t row = 0; row < rows_ && p.classes == 0; ++row)
        store_part(own + row, rows_, empty_part<T>(), options_, stats_);
    }
    LossProblem whole = ranks.back();
    whole.ranks = ranks_;
    whole.ranks_parts = parts.data();
    whole.rank_stride = static_cast<int64_t>(each);
    cpu::combine_rows(whole, 0, rows_);
    for (LossProblem& p : ranks) {
      p.loss = nullptr;
      ask_for_gradient(p, p.class_offset);
      if (p.classes > 0) process(p);
    }
  }

  // Ranks may have no classes.
  LossProblem problem_of(int64_t rank) {
    const int64_t begin = rank == 0 ? 0 : cuts_[rank - 1];
    LossProblem p = problem();
    p.class_offset = begin;
    p.classes = (rank + 1 == ranks_ ? classes_ : cuts_[rank]) - begin;
    p.logits = layout_.from(logits_, begin);
    if (kind_ == Kind::all) p.target_probs = layout_.from(probs_, begin);
    const auto skip = [&](const void*& vector) {
      if (vector) vector = static_cast<const T*>(vector) + begin;
    };
    skip(p.weight), skip(p.prior), skip(p.class_coef);
    p.class_sums = {0, 0, 1};
    for (int64_t c = begin; c < begin + p.classes; ++c) {
      const auto v = static_cast<double>(coef_[static_cast<size_t>(c)]);
      p.class_sums.coef += v;
      p.class_sums.coef_log += v * std::log(static_cast<double>(prior_[static_cast<size_t>(c)]));
    }
    return p;
  }

  void ask_for_gradient(LossProblem& p, int64_t first_class) {
    p.grad_logits = layout_.from(inplace_ ? logits_ : grad_, first_class);
    if (two_phases_) p.grad_loss = grad_loss_.data(), p.grad_loss_stride = 1;
    p.denominator = &denominator_;
  }

  void draw_options(Bytes& bytes) {
    options_.label_smoothing = static_cast<double>(bytes.below(11)) / 10;
    kind_ = static_cast<Kind>(bytes.below(3));
    options_.smooth_over = static_cast<SmoothOver>(bytes.below(3));
    if (options_.over_others() && (kind_ != Kind::one || classes_ == 1))
      options_.smooth_over = SmoothOver::all;
    options_.weight_over_target = bytes.flag();
    options_.kl_div = bytes.flag();
    options_.from_log_probs = bytes.flag();
    if (bytes.flag()) options_.lse_square_scale = 0.125;
    if (bytes.flag()) options_.logit_scale = 0.75;
    if (bytes.flag()) options_.softcap = 8;
    stats_ = bytes.flag();
    inplace_ = bytes.flag();
    two_phases_ = bytes.flag();
    threads_ = bytes.flag();
    denominator_ = static_cast<T>(1 + bytes.below(3));
    const bool known = !(options_.over_unmasked() && options_.kl_div);  // what an entropy needs
    ranks_ = known && bytes.flag() ? 2 + bytes.below(2) : 1;
    for (int64_t& cut : cuts_) cut = bytes.below(classes_ + 1);
    std::sort(std::begin(cuts_), std::end(cuts_) - (ranks_ == 2 ? 1 : 0));
  }

  void draw_classes(Bytes& bytes) {
    weighted_ = bytes.flag();
    with_prior_ = bytes.flag();
    with_row_weight_ = bytes.flag();
    double sum = 0;
    for (int64_t c = 0; c < classes_; ++c) {
      weight_.push_back(static_cast<T>(weighted_ ? 0.25 + std::fabs(bytes.number()) : 1));
      prior_.push_back(static_cast<T>(with_prior_ ? 1 + std::fabs(bytes.number()) : 1));
      if (weighted_ && bytes.rarely()) weight_.back() = 0;
      sum += static_cast<double>(prior_.back());
    }
    for (T& u : prior_) u = static_cast<T>(static_cast<double>(u) / sum);
    long double coef = 0, coef_log = 0;
    for (size_t c = 0; c < prior_.size(); ++c) {
      coef_.push_back(options_.weight_over_target ? prior_[c] : weight_[c] * prior_[c]);
      const auto v = static_cast<double>(coef_[c]);
      coef += v;
      coef_log += v * std::log(static_cast<double>(prior_[c]));
    }
    sums_ = {static_cast<double>(coef), static_cast<double>(coef_log), 1};
  }

  void draw_rows(Bytes& bytes) {
    const double masking = bytes.flag() ? 0.3 : 0;
    // In double the definition itself would lose the offset's digits.
    const bool apart = bytes.flag() && !transformed() && dtype_ != DType::float64;
    const double offset = apart ? 512 : 0;
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t never_masked = bytes.below(classes_);
      for (int64_t c = 0; c < classes_; ++c) {
        const double x = bytes.number();
        const bool masked = c != never_masked && std::fabs(x) < masking;
        const double odd = bytes.rarely() ? (x > 0 ? INFINITY : NAN) : x + offset;
        logits_.set(layout_.at(row, c), masked ? -INFINITY : odd);
        probs_.set(layout_.at(row, c), std::fabs(bytes.number()) / static_cast<double>(classes_));
      }
      grad_loss_.push_back(static_cast<T>(bytes.number()));
      row_weight_.push_back(static_cast<T>(bytes.rarely() ? 0 : 1 + bytes.number()));
    }
    entries_ = kind_ == Kind::few ? 1 + bytes.below(5) : 1;
    for (int64_t i = 0; i < rows_ * entries_; ++i) {
      target_.push_back(bytes.rarely() ? ignore_index : bytes.below(classes_));
      sparse_probs_.push_back(static_cast<T>(std::fabs(bytes.number()) / 4));
    }
    for (auto* values : {&loss_, &shift_, &sum_exp_, &mass_, &beta_, &lse_, &nll_})
      values->assign(static_cast<size_t>(rows_), T(-77));
    predicted_.assign(static_cast<size_t>(rows_), -77);
  }

  bool transformed() const {
    return options_.softcap > 0 || options_.logit_scale != 1 || options_.from_log_probs;
  }

  LossProblem problem() {
    LossProblem p;
    p.dtype = dtype_;
    p.rows = rows_;
    p.classes = p.all_classes = classes_;
    p.inner = inner_;
    p.logits = layout_.of(logits_);
    if (kind_ == Kind::all)
      p.target_probs = layout_.of(probs_);
    else
      p.target = target_.data();
    p.probs_dtype = probs_.dtype;
    if (kind_ == Kind::few) p.sparse_probs = sparse_probs_.data();
    p.target_classes = entries_;
    p.ignore_index = ignore_index;
    if (with_row_weight_) p.row_weight = row_weight_.data();
    if (weighted_) p.weight = weight_.data();
    if (with_prior_) p.prior = prior_.data();
    if ((weighted_ && !options_.weight_over_target) || with_prior_) p.class_coef = coef_.data();
    p.class_sums = sums_;
    p.options = options_;
    p.loss = loss_.data();
    p.row_shift = shift_.data();
    p.row_sum_exp = sum_exp_.data();
    p.row_mass = mass_.data();
    p.row_beta = beta_.data();
    p.with_stats = stats_;
    if (stats_) {
      p.lse = lse_.data();
      p.nll = nll_.data();
      p.predicted = predicted_.data();
    }
    return p;
  }

  void process(const LossProblem& p) const {
    if (!threads_) return cpu::process_rows(p, 0, rows_);
    std::thread other([&] { cpu::process_rows(p, 0, rows_ / 2); });
    cpu::process_rows(p, rows_ / 2, rows_);
    other.join();
  }

  DenseRows dense_rows() const {
    DenseRows rows(static_cast<size_t>(rows_));
    for (int64_t row = 0; row < rows_; ++row) {
      DenseRow& d = rows[static_cast<size_t>(row)];
      for (int64_t c = 0; c < classes_; ++c) {
        d.logits.push_back(logits_.get(layout_.at(row, c)));
        if (kind_ == Kind::all) d.probs.push_back(probs_.get(layout_.at(row, c)));
      }
      d.weight.assign(weight_.begin(), weight_.end());
      d.prior.assign(prior_.begin(), prior_.end());
      if (kind_ == Kind::one) d.target = target_[static_cast<size_t>(row)];
      if (kind_ == Kind::few) {
        d.probs.assign(static_cast<size_t>(classes_), 0);
        for (int64_t k = 0; k < entries_; ++k)
          if (target_[entry(row, k)] != ignore_index)
            d.probs[static_cast<size_t>(target_[entry(row, k)])] +=
                static_cast<double>(sparse_probs_[entry(row, k)]);
      }
      d.smoothing = options_.label_smoothing;
      d.lse_square_scale = options_.lse_square_scale;
      d.logit_scale = options_.logit_scale;
      d.softcap = options_.softcap;
      d.lowest = options_.lowest;
      d.over_others = options_.over_others();
      d.over_unmasked = options_.over_unmasked();
      d.weight_over_target = options_.weight_over_target;
      d.kl_div = options_.kl_div;
      d.from_log_probs = options_.from_log_probs;
    }
    return rows;
  }

  // What a row's terms may be large as: their errors are relative to that.
  double magnitude(const DenseRow& dense) const {
    double least = INFINITY, largest = -INFINITY;
    for (size_t c = 0; c < dense.logits.size(); ++c)
      if (std::isfinite(dense.x(c))) {
        least = std::min(least, dense.x(c));
        largest = std::max(largest, dense.x(c));
      }
    const double size = transformed() || options_.lse_square_scale > 0
                            ? std::max(std::fabs(least), std::fabs(largest))
                            : 0;
    const double mass = *std::max_element(dense.weight.begin(), dense.weight.end()) *
                        (kind_ == Kind::one ? 1 : 4);  // probabilities need not sum to 1
    return (1 + mass) * (1 + std::log(static_cast<double>(classes_)) + largest - least + size) *
           (1 + 2 * options_.lse_square_scale * size);
  }

  void check(int64_t row, const DenseRow& dense) const {
    const auto r = static_cast<size_t>(row);
    const auto loss = static_cast<double>(loss_[r]);
    const Elements& grad = inplace_ ? logits_ : grad_;
    const double row_weight = with_row_weight_ ? static_cast<double>(row_weight_[r]) : 1;
    if (row_weight == 0 || ignored(row)) {
      CHECK(loss == 0, "row %ld does not count: loss %g", row, loss);
      for (int64_t c = 0; c < classes_; ++c)
        CHECK(grad.get(layout_.at(row, c)) == 0, "row %ld does not count", row);
      return;
    }
    const double expected_loss = row_weight * dense.loss();
    for (double x : dense.logits)
      if (std::isnan(x) || x > 1e30) {  // diverged: shows in the loss, unless nothing asks for it
        CHECK(!std::isfinite(loss) || options_.from_log_probs || options_.softcap > 0 ||
                  std::isfinite(expected_loss),
              "row %ld has diverged: loss %g", row, loss);
        return;
      }
    const bool half = dtype_ == DType::bfloat16 || dtype_ == DType::float16;
    const double arithmetic = 8 * rounding_of(sizeof(T) == 8 ? DType::float64 : DType::float32) +
                              (half ? 0x1p-18 : 0);  // shorter exponentials
    const double error = arithmetic * magnitude(dense) * (1 + std::fabs(row_weight));
    CHECK(close(loss, expected_loss, error), "row %ld: loss %.17g, expected %.17g +- %g", row, loss,
          expected_loss, error);
    if (stats_)
      CHECK(close(static_cast<double>(lse_[r]), dense.lse(), error),
            "row %ld: lse %.17g, expected %.17g", row, static_cast<double>(lse_[r]), dense.lse());
    const double factor = (two_phases_ ? static_cast<double>(grad_loss_[r]) : 1) * row_weight /
                          static_cast<double>(denominator_);
    const std::vector<double> grads = dense.grad();
    for (int64_t c = 0; c < classes_; ++c) {
      const double value = grad.get(layout_.at(row, c));
      const double expected = factor * grads[static_cast<size_t>(c)];
      const double bound =
          rounding_of(dtype_) * std::fabs(expected) + (1 + std::fabs(factor)) * error;
      CHECK(std::fabs(value - expected) <= bound, "row %ld class %ld: %.17g, expected %.17g +- %g",
            row, c, value, expected, bound);
    }
  }

  static constexpr int64_t ignore_index = -100;
  enum class Kind { one, few, all };  // classes that a row's target names

  size_t entry(int64_t row, int64_t k) const {
    return static_cast<size_t>((row / inner_ * entries_ + k) * inner_ + row % inner_);
  }
  bool ignored(int64_t row) const {
    for (int64_t k = 0; k < entries_; ++k)
      if (kind_ == Kind::all || target_[entry(row, k)] != ignore_index) return false;
    return true;
  }

  DType dtype_;
  int64_t classes_, outer_, inner_, rows_;
  Layout layout_;
  Elements logits_, grad_, probs_;
  LossOptions<double> options_;
  Kind kind_ = Kind::one;
  int64_t entries_ = 1, ranks_ = 1, cuts_[2] = {};
  bool weighted_ = false, with_prior_ = false, with_row_weight_ = false, stats_ = false;
  bool inplace_ = false, two_phases_ = false, threads_ = false;
  T denominator_ = 1;
  std::vector<T> weight_, prior_, coef_, row_weight_, sparse_probs_, grad_loss_;
  std::vector<T> loss_, shift_, sum_exp_, mass_, beta_, lse_, nll_;
  ClassSums<double> sums_ = {1, 0, 1};
  std::vector<int64_t> target_, predicted_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const DType dtypes[] = {DType::float32, DType::float64, DType::bfloat16, DType::float16};
  const DType dtype = dtypes[bytes.below(4)];
  if (dtype == DType::float64)
    Call<double>(dtype, bytes).run();
  else
    Call<float>(dtype, bytes).run();
  return 0;
}
