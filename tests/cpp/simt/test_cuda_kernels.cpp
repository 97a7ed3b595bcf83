// Whole calls of the CUDA path, launchers included, as plain C++ under the sanitizers. runtime.cpp
// describes the device.
#include <vector>

#include "cuda_call.h"

using namespace labelsmooth;

void a_few_classes_in_all_kernels();  // test_few_classes.cpp

namespace {

// Loss, statistics and gradient in one call.
template <class Element>
void one_step(const Case& c, Reduction reduction) {
  Random random;
  Call<Element> call(c, random);
  const Call<Element> before = call;
  typename Call<Element>::T reduced = 0;
  run(call.problem(Traits<Element>::dtype), reduction, &reduced);

  double sum = 0, count = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    if (call.ignored(row)) continue;
    sum += before.dense(row).loss();
    const auto r = static_cast<size_t>(row);
    count +=
        c.probabilities ? 1 : static_cast<double>(call.weight[static_cast<size_t>(call.target[r])]);
  }
  const bool mean = reduction == Reduction::mean;
  const Tolerance tolerance = Traits<Element>::tolerance;
  if (reduction != Reduction::none) {
    const double expected = mean ? sum / count : sum;
    CHECK(close(reduced, expected, tolerance.loss), "C %ld: %g, expected %g", c.classes,
          static_cast<double>(reduced), expected);
  }
  call.compare(before, tolerance.loss, tolerance.grad, mean ? 1 / count : 1);
}

// Forward without a gradient, then backward with another one for each row.
template <class Element>
void two_phases(const Case& c) {
  using T = typename Call<Element>::T;
  Random random;
  Call<Element> call(c, random);
  const Call<Element> before = call;
  LossProblem problem = call.problem(Traits<Element>::dtype);
  const Matrix grad_logits = problem.grad_logits;
  problem.grad_logits = {};
  run(problem, Reduction::none, nullptr);

  const std::vector<T> grad_loss(static_cast<size_t>(c.rows), T(3));
  problem.loss = nullptr;
  problem.with_stats = false;
  problem.grad_logits = grad_logits;
  problem.grad_loss = grad_loss.data();
  problem.grad_loss_stride = 1;
  run(problem, Reduction::none, nullptr);
  const Tolerance tolerance = Traits<Element>::tolerance;
  call.compare(before, tolerance.loss, tolerance.grad, 3);
}

template <class Element>
LossProblem part_of(const LossProblem& whole, int64_t begin, int64_t end) {
  using T = typename Call<Element>::T;
  const auto from = [&](const Matrix& matrix) {
    Matrix part = matrix;
    if (part.data) part.data = static_cast<Element*>(part.data) + begin * part.class_stride;
    return part;
  };
  LossProblem part = whole;
  part.class_offset = begin;
  part.classes = end - begin;
  part.logits = from(whole.logits);
  part.grad_logits = from(whole.grad_logits);
  part.target_probs = from(whole.target_probs);
  if (whole.weight) part.weight = static_cast<const T*>(whole.weight) + begin;
  if (whole.prior) part.prior = static_cast<const T*>(whole.prior) + begin;
  return part;
}

// The classes lie over three ranks, of which one has a single one: parts of rows, the rows of them,
// the gradient in parts.
template <class Element>
void over_ranks(const Case& c) {
  using T = typename Call<Element>::T;
  constexpr int64_t ranks = 3;
  if (c.classes < ranks) return;
  Random random;
  Call<Element> call(c, random);
  const Call<Element> before = call;
  const LossProblem whole = call.problem(Traits<Element>::dtype);
  const int64_t ends[ranks + 1] = {0, c.classes / 3, c.classes / 3 + 1, c.classes};
  const auto problem_of = [&](int64_t rank) {
    return part_of<Element>(whole, ends[rank], ends[rank + 1]);
  };
  RowPart<T> fields = {};
  const int64_t values = c.rows * for_fields(fields, whole.options, c.stats, [](int, T) {});
  std::vector<T> parts(static_cast<size_t>(ranks * values), T(poison));
  for (int64_t rank = 0; rank < ranks; ++rank) {
    LossProblem partial = problem_of(rank);
    partial.grad_logits = {};
    partial.loss = nullptr;
    partial.parts = parts.data() + rank * values;
    run(partial, Reduction::none, nullptr);
  }
  LossProblem combined = problem_of(1);
  combined.grad_logits = {};
  combined.ranks_parts = parts.data();
  combined.ranks = ranks;
  combined.rank_stride = values;
  run(combined, Reduction::none, nullptr, cuda::combine);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    LossProblem backward = problem_of(rank);
    backward.loss = nullptr;
    backward.with_stats = false;
    run(backward, Reduction::none, nullptr);
  }
  const Tolerance tolerance = Traits<Element>::tolerance;
  call.compare(before, tolerance.loss, tolerance.grad);
}

// Around a chunk of 16 bytes, the lanes of a row, what a warp, a block and a part of a row hold.
constexpr int64_t chunk_edges[] = {1, 4, 5, 32, 33, 256, 257, 512, 1100, 2400};

// `turn` chooses the options: each meets every kernel, not every number of classes.
template <class Element>
void all_kernels(int turn) {
  constexpr int64_t size = 16 / sizeof(Element);
  for (const int64_t chunks : chunk_edges) {
    for (const int64_t extra : {int64_t(-1), int64_t(0), int64_t(1)}) {
      const int64_t classes = chunks * size + extra;
      if (classes < 1) continue;
      Case c = case_of(3, classes, turn++ * 5);
      c.lead = turn % 3 == 0 ? 1 : 0;
      if (turn % 2 == 0)
        one_step<Element>(c, Reduction::none);
      else
        two_phases<Element>(c);
      if (extra == 0) over_ranks<Element>(c);
    }
  }
  // Tiles of positions and classes: a thread a position, then in lines; that are held, that are
  // read again, in parts.
  struct Shape {
    int64_t rows, classes;
  };
  for (const Shape& shape : {Shape{131, 1},
                             {131, size - 1},
                             {131, size + 1},
                             {131, 9 * size + 1},
                             {5, 200 * size + 1},
                             {3, 700 * size}})
    for (const bool probabilities : {false, true}) {
      const Case c = {shape.rows,    shape.classes, shape.rows, true,
                      probabilities, false,         false,      true};
      one_step<Element>(c, Reduction::none);
      two_phases<Element>(c);
      over_ranks<Element>(c);
    }
}

// More rows, and more classes with weights, than one block of a sum takes.
void sums_of_several_blocks() {
  one_step<float>({9001, 2, 1, true, false, false, true, false}, Reduction::mean);
  one_step<float>({2, 9001, 1, true, true, false, false, false}, Reduction::sum);
}

void no_rows() { one_step<float>({0, 10, 1, true, false, false, false, true}, Reduction::sum); }

// A target that is no class makes its own row NaN and leaves the others as they are.
template <class Element>
void bad_targets() {
  for (const int64_t classes : {10, 2000, 20000}) {
    const Case c = {3, classes, 1, true, false, false, false, true};
    Random random;
    Call<Element> call(c, random), good(c, random);
    call.target = {classes - 1, classes, 0};
    good = call;
    good.target[1] = 0;
    run(call.problem(Traits<Element>::dtype), Reduction::none, nullptr);
    run(good.problem(Traits<Element>::dtype), Reduction::none, nullptr);
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t k = 0; k < classes; ++k) {
        const auto made = static_cast<float>(call.grad[call.index(row, k)]);
        const auto expected = static_cast<float>(good.grad[call.index(row, k)]);
        CHECK(row == 1 ? std::isnan(made) : made == expected, "C %ld row %ld class %ld: %g",
              classes, row, k, static_cast<double>(made));
      }
    CHECK(std::isnan(call.loss[1]) && call.loss[0] == good.loss[0], "C %ld: loss", classes);
  }
}

template <class Element>
void scaled() {
  using T = typename Call<Element>::T;
  for (const T factor : {T(1), T(0.5)})
    for (const size_t count : {size_t(0), size_t(1), size_t(15), size_t(20001)}) {
      std::vector<Element> values(count + 1, Element(3.0f));
      CHECK(cuda::scale(Traits<Element>::dtype, values.data() + 1, static_cast<int64_t>(count),
                        &factor, nullptr) == 0,
            "scale");
      for (size_t i = 0; i <= count; ++i)
        CHECK(static_cast<T>(values[i]) == (i == 0 ? T(3) : 3 * factor), "element %zu", i);
    }
}

}  // namespace

int main() {
  all_kernels<float>(0);
  all_kernels<__nv_bfloat16>(1);
#if !defined(__SANITIZE_THREAD__)  // who waits for whom does not depend on the type
  all_kernels<double>(2);
  all_kernels<__half>(3);
#endif
  a_few_classes_in_all_kernels();
  sums_of_several_blocks();
  no_rows();
  bad_targets<float>();
  bad_targets<__nv_bfloat16>();
  scaled<float>();
  scaled<__half>();
}
