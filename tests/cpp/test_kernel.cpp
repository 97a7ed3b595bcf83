// The kernel against the definition, with buffers that end where their rows do (for the address
// sanitizer) and on several threads (for the thread sanitizer). LABELSMOOTH_CPU chooses the
// instruction set.
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "dense.h"
#include "kernels.h"

using namespace labelsmooth;

namespace {

// Elements of logits, from and to double.

struct BFloat16 {
  uint16_t bits;
  BFloat16(double value) {
    const auto narrow = static_cast<float>(value);
    uint32_t wide;
    std::memcpy(&wide, &narrow, sizeof(wide));
    bits = static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
  }
  operator double() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return static_cast<double>(value);
  }
};

struct Float16 {
  uint16_t bits;
  Float16(double value) {  // no overflow here
    int exponent;
    const double fraction = std::frexp(std::fabs(value), &exponent);
    const long magnitude = exponent < -13
                               ? std::lround(std::ldexp(std::fabs(value), 24))
                               : ((exponent + 14) << 10) + std::lround(2048 * fraction - 1024);
    bits = static_cast<uint16_t>(magnitude | (std::signbit(value) ? 0x8000 : 0));
  }
  operator double() const {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
};

// `rounding`: half the distance of neighbours, relative, where the gradient is rounded once more
// than the accumulate dtype A is.
template <class Element>
struct Format;
template <>
struct Format<float> {
  using A = float;
  static constexpr DType dtype = DType::float32;
  static constexpr double rounding = 0;
};
template <>
struct Format<double> {
  using A = double;
  static constexpr DType dtype = DType::float64;
  static constexpr double rounding = 0;
};
template <>
struct Format<BFloat16> {
  using A = float;
  static constexpr DType dtype = DType::bfloat16;
  static constexpr double rounding = 0x1p-8;
};
template <>
struct Format<Float16> {
  using A = float;
  static constexpr DType dtype = DType::float16;
  static constexpr double rounding = 0x1p-11;
};

struct Case {
  int64_t rows, classes;
  int64_t class_stride;  // 1, or rows: the class axis lies across
  bool vectors, probabilities, transformed, inplace, stats;
};

// Everything that a call reads and writes; poisoned where it is to be written.
template <class Element>
class Call {
 public:
  using T = typename Format<Element>::A;

  Call(const Case& c, Random& random) : case_(c) {
    const auto size = static_cast<size_t>(c.rows * c.classes),
               classes = static_cast<size_t>(c.classes);
    for (size_t i = 0; i < size; ++i)
      logits.push_back(static_cast<Element>(12 * random.uniform() - 6));
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
    if (c.probabilities) {
      for (size_t i = 0; i < size; ++i)
        probs.push_back(static_cast<Element>(random.uniform() / static_cast<double>(c.classes)));
    }
    grad.assign(size, Element(-77));
    for (auto* values : {&loss, &row_shift, &row_sum_exp, &lse, &nll})
      values->assign(target.size(), T(-77));
    predicted.assign(target.size(), -77);
  }

  LossProblem problem() {
    LossProblem p;
    p.dtype = Format<Element>::dtype;
    p.rows = case_.rows;
    p.classes = case_.classes;
    const auto matrix = [&](std::vector<Element>& data) {
      return Matrix{data.data(), case_.class_stride == 1 ? case_.classes : 1, case_.class_stride,
                    0};
    };
    p.logits = matrix(logits);
    p.grad_logits = matrix(case_.inplace ? logits : grad);
    case_.probabilities ? void(p.target_probs = matrix(probs)) : void(p.target = target.data());
    if (case_.vectors) {
      p.weight = weight.data();
      p.prior = prior.data();
      p.class_coef = coef.data();
      p.class_sums = {0, 0};
      for (T v : coef) p.class_sums.coef += static_cast<double>(v);
    }
    p.options.label_smoothing = 0.1;
    if (case_.transformed) p.options.logit_scale = 0.8, p.options.softcap = 5;
    p.loss = loss.data();
    p.row_shift = row_shift.data();
    p.row_sum_exp = row_sum_exp.data();
    if (case_.stats) {
      p.lse = lse.data();
      p.nll = nll.data();
      p.predicted = predicted.data();
    }
    return p;
  }

  size_t index(int64_t row, int64_t c) const {
    return static_cast<size_t>(case_.class_stride == 1 ? row * case_.classes + c
                                                       : row + c * case_.class_stride);
  }

  DenseRow dense(int64_t row) const {
    DenseRow d;
    for (int64_t c = 0; c < case_.classes; ++c) {
      d.logits.push_back(static_cast<double>(logits[index(row, c)]));
      d.weight.push_back(static_cast<double>(weight[static_cast<size_t>(c)]));
      d.prior.push_back(static_cast<double>(prior[static_cast<size_t>(c)]));
      if (case_.probabilities) d.probs.push_back(static_cast<double>(probs[index(row, c)]));
    }
    d.target = target[static_cast<size_t>(row)];
    d.smoothing = 0.1;
    if (case_.transformed) d.logit_scale = 0.8, d.softcap = 5;
    return d;
  }

  std::vector<Element> logits, probs, grad;
  std::vector<T> weight, prior, coef, loss, row_shift, row_sum_exp, lse, nll;
  std::vector<int64_t> target, predicted;

 private:
  Case case_;
};

template <class Element>
void check(const Case& c) {
  Random random;
  Call<Element> call(c, random);
  const Call<Element> before = call;
  cpu::process_rows(call.problem(), 0, c.rows);
  const double tolerance = Format<Element>::dtype == DType::float64 ? 1e-13 : 4e-6;
  const std::vector<Element>& grad = c.inplace ? call.logits : call.grad;
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto r = static_cast<size_t>(row);
    const bool ignored = !c.probabilities && call.target[r] == -100;
    const DenseRow dense = before.dense(row);
    const double loss = ignored ? 0 : dense.loss();
    CHECK(close(call.loss[r], loss, tolerance), "C %ld row %ld: %g, expected %g", c.classes, row,
          call.loss[r], loss);
    if (c.stats)
      CHECK(close(call.lse[r], dense.lse(), tolerance), "C %ld: lse %g", c.classes, call.lse[r]);
    for (int64_t k = 0; k < c.classes; k += 1 + c.classes / 50) {
      const double expected = ignored ? 0 : dense.grad(static_cast<size_t>(k));
      const double value = grad[call.index(row, k)];
      // The exponentials of 16-bit logits have a 16th of the rounding for themselves.
      const double rounding = Format<Element>::rounding * (std::fabs(expected) + 1. / 16);
      CHECK(close(value, expected, tolerance + rounding),
            "C %ld row %ld class %ld: %g, expected %g", c.classes, row, k, value, expected);
    }
  }
}

// The same rows split over threads: the same bits.
void on_threads() {
  const Case c = {64, 777, 1, true, false, false, true, true};
  Random one, other;
  Call<float> serial(c, one), parallel(c, other);
  cpu::process_rows(serial.problem(), 0, c.rows);
  const LossProblem problem = parallel.problem();
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < c.rows; begin += 13) {
    const int64_t end = begin + 13 < c.rows ? begin + 13 : c.rows;
    threads.emplace_back([&problem, begin, end] { cpu::process_rows(problem, begin, end); });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(serial.logits == parallel.logits && serial.loss == parallel.loss,
        "threads changed the result");
}

}  // namespace

int main() {
  try {
    cpu::instruction_set();
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return not_on_this_machine;
  }
  // Around the vectors of 2 to 16 lanes, the unrolled step of 64 and the tile of 16384 classes.
  for (int64_t classes : {1,  2,  3,  4,  5,  7,   8,   9,    15,    16,    17,
                          31, 33, 63, 64, 65, 127, 129, 1000, 16383, 16385, 40000}) {
    for (int bits = 0; bits < (classes > 1000 ? 4 : 32); ++bits) {
      const int64_t rows = classes > 1000 ? 2 : 5;
      const Case c = {rows,
                      classes,
                      1,
                      (bits & 1) != 0,
                      (bits & 2) != 0,
                      (bits & 4) != 0,
                      (bits & 8) != 0,
                      (bits & 16) != 0};
      check<float>(c);
      check<double>(c);
      check<BFloat16>(c);
      check<Float16>(c);
      if (classes > 1000) continue;
      Case across = c;  // more rows than lanes, and a part of a vector
      across.rows = across.class_stride = 21;
      check<float>(across);
      check<double>(across);
      check<BFloat16>(across);
      check<Float16>(across);
    }
  }
  on_threads();
}
