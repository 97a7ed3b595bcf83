// Whole calls of the CUDA path, launchers included, as plain C++ under the sanitizers. runtime.cpp
// describes the device.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <vector>

#include "../call.h"

using namespace labelsmooth;

namespace {

struct Tolerance {
  double loss, grad;
};

template <class Element>
struct Kind;
template <>
struct Kind<float> {
  static constexpr DType dtype = DType::float32;
  static constexpr Tolerance tolerance = {4e-6, 4e-6};
};
template <>
struct Kind<double> {
  static constexpr DType dtype = DType::float64;
  static constexpr Tolerance tolerance = {1e-13, 1e-13};
};
template <>
struct Kind<__nv_bfloat16> {
  static constexpr DType dtype = DType::bfloat16;
  static constexpr Tolerance tolerance = {4e-6, 0x1p-8};
};
template <>
struct Kind<__half> {
  static constexpr DType dtype = DType::float16;
  static constexpr Tolerance tolerance = {4e-6, 0x1p-11};
};

void run(const LossProblem& problem, Reduction reduction, void* reduced_loss,
         decltype(cuda::run)* launcher = cuda::run) {
  std::vector<char> workspace(static_cast<size_t>(cuda::workspace_bytes(problem)));
  const int error = launcher(problem, reduction, nullptr, reduced_loss, workspace.data(), nullptr);
  CHECK(error == 0, "cudaError_t %d", error);
}

// Loss, statistics and gradient in one call.
template <class Element>
void one_step(const Case& c, Reduction reduction) {
  Random random;
  Call<Element> call(c, random);
  const Call<Element> before = call;
  typename Call<Element>::T reduced = 0;
  run(call.problem(Kind<Element>::dtype), reduction, &reduced);

  double sum = 0, count = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    if (call.ignored(row)) continue;
    sum += before.dense(row).loss();
    const auto r = static_cast<size_t>(row);
    count +=
        c.probabilities ? 1 : static_cast<double>(call.weight[static_cast<size_t>(call.target[r])]);
  }
  const bool mean = reduction == Reduction::mean;
  const Tolerance tolerance = Kind<Element>::tolerance;
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
  LossProblem problem = call.problem(Kind<Element>::dtype);
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
  const Tolerance tolerance = Kind<Element>::tolerance;
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
  const LossProblem whole = call.problem(Kind<Element>::dtype);
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
  const Tolerance tolerance = Kind<Element>::tolerance;
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
      const int bits = turn++ * 5;
      Case c = {3,
                classes,
                1,
                (bits & 1) != 0,
                (bits & 2) != 0,
                (bits & 4) != 0,
                (bits & 8) != 0,
                (bits & 16) != 0};
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
    run(call.problem(Kind<Element>::dtype), Reduction::none, nullptr);
    run(good.problem(Kind<Element>::dtype), Reduction::none, nullptr);
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

// A problem in both phases, the gradient of the second in place.
template <class Element>
void run_both(const LossProblem& forward, Call<Element>& call) {
  run(forward, Reduction::none, nullptr);
  LossProblem backward = forward;
  backward.loss = nullptr;
  backward.with_stats = false;
  backward.grad_logits = backward.logits;
  run(backward, Reduction::none, nullptr);
  for (size_t i = 0; i < call.grad.size(); ++i)
    CHECK(std::memcmp(&call.grad[i], &call.logits[i], sizeof(Element)) == 0, "element %zu", i);
}

// Three classes a row, two of them the same; the last row has one that counts. As the same
// probabilities among those of all classes, of any dtype and alignment, with all that goes by rows:
// their weights, one of them 0, and classes that are masked in some.
template <class Element, class Source>
void a_few_classes(int64_t classes, bool adjacent) {
  using T = typename Call<Element>::T;
  constexpr int64_t rows = 3, each = 3;
  const Case c = {rows, classes, adjacent ? 1 : rows, true, false, false, false, true};
  Random random;
  Call<Element> few(c, random);
  Call<Element> all = few;
  const std::vector<T> row_weight = {T(0.5), T(0), T(2)};
  const std::vector<T> probs = {T(0.5), T(0.25), T(0.125), T(1), T(0), T(0), T(NAN), T(0.75), T(1)};
  std::vector<int64_t> target;
  std::vector<Source> dense(static_cast<size_t>(rows * classes + 1), Source(0.0f));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t y = static_cast<int64_t>(random.next()) % classes;
    for (const int64_t k : {row == 2 ? -100 : y, classes - 1, row == 2 ? -100 : y})
      target.push_back(k);
    for (size_t k = target.size() - each; k < target.size(); ++k) {
      if (target[k] < 0) continue;
      Source& prob = dense[1 + few.index(row, target[k])];
      prob = Source(static_cast<T>(prob) + probs[k]);
    }
  }
  LossProblem problem = few.problem(Kind<Element>::dtype);
  problem.target = target.data();
  problem.target_classes = each;
  problem.sparse_probs = probs.data();
  LossProblem same = all.problem(Kind<Element>::dtype);
  same.target = nullptr;
  same.target_probs = same.logits;
  same.target_probs.data = dense.data() + 1;
  same.probs_dtype = Kind<Source>::dtype;
  for (LossProblem* p : {&problem, &same}) {
    p->row_weight = row_weight.data();
    p->options.smooth_over = SmoothOver::unmasked;
    p->options.lowest = -5;
  }
  run_both(problem, few);
  run_both(same, all);
  const Tolerance tolerance = Kind<Element>::tolerance;
  for (size_t row = 0; row < rows; ++row) {
    CHECK(close(few.loss[row], all.loss[row], tolerance.loss), "C %ld row %zu: %g, %g", classes,
          row, double(few.loss[row]), double(all.loss[row]));
    CHECK(close(few.nll[row], all.nll[row], tolerance.loss), "C %ld row %zu", classes, row);
  }
  CHECK(few.loss[0] != 0 && few.loss[1] == 0 && few.loss[2] != 0, "C %ld", classes);
  for (size_t i = 0; i < few.grad.size(); ++i) {
    const auto a = static_cast<double>(static_cast<T>(few.grad[i]));
    const auto b = static_cast<double>(static_cast<T>(all.grad[i]));
    CHECK(close(a, b, tolerance.grad), "C %ld element %zu: %g, %g", classes, i, a, b);
  }
}

// A row of a warp, of a block, in parts; in tiles.
template <class Element, class Source>
void a_few_classes_in_all_kernels() {
  constexpr int64_t size = 16 / sizeof(Element);
  for (const int64_t chunks : {3, 300, 2400})
    for (const int64_t extra : {0, 1}) a_few_classes<Element, Source>(chunks * size + extra, true);
  for (const int64_t classes : {9, 300}) a_few_classes<Element, Source>(classes, false);
}

template <class Element>
void scaled() {
  using T = typename Call<Element>::T;
  for (const T factor : {T(1), T(0.5)})
    for (const size_t count : {size_t(0), size_t(1), size_t(15), size_t(20001)}) {
      std::vector<Element> values(count + 1, Element(3.0f));
      CHECK(cuda::scale(Kind<Element>::dtype, values.data() + 1, static_cast<int64_t>(count),
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
  a_few_classes_in_all_kernels<float, __nv_bfloat16>();
  a_few_classes_in_all_kernels<__nv_bfloat16, float>();
#if !defined(__SANITIZE_THREAD__)
  a_few_classes_in_all_kernels<float, float>();
  a_few_classes_in_all_kernels<double, float>();
  a_few_classes_in_all_kernels<__half, __nv_bfloat16>();
  a_few_classes_in_all_kernels<__half, double>();
#endif
  sums_of_several_blocks();
  no_rows();
  bad_targets<float>();
  bad_targets<__nv_bfloat16>();
  scaled<float>();
  scaled<__half>();
}
