// The CPU kernel: one row after another, each read from memory once.
//
//   statistics  the exponentials and the weighted sum in one pass, relative to a shift that is
//               known before the row is read (row_stats)
//   loss        from the statistics (row_math.h)
//   gradient    from the row, by now in cache, into grad_logits, which may be the row itself
//
// Rows whose classes are not adjacent in memory go through a buffer of one row.
#pragma once

#include "../kernels.h"
#include "vec.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// A buffer that grows to one row and is reused for the next.
template <class Element>
class RowBuffer {
 public:
  RowBuffer() {}
  RowBuffer(const RowBuffer&) = delete;
  RowBuffer& operator=(const RowBuffer&) = delete;
  ~RowBuffer() { std::free(data_); }
  Element* get(int64_t classes) {
    if (!data_)
      data_ = static_cast<Element*>(std::malloc(static_cast<size_t>(classes) * sizeof(Element)));
    if (!data_) throw std::bad_alloc();
    return data_;
  }

 private:
  Element* data_ = nullptr;
};

// Classes that are summed up before they are added to the row's sum.
constexpr int64_t tile_classes = 16384;
// Up to here the gradient takes the exponentials that the statistics left in cache.
constexpr int64_t kept_classes = 131072;
// While a row's gradient is written, the next row is fetched, if both fit in cache.
constexpr int64_t read_ahead_classes = 65536;
// The hardware's own prefetching ends at the page.
constexpr int64_t prefetch_bytes = 4096;
// Independent accumulators, which hide the latency of an addition.
constexpr int unroll = 4;
// has_vectors: the class coefficients are a vector, not the constant 1/C. soft: the target is class
// probabilities. transformed: the logits are scaled or capped.
template <class Element, bool has_vectors, bool soft, bool transformed>
class RowKernel {
  using T = typename Accumulate<Element>::type;
  using V = Vec<T>;

  // 16-bit logits do not need, and would not show, the last bits of an exponential.
  static LABELSMOOTH_HD V exp_summed(V x) {
    if constexpr (sizeof(Element) == 2)
      return exp_to<5>(x);
    else
      return exp(x);
  }
  static LABELSMOOTH_HD V exp_rounded(V x) {
    if constexpr (std::is_same_v<Element, BFloat16>)
      return exp_to<3>(x);
    else if constexpr (std::is_same_v<Element, Float16>)
      return exp_to<4>(x);
    else
      return exp(x);
  }

 public:
  RowKernel(const LossProblem& problem)
      : problem_(problem),
        classes_(problem.classes),
        uniform_(T(1) / static_cast<T>(problem.classes)),
        weight_(static_cast<const T*>(problem.weight)),
        prior_(static_cast<const T*>(problem.prior)),
        class_coef_(static_cast<const T*>(problem.class_coef)),
        sums_{T(problem.class_sums.coef), T(problem.class_sums.coef_log)},
        options_(narrow_options(problem.options)) {}

  void process(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      open(row);
      const bool ahead =
          row + 1 < end && problem_.logits.class_stride == 1 && classes_ <= read_ahead_classes;
      read_ahead_ = ahead ? row_of(problem_.logits, row + 1, problem_.inner) : nullptr;
      const bool keep = problem_.loss && problem_.grad_logits.data && classes_ <= kept_classes;
      exps_ = keep ? exps_buffer_.get(classes_ + V::size) : nullptr;
      if (problem_.loss) {
        forward(row);
      } else {
        recall(row);
      }
      if (problem_.grad_logits.data) write_gradient(row);
    }
  }

 private:
  static LossOptions<T> narrow_options(const LossOptions<double>& o) {
    return {T(o.label_smoothing), T(o.lse_square_scale), T(o.logit_scale),
            T(o.softcap),         o.over_others,         o.kl_div,
            o.from_log_probs};
  }

  // ---- the row in hand --------------------------------------------------------------------------

  static Element* row_of(const Matrix& matrix, int64_t row, int64_t inner) {
    Element* data = static_cast<Element*>(matrix.data);
    if (inner == 1) return data + row * matrix.outer_stride;
    return data + (row / inner) * matrix.outer_stride + (row % inner) * matrix.inner_stride;
  }

  // The row's elements, adjacent: in place, or copied into a buffer.
  const Element* adjacent(const Matrix& matrix, int64_t row, RowBuffer<Element>& buffer) const {
    const Element* source = row_of(matrix, row, problem_.inner);
    if (matrix.class_stride == 1) return source;
    Element* copy = buffer.get(classes_);
    for (int64_t c = 0; c < classes_; ++c) copy[c] = source[c * matrix.class_stride];
    return copy;
  }

  void open(int64_t row) {
    logits_ = adjacent(problem_.logits, row, logits_buffer_);
    if constexpr (soft) {
      target_probs_ = adjacent(problem_.target_probs, row, target_buffer_);
      terms_ = row_terms(T(0), T(1), T(0), options_);
      terms_.tau = 0;
    } else {
      ignored_ = problem_.target[row] == problem_.ignore_index;
      target_ = ignored_ ? 0 : problem_.target[row];
      terms_ = row_terms(prior(target_), weight(target_), sums_.coef, options_);
    }
  }

  T prior(int64_t c) const { return prior_ ? prior_[c] : uniform_; }
  T weight(int64_t c) const { return weight_ ? weight_[c] : T(1); }
  T class_coef(int64_t c) const { return has_vectors ? class_coef_[c] : uniform_; }
  T logit(int64_t c) const { return logits_at<false>(c, 1).lanes[0]; }

  // A vector of classes from c on. In a row's last one only `count` lanes hold classes.
  template <bool whole, class Source>
  static LABELSMOOTH_HD V classes_at(const Source* source, int64_t c, int64_t count) {
    return whole ? load(source + c) : load_first(source + c, count);
  }

  template <bool whole>
  LABELSMOOTH_HD V logits_at(int64_t c, int64_t count) const {
    const V x = classes_at<whole>(logits_, c, count);
    return transformed ? transform_logit(x, options_) : x;
  }

  // beta v_c, and kappa w_c t_c on top where the target is class probabilities.
  template <bool whole>
  LABELSMOOTH_HD V coef_at(int64_t c, int64_t count, T beta, T kappa) const {
    V coef = V(beta) * (has_vectors ? classes_at<whole>(class_coef_, c, count) : V(uniform_));
    if constexpr (soft) {
      V probs = V(kappa) * classes_at<whole>(target_probs_, c, count);
      if (has_vectors && weight_) probs = probs * classes_at<whole>(weight_, c, count);
      coef = coef + probs;
    }
    return whole ? coef : V::first(count, coef, V(T(0)));
  }

  // ---- statistics -------------------------------------------------------------------------------

  // One more vector of classes in lanes of row statistics, all relative to `shift`.
  template <bool whole>
  LABELSMOOTH_HD void accumulate(RowStats<V>& stats, int64_t c, int64_t count, T shift, T beta,
                                 T kappa) const {
    __builtin_prefetch(logits_ + c + prefetch_bytes / static_cast<int64_t>(sizeof(Element)));
    V difference = logits_at<whole>(c, count) - V(shift);
    if constexpr (!whole) difference = V::first(count, difference, V(-infinity<T>()));
    const V exp_x = exp_summed(difference);
    if (exps_) store(exps_ + c, exp_x);
    stats.sum_exp = stats.sum_exp + exp_x;
    const V coef = coef_at<whole>(c, count, beta, kappa);
    constexpr bool never_zero = whole && !has_vectors && !soft;
    stats.coef_dot = stats.coef_dot + (never_zero ? coef * difference : weighted(coef, difference));
    if constexpr (soft) stats.coef_sum = stats.coef_sum + coef;
  }

  // The row in tiles, whose sums are added up so that rounding errors do not grow with the classes.
  RowStats<T> row_stats_from(T shift, T beta, T kappa) const {
    RowStats<T> row = {shift, T(0), T(0), T(0)};
    for (int64_t begin = 0; begin < classes_; begin += tile_classes) {
      const int64_t end = begin + tile_classes < classes_ ? begin + tile_classes : classes_;
      RowStats<V> parts[unroll];
      for (RowStats<V>& part : parts) part = empty_stats<V>();
      int64_t c = begin;
      for (; c + unroll * V::size <= end; c += unroll * V::size)
        for (int i = 0; i < unroll; ++i)
          accumulate<true>(parts[i], c + i * V::size, V::size, shift, beta, kappa);
      for (; c + V::size <= end; c += V::size)
        accumulate<true>(parts[0], c, V::size, shift, beta, kappa);
      if (c < end) accumulate<false>(parts[0], c, end - c, shift, beta, kappa);

      V sum_exp = parts[0].sum_exp, coef_dot = parts[0].coef_dot, coef_sum = parts[0].coef_sum;
      for (int i = 1; i < unroll; ++i) {
        sum_exp = sum_exp + parts[i].sum_exp;
        coef_dot = coef_dot + parts[i].coef_dot;
        coef_sum = coef_sum + parts[i].coef_sum;
      }
      row.sum_exp += sum_lanes(sum_exp);
      row.coef_dot += sum_lanes(coef_dot);
      if constexpr (soft) row.coef_sum += sum_lanes(coef_sum);
    }
    return row;
  }

  // One pass, from a guess at the maximum: that of the first few classes. Where other logits stand
  // so far above it that the sum is not well inside the range of float, or where these classes are
  // masked, a second pass takes the true maximum.
  RowStats<T> row_stats(T beta, T kappa) const {
    const RowStats<T> row = row_stats_from(finite_or_zero(maximum(V::size)), beta, kappa);
    if (row.sum_exp > T(0.5) && row.sum_exp < T(1e30)) return row;
    return row_stats_from(finite_or_zero(maximum(classes_)), beta, kappa);
  }

  // Of the first `count` classes.
  T maximum(int64_t count) const {
    if (count > classes_) count = classes_;
    V largest(-infinity<T>());
    int64_t c = 0;
    for (; c + V::size <= count; c += V::size) largest = max(logits_at<true>(c, V::size), largest);
    if (c < count) {
      const V last = V::first(count - c, logits_at<false>(c, count - c), V(-infinity<T>()));
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
      at(problem_.lse, row) = log_sum_exp(stats_, options_);
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
      if (options_.kl_div) entropy = negative_entropy_of_probs();
    } else {
      target_logit = logit(target_);
      if (target_logit == -infinity<T>() && terms.target_coef == 0)
        stats.coef_dot = coef_dot_without_target();
      if (options_.kl_div)
        entropy = negative_entropy(terms, prior(target_), weight(target_), sums_);
    }
    return row_loss(stats, terms, target_logit, stats.shift, options_) + entropy;
  }

  T coef_dot_without_target() const {
    T sum = 0;
    for (int64_t c = 0; c < classes_; ++c)
      if (c != target_) sum += weighted(class_coef(c), logit(c) - stats_.shift);
    return sum;
  }

  T negative_entropy_of_probs() const {
    T sum = 0;
    for (int64_t c = 0; c < classes_; ++c)
      sum +=
          weight(c) * x_log_x(terms_.beta * prior(c) + terms_.kappa * load_one(target_probs_ + c));
    return sum;
  }

  T nll() const {
    const T lse = log_sum_exp_from(stats_.shift, stats_, options_);
    if constexpr (soft) {
      T sum = 0;
      for (int64_t c = 0; c < classes_; ++c)
        sum += weighted(load_one(target_probs_ + c), lse - (logit(c) - stats_.shift));
      return sum;
    } else {
      return lse - (logit(target_) - stats_.shift);
    }
  }

  // The first largest logit, or the first NaN.
  int64_t argmax() const {
    int64_t first = classes_;
    if (!(stats_.sum_exp == stats_.sum_exp)) first = find(std::numeric_limits<T>::quiet_NaN());
    if (first == classes_) first = find(maximum(classes_));
    return first == classes_ ? 0 : first;
  }

  // The first logit that is `value`, which may be NaN.
  int64_t find(T value) const {
    for (int64_t c = 0; c < classes_; c += V::size) {
      const int64_t count = classes_ - c < V::size ? classes_ - c : V::size;
      const V x = count == V::size ? logits_at<true>(c, count) : logits_at<false>(c, count);
      const auto found = value == value ? x == V(value) : ~(x == x);
      if (!any_lane<T>(found)) continue;
      for (int i = 0; i < count; ++i)
        if (found[i]) return c + i;
    }
    return classes_;
  }

  // ---- gradient ---------------------------------------------------------------------------------

  void write_gradient(int64_t row) {
    Element* destination = row_of(problem_.grad_logits, row, problem_.inner);
    const int64_t stride = problem_.grad_logits.class_stride;
    Element* grad = stride == 1 ? destination : grad_buffer_.get(classes_);
    int64_t c = 0;
    if (ignored_) {
      for (; c + V::size <= classes_; c += V::size) store(grad + c, V(T(0)));
      if (c < classes_) store_first(grad + c, V(T(0)), classes_ - c);
    } else {
      const GradTerms<T> terms = grad_terms(stats_, terms_, incoming(row), options_);
      const T target_grad = soft ? T(0) : gradient_at_target(terms);
      for (; c + V::size <= classes_; c += V::size) {
        if (read_ahead_) __builtin_prefetch(read_ahead_ + c);
        store(grad + c, gradient_at<true>(c, V::size, terms));
      }
      if (c < classes_)
        store_first(grad + c, gradient_at<false>(c, classes_ - c, terms), classes_ - c);
      if constexpr (!soft) store_one(grad + target_, target_grad);
    }
    if (stride != 1)
      for (c = 0; c < classes_; ++c) destination[c * stride] = grad[c];
  }

  T incoming(int64_t row) const {
    T scale = problem_.grad_loss
                  ? static_cast<const T*>(problem_.grad_loss)[row * problem_.grad_loss_stride]
                  : T(1);
    if (problem_.denominator) scale /= *static_cast<const T*>(problem_.denominator);
    return scale;
  }

  template <bool whole>
  LABELSMOOTH_HD V gradient_at(int64_t c, int64_t count, const GradTerms<T>& terms) const {
    const V coef = coef_at<whole>(c, count, terms.beta, terms.kappa);
    if (exps_ && !transformed) return logit_grad(load(exps_ + c), coef, terms);
    const V x = logits_at<whole>(c, count);
    const V exp_x = exps_ ? load(exps_ + c) : exp_rounded(x - V(terms.shift));
    return sloped(logit_grad(exp_x, coef, terms), x);
  }

  // In full precision, rounded once: mass p_y and tau nearly cancel.
  T gradient_at_target(const GradTerms<T>& terms) const {
    const T x = logit(target_);
    return sloped(logit_grad(exp(V(x - terms.shift)).lanes[0], terms.target_coef, terms), x);
  }

  template <class X>
  LABELSMOOTH_HD X sloped(X grad, X x) const {
    return transformed ? grad * transform_slope(x, options_) : grad;
  }

  const LossProblem& problem_;
  const int64_t classes_;
  const T uniform_;
  const T* const weight_;
  const T* const prior_;
  const T* const class_coef_;
  const ClassSums<T> sums_;
  const LossOptions<T> options_;

  // The row in hand.
  const Element* logits_ = nullptr;
  const Element* target_probs_ = nullptr;
  int64_t target_ = 0;
  bool ignored_ = false;
  const Element* read_ahead_ = nullptr;
  T* exps_ = nullptr;
  RowTerms<T> terms_{};
  RowStats<T> stats_{};
  RowBuffer<T> exps_buffer_;
  RowBuffer<Element> logits_buffer_, target_buffer_, grad_buffer_;
};

// ---- from run-time options to a kernel ----------------------------------------------------------

template <class Element, bool has_vectors, bool soft>
void process_transform(const LossProblem& problem, int64_t begin, int64_t end) {
  const bool transformed = problem.options.logit_scale != 1 || problem.options.softcap > 0;
  transformed ? RowKernel<Element, has_vectors, soft, true>(problem).process(begin, end)
              : RowKernel<Element, has_vectors, soft, false>(problem).process(begin, end);
}

template <class Element, bool has_vectors>
void process_target(const LossProblem& problem, int64_t begin, int64_t end) {
  problem.target ? process_transform<Element, has_vectors, false>(problem, begin, end)
                 : process_transform<Element, has_vectors, true>(problem, begin, end);
}

template <class Element>
void process_element(const LossProblem& problem, int64_t begin, int64_t end) {
  problem.class_coef ? process_target<Element, true>(problem, begin, end)
                     : process_target<Element, false>(problem, begin, end);
}

void process_rows(const LossProblem& problem, int64_t begin, int64_t end) {
  switch (problem.dtype) {
    case DType::float32: return process_element<float>(problem, begin, end);
    case DType::float64: return process_element<double>(problem, begin, end);
    case DType::bfloat16: return process_element<BFloat16>(problem, begin, end);
    case DType::float16: return process_element<Float16>(problem, begin, end);
  }
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
