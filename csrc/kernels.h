// What crosses the wall between csrc/torch, which sees torch, and the kernels, which do not: plain
// structs and functions.
#pragma once

#include <cstdint>

#include "row_part.h"

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

template <class T>
LABELSMOOTH_HD LossOptions<T> typed_options(const LossOptions<double>& o) {
  return {T(o.label_smoothing), T(o.lse_square_scale), T(o.logit_scale),     T(o.softcap),
          T(o.lowest),          o.smooth_over,         o.weight_over_target, o.kl_div,
          o.from_log_probs};
}

// A (outer, classes, inner) tensor; strides count elements. Row r is the class axis at (r / inner,
// r % inner).
struct Matrix {
  void* data = nullptr;
  int64_t outer_stride = 0;
  int64_t class_stride = 0;
  int64_t inner_stride = 0;
};

// Workers call work(context, begin, end) for ranges that make up [0, count), on any threads, and
// return when all are done.
using Work = void (*)(const void* context, int64_t begin, int64_t end);
using Workers = void (*)(int64_t count, Work work, const void* context);

// One call of the loss. "accumulate dtype" is double for float64 logits, else float; N counts rows,
// C classes.
struct LossProblem {
  DType dtype = DType::float32;
  int64_t rows = 0;  // N = outer * inner
  int64_t classes = 0;
  int64_t inner = 1;
  // A rank has a part of each row: `classes` from class_offset on, of all_classes (C), which
  // targets name.
  int64_t class_offset = 0;
  int64_t all_classes = 0;

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

  // In the accumulate dtype. nullptr: w_c = 1, u_c = 1/C and v_c = 1/C. They point to this part's
  // first class; weight and prior have the other parts' before and behind.
  const void* weight = nullptr;
  const void* prior = nullptr;
  const void* class_coef = nullptr;
  ClassSums<double> class_sums = {1, 0, 1};  // over the classes of this part
  LossOptions<double> options;               // `lowest` is of the logits' dtype

  // The gradient of row r is scaled by row_weight[r] grad_loss[r * grad_loss_stride] / denominator;
  // nullptr: by 1.
  const void* grad_loss = nullptr;  // accumulate dtype
  int64_t grad_loss_stride = 0;
  const void* denominator = nullptr;  // one value, accumulate dtype

  // A call that writes the rows' parts, a RowPart's for_fields, (fields, N) in the accumulate
  // dtype, and none of the outputs below.
  void* parts = nullptr;
  // All ranks' parts, for combine, rank_stride apart.
  const void* ranks_parts = nullptr;
  int64_t ranks = 1;
  int64_t rank_stride = 0;

  bool with_stats = false;  // lse, nll and predicted are wanted, or what a part has of them

  // (N,) each, in the accumulate dtype. Forward writes them, backward reads row_*.
  void* loss = nullptr;  // nullptr: a backward call, or one that makes parts
  void* row_shift = nullptr;
  void* row_sum_exp = nullptr;
  void* row_mass = nullptr;
  void* row_beta = nullptr;
  // With statistics.
  void* lse = nullptr;
  void* nll = nullptr;
  int64_t* predicted = nullptr;

  Workers workers = nullptr;  // on the CPU, share the blocks of a row; nullptr: the caller alone
};

// Not in a backward call, which finds its rows' sums.
LABELSMOOTH_HD bool makes_sums(const LossProblem& problem) { return problem.loss || problem.parts; }

// Where the k-th class of a row's target lies.
template <class Problem>
LABELSMOOTH_HD int64_t entry_of(const Problem& problem, int64_t row, int64_t k) {
  if (problem.inner == 1) return row * problem.target_classes + k;
  return (row / problem.inner * problem.target_classes + k) * problem.inner + row % problem.inner;
}

namespace cpu {

// A row is summed in blocks of so many classes.
constexpr int64_t block_classes = 4096;
// Of rows of so many and more, workers may share the blocks.
constexpr int64_t classes_to_share = 1 << 16;

// Rows [begin, end), with the instruction set in use.
void process_rows(const LossProblem& problem, int64_t begin, int64_t end);

// What forward writes, from all ranks' parts. Of a row whose target is no class on some rank, loss
// and gradient are NaN.
void combine_rows(const LossProblem& problem, int64_t begin, int64_t end);

// The instruction set in use: "avx512_bf16", "avx512", "avx2" or "baseline", on aarch64 "neon_bf16"
// or "neon"; LABELSMOOTH_CPU forces one. Throws std::runtime_error if this machine lacks it.
const char* instruction_set();

}  // namespace cpu

// Pointers are the device's. Functions that launch return a cudaError_t, 0 for success, and take a
// cudaStream_t.
namespace cuda {

// As CUDA counts, 13000 for 13.0: the runtime built in, and the newest that the driver serves (0:
// no driver).
int runtime_version();
int driver_version();

int set_device(int device);
const char* error_string(int error);

// What run() needs beside the problem's own memory, on the current device.
int64_t workspace_bytes(const LossProblem& problem);

// A whole call: class_coef, class_sums and the denominator, made in the workspace from weight,
// prior and target; the rows; and `reduced_loss`, unless nullptr. A `normalizer` (one value,
// accumulate dtype) takes the denominator's place.
int run(const LossProblem& problem, Reduction reduction, const void* normalizer, void* reduced_loss,
        void* workspace, void* stream);

// As run(), from all ranks' parts instead of the logits.
int combine(const LossProblem& problem, Reduction reduction, const void* normalizer,
            void* reduced_loss, void* workspace, void* stream);

// values *= *factor (accumulate dtype), for `count` adjacent values.
int scale(DType dtype, void* values, int64_t count, const void* factor, void* stream);

}  // namespace cuda
}  // namespace labelsmooth
