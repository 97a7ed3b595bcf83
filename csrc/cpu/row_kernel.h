// The CPU kernel: one row after another, each read from memory once.
//
//   statistics  tile by tile: the maximum, the exponentials and the weighted sum in one pass. The
//               exponentials are taken from a shift that is known before the tile is read; the rare
//               tile that stands so far above it that they might overflow is summed again from its
//               own maximum.
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

// Classes between two looks at the maximum.
constexpr int64_t tile_classes = 16384;
// Independent accumulators, which hide the latency of an addition.
constexpr int unroll = 4;
// exp(60) C stays far below the largest float.
constexpr float largest_rise = 60;

// has_vectors: the class coefficients are a vector, not the constant 1/C. soft: the target is class
// probabilities. transformed: the logits are scaled or capped.
template <class Element, bool has_vectors, bool soft, bool transformed>
class RowKernel {
  using T = typename Accumulate<Element>::type;
  using V = Vec<T>;

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
    return static_cast<Element*>(matrix.data) + (row / inner) * matrix.outer_stride +
           (row % inner) * matrix.inner_stride;
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
      reference_ = finite_or_zero(logit(0));
    } else {
      ignored_ = problem_.target[row] == problem_.ignore_index;
      target_ = ignored_ ? 0 : problem_.target[row];
      target_logit_ = logit(target_);
      terms_ = row_terms(prior(target_), weight(target_), sums_.coef, options_);
      reference_ = finite_or_zero(target_logit_);
    }
  }

  T prior(int64_t c) const { return prior_ ? prior_[c] : uniform_; }
  T weight(int64_t c) const { return weight_ ? weight_[c] : T(1); }
  T class_coef(int64_t c) const { return has_vectors ? class_coef_[c] : uniform_; }
  T logit(int64_t c) const {
    const T x = load_one(logits_ + c);
    return transformed ? transform_logit(x, options_) : x;
  }

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

  // Lanes of row statistics whose exponentials are all taken from `shift`.
  template <bool whole>
  LABELSMOOTH_HD void accumulate(RowStats<V>& stats, int64_t c, int64_t count, T shift, T beta,
                                 T kappa) const {
    V x = logits_at<whole>(c, count);
    if constexpr (!whole) x = V::first(count, x, V(-infinity<T>()));
    stats.max = max(x, stats.max);
    stats.sum_exp = stats.sum_exp + exp(x - V(shift));
    const V coef = coef_at<whole>(c, count, beta, kappa);
    const V difference = x - V(reference_);
    stats.coef_dot = stats.coef_dot + (whole && !has_vectors && !soft ? coef * difference
                                                                      : weighted(coef, difference));
    if constexpr (soft) stats.coef_sum = stats.coef_sum + coef;
  }

  // Returns the largest logit of the tile beside its statistics, which are taken from `shift`.
  T tile_stats(RowStats<T>& tile, int64_t begin, int64_t end, T shift, T beta, T kappa) const {
    RowStats<V> parts[unroll];
    for (RowStats<V>& part : parts) part = empty_stats<V>();
    int64_t c = begin;
    for (; c + unroll * V::size <= end; c += unroll * V::size)
      for (int i = 0; i < unroll; ++i)
        accumulate<true>(parts[i], c + i * V::size, V::size, shift, beta, kappa);
    for (; c + V::size <= end; c += V::size)
      accumulate<true>(parts[0], c, V::size, shift, beta, kappa);
    if (c < end) accumulate<false>(parts[0], c, end - c, shift, beta, kappa);

    RowStats<V> sum = parts[0];
    for (int i = 1; i < unroll; ++i) {
      sum.max = max(sum.max, parts[i].max);
      sum.sum_exp = sum.sum_exp + parts[i].sum_exp;
      sum.coef_dot = sum.coef_dot + parts[i].coef_dot;
      if constexpr (soft) sum.coef_sum = sum.coef_sum + parts[i].coef_sum;
    }
    tile = {shift, sum_lanes(sum.sum_exp), sum_lanes(sum.coef_dot),
            soft ? sum_lanes(sum.coef_sum) : T(0)};
    return max_lanes(sum.max);
  }

  RowStats<T> row_stats(T beta, T kappa) const {
    T shift = finite_or_zero(logit(0));
    T largest = -infinity<T>();
    RowStats<T> row = empty_stats<T>();
    for (int64_t begin = 0; begin < classes_; begin += tile_classes) {
      const int64_t end = begin + tile_classes < classes_ ? begin + tile_classes : classes_;
      RowStats<T> tile;
      const T tile_max = tile_stats(tile, begin, end, shift, beta, kappa);
      if (tile_max - shift > largest_rise) {
        shift = tile_max;
        tile_stats(tile, begin, end, shift, beta, kappa);
      }
      largest = labelsmooth::max(largest, tile_max);
      row = row.max == tile.max ? add(row, tile) : combine(row, tile);
    }
    if (largest > row.max) {
      row.sum_exp *= labelsmooth::exp(row.max - largest);
      row.max = largest;
    }
    return row;
  }

  // combine() where both are taken from the same point.
  static RowStats<T> add(const RowStats<T>& a, const RowStats<T>& b) {
    return {a.max, a.sum_exp + b.sum_exp, a.coef_dot + b.coef_dot, a.coef_sum + b.coef_sum};
  }

  // ---- loss -------------------------------------------------------------------------------------

  static T& at(void* rows, int64_t row) { return static_cast<T*>(rows)[row]; }

  void forward(int64_t row) {
    // An ignored row is read only if its lse and argmax are wanted.
    const bool unread = ignored_ && !problem_.predicted;
    stats_ = unread ? RowStats<T>{T(0), T(1), T(0), T(0)}
                    : row_stats(soft ? terms_.beta : T(1), terms_.kappa);
    at(problem_.row_max, row) = stats_.max;
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
      stats_ = {at(problem_.row_max, row), at(problem_.row_sum_exp, row), T(0), T(0)};
    }
  }

  T loss() const {
    if constexpr (soft) {
      const RowTerms<T> terms = {T(1), T(0), T(0),
                                 stats_.coef_sum};  // coef_dot holds beta and kappa already
      const T loss = row_loss(stats_, terms, reference_, reference_, options_);
      return options_.kl_div ? loss + negative_entropy_of_probs() : loss;
    } else {
      const T loss = row_loss(stats_, terms_, target_logit_, reference_, options_);
      return options_.kl_div
                 ? loss + negative_entropy(terms_, prior(target_), weight(target_), sums_)
                 : loss;
    }
  }

  T negative_entropy_of_probs() const {
    T sum = 0;
    for (int64_t c = 0; c < classes_; ++c)
      sum +=
          weight(c) * x_log_x(terms_.beta * prior(c) + terms_.kappa * load_one(target_probs_ + c));
    return sum;
  }

  T nll() const {
    const T lse = log_sum_exp_from(reference_, stats_, options_);
    if constexpr (soft) {
      T sum = 0;
      for (int64_t c = 0; c < classes_; ++c)
        sum += weighted(load_one(target_probs_ + c), lse - (logit(c) - reference_));
      return sum;
    } else {
      return lse - (target_logit_ - reference_);
    }
  }

  // The first largest logit, or the first NaN.
  int64_t argmax() const {
    const T largest = stats_.max;
    int64_t first = classes_;
    if (!(stats_.sum_exp == stats_.sum_exp)) first = find([](auto x) { return !(x == x); });
    if (first == classes_) first = find([largest](auto x) { return x == decltype(x)(largest); });
    return first == classes_ ? 0 : first;
  }

  template <class Predicate>
  int64_t find(Predicate predicate) const {
    int64_t c = 0;
    while (c + V::size <= classes_ && !any_lane<T>(predicate(logits_at<true>(c, V::size))))
      c += V::size;
    while (c < classes_ && !predicate(logit(c))) ++c;
    return c;
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
      for (; c + V::size <= classes_; c += V::size)
        store(grad + c, gradient_at<true>(c, V::size, terms));
      if (c < classes_)
        store_first(grad + c, gradient_at<false>(c, classes_ - c, terms), classes_ - c);
      if constexpr (!soft) {
        const T coef = terms.beta * class_coef(target_) + terms.tau;
        store_one(grad + target_, sloped(logit_grad(target_logit_, coef, terms), target_logit_));
      }
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
    const V x = logits_at<whole>(c, count);
    return sloped(logit_grad(x, coef_at<whole>(c, count, terms.beta, terms.kappa), terms), x);
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
  T target_logit_ = 0;
  T reference_ = 0;
  RowTerms<T> terms_{};
  RowStats<T> stats_{};
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
