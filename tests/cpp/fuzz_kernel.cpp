// Any bytes are read as a call of the kernel, which is compared with the definition: every dtype,
// layout, option and phase, masked classes, logits that are not finite, rows split over threads,
// classes over ranks.
// libFuzzer drives it where the compiler has one (the preset "fuzz"), else fuzz_main.cpp.
// LABELSMOOTH_CPU chooses the instruction set.
#include <algorithm>
#include <thread>
#include <vector>

#include "drawn_call.h"

using namespace labelsmooth;

namespace {

template <class T>
void process(const DrawnCall<T>& call, const LossProblem& p) {
  if (!call.threads) return cpu::process_rows(p, 0, call.rows);
  std::thread other([&] { cpu::process_rows(p, 0, call.rows / 2); });
  cpu::process_rows(p, call.rows / 2, call.rows);
  other.join();
}

template <class T>
void run_alone(DrawnCall<T>& call) {
  LossProblem p = call.problem();
  if (call.two_phases) {
    process(call, p);
    p.loss = nullptr;
  }
  call.ask_for_gradient(p, 0);
  process(call, p);
}

// As ranks would, one after the other.
template <class T>
void run_over_ranks(DrawnCall<T>& call) {
  std::vector<LossProblem> ranks;
  std::vector<T> parts;
  RowPart<T> part = {};
  const int fields = for_fields(part, call.options, call.stats, [](int, T) {});
  const auto each = static_cast<size_t>(fields * call.rows);
  parts.resize(static_cast<size_t>(call.ranks) * each, T(poison));
  for (int64_t rank = 0; rank < call.ranks; ++rank) {
    ranks.push_back(call.problem_of(rank));
    LossProblem p = ranks.back();
    T* const own = &parts[static_cast<size_t>(rank) * each];
    p.loss = nullptr;
    p.parts = own;
    if (p.classes > 0) process(call, p);
    for (int64_t row = 0; row < call.rows && p.classes == 0; ++row)
      store_part(own + row, call.rows, empty_part<T>(), call.options, call.stats);
  }
  LossProblem whole = ranks.back();
  whole.ranks = call.ranks;
  whole.ranks_parts = parts.data();
  whole.rank_stride = static_cast<int64_t>(each);
  cpu::combine_rows(whole, 0, call.rows);
  for (LossProblem& p : ranks) {
    p.loss = nullptr;
    call.ask_for_gradient(p, p.class_offset);
    if (p.classes > 0) process(call, p);
  }
}

// What a row's terms may be large as: their errors are relative to that.
template <class T>
double magnitude(const DrawnCall<T>& call, const DenseRow& dense) {
  double least = INFINITY, largest = -INFINITY;
  for (size_t c = 0; c < dense.logits.size(); ++c)
    if (std::isfinite(dense.x(c))) {
      least = std::min(least, dense.x(c));
      largest = std::max(largest, dense.x(c));
    }
  const double size = call.transformed() || call.options.lse_square_scale > 0
                          ? std::max(std::fabs(least), std::fabs(largest))
                          : 0;
  const double mass =
      *std::max_element(dense.weight.begin(), dense.weight.end()) *
      (call.kind == DrawnCall<T>::Kind::one ? 1 : 4);  // probabilities need not sum to 1
  return (1 + mass) * (1 + std::log(static_cast<double>(call.classes)) + largest - least + size) *
         (1 + 2 * call.options.lse_square_scale * size);
}

template <class T>
void check(const DrawnCall<T>& call, int64_t row, const DenseRow& dense) {
  const auto r = static_cast<size_t>(row);
  const auto loss = static_cast<double>(call.loss[r]);
  const Elements& grad = call.inplace ? call.logits : call.grad;
  const double row_weight = call.with_row_weight ? static_cast<double>(call.row_weight[r]) : 1;
  if (row_weight == 0 || call.ignored(row)) {
    CHECK(loss == 0, "row %ld does not count: loss %g", row, loss);
    for (int64_t c = 0; c < call.classes; ++c)
      CHECK(grad.get(call.layout.at(row, c)) == 0, "row %ld does not count", row);
    return;
  }
  const double expected_loss = row_weight * dense.loss();
  for (double x : dense.logits)
    if (std::isnan(x) || x > 1e30) {  // diverged: shows in the loss, unless nothing asks for it
      CHECK(!std::isfinite(loss) || call.options.from_log_probs || call.options.softcap > 0 ||
                std::isfinite(expected_loss),
            "row %ld has diverged: loss %g", row, loss);
      return;
    }
  const bool half = call.dtype == DType::bfloat16 || call.dtype == DType::float16;
  const double arithmetic = 8 * rounding_of(sizeof(T) == 8 ? DType::float64 : DType::float32) +
                            (half ? 0x1p-18 : 0);  // shorter exponentials
  const double error = arithmetic * magnitude(call, dense) * (1 + std::fabs(row_weight));
  CHECK(close(loss, expected_loss, error), "row %ld: loss %.17g, expected %.17g +- %g", row, loss,
        expected_loss, error);
  if (call.stats)
    CHECK(close(static_cast<double>(call.lse[r]), dense.lse(), error),
          "row %ld: lse %.17g, expected %.17g", row, static_cast<double>(call.lse[r]), dense.lse());
  const double factor = (call.two_phases ? static_cast<double>(call.grad_loss[r]) : 1) *
                        row_weight / static_cast<double>(call.denominator);
  const std::vector<double> grads = dense.grad();
  for (int64_t c = 0; c < call.classes; ++c) {
    const double value = grad.get(call.layout.at(row, c));
    const double expected = factor * grads[static_cast<size_t>(c)];
    const double bound =
        rounding_of(call.dtype) * std::fabs(expected) + (1 + std::fabs(factor)) * error;
    CHECK(std::fabs(value - expected) <= bound, "row %ld class %ld: %.17g, expected %.17g +- %g",
          row, c, value, expected, bound);
  }
}

template <class T>
void run(DrawnCall<T> call) {
  const std::vector<DenseRow> before = call.dense_rows();
  call.ranks > 1 ? run_over_ranks(call) : run_alone(call);
  for (int64_t row = 0; row < call.rows; ++row) check(call, row, before[static_cast<size_t>(row)]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const DType dtypes[] = {DType::float32, DType::float64, DType::bfloat16, DType::float16};
  const DType dtype = dtypes[bytes.below(4)];
  if (dtype == DType::float64)
    run(DrawnCall<double>(dtype, bytes));
  else
    run(DrawnCall<float>(dtype, bytes));
  return 0;
}
