// The CPU kernel: one row after another, each read from memory once.
//
//   statistics  the exponentials and the weighted sum in one pass, relative to a shift that is
//               known before the row is read (row_sums.h)
//   loss        from the statistics (row_result.h)
//   gradient    from the row, by now in cache, into grad_logits, which may be the row itself
//
// Rows whose classes are not adjacent go through a buffer of one row. What goes over classes goes
// by blocks, which workers may share.
#pragma once

#include "row_gradient.h"
#include "row_result.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Up to here the gradient takes the exponentials that the statistics left in cache.
constexpr int64_t kept_classes = 131072;
// While a row's gradient is written the next row is fetched, if it is this short: with longer ones
// the hardware does well.
constexpr int64_t read_ahead_bytes = 8192;

template <class Element, bool general, class Probs, bool transformed>
class RowKernel {
  using R = Row<Element, general, Probs, transformed>;
  static constexpr bool dense = R::dense;
  using T = typename R::T;
  using V = typename R::V;

 public:
  explicit RowKernel(const LossProblem& problem)
      : problem_(problem),
        typed_(problem),
        classes_(problem.classes),
        blocks_(problem),
        entries_(typed_),
        row_(typed_),
        result_(typed_, blocks_, row_, entries_, sums_, terms_) {}

  void process(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      open(row);
      read_ahead_ = nullptr;
      if (row + 1 < end) read_ahead(row + 1);
      const bool sums = makes_sums(problem_);
      const bool keep = sums && problem_.grad_logits.data && classes_ <= kept_classes;
      row_.exps = keep ? exps_buffer_.get(classes_ + V::size) : nullptr;
      row_.kept = keep && transformed ? kept_buffer_.get(classes_ + V::size) : nullptr;
      if (sums) {
        forward(row);
      } else {
        recall(row);
      }
      if (problem_.grad_logits.data) make_gradient(row);
    }
  }

 private:
  // ---- the row in hand --------------------------------------------------------------------------

  // In place, or copied into the buffer.
  template <class X>
  const X* adjacent(X* data, const Matrix& matrix, int64_t row,
                    Buffer<unsigned char>& buffer) const {
    X* source = data + typed_.offset_of(matrix, row);
    if (matrix.class_stride == 1) return source;
    auto* copy = reinterpret_cast<std::remove_const_t<X>*>(
        buffer.get(classes_ * static_cast<int64_t>(sizeof(X))));
    gather(blocks_, source, matrix.class_stride, copy);
    return copy;
  }

  void open(int64_t row) {
    const auto* logits = static_cast<const Element*>(problem_.logits.data);
    row_.logits = adjacent(logits, problem_.logits, row, logits_buffer_);
    if constexpr (dense)
      row_.target_probs = with_elements(
          problem_.target_probs.data, problem_.probs_dtype, [&](auto* probs) -> const void* {
            return adjacent(probs, problem_.target_probs, row, target_buffer_);
          });
    else
      entries_.open(row);
    ignored_ = !dense && entries_.ignored();
    counts_ = !ignored_ && typed_.row_weight_of(row) != T(0);
  }

  // Fetches what a row begins with: the logits of its target; and tells the gradient what to fetch.
  void read_ahead(int64_t row) {
    const Element* next = typed_.row_of(problem_.logits, row);
    const int64_t stride = problem_.logits.class_stride;
    if constexpr (!dense) {
      for (int64_t k = 0; k < problem_.target_classes; ++k)
        __builtin_prefetch(next + clamped(typed_.class_of(typed_.target_of(row, k))) * stride);
    }
    const int64_t bytes = classes_ * static_cast<int64_t>(sizeof(Element));
    if (stride == 1 && bytes <= read_ahead_bytes) read_ahead_ = next;
  }

  // A class of this part, whatever an entry holds.
  int64_t clamped(int64_t c) const { return typed_.is_here(c) ? c : 0; }

  // ---- statistics -------------------------------------------------------------------------------

  RowSums<T> sums_from(T shift) {
    return row_sums(row_, blocks_, shift, sums_buffer_.get(blocks_.count));
  }

  // One pass, from a guess at the maximum: the target's logit, so that the loss of a row that is
  // nearly right is the logarithm of nearly 1. Where other logits stand far above it, or it is
  // masked, a second pass takes the true maximum, as rows with class probabilities do at once.
  RowSums<T> sums() {
    if constexpr (!dense) {
      const int64_t target = entries_.empty() ? 0 : entries_.first().target;
      const RowSums<T> row = sums_from(finite_or_zero(row_.logit(target)));
      if (is_well_scaled(row.stats.sum_exp)) return row;
    }
    return sums_from(
        finite_or_zero(largest_logit(row_, blocks_, largest_buffer_.get(blocks_.count))));
  }

  // ---- loss -------------------------------------------------------------------------------------

  static RowSums<T> no_sums() {
    RowSums<T> sums = empty_sums<T>();
    sums.stats = {T(0), T(1), T(0)};
    return sums;
  }

  void forward(int64_t row) {
    // A row that does not count is read only if its lse and argmax are wanted.
    const bool unread = !counts_ && !problem_.with_stats;
    if (problem_.parts && (unread || entries_.invalid()))
      return save(row, entries_.invalid() ? invalid_part<T>() : empty_part<T>());
    sums_ = unread ? no_sums() : sums();
    const ClassSums<T> classes = row_.masks() ? sums_.classes : typed_.sums;
    terms_ = row_terms(prior_of_target(), classes, typed_.options);
    open_entries();
    if (problem_.parts) return save(row, part(classes));
    terms_.mass += result_.tau();
    typed_.at(problem_.row_shift, row) = sums_.stats.shift;
    typed_.at(problem_.row_sum_exp, row) = sums_.stats.sum_exp;
    typed_.at(problem_.row_mass, row) = terms_.mass;
    typed_.at(problem_.row_beta, row) = terms_.beta;
    typed_.at(problem_.loss, row) =
        counts_ ? typed_.row_weight_of(row) * result_.loss(classes) : T(0);
    if (problem_.with_stats) {
      typed_.at(problem_.lse, row) = log_sum_exp(sums_.stats, typed_.options);
      typed_.at(problem_.nll, row) = ignored_ ? T(0) : result_.nll();
      problem_.predicted[row] = argmax();
    }
  }

  // A backward call finds what forward left.
  void recall(int64_t row) {
    sums_.stats = {typed_.at(problem_.row_shift, row), typed_.at(problem_.row_sum_exp, row), T(0)};
    terms_ = row_terms(prior_of_target(), typed_.sums, typed_.options);
    terms_.beta = typed_.at(problem_.row_beta, row);
    terms_.mass = typed_.at(problem_.row_mass, row);
    open_entries();
  }

  void save(int64_t row, const RowPart<T>& part) const {
    store_part(static_cast<T*>(problem_.parts) + row, problem_.rows, part, typed_.options,
               problem_.with_stats);
  }

  RowPart<T> part(const ClassSums<T>& classes) {
    RowPart<T> part = result_.part(classes);
    if (problem_.with_stats) {
      const int64_t first = argmax();
      part.largest = row_.logit(first);
      part.predicted = static_cast<T>(problem_.class_offset + first);
    }
    return part;
  }

  // u_y, where the target is one class.
  T prior_of_target() const {
    return dense || ignored_ ? T(0) : typed_.prior_of(entries_.first_named());
  }

  void open_entries() {
    for (Entry<T>& entry : entries_) {
      entry.logit = row_.logit(entry.target);
      entry.terms = result_.terms_of_class(entry.target, entry.prob);
    }
  }

  // The first largest logit, or the first NaN.
  int64_t argmax() {
    if (!(sums_.stats.sum_exp == sums_.stats.sum_exp)) {
      const T nan = std::numeric_limits<T>::quiet_NaN();
      const int64_t first = find_logit(row_, 0, classes_, nan);
      if (first < classes_) return first;
    }
    return find_largest(row_, blocks_, largest_buffer_.get(blocks_.count));
  }

  // ---- gradient ---------------------------------------------------------------------------------

  void make_gradient(int64_t row) {
    Element* destination = typed_.row_of(problem_.grad_logits, row);
    const int64_t stride = problem_.grad_logits.class_stride;
    Element* grad = stride == 1 ? destination : grad_buffer_.get(classes_);
    const GradTerms<T> terms =
        grad_terms(sums_.stats, terms_, typed_.incoming(row), typed_.options);
    blocks_.for_each([&](int64_t, int64_t begin, int64_t end) {
      counts_ ? write_gradient(row_, terms, begin, end, grad, read_ahead_)
              : write_zeros<V>(begin, end, grad);
    });
    if (counts_)
      for (const Entry<T>& entry : entries_)
        store_one(grad + entry.target, gradient_of(entry, terms));
    if (stride != 1) scatter(blocks_, grad, destination, stride);
  }

  T gradient_of(const Entry<T>& entry, const GradTerms<T>& terms) const {
    const V x(entry.logit);
    return row_.sloped(target_grad<Element>(x, V(entry.terms.coef), terms), x).lanes[0];
  }

  const LossProblem& problem_;
  const TypedProblem<Element> typed_;
  const int64_t classes_;
  const Blocks blocks_;

  // The row in hand.
  Entries<Element> entries_;
  R row_;
  bool ignored_ = false;
  bool counts_ = true;  // neither ignored nor of weight 0
  const Element* read_ahead_ = nullptr;
  RowTerms<T> terms_;
  RowSums<T> sums_;
  const RowResult<Element, general, Probs, transformed> result_;
  Buffer<T> exps_buffer_, kept_buffer_, largest_buffer_;
  Buffer<RowSums<double>> sums_buffer_;
  Buffer<unsigned char> logits_buffer_, target_buffer_;
  Buffer<Element> grad_buffer_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
