// The CPU kernel for rows whose classes lie apart in memory, (N, C, d1, ...): a lane is a row.
//
// A tile is neighbouring rows with all their classes, in a buffer that stays in cache:
//
//   in      class by class, so that memory is read in long runs
//   column  a vector of rows: loss and gradient, which takes the place of the logits in the tile
//   out     class by class, into grad_logits, which may be the logits themselves
#pragma once

#include "typed_problem.h"
#include "vec_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// A tile has this many rows if it then has no more than this many elements: long runs of memory,
// but what stays in cache. With many classes it has fewer rows, and more elements if it must.
constexpr int64_t rows_wanted = 512;
constexpr int64_t elements_wanted = 1 << 17;
constexpr int64_t most_in_tile = 1 << 19;

// soft: the target is class probabilities.
template <class Element, bool soft>
class TileKernel {
  using P = TypedProblem<Element>;
  using T = typename P::T;
  using V = Vec<T>;
  using Index = typename V::Mask;  // classes, in the lanes of V
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

 public:
  explicit TileKernel(const LossProblem& problem)
      : problem_(problem),
        typed_(problem),
        classes_(problem.classes),
        width_(rows_in_tile(problem.classes)),
        logits_(logits_buffer_.get(width_ * classes_)),
        probs_(soft ? probs_buffer_.get(width_ * classes_) : nullptr) {}

  // Too many classes, and a tile would not stay in cache.
  static bool takes(const LossProblem& problem) {
    return problem.logits.class_stride != 1 && problem.classes * V::size <= most_in_tile;
  }

  // Tiles begin at multiples of their width, wherever the rows begin: whole cache lines.
  void process(int64_t begin, int64_t end) {
    for (int64_t row = begin, count; row < end; row += count) {
      const int64_t place = problem_.inner == 1 ? row : row % problem_.inner;
      const int64_t left = problem_.inner == 1 ? end - row : problem_.inner - place;
      count = min(min(end - row, left), width_ - place % width_);
      read(problem_.logits, row, count, logits_);
      if (soft) read(problem_.target_probs, row, count, probs_);
      for (int64_t first = 0; first < count; first += V::size)
        process_column(row + first, min(count - first, V::size), logits_ + first * classes_,
                       soft ? probs_ + first * classes_ : nullptr);
      if (problem_.grad_logits.data) write(problem_.grad_logits, row, count);
    }
  }

 private:
  static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

  static int64_t rows_in_tile(int64_t classes) {
    const int64_t vectors = min(rows_wanted, elements_wanted / classes) / V::size;
    return (vectors > 0 ? vectors : 1) * V::size;
  }

  // ---- between memory and the tile --------------------------------------------------------------

  int64_t row_stride(const Matrix& matrix) const {
    return problem_.inner == 1 ? matrix.outer_stride : matrix.inner_stride;
  }

  void read(const Matrix& matrix, int64_t row, int64_t count, T* tile) const {
    const int64_t stride = row_stride(matrix);
    const Element* source = typed_.row_of(matrix, row);
    for (int64_t c = 0; c < classes_; ++c, source += matrix.class_stride) {
      T* destination = tile + c * V::size;
      int64_t i = 0;
      if (stride == 1)
        for (; i + V::size <= count; i += V::size)
          store(destination + i * classes_, load(source + i));
      for (; i < count; i += V::size)
        store(destination + i * classes_,
              load_apart(source + i * stride, min(count - i, V::size), stride));
    }
  }

  void write(const Matrix& matrix, int64_t row, int64_t count) const {
    const int64_t stride = row_stride(matrix);
    Element* destination = typed_.row_of(matrix, row);
    for (int64_t c = 0; c < classes_; ++c, destination += matrix.class_stride) {
      const T* source = logits_ + c * V::size;
      int64_t i = 0;
      if (stride == 1)
        for (; i + V::size <= count; i += V::size)
          store(destination + i, load(source + i * classes_));
      for (; i < count; i += V::size)
        store_apart(destination + i * stride, load(source + i * classes_), min(count - i, V::size),
                    stride);
    }
  }

  // ---- a column: C vectors of rows --------------------------------------------------------------

  // Loops take a copy of it, so that the compiler knows that no store changes its members.
  struct Column {
    int64_t classes;
    T* x;  // C vectors: the logits, then perhaps their exponentials, then the gradient
    const T* probs;
    const T* class_coef;
    const T* weight;
    T uniform;
    Index target;  // -1 where the row is ignored or there is none
    V target_prior, target_weight;

    // w_c q_c of a class, from beta, kappa and w_y q_y, which may be scaled.
    template <class Terms>
    LABELSMOOTH_HD V coef_at(int64_t c, const Terms& terms) const {
      const V spread(class_coef ? class_coef[c] : uniform);
      if constexpr (soft) {
        V prob = terms.kappa * load(probs + c * V::size);
        if (weight) prob = weighted(prob, V(weight[c]));
        return soft_coef(spread, prob, terms.beta);
      } else {
        return select(target == static_cast<Integer>(c), terms.target_coef, terms.beta * spread);
      }
    }

    LABELSMOOTH_HD V unless_ignored(V value) const {
      return soft ? value : select(target >= 0, value, V(T(0)));
    }
  };

  void process_column(int64_t row, int64_t count, T* logits, const T* probs) {
    const bool forward = problem_.loss;
    const Column column = open(row, count, logits, probs);
    RowTerms<V> terms = row_terms(column.target_prior, column.target_weight,
                                  soft ? T(0) : typed_.sums.coef, typed_.options);
    // The gradient takes the exponentials that the sums were made of, if nothing else needs the
    // logits.
    const bool keep =
        forward && problem_.grad_logits.data && !typed_.transformed && !problem_.predicted;
    const V largest = transform_and_find_largest(column);
    RowStats<V> stats;
    if (soft || forward) {
      stats = column_stats(column, terms, finite_or_zero(largest), keep);
    } else {
      stats.shift = load_first(static_cast<const T*>(problem_.row_shift) + row, count);
      stats.sum_exp = load_first(static_cast<const T*>(problem_.row_sum_exp) + row, count);
    }
    if (soft) terms.mass = stats.coef_sum;

    if (forward) {
      save(problem_.row_shift, row, count, stats.shift);
      save(problem_.row_sum_exp, row, count, stats.sum_exp);
      save(problem_.loss, row, count, column.unless_ignored(loss(column, terms, stats)));
      if (problem_.predicted) save_statistics(row, count, column, stats, largest);
    }
    if (problem_.grad_logits.data)
      make_gradient(column, grad_terms(stats, terms, incoming(row, count), typed_.options), keep);
  }

  Column open(int64_t row, int64_t count, T* logits, const T* probs) const {
    Column column = {classes_,    logits,  probs,  typed_.class_coef, typed_.weight, typed_.uniform,
                     Index{} - 1, V(T(0)), V(T(1))};
    if constexpr (!soft) {
      Native<int64_t, V::size> target = {};
      for (int64_t i = 0; i < count; ++i) target[i] = problem_.target[row + i];
      target = target == problem_.ignore_index ? -1 : target;
      for (int64_t i = count; i < V::size; ++i) target[i] = -1;
      column.target = __builtin_convertvector(target, Index);
      column.target_prior = V(typed_.uniform);
      if (typed_.prior || typed_.weight) {
        for (int64_t i = 0; i < count; ++i) {
          if (target[i] < 0) continue;
          column.target_prior.lanes[i] = typed_.prior_of(target[i]);
          column.target_weight.lanes[i] = typed_.weight_of(target[i]);
        }
      }
    }
    return column;
  }

  V incoming(int64_t row, int64_t count) const {
    V scale(typed_.incoming(row));
    if (problem_.grad_loss_stride != 0)
      for (int64_t i = 0; i < count; ++i) scale.lanes[i] = typed_.incoming(row + i);
    return scale;
  }

  V transform_and_find_largest(const Column& column) const {
    const LossOptions<T> options = typed_.options;
    V largest(-infinity<T>());
    for (int64_t c = 0; c < classes_; ++c) {
      V x = load(column.x + c * V::size);
      if (typed_.transformed) {
        x = transform_logit(x, options);
        store(column.x + c * V::size, x);
      }
      largest = max(x, largest);
    }
    return largest;
  }

  // Sums over many classes are made of sums of few, which are added up in double, so that rounding
  // errors do not grow with the classes.
  static constexpr int64_t few_classes = 32;
  struct Sums {
    double lanes[V::size] = {};
    void add(V part) {
      for (int64_t i = 0; i < V::size; ++i) lanes[i] += static_cast<double>(part.lanes[i]);
    }
    V value() const {
      V value;
      for (int64_t i = 0; i < V::size; ++i) value.lanes[i] = static_cast<T>(lanes[i]);
      return value;
    }
  };

  template <class Term>
  V sum_over_classes(Term term) const {
    Sums sums;
    for (int64_t begin = 0; begin < classes_; begin += few_classes) {
      V part(T(0));
      for (int64_t c = begin; c < min(begin + few_classes, classes_); ++c) part = part + term(c);
      sums.add(part);
    }
    return sums.value();
  }

  // coef_dot takes the whole coefficient of a class, the target's too.
  static RowStats<V> column_stats(const Column column, const RowTerms<V> terms, V shift,
                                  bool keep) {
    Sums sum_exp, coef_dot, coef_sum;
    for (int64_t begin = 0; begin < column.classes; begin += few_classes) {
      RowStats<V> part = empty_stats<V>();
      for (int64_t c = begin; c < min(begin + few_classes, column.classes); ++c) {
        const V difference = load(column.x + c * V::size) - shift;
        const V exp_x = exp_of<Element>(difference);
        if (keep) store(column.x + c * V::size, exp_x);
        const V coef = column.coef_at(c, terms);
        part = add(part, {shift, exp_x, weighted(coef, difference), coef});
      }
      sum_exp.add(part.sum_exp);
      coef_dot.add(part.coef_dot);
      if (soft) coef_sum.add(part.coef_sum);
    }
    return {shift, sum_exp.value(), coef_dot.value(), coef_sum.value()};
  }

  void make_gradient(const Column column, const GradTerms<V> terms, bool kept) const {
    const LossOptions<T> options = typed_.options;
    for (int64_t c = 0; c < column.classes; ++c) {
      const V x = load(column.x + c * V::size);
      const V exp_x = kept ? x : exp_of<Element>(x - terms.shift);
      V grad = logit_grad(exp_x, column.coef_at(c, terms), terms);
      if (typed_.transformed) grad = grad * transform_slope(x, options);
      store(column.x + c * V::size, column.unless_ignored(grad));
    }
  }

  // ---- loss and statistics ----------------------------------------------------------------------

  static void save(void* destination, int64_t row, int64_t count, V value) {
    store_first(static_cast<T*>(destination) + row, value, count);
  }

  V loss(const Column& column, RowTerms<V> terms, const RowStats<V>& stats) const {
    V entropy(T(0));
    if (typed_.options.kl_div)
      entropy =
          soft ? negative_entropy_of_probs(column, terms)
               : negative_entropy(terms, column.target_prior, column.target_weight, typed_.sums);
    terms.beta = V(T(1));  // coef_dot holds it, and the target's part, already
    terms.tau = V(T(0));
    return row_loss(stats, terms, stats.shift, stats.shift, typed_.options) + entropy;
  }

  V negative_entropy_of_probs(const Column& column, const RowTerms<V>& terms) const {
    return sum_over_classes([&](int64_t c) {
      return soft_negative_entropy(V(typed_.weight_of(c)), V(typed_.prior_of(c)),
                                   load(column.probs + c * V::size), terms.beta, terms.kappa);
    });
  }

  // lse, nll, and the first largest logit or the first NaN; the tile still holds the logits.
  void save_statistics(int64_t row, int64_t count, const Column& column, const RowStats<V>& stats,
                       V largest) const {
    const V lse = log_sum_exp_from(stats.shift, stats, typed_.options);
    V nll(T(0));
    Index first = Index{}, first_nan = Index{} - 1;
    for (int64_t c = classes_ - 1; c >= 0; --c) {
      const V x = load(column.x + c * V::size);
      const auto index = Index{} + static_cast<Integer>(c);
      first = x == largest ? index : first;
      first_nan = x == x ? first_nan : index;
      if constexpr (!soft) nll = select(column.target == index, lse - (x - stats.shift), nll);
    }
    if constexpr (soft)
      nll = sum_over_classes([&](int64_t c) {
        return soft_nll(load(column.probs + c * V::size), lse,
                        load(column.x + c * V::size) - stats.shift);
      });
    save(problem_.lse, row, count, log_sum_exp(stats, typed_.options));
    save(problem_.nll, row, count, nll);
    for (int64_t i = 0; i < count; ++i)
      problem_.predicted[row + i] = first_nan[i] < 0 ? first[i] : first_nan[i];
  }

  const LossProblem& problem_;
  const P typed_;
  const int64_t classes_, width_;
  Buffer<T> logits_buffer_, probs_buffer_;
  T* const logits_;
  T* const probs_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
