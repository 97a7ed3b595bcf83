// The CPU kernels against the definition, and on several threads (for the thread sanitizer).
// LABELSMOOTH_CPU chooses the instruction set.
#include <stdexcept>
#include <thread>
#include <vector>

#include "call.h"

using namespace labelsmooth;

namespace {

template <class T>
constexpr DType dtype = sizeof(T) == 4 ? DType::float32 : DType::float64;

template <class T>
void check(const Case& c) {
  Random random;
  Call<T> call(c, random);
  const Call<T> before = call;
  cpu::process_rows(call.problem(dtype<T>), 0, c.rows);
  const double tolerance = sizeof(T) == 4 ? 4e-6 : 1e-13;
  call.compare(before, tolerance, tolerance);
}

// The same rows split over threads: the same bits.
void on_threads() {
  const Case c = {64, 777, 1, true, false, false, true, true};
  Random one, other;
  Call<float> serial(c, one), parallel(c, other);
  cpu::process_rows(serial.problem(DType::float32), 0, c.rows);
  const LossProblem problem = parallel.problem(DType::float32);
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
      if (classes < 100) {
        Case across = c;
        across.class_stride = rows;
        check<float>(across);
      }
    }
  }
  on_threads();
}
