// The vectors of one instruction set: CMakeLists.txt defines which, and compiles this for each.
#include <array>

#include "half.h"
#include "instruction_set.h"
// all that is for any machine first
#include "cpu/isa.h"
// isa.h first
#include "check.h"
#include "cpu/transpose.h"
#include "cpu/vec_math.h"

using namespace labelsmooth::cpu::LABELSMOOTH_ISA;

namespace {

// Distance in units of the last place of the exact result.
double ulps(float value, double exact) {
  if (value == static_cast<float>(exact)) return 0;
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(value - exact) / std::ldexp(1.0, exponent < -125 ? -149 : exponent - 24);
}

// Of floats in [low, high], which are to be within allowed(x).
template <class Function, class Exact, class Allowed>
void check_ulps(const char* name, Function function, Exact exact, float low, float high,
                Allowed allowed) {
  for (uint64_t pattern = 0; pattern < 1ull << 32; pattern += 1009) {
    float x;
    const auto bits = static_cast<uint32_t>(pattern);
    std::memcpy(&x, &bits, sizeof(x));
    if (!(x >= low && x <= high)) continue;
    const double error = ulps(function(VecF(x)).lanes[0], exact(x));
    CHECK(error <= allowed(x), "%s(%g) is off by %g ulp", name, x, error);
  }
}

void exp_accuracy() {
  // |x| 2^-28, in ulp of numbers that begin with 1.
  const auto allowed = [](double x) { return 2 + std::fabs(x) / 16; };
  check_ulps(
      "exp", [](VecF x) { return exp(x); }, [](double x) { return std::exp(x); }, -110, 88.72f,
      allowed);
  const float edges[][2] = {
      {-INFINITY, 0}, {INFINITY, INFINITY}, {89, INFINITY}, {-0.0f, 1}, {-104.5f, 0}};
  for (const auto& [x, expected] : edges) {
    const float value = exp(VecF(x)).lanes[0];
    CHECK(value == expected, "exp(%g) is %g", x, value);
  }
  CHECK(std::isnan(exp(VecF(NAN)).lanes[0]), "exp(NaN)");
}

// As their comments promise, and exact at the ends.
void short_accuracy() {
  for (double x = -80; x <= 20; x += 1e-3) {
    const auto rounded = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(rounded));
    const double error = std::fabs(exp_short(VecF(rounded)).lanes[0] - exact) / exact;
    CHECK(error <= 0x1.9p-19 + (1 + std::fabs(x)) * 0x1p-23, "exp_short(%g) is off by %g", x,
          error);
    const double tanh_error =
        std::fabs(tanh_short(VecF(rounded)).lanes[0] - std::tanh(static_cast<double>(rounded)));
    CHECK(tanh_error <= 0x1p-19, "tanh_short(%g) is off by %g", x, tanh_error);
  }
  CHECK(exp_short(VecF(0.0f)).lanes[0] == 1, "exp_short(0)");
  CHECK(exp_short(VecF(-INFINITY)).lanes[0] == 0, "exp_short(-inf)");
  CHECK(std::isnan(exp_short(VecF(NAN)).lanes[0]), "exp_short(NaN)");
  for (const float x : {9.5f, INFINITY}) {
    CHECK(tanh_short(VecF(x)).lanes[0] == 1, "tanh_short(%g)", x);
    CHECK(tanh_short(VecF(-x)).lanes[0] == -1, "tanh_short(%g)", -x);
  }
  CHECK(std::isnan(tanh_short(VecF(NAN)).lanes[0]), "tanh_short(NaN)");
}

void log_accuracy() {
  check_ulps(
      "log", [](VecF x) { return log(x); }, [](double x) { return std::log(x); }, 0x1p-149f,
      3.4e38f, [](double) { return 2; });
  const float edges[][2] = {{0, -INFINITY}, {-0.0f, -INFINITY}, {INFINITY, INFINITY}, {1, 0}};
  for (const auto& [x, expected] : edges) {
    const float value = log(VecF(x)).lanes[0];
    CHECK(value == expected, "log(%g) is %g", x, value);
  }
  for (const float x : std::array{-1.0f, -INFINITY, NAN})
    CHECK(std::isnan(log(VecF(x)).lanes[0]), "log(%g)", x);
}

void tanh_accuracy() {
  check_ulps(
      "tanh", [](VecF x) { return tanh(x); }, [](double x) { return std::tanh(x); }, -INFINITY,
      INFINITY, [](double) { return 8; });
  CHECK(tanh(VecF(9.0f)).lanes[0] == 1 && tanh(VecF(-INFINITY)).lanes[0] == -1, "tanh at the ends");
  CHECK(std::isnan(tanh(VecF(NAN)).lanes[0]), "tanh(NaN)");
}

// The conversion instruction takes bfloat16's subnormal numbers for 0.
template <class Half>
bool flushed(float value) {
#if defined(LABELSMOOTH_AVX512_BF16)
  return std::is_same_v<Half, BFloat16> && std::fabs(value) < 0x1p-126f;
#else
  (void)value;
  return false;
#endif
}

// Every 16-bit pattern widens exactly and narrows to itself; halfway between two neighbours the
// even one wins.
template <class Half>
void half_round_trip(double (*decode)(uint16_t)) {
  for (uint32_t pattern = 0; pattern < 1u << 16; ++pattern) {
    const auto bits = static_cast<uint16_t>(pattern);
    const Half element = {bits};
    const float value = load_one(&element);
    const double exact = decode(bits);
    CHECK(value == exact || (std::isnan(value) && std::isnan(exact)), "%#x widens to %g", pattern,
          value);
    Half back;
    store_one(&back, value);
    const bool nan = std::isnan(value);
    if (flushed<Half>(value)) continue;
    CHECK(nan ? std::isnan(decode(back.bits)) : back.bits == bits, "%#x came back as %#x", pattern,
          back.bits);

    const auto next = static_cast<float>(decode(static_cast<uint16_t>(bits + 1)));
    if (!std::isfinite(value) || !std::isfinite(next) || std::signbit(next) != std::signbit(value))
      continue;
    const auto middle = static_cast<float>((static_cast<double>(value) + next) / 2);
    if (static_cast<double>(middle) * 2 != static_cast<double>(value) + next) continue;
    store_one(&back, middle);
    const auto even = static_cast<uint16_t>(bits & 1 ? bits + 1 : bits);
    CHECK(back.bits == even, "halfway above %#x rounds to %#x", pattern, back.bits);
  }
}

void across_lanes() {
  float values[VecF::size];
  for (int i = 0; i < VecF::size; ++i) values[i] = static_cast<float>(i % 5);
  const VecF x = load(values);
  float sum = 0;
  for (float value : values) sum += value;
  CHECK(sum_lanes(x) == sum, "%g, expected %g", sum_lanes(x), sum);
  CHECK(max_lanes(x) == (VecF::size > 4 ? 4 : 3), "%g", max_lanes(x));
  CHECK(any_lane<float>(x == VecF(3.0f)) && !any_lane<float>(x == VecF(7.0f)), "any_lane");
}

// Exact: sums in float alone would have lost digits.
void sums_of_many_terms() {
  double sum = 0;
  for (int64_t c = 1; c < 300000; c += 3) sum += static_cast<double>(c);
  const LaneSums<VecF> sums =
      sum_of_terms<VecF>(1, 300000, 3, [](int64_t c) { return VecF(static_cast<float>(c)); });
  CHECK(sums.total() == sum * VecF::size, "%g, expected %g", sums.total(), sum * VecF::size);
  const float lane = sums.value().lanes[VecF::size - 1];
  CHECK(lane == static_cast<float>(sum), "%g, expected %g", lane, sum);
}

void across_vectors() {
  constexpr int size = VecF::size;
  VecF square[size], turned[size];
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j) square[i].lanes[j] = static_cast<float>(i * size + j);
  transpose(square, turned);
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j)
      CHECK(turned[j].lanes[i] == square[i].lanes[j], "row %d column %d", i, j);
  const VecF sums = lane_sums(square);
  for (int i = 0; i < size; ++i)
    CHECK(sums.lanes[i] == sum_lanes(square[i]), "sum of vector %d is %g", i, sums.lanes[i]);
}

// Loads and stores of a part touch no element beyond it.
void partial_access() {
  float source[VecF::size + 1], destination[VecF::size + 1];
  for (int count = 0; count <= VecF::size; ++count) {
    for (int i = 0; i <= VecF::size; ++i) source[i] = destination[i] = static_cast<float>(100 + i);
    const VecF x = load_first(source, count);
    for (int i = 0; i < VecF::size; ++i) {
      CHECK(x.lanes[i] == (i < count ? source[i] : 0), "lane %d of %d is %g", i, count, x.lanes[i]);
    }
    store_first(destination, VecF(-1.0f), count);
    for (int i = 0; i <= VecF::size; ++i) {
      CHECK(destination[i] == (i < count ? -1 : source[i]), "element %d of %d is %g", i, count,
            destination[i]);
    }
  }
}

void all() {
  exp_accuracy();
  short_accuracy();
  log_accuracy();
  tanh_accuracy();
  half_round_trip<BFloat16>(from_bfloat16);
  half_round_trip<Float16>(from_float16);
  across_lanes();
  sums_of_many_terms();
  across_vectors();
  partial_access();
}

}  // namespace
LABELSMOOTH_END_TARGET

int main() {
  if (!has_instruction_set()) return not_on_this_machine;
  all();
}
