// A call on CPU tensors: sums over classes and rows, the kernels over ranges of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "call.h"

namespace labelsmooth {

// T is the accumulate dtype.
template <class T>
class CpuCall : public Call {
 public:
  template <class... Arguments>
  explicit CpuCall(Arguments&&... arguments) : Call(std::forward<Arguments>(arguments)...) {}

  std::tuple<Tensor, Tensor, Tensor> forward(bool with_stats) {
    take_classes();
    take_denominator();
    auto [loss, row_stats, predicted] = make_outputs(with_stats);
    process_rows();
    return {reduction_ == Reduction::none ? loss : reduced(loss), row_stats, predicted};
  }

  void backward(const Tensor& grad_loss, const Tensor& row_stats) {
    take_classes();
    take_denominator();
    take_inputs(grad_loss, row_stats);
    process_rows();
  }

  // Throws nothing for a target that is no class: all ranks shall learn of it.
  Tensor partial(bool with_stats) {
    take_classes();
    const Tensor parts = make_parts(with_stats);
    process_rows();
    return parts;
  }

  std::tuple<Tensor, Tensor, Tensor> combine(const Tensor& parts, bool with_stats) {
    take_denominator();
    take_parts(parts);
    auto [loss, row_stats, predicted] = make_outputs(with_stats);
    share_out(problem_.rows, cpu::combine_rows);
    return {reduction_ == Reduction::none ? loss : reduced(loss), row_stats, predicted};
  }

 private:
  static constexpr int64_t elements_a_thread = 32768;
  static constexpr int64_t block_rows = 16384;

  void take_classes() {
    if ((weight_ && !problem_.options.weight_over_target) || prior_)
      make_class_coef();
    else
      problem_.class_sums.coef =
          static_cast<double>(problem_.classes) / static_cast<double>(problem_.all_classes);
    if (!prior_)
      problem_.class_sums.coef_log =
          -std::log(static_cast<double>(problem_.all_classes)) * problem_.class_sums.coef;
  }

  void take_denominator() {
    const double target_weight = sum_target_weights();
    if (reduction_ != Reduction::mean) return;
    // A mean over no weight at all is 0/0, as torch has it, in the gradient too.
    denominator_ = normalizer_          ? *static_cast<const T*>(normalizer_->data_ptr())
                   : target_weight == 0 ? std::numeric_limits<T>::quiet_NaN()
                                        : static_cast<T>(target_weight);
    problem_.denominator = &denominator_;
  }

  // v_c and its sums, in the order of the classes. In double the many equal terms of a uniform
  // prior would all round to the same side.
  void make_class_coef() {
    const int64_t classes = problem_.classes;
    const T* weight = static_cast<const T*>(problem_.weight);
    const T* prior = static_cast<const T*>(problem_.prior);
    class_coef_.resize(static_cast<size_t>(classes));
    long double sum = 0, sum_log = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const T u = prior ? prior[c] : T(1) / static_cast<T>(problem_.all_classes);
      const T v = coef_of_class(weight ? weight[c] : T(1), u, problem_.options);
      class_coef_[static_cast<size_t>(c)] = v;
      sum += v;
      if (prior && problem_.options.kl_div)
        sum_log += coef_log_of_class(static_cast<double>(v), static_cast<double>(u));
    }
    problem_.class_coef = class_coef_.data();
    problem_.class_sums.coef = static_cast<double>(sum);
    problem_.class_sums.coef_log = static_cast<double>(sum_log);
  }

  // The rows that are not ignored, and their sum of r w_y, or of r where the target is not one
  // class; or the first row whose target is no class, and that.
  struct Counted {
    int64_t rows = 0;
    long double weight = 0;
    int64_t invalid_row = -1;
    int64_t invalid = 0;
  };

  // Throws where a target is no class.
  double sum_target_weights() const {
    Counted all;
    for (const Counted& block : of_row_blocks<Counted>(&CpuCall::counted)) {
      STD_TORCH_CHECK(block.invalid_row < 0, "<IndexError>target of row ", block.invalid_row,
                      " is ", block.invalid, ": expected a class in [0, ", problem_.all_classes,
                      ") or ignore_index = ", problem_.ignore_index, "</IndexError>");
      all.rows += block.rows;
      all.weight += block.weight;
    }
    return target_weight() || problem_.row_weight ? static_cast<double>(all.weight)
                                                  : static_cast<double>(all.rows);
  }

  // Of the rows of a block.
  Counted counted(int64_t begin, int64_t end) const {
    const T* weight = target_weight();
    const T* row_weight = static_cast<const T*>(problem_.row_weight);
    if (problem_.target && problem_.target_classes == 1 && !weight && !row_weight) {
      int64_t ignored = 0, classes = 0;  // counted without a branch
      for (int64_t row = begin; row < end; ++row) {
        ignored += problem_.target[row] == problem_.ignore_index;
        classes += is_class(problem_.target[row]);
      }
      const int64_t no_classes = is_class(problem_.ignore_index) ? 0 : ignored;
      if (classes + no_classes == end - begin) return {end - begin - ignored};
    }
    Counted block;
    for (int64_t row = begin; row < end; ++row) {
      bool counts = !problem_.target;
      for (int64_t k = 0; problem_.target && k < problem_.target_classes; ++k) {
        const int64_t y = problem_.target[entry_of(problem_, row, k)];
        if (y == problem_.ignore_index) continue;
        if (!is_class(y)) return {0, 0, row, y};
        counts = true;
      }
      if (!counts) continue;
      ++block.rows;
      if (weight || row_weight)
        block.weight +=
            weighted(row_weight ? row_weight[row] : T(1),
                     weight ? weight[problem_.target[row] - problem_.class_offset] : T(1));
    }
    return block;
  }

  // Of a target that is one class.
  const T* target_weight() const {
    const bool one_class = problem_.target && !problem_.sparse_probs;
    return one_class ? static_cast<const T*>(problem_.weight) : nullptr;
  }

  bool is_class(int64_t y) const {
    return static_cast<uint64_t>(y) < static_cast<uint64_t>(problem_.all_classes);
  }

  // Rows are shared out whole. Of long ones those left over, fewer than threads, are shared by
  // blocks, if more threads can share a row than there are such rows.
  void process_rows() const {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t sharers = std::min(threads, problem_.classes / elements_a_thread);
    const bool are_long = problem_.classes >= cpu::classes_to_share;
    int64_t left = are_long ? problem_.rows % threads : 0;
    if (left >= sharers) left = 0;
    share_out(problem_.rows - left, cpu::process_rows);
    LossProblem shared = problem_;
    shared.workers = [](int64_t count, Work work, const void* context) {
      torch::stable::parallel_for(0, count, elements_a_thread / cpu::block_classes,
                                  [&](int64_t begin, int64_t end) { work(context, begin, end); });
    };
    if (left) cpu::process_rows(shared, problem_.rows - left, problem_.rows);
  }

  template <class Process>
  void share_out(int64_t rows, const Process& process) const {
    const int64_t grain =
        std::max<int64_t>(1, elements_a_thread / std::max<int64_t>(1, problem_.classes));
    torch::stable::parallel_for(0, rows, grain,
                                [&](int64_t begin, int64_t end) { process(problem_, begin, end); });
  }

  Tensor reduced(const Tensor& row_loss) const {
    Tensor loss = torch::stable::new_empty(row_loss, {});
    const auto sums = of_row_blocks<double>(&CpuCall::sum_losses);
    const double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
    *static_cast<T*>(loss.data_ptr()) = static_cast<T>(
        reduction_ == Reduction::mean ? sum / static_cast<double>(denominator_) : sum);
    return loss;
  }

  double sum_losses(int64_t begin, int64_t end) const {
    const T* losses = static_cast<const T*>(problem_.loss);
    double sums[8] = {};  // independent additions
    const auto add = [&](int64_t row, int64_t count) {
      for (int64_t i = 0; i < count; ++i) sums[i] += losses[row + i];
    };
    const int64_t rest = (end - begin) % 8;
    for (int64_t row = begin; row < end - rest; row += 8) add(row, 8);
    add(end - rest, rest);
    return std::accumulate(std::begin(sums), std::end(sums), 0.0);
  }

  // What `of` makes of each block of rows. Sums are made by block, then of the blocks in order, so
  // that they do not depend on the number of threads.
  template <class Result>
  std::vector<Result> of_row_blocks(Result (CpuCall::*of)(int64_t, int64_t) const) const {
    const int64_t blocks = (problem_.rows + block_rows - 1) / block_rows;
    std::vector<Result> results(static_cast<size_t>(blocks));
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * block_rows;
        results[static_cast<size_t>(block)] =
            (this->*of)(begin, std::min(problem_.rows, begin + block_rows));
      }
    });
    return results;
  }

  std::vector<T> class_coef_;
  T denominator_ = 1;
};

}  // namespace labelsmooth
