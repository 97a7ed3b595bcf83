// What crosses the wall between csrc/torch, which sees torch, and the kernels, which do not: plain
// structs and functions.
#pragma once

#include <cstdint>

#include "row_math.h"

namespace labelsmooth {

enum class DType { float32, float64, bfloat16, float16 };
enum class Reduction : int64_t { none, mean, sum };

constexpr double lowest_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return -0x1.fffffep127;
    case DType::float64: return -0x1.fffffffffffffp1023;
    case DType::bfloat16: return -0x1.fep127;
    case DType::float16: return -65504;
  }
  return 0;
}

// A (outer, classes, inner) tensor; strides count elements. Row r is the class axis at (r / inner,
// r % inner).
struct Matrix {
  void* data = nullptr;
  int64_t outer_stride = 0;
  int64_t class_stride = 0;
  int64_t inner_stride = 0;
};

// One call of the loss. "accumulate dtype" is double for float64 logits, else float; N counts rows,
// C classes.
struct LossProblem {
  DType dtype = DType::float32;
  int64_t rows = 0;  // N = outer * inner
  int64_t classes = 0;
  int64_t inner = 1;

  Matrix logits;
  Matrix grad_logits;  // no data: no gradient is wanted; may be the logits themselves

  // One class a row, (N,); or K classes and their probabilities, (outer, K, inner), adjacent in
  // memory, where classes may come twice; or, without `target`, probabilities of all classes.
  const int64_t* target = nullptr;
  int64_t target_classes = 1;          // K
  const void* sparse_probs = nullptr;  // accumulate dtype
  Matrix target_probs;
  DType probs_dtype = DType::float32;
  int64_t ignore_index = -100;       // a row whose classes are all this one counts nothing
  const void* row_weight = nullptr;  // (N,), accumulate dtype; nullptr: 1

  // (C,) in the accumulate dtype. nullptr: w_c = 1, u_c = 1/C and v_c = 1/C.
  const void* weight = nullptr;
  const void* prior = nullptr;
  const void* class_coef = nullptr;
  ClassSums<double> class_sums = {1, 0, 1};
  LossOptions<double> options;  // `lowest` is of the logits' dtype

  // The gradient of row r is scaled by row_weight[r] grad_loss[r * grad_loss_stride] / denominator;
  // nullptr: by 1.
  const void* grad_loss = nullptr;  // accumulate dtype
  int64_t grad_loss_stride = 0;
  const void* denominator = nullptr;  // one value, accumulate dtype

  // (N,) each, in the accumulate dtype. Forward writes them, backward reads those of the rows.
  void* loss = nullptr;  // nullptr: this is a backward call
  void* row_shift = nullptr;
  void* row_sum_exp = nullptr;
  void* row_mass = nullptr;
  void* row_beta = nullptr;
  // With statistics; else nullptr.
  void* lse = nullptr;
  void* nll = nullptr;
  int64_t* predicted = nullptr;
};

// Where the k-th class of a row's target lies.
template <class Problem>
LABELSMOOTH_HD int64_t entry_of(const Problem& problem, int64_t row, int64_t k) {
  if (problem.inner == 1) return row * problem.target_classes + k;
  return (row / problem.inner * problem.target_classes + k) * problem.inner + row % problem.inner;
}

namespace cpu {

// Rows [begin, end) of a problem, serially, by the best instruction set that this machine has.
void process_rows(const LossProblem& problem, int64_t begin, int64_t end);

// The instruction set in use: "avx512_bf16", "avx512", "avx2" or "baseline"; LABELSMOOTH_CPU forces
// one.
// Throws std::runtime_error where that names none that this machine has.
const char* instruction_set();

}  // namespace cpu

// Pointers are the device's. Functions that launch return a cudaError_t, 0 for success, and take a
// cudaStream_t.
namespace cuda {

int set_device(int device);
const char* error_string(int error);

// What run() needs beside the problem's own memory, on the current device.
int64_t workspace_bytes(const LossProblem& problem);

// A whole call: class_coef, class_sums and the denominator, which are made from weight, prior and
// target in the workspace; the rows; and `reduced_loss`, unless that is nullptr. A `normalizer`
// (one value, accumulate dtype) takes the denominator's place.
int run(const LossProblem& problem, Reduction reduction, const void* normalizer, void* reduced_loss,
        void* workspace, void* stream);

// values *= *factor (accumulate dtype), for `count` adjacent values.
int scale(DType dtype, void* values, int64_t count, const void* factor, void* stream);

}  // namespace cuda
}  // namespace labelsmooth
