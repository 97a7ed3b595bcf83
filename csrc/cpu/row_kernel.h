// The CPU kernel: one row after another, each read from memory once.
//
//   statistics  the exponentials and the weighted sum in one pass, relative to a shift that is
//               known before the row is read (row_stats)
//   loss        from the statistics (row_math.h)
//   gradient    from the row, by now in cache, into grad_logits, which may be the row itself
//
// Rows whose classes are not adjacent in memory go through a buffer of one row.
#pragma once

#include "row.h"
#include "typed_problem.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Up to here the gradient takes the exponentials that the statistics left in cache.
constexpr int64_t kept_classes = 131072;
// While a row's gradient is written, the next row is fetched, if both fit in cache.
constexpr int64_t read_ahead_classes = 65536;
// Independent accumulators, which hide the latency of an addition.
constexpr int unroll = 4;
// Rounding errors must not grow with the classes: so many vectors are added to an accumulator, then
// the accumulators to those of a block, then the lanes of a block to the row's sum, a double.
constexpr int64_t run = 16;
constexpr int64_t block_classes = 4096;

template <class Element, bool has_vectors, bool soft, bool transformed>
class RowKernel {
  using R = Row<Element, has_vectors, soft, transformed>;
  using T = typename R::T;
  using V = typename R::V;

 public:
  explicit RowKernel(const LossProblem& problem)
      : problem_(problem),
        typed_(problem),
        classes_(problem.classes),
        row_{nullptr, nullptr,        typed_.class_coef, typed_.weight,
             nullptr, typed_.uniform, typed_.options} {}

  void process(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      open(row);
      read_ahead(row + 1 < end ? row + 1 : row);
      const bool keep = problem_.loss && problem_.grad_logits.data && classes_ <= kept_classes;
      row_.exps = keep ? exps_buffer_.get(classes_ + V::size) : nullptr;
      if (problem_.loss) {
        forward(row);
      } else {
        recall(row);
      }
      if (problem_.grad_logits.data) write_gradient(row);
    }
  }

 private:
  // ---- the row in hand --------------------------------------------------------------------------

  // The row's elements, adjacent: in place, or copied into a buffer.
  const Element* adjacent(const Matrix& matrix, int64_t row, Buffer<Element>& buffer) const {
    const Element* source = typed_.row_of(matrix, row);
    if (matrix.class_stride == 1) return source;
    Element* copy = buffer.get(classes_);
    for (int64_t c = 0; c < classes_; ++c) copy[c] = source[c * matrix.class_stride];
    return copy;
  }

  void open(int64_t row) {
    row_.logits = adjacent(problem_.logits, row, logits_buffer_);
    if constexpr (soft) {
      row_.target_probs = adjacent(problem_.target_probs, row, target_buffer_);
      terms_ = row_terms(T(0), T(1), T(0), typed_.options);
      terms_.tau = 0;
    } else {
      ignored_ = typed_.ignored(row);
      target_ = ignored_ ? 0 : problem_.target[row];
      terms_ = row_terms(typed_.prior_of(target_), typed_.weight_of(target_), typed_.sums.coef,
                         typed_.options);
    }
  }

  // Fetches the target of a row, where its statistics begin, and tells the gradient what to fetch.
  void read_ahead(int64_t row) {
    const Element* next = typed_.row_of(problem_.logits, row);
    const int64_t stride = problem_.logits.class_stride;
    if (!soft && !typed_.ignored(row)) __builtin_prefetch(next + problem_.target[row] * stride);
    read_ahead_ = stride == 1 && classes_ <= read_ahead_classes ? next : nullptr;
  }

  T logit(int64_t c) const { return row_.template logits_at<false>(c, 1).lanes[0]; }

  // ---- statistics -------------------------------------------------------------------------------

  RowStats<T> row_stats_from(T shift, T beta, T kappa) const {
    RowStats<double> total = {0, 0, 0, 0};
    for (int64_t begin = 0; begin < classes_; begin += block_classes) {
      const int64_t end = begin + block_classes < classes_ ? begin + block_classes : classes_;
      total = add(total, sum_lanes(block_stats_from(shift, begin, end, beta, kappa)));
    }
    return {shift, T(total.sum_exp), T(total.coef_dot), T(total.coef_sum)};
  }

  RowStats<V> block_stats_from(T shift, int64_t begin, int64_t end, T beta, T kappa) const {
    const R row = row_;
    RowStats<V> block = empty_stats<V>();
    int64_t c = begin;
    while (c + unroll * V::size <= end) {
      RowStats<V> parts[unroll];
      for (RowStats<V>& part : parts) part = empty_stats<V>();
      for (int64_t k = 0; k < run && c + unroll * V::size <= end; ++k, c += unroll * V::size)
        for (int i = 0; i < unroll; ++i)
          row.template accumulate<true>(parts[i], c + i * V::size, V::size, shift, beta, kappa);
      for (int i = 1; i < unroll; ++i) parts[0] = add(parts[0], parts[i]);
      block = add(block, parts[0]);
    }
    for (; c + V::size <= end; c += V::size)
      row.template accumulate<true>(block, c, V::size, shift, beta, kappa);
    if (c < end) row.template accumulate<false>(block, c, end - c, shift, beta, kappa);
    return block;
  }

  // One pass, from a guess at the maximum: the target's logit, so that the loss of a row that is
  // nearly right is the logarithm of nearly 1. Where other logits stand far above it, or it is
  // masked, a second pass takes the true maximum, as rows with class probabilities do at once.
  RowStats<T> row_stats(T beta, T kappa) const {
    if constexpr (!soft) {
      const RowStats<T> row = row_stats_from(finite_or_zero(logit(target_)), beta, kappa);
      if (row.sum_exp > T(0.5) && row.sum_exp < T(1e12)) return row;
    }
    return row_stats_from(finite_or_zero(maximum()), beta, kappa);
  }

  T maximum() const {
    V largest(-infinity<T>());
    int64_t c = 0;
    for (; c + V::size <= classes_; c += V::size)
      largest = max(row_.template logits_at<true>(c, V::size), largest);
    if (c < classes_) {
      const V last = V::first(classes_ - c, row_.template logits_at<false>(c, classes_ - c),
                              V(-infinity<T>()));
      largest = max(last, largest);
    }
    return max_lanes(largest);
  }

  // ---- loss -------------------------------------------------------------------------------------

  static T& at(void* rows, int64_t row) { return static_cast<T*>(rows)[row]; }

  void forward(int64_t row) {
    // An ignored row is read only if its lse and argmax are wanted.
    const bool unread = ignored_ && !problem_.predicted;
    stats_ = unread ? RowStats<T>{T(0), T(1), T(0), T(0)}
                    : row_stats(soft ? terms_.beta : T(1), terms_.kappa);
    at(problem_.row_shift, row) = stats_.shift;
    at(problem_.row_sum_exp, row) = stats_.sum_exp;
    if (soft) terms_.mass = stats_.coef_sum;
    at(problem_.loss, row) = ignored_ ? T(0) : loss();
    if (problem_.predicted) {
      at(problem_.lse, row) = log_sum_exp(stats_, typed_.options);
      at(problem_.nll, row) = ignored_ ? T(0) : nll();
      problem_.predicted[row] = argmax();
    }
  }

  // A backward call finds the statistics where forward left them.
  void recall(int64_t row) {
    if constexpr (soft) {
      stats_ = row_stats(terms_.beta, terms_.kappa);
      terms_.mass = stats_.coef_sum;
    } else {
      stats_ = {at(problem_.row_shift, row), at(problem_.row_sum_exp, row), T(0), T(0)};
    }
  }

  T loss() const {
    RowStats<T> stats = stats_;
    RowTerms<T> terms = terms_;
    T target_logit = stats.shift, entropy = 0;
    if constexpr (soft) {
      terms.beta = 1;  // coef_dot holds beta and kappa already
      if (typed_.options.kl_div) entropy = negative_entropy_of_probs();
    } else {
      target_logit = logit(target_);
      if (target_logit == -infinity<T>() && terms.target_coef == 0)
        stats.coef_dot = coef_dot_without_target();
      if (typed_.options.kl_div)
        entropy = negative_entropy(terms, typed_.prior_of(target_), typed_.weight_of(target_),
                                   typed_.sums);
    }
    return row_loss(stats, terms, target_logit, stats.shift, typed_.options) + entropy;
  }

  T coef_dot_without_target() const {
    double sum = 0;  // serial: float32 would lose digits with the classes
    for (int64_t c = 0; c < classes_; ++c)
      if (c != target_) sum += weighted(typed_.class_coef_of(c), logit(c) - stats_.shift);
    return static_cast<T>(sum);
  }

  T negative_entropy_of_probs() const {
    double sum = 0;  // serial: float32 would lose digits with the classes
    for (int64_t c = 0; c < classes_; ++c)
      sum += soft_negative_entropy(typed_.weight_of(c), typed_.prior_of(c),
                                   T(load_one(row_.target_probs + c)), terms_.beta, terms_.kappa);
    return static_cast<T>(sum);
  }

  T nll() const {
    const T lse = log_sum_exp_from(stats_.shift, stats_, typed_.options);
    if constexpr (soft) {
      double sum = 0;  // serial: float32 would lose digits with the classes
      for (int64_t c = 0; c < classes_; ++c)
        sum += soft_nll(T(load_one(row_.target_probs + c)), lse, logit(c) - stats_.shift);
      return static_cast<T>(sum);
    } else {
      return lse - (logit(target_) - stats_.shift);
    }
  }

  // The first largest logit, or the first NaN.
  int64_t argmax() const {
    int64_t first = classes_;
    if (!(stats_.sum_exp == stats_.sum_exp)) first = find(std::numeric_limits<T>::quiet_NaN());
    if (first == classes_) first = find(maximum());
    return first == classes_ ? 0 : first;
  }

  // The first logit that is `value`, which may be NaN.
  int64_t find(T value) const {
    for (int64_t c = 0; c < classes_; c += V::size) {
      const int64_t count = classes_ - c < V::size ? classes_ - c : V::size;
      const V x = count == V::size ? row_.template logits_at<true>(c, count)
                                   : row_.template logits_at<false>(c, count);
      const auto found = value == value ? x == V(value) : ~(x == x);
      if (!any_lane<T>(found)) continue;
      for (int i = 0; i < count; ++i)
        if (found[i]) return c + i;
    }
    return classes_;
  }

  // ---- gradient ---------------------------------------------------------------------------------

  void write_gradient(int64_t row) {
    Element* destination = typed_.row_of(problem_.grad_logits, row);
    const int64_t stride = problem_.grad_logits.class_stride;
    Element* grad = stride == 1 ? destination : grad_buffer_.get(classes_);
    int64_t c = 0;
    if (ignored_) {
      for (; c + V::size <= classes_; c += V::size) store(grad + c, V(T(0)));
      if (c < classes_) store_first(grad + c, V(T(0)), classes_ - c);
    } else {
      const R r = row_;
      const Element* ahead = read_ahead_;
      const GradTerms<T> terms = grad_terms(stats_, terms_, typed_.incoming(row), typed_.options);
      const T target_grad = soft ? T(0) : gradient_at_target(terms);
      for (; c + V::size <= classes_; c += V::size) {
        if (ahead) __builtin_prefetch(ahead + c);
        store(grad + c, r.template gradient_at<true>(c, V::size, terms));
      }
      if (c < classes_)
        store_first(grad + c, r.template gradient_at<false>(c, classes_ - c, terms), classes_ - c);
      if constexpr (!soft) store_one(grad + target_, target_grad);
    }
    if (stride != 1)
      for (c = 0; c < classes_; ++c) destination[c * stride] = grad[c];
  }

  // mass p_y and w_y q_y nearly cancel: their difference is rounded once. p_y takes the very
  // exponential that is in the sum, so that its error cancels too.
  T gradient_at_target(const GradTerms<T>& terms) const {
    const V x(logit(target_));
    const V exp_x = exp_of<Element>(x - V(terms.shift));
    return row_.sloped(logit_grad(exp_x, V(terms.target_coef), terms), x).lanes[0];
  }

  const LossProblem& problem_;
  const TypedProblem<Element> typed_;
  const int64_t classes_;

  // The row in hand.
  R row_;
  int64_t target_ = 0;
  bool ignored_ = false;
  const Element* read_ahead_ = nullptr;
  RowTerms<T> terms_{};
  RowStats<T> stats_{};
  Buffer<T> exps_buffer_;
  Buffer<Element> logits_buffer_, target_buffer_, grad_buffer_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
