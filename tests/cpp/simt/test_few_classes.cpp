// Targets of a few classes, held against the same probabilities among those of all classes.
#include <cstring>
#include <vector>

#include "cuda_call.h"

using namespace labelsmooth;

namespace {

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
  LossProblem problem = few.problem(Traits<Element>::dtype);
  problem.target = target.data();
  problem.target_classes = each;
  problem.sparse_probs = probs.data();
  LossProblem same = all.problem(Traits<Element>::dtype);
  same.target = nullptr;
  same.target_probs = same.logits;
  same.target_probs.data = dense.data() + 1;
  same.probs_dtype = Traits<Source>::dtype;
  for (LossProblem* p : {&problem, &same}) {
    p->row_weight = row_weight.data();
    p->options.smooth_over = SmoothOver::unmasked;
    p->options.lowest = -5;
  }
  run_both(problem, few);
  run_both(same, all);
  const Tolerance tolerance = Traits<Element>::tolerance;
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
void in_all_kernels() {
  constexpr int64_t size = 16 / sizeof(Element);
  for (const int64_t chunks : {3, 300, 2400})
    for (const int64_t extra : {0, 1}) a_few_classes<Element, Source>(chunks * size + extra, true);
  for (const int64_t classes : {9, 300}) a_few_classes<Element, Source>(classes, false);
}

}  // namespace

void a_few_classes_in_all_kernels() {
  in_all_kernels<float, __nv_bfloat16>();
  in_all_kernels<__nv_bfloat16, float>();
#if !defined(__SANITIZE_THREAD__)  // who waits for whom does not depend on the type
  in_all_kernels<float, float>();
  in_all_kernels<double, float>();
  in_all_kernels<__half, __nv_bfloat16>();
  in_all_kernels<__half, double>();
#endif
}
