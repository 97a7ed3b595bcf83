// The CPU kernel for rows whose classes lie apart in memory, (N, C, d1, ...): a lane is a row.
//
// A tile is neighbouring rows with all their classes, in a buffer that stays in cache:
//
//   in      class by class, so that memory is read in long runs
//   column  a vector of rows: loss and gradient, which takes the place of the logits in the tile
//   out     class by class, into grad_logits, which may be the logits themselves
#pragma once

#include "tile.h"
#include "vec_math.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// soft: the target is probabilities, of all classes or of a few, which the tile has for all.
template <class Element, bool soft>
class TileKernel {
  using P = TypedProblem<Element>;
  using T = typename P::T;
  using V = Vec<T>;
  using Index = typename V::Mask;  // classes, in the lanes of V
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

 public:
  explicit TileKernel(const LossProblem& problem)
      : problem_(problem), typed_(problem), classes_(problem.classes), tile_(typed_, soft) {}

  // Too many classes, and a tile would not stay in cache. Masks are looked for in the logits as
  // they were given, which a tile does not keep.
  static bool takes(const LossProblem& problem) {
    return problem.logits.class_stride != 1 && problem.classes * V::size <= most_in_tile &&
           !(problem.options.over_unmasked() && TypedProblem<Element>(problem).transformed);
  }

  // Tiles begin at multiples of their width, wherever the rows begin: whole cache lines.
  void process(int64_t begin, int64_t end) {
    for (int64_t row = begin, count; row < end; row += count) {
      const int64_t place = problem_.inner == 1 ? row : row % problem_.inner;
      const int64_t left = problem_.inner == 1 ? end - row : problem_.inner - place;
      count = min(min(end - row, left), tile_.width - place % tile_.width);
      tile_.read(row, count);
      for (int64_t first = 0; first < count; first += V::size)
        process_column(row + first, min(count - first, V::size), tile_.logits + first * classes_,
                       soft ? tile_.probs + first * classes_ : nullptr);
      if (problem_.grad_logits.data) tile_.write(row, count);
    }
  }

 private:
  static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

  // ---- a column: C vectors of rows --------------------------------------------------------------

  // Loops take a copy of it, so that the compiler knows that no store changes its members.
  struct Column {
    int64_t classes;
    T* x;  // C vectors: the logits, then perhaps their exponentials, then the gradient
    const T* probs;
    const T* class_coef;
    const T* weight;
    T uniform;
    LossOptions<T> options;
    Index target;   // -1 where the row is ignored or its target is not one class
    Index ignored;  // -1, else 0
    Index counts;   // 0 where the row is ignored or of weight 0, else -1
    V target_prior, target_weight;

    // coef_c of a class, from beta, kappa and coef_y, which may be scaled.
    template <class Terms>
    LABELSMOOTH_HD V coef_at(int64_t c, V x, const Terms& terms, V target_coef) const {
      const V spread = unless_masked(V(class_coef ? class_coef[c] : uniform), x, options);
      if constexpr (soft) {
        V prob = terms.kappa * load(probs + c * V::size);
        if (weight) prob = weighted(prob, V(weight[c]));
        return soft_coef(spread, prob, terms.beta);
      } else {
        return select(target == static_cast<Integer>(c), target_coef, terms.beta * spread);
      }
    }

    LABELSMOOTH_HD V if_it_counts(V value) const { return select(counts != 0, value, V(T(0))); }
    LABELSMOOTH_HD V unless_ignored(V value) const { return select(ignored == 0, value, V(T(0))); }
  };

  void process_column(int64_t row, int64_t count, T* logits, const T* probs) {
    const bool forward = problem_.loss, masks = typed_.options.over_unmasked();
    const Column column = open(row, count, logits, probs);
    const V largest = transform_and_find_largest(column);
    const ClassSums<V> classes =
        masks && forward ? sums_of_unmasked(column)
                         : ClassSums<V>{V(typed_.sums.coef), V(typed_.sums.coef_log), V(T(1))};
    RowTerms<V> terms = row_terms(column.target_prior, classes, typed_.options);
    if (!forward) {
      terms.beta = load_rows(problem_.row_beta, row, count);
      terms.mass = load_rows(problem_.row_mass, row, count);
    }
    const TargetTerms<V> target = target_of(column, terms);
    // The gradient takes the exponentials that the sums were made of, if nothing else needs the
    // logits.
    const bool keep = forward && problem_.grad_logits.data && !typed_.transformed && !masks &&
                      !problem_.predicted;
    RowStats<V> stats;
    if (forward) {
      const Sums sums = column_sums(column, terms, target.coef, finite_or_zero(largest), keep);
      stats = sums.stats;
      terms.mass = soft ? sums.mass : terms.mass + target.tau;
      save(problem_.row_shift, row, count, stats.shift);
      save(problem_.row_sum_exp, row, count, stats.sum_exp);
      save(problem_.row_mass, row, count, terms.mass);
      save(problem_.row_beta, row, count, terms.beta);
      save(problem_.loss, row, count,
           column.if_it_counts(row_weight(row, count) *
                               loss(column, terms, target, classes, stats)));
      if (problem_.predicted) save_statistics(row, count, column, stats, largest);
    } else {
      stats.shift = load_rows(problem_.row_shift, row, count);
      stats.sum_exp = load_rows(problem_.row_sum_exp, row, count);
    }
    if (problem_.grad_logits.data) {
      const GradTerms<V> grad = grad_terms(stats, terms, incoming(row, count), typed_.options);
      make_gradient(column, grad, grad.scale * target.coef, keep);
    }
  }

  Column open(int64_t row, int64_t count, T* logits, const T* probs) const {
    Column column = {classes_,      logits,         probs,          typed_.class_coef,
                     typed_.weight, typed_.uniform, typed_.options, Index{} - 1,
                     Index{},       Index{} - 1,    V(T(0)),        V(T(1))};
    Native<int64_t, V::size> target = {};
    for (int64_t i = 0; i < count; ++i) {
      target[i] = -1;
      bool ignored = problem_.target;
      for (int64_t k = 0; problem_.target && k < problem_.target_classes; ++k) {
        const int64_t c = typed_.target_of(row + i, k);
        if (c == problem_.ignore_index) continue;
        ignored = false;
        if (!soft) target[i] = c;
      }
      column.ignored[i] = ignored ? -1 : 0;
      column.counts[i] = ignored || typed_.row_weight_of(row + i) == T(0) ? 0 : -1;
    }
    if constexpr (!soft) {
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

  // What a column's one class has; nothing where the target is several.
  TargetTerms<V> target_of(const Column& column, const RowTerms<V>& terms) const {
    V x0(T(0));
    if (!soft && typed_.options.over_unmasked())
      for (int64_t i = 0; i < V::size; ++i)
        if (column.target[i] >= 0) x0.lanes[i] = column.x[column.target[i] * V::size + i];
    return target_terms(V(T(soft ? 0 : 1)), column.target_weight, column.target_prior, x0, terms,
                        typed_.options);
  }

  static V load_rows(const void* source, int64_t row, int64_t count) {
    return load_first(static_cast<const T*>(source) + row, count);
  }
  V row_weight(int64_t row, int64_t count) const {
    return typed_.row_weight ? load_rows(typed_.row_weight, row, count) : V(T(1));
  }

  V incoming(int64_t row, int64_t count) const {
    V scale(typed_.incoming(row));
    if (problem_.grad_loss_stride != 0 || typed_.row_weight)
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
  struct LaneSums {
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
    LaneSums sums;
    for (int64_t begin = 0; begin < classes_; begin += few_classes) {
      V part(T(0));
      for (int64_t c = begin; c < min(begin + few_classes, classes_); ++c) part = part + term(c);
      sums.add(part);
    }
    return sums.value();
  }

  struct Sums {
    RowStats<V> stats;  // whose spread_dot is of the whole coefficients, the target's too
    V mass;             // their sum
  };

  static Sums column_sums(const Column column, const RowTerms<V> terms, V target_coef, V shift,
                          bool keep) {
    LaneSums sum_exp, coef_dot, coef_sum;
    for (int64_t begin = 0; begin < column.classes; begin += few_classes) {
      RowStats<V> part = empty_stats<V>();
      V mass(T(0));
      for (int64_t c = begin; c < min(begin + few_classes, column.classes); ++c) {
        const V x = load(column.x + c * V::size), difference = x - shift;
        const V exp_x = exp_of<Element>(difference);
        if (keep) store(column.x + c * V::size, exp_x);
        const V coef = column.coef_at(c, x, terms, target_coef);
        part = add(part, {shift, exp_x, weighted(coef, difference)});
        if (soft) mass = mass + coef;
      }
      sum_exp.add(part.sum_exp);
      coef_dot.add(part.spread_dot);
      if (soft) coef_sum.add(mass);
    }
    return {{shift, sum_exp.value(), coef_dot.value()}, coef_sum.value()};
  }

  ClassSums<V> sums_of_unmasked(const Column& column) const {
    const auto spread = [&](int64_t c, T value) {
      return unless_masked(V(value), load(column.x + c * V::size), typed_.options);
    };
    const auto coef = [&](int64_t c) { return spread(c, typed_.class_coef_of(c)); };
    ClassSums<V> sums = {V(T(0)), V(T(0)), V(T(0))};
    sums.prior = sum_over_classes([&](int64_t c) { return spread(c, typed_.prior_of(c)); });
    sums.coef = sum_over_classes(coef);
    if (typed_.options.kl_div)
      sums.coef_log = sum_over_classes(
          [&](int64_t c) { return coef_log_of_class(coef(c), V(typed_.prior_of(c))); });
    return sums;
  }

  void make_gradient(const Column column, const GradTerms<V> terms, V target_coef,
                     bool kept) const {
    for (int64_t c = 0; c < column.classes; ++c) {
      const V x = load(column.x + c * V::size);
      const V exp_x = kept ? x : exp_of<Element>(x - terms.shift);
      V grad = logit_grad(exp_x, column.coef_at(c, x, terms, target_coef), terms);
      if (typed_.transformed) grad = grad * transform_slope(x, column.options);
      store(column.x + c * V::size, column.if_it_counts(grad));
    }
  }

  // ---- loss and statistics ----------------------------------------------------------------------

  static void save(void* destination, int64_t row, int64_t count, V value) {
    store_first(static_cast<T*>(destination) + row, value, count);
  }

  V loss(const Column& column, RowTerms<V> terms, const TargetTerms<V>& target,
         const ClassSums<V>& classes, const RowStats<V>& stats) const {
    V entropy(T(0));
    if (typed_.options.kl_div)
      entropy = smoothing_entropy(terms, classes) +
                (soft ? entropy_of_probs(column, terms) : target_entropy(target));
    terms.beta = V(T(1));  // spread_dot holds it, and the target's part, already
    return row_loss(stats, terms, V(T(0)), stats.shift, typed_.options) + entropy;
  }

  V entropy_of_probs(const Column& column, const RowTerms<V>& terms) const {
    return sum_over_classes([&](int64_t c) {
      return target_entropy(target_terms(load(column.probs + c * V::size), V(typed_.weight_of(c)),
                                         V(typed_.prior_of(c)), load(column.x + c * V::size), terms,
                                         typed_.options));
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
    save(problem_.nll, row, count, column.unless_ignored(nll));
    for (int64_t i = 0; i < count; ++i)
      problem_.predicted[row + i] = first_nan[i] < 0 ? first[i] : first_nan[i];
  }

  const LossProblem& problem_;
  const P typed_;
  const int64_t classes_;
  const Tile<Element> tile_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
