// The CPU kernels against the definition, and on several threads (for the thread sanitizer).
// LABELSMOOTH_CPU chooses the instruction set.
#include <cstdint>
#include <thread>
#include <vector>

#include "call.h"
#include "half.h"
#include "instruction_set.h"

using namespace labelsmooth;

namespace {

// Elements of logits, from and to double.

struct BFloat16 {
  uint16_t bits;
  BFloat16(double value) : bits(to_bfloat16(value)) {}
  operator double() const { return from_bfloat16(bits); }
};

struct Float16 {
  uint16_t bits;
  Float16(double value) : bits(to_float16(value)) {}
  operator double() const { return from_float16(bits); }
};

// `rounding`: half the distance of neighbours, relative, where the gradient is rounded once more
// than the accumulate dtype is.
template <class Element>
struct Format;
template <>
struct Format<float> {
  static constexpr DType dtype = DType::float32;
  static constexpr double rounding = 0;
};
template <>
struct Format<double> {
  static constexpr DType dtype = DType::float64;
  static constexpr double rounding = 0;
};
template <>
struct Format<BFloat16> {
  static constexpr DType dtype = DType::bfloat16;
  static constexpr double rounding = 0x1p-8;
};
template <>
struct Format<Float16> {
  static constexpr DType dtype = DType::float16;
  static constexpr double rounding = 0x1p-11;
};

template <class Element>
void check(const Case& c) {
  Random random;
  Call<Element> call(c, random);
  const Call<Element> before = call;
  cpu::process_rows(call.problem(Format<Element>::dtype), 0, c.rows);
  const bool half = Format<Element>::rounding > 0;  // shorter exponentials, and a softcap of 5
  const double tolerance =
      Format<Element>::dtype == DType::float64 ? 1e-13 : 4e-6 + (half ? 5 * 0x1p-18 : 0);
  call.compare(before, tolerance, tolerance, 1, Format<Element>::rounding);
}

// range(begin, end) for ranges of `length`, each on a thread.
template <int64_t length, class Range>
void on_threads(int64_t count, const Range& range) {
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < count; begin += length) {
    const int64_t end = begin + length < count ? begin + length : count;
    threads.emplace_back([&range, begin, end] { range(begin, end); });
  }
  for (std::thread& thread : threads) thread.join();
}

// process(problem), which uses threads, makes the same bits as one thread does.
template <class Process>
void check_threads(const Case& c, const Process& process) {
  Random one, other;
  Call<float> serial(c, one), parallel(c, other);
  cpu::process_rows(serial.problem(DType::float32), 0, c.rows);
  process(parallel.problem(DType::float32));
  CHECK(serial.logits == parallel.logits && serial.grad == parallel.grad &&
            serial.loss == parallel.loss && serial.predicted == parallel.predicted,
        "threads changed the result");
}

void rows_on_threads(const LossProblem& problem) {
  on_threads<13>(problem.rows,
                 [&](int64_t begin, int64_t end) { cpu::process_rows(problem, begin, end); });
}

void blocks_on_threads(LossProblem problem) {
  problem.workers = [](int64_t count, Work work, const void* context) {
    on_threads<3>(count, [=](int64_t begin, int64_t end) { work(context, begin, end); });
  };
  cpu::process_rows(problem, 0, problem.rows);
}

}  // namespace

int main() {
  if (!has_instruction_set()) return not_on_this_machine;
  // Around the vectors of 2 to 16 lanes, the unrolled step of 64, what goes by tiles and by groups,
  // and a block of a row.
  for (int64_t classes :
       {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,   23,   24,   25,    31,
        33, 48, 49, 63, 64, 65, 127, 129, 511, 513, 1000, 4095, 4097, 16385, 40000}) {
    // All 32 cases of few classes, of more a few, in which each bit is 0 and 1.
    for (int bits = 0; bits < (classes > 1000 ? 4 : 32);
         bits += classes > 65 && classes <= 1000 ? 5 : 1) {
      const int64_t rows = classes > 1000 ? 2 : 21;  // more than lanes, and a part of a vector
      const Case c = case_of(rows, classes, bits);
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
  check_threads({64, 777, 1, true, false, false, true, true}, rows_on_threads);
  for (bool inplace : {false, true})
    for (bool probabilities : {false, true})
      for (int64_t class_stride : {1, 3})  // too many classes for a tile
        check_threads({3, 140001, class_stride, true, probabilities, true, inplace, true},
                      blocks_on_threads);
}
