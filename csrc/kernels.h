// What crosses the wall between csrc/torch, which sees torch, and the kernels, which do not: plain
// structs and functions.
#pragma once

#include <cstdint>

#include "row_math.h"

namespace labelsmooth {

enum class DType { float32, float64, bfloat16, float16 };
enum class Reduction : int64_t { none, mean, sum };

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
  Matrix grad_logits;               // no data: no gradient is wanted; may be the logits themselves
  const int64_t* target = nullptr;  // (N,), or nullptr where the target is class probabilities
  Matrix target_probs;              // of the logits' dtype
  int64_t ignore_index = -100;

  // (C,) in the accumulate dtype. nullptr: w_c = 1, u_c = 1/C and v_c = 1/C.
  const void* weight = nullptr;
  const void* prior = nullptr;
  const void* class_coef = nullptr;
  ClassSums<double> class_sums;
  LossOptions<double> options;

  // The gradient of row r is scaled by grad_loss[r * grad_loss_stride] / denominator; nullptr:
  // by 1.
  const void* grad_loss = nullptr;  // accumulate dtype
  int64_t grad_loss_stride = 0;
  const void* denominator = nullptr;  // one value, accumulate dtype

  // (N,) each, in the accumulate dtype. Forward writes them, backward reads row_shift and
  // row_sum_exp.
  void* loss = nullptr;  // nullptr: this is a backward call
  void* row_shift = nullptr;
  void* row_sum_exp = nullptr;
  // With statistics; else nullptr.
  void* lse = nullptr;
  void* nll = nullptr;
  int64_t* predicted = nullptr;
};

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
