// The CPU kernel for rows whose classes lie apart in memory, (N, C, d1, ...): a lane is a row.
//
// A tile is neighbouring rows with all their classes, in a buffer that stays in cache:
//
//   in      class by class, so that memory is read in long runs
//   column  a vector of rows: loss and gradient, which takes the place of the logits in the tile
//   out     class by class, into grad_logits, which may be the logits themselves
#pragma once

#include "column.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// soft: the target is probabilities, of all classes or of a few, which the tile has for all.
template <class Element, bool soft>
class TileKernel {
  using P = TypedProblem<Element>;
  using T = typename P::T;
  using V = Vec<T>;
  using Column = cpu::LABELSMOOTH_ISA::Column<Element, soft>;
  using Index = typename Column::Index;

 public:
  explicit TileKernel(const LossProblem& problem)
      : problem_(problem), typed_(problem), classes_(problem.classes), tile_(typed_, soft) {}

  // Too many classes, and a tile would not stay in cache. Masks are looked for in the logits as
  // they were given, which a tile does not keep; and where they are left out, a part of a row has
  // what is spread by itself.
  static bool takes(const LossProblem& problem) {
    return problem.logits.class_stride != 1 && problem.classes * V::size <= most_in_tile &&
           !(problem.options.over_unmasked() &&
             (problem.parts || TypedProblem<Element>(problem).transformed));
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

  void process_column(int64_t row, int64_t count, T* logits, const T* probs) {
    const bool forward = makes_sums(problem_), masks = typed_.options.over_unmasked();
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
                      !problem_.with_stats;
    RowStats<V> stats;
    if (forward) {
      const typename Column::Sums sums =
          Column::sums(column, terms, target.coef, finite_or_zero(largest), keep);
      stats = sums.stats;
      terms.mass = soft ? sums.mass : terms.mass + target.tau;
      if (problem_.parts)
        return save_part(row, count, column, part(column, terms, target, classes, stats, largest));
      save(problem_.row_shift, row, count, stats.shift);
      save(problem_.row_sum_exp, row, count, stats.sum_exp);
      save(problem_.row_mass, row, count, terms.mass);
      save(problem_.row_beta, row, count, terms.beta);
      save(problem_.loss, row, count,
           column.if_it_counts(row_weight(row, count) *
                               loss(column, terms, target, classes, stats)));
      if (problem_.with_stats) save_statistics(row, count, column, stats, largest);
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
    Column column = {classes_,       logits,         probs,       typed_.class_coef, typed_.weight,
                     typed_.uniform, typed_.options, Index{} - 1, Index{},           Index{} - 1,
                     Index{},        V(T(0)),        V(T(1))};
    Native<int64_t, V::size> target = {};
    target -= 1;
    column.target_prior = V(typed_.uniform);
    for (int64_t i = 0; i < count; ++i) {
      bool ignored = problem_.target;
      for (int64_t k = 0; problem_.target && k < problem_.target_classes; ++k) {
        const int64_t y = typed_.target_of(row + i, k), c = typed_.class_of(y);
        if (y == problem_.ignore_index) continue;
        ignored = false;
        if (y < 0 || y >= problem_.all_classes) {
          column.invalid[i] = -1;
        } else if (!soft) {
          if (typed_.is_here(c)) target[i] = c;
          column.target_prior.lanes[i] = typed_.prior_of(c);
          column.target_weight.lanes[i] = typed_.weight_of(c);
        }
      }
      column.ignored[i] = ignored ? -1 : 0;
      column.counts[i] = ignored || typed_.row_weight_of(row + i) == T(0) ? 0 : -1;
    }
    if constexpr (!soft) column.target = __builtin_convertvector(target, Index);
    return column;
  }

  // What a column's one class has; nothing where the target is several.
  TargetTerms<V> target_of(const Column& column, const RowTerms<V>& terms) const {
    const bool masks = !soft && typed_.options.over_unmasked();
    const V x0 = masks ? column.logit_of_target() : V(T(0));
    TargetTerms<V> target = target_terms(V(T(soft ? 0 : 1)), column.target_weight,
                                         column.target_prior, x0, terms, typed_.options);
    target.tau = column.if_here(target.tau);
    return target;
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
      V x = column.logit(c);
      if (typed_.transformed) {
        x = transform_logit(x, options);
        store(column.x + c * V::size, x);
      }
      largest = max(x, largest);
    }
    return largest;
  }

  ClassSums<V> sums_of_unmasked(const Column& column) const {
    const auto spread = [&](int64_t c, T value) {
      return unless_masked(V(value), column.logit(c), typed_.options);
    };
    const auto coef = [&](int64_t c) { return spread(c, typed_.class_coef_of(c)); };
    ClassSums<V> sums = {V(T(0)), V(T(0)), V(T(0))};
    sums.prior = column.sum_over_classes([&](int64_t c) { return spread(c, typed_.prior_of(c)); });
    sums.coef = column.sum_over_classes(coef);
    if (typed_.options.kl_div)
      sums.coef_log = column.sum_over_classes(
          [&](int64_t c) { return coef_log_of_class(coef(c), V(typed_.prior_of(c))); });
    return sums;
  }

  void make_gradient(const Column column, const GradTerms<V> terms, V target_coef,
                     bool kept) const {
    for (int64_t c = 0; c < column.classes; ++c) {
      const V x = column.logit(c);
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
    const V entropy = this->entropy(column, terms, target, classes);
    terms.beta = V(T(1));  // spread_dot holds it, and the target's part, already
    return row_loss(stats, terms, V(T(0)), stats.shift, typed_.options) + entropy;
  }

  V entropy(const Column& column, const RowTerms<V>& terms, const TargetTerms<V>& target,
            const ClassSums<V>& classes) const {
    if (!typed_.options.kl_div) return V(T(0));
    return smoothing_entropy(terms, classes) +
           (soft ? entropy_of_probs(column, terms) : column.if_here(target_entropy(target)));
  }

  V entropy_of_probs(const Column& column, const RowTerms<V>& terms) const {
    return column.sum_over_classes([&](int64_t c) {
      return target_entropy(target_terms(load(column.probs + c * V::size), V(typed_.weight_of(c)),
                                         V(typed_.prior_of(c)), column.logit(c), terms,
                                         typed_.options));
    });
  }

  // lse, nll and the class of the largest logit; the tile still holds the logits.
  void save_statistics(int64_t row, int64_t count, const Column& column, const RowStats<V>& stats,
                       V largest) const {
    const V lse = log_sum_exp_from(stats.shift, stats, typed_.options);
    save(problem_.lse, row, count, log_sum_exp(stats, typed_.options));
    save(problem_.nll, row, count, column.unless_ignored(column.nll_from(stats.shift, lse)));
    const Index predicted = column.argmax(largest);
    for (int64_t i = 0; i < count; ++i) problem_.predicted[row + i] = predicted[i];
  }

  // ---- a part of a row --------------------------------------------------------------------------

  // From stats whose spread_dot, and terms whose mass, is of the whole coefficients.
  RowPart<V> part(const Column& column, const RowTerms<V>& terms, const TargetTerms<V>& target,
                  const ClassSums<V>& classes, const RowStats<V>& stats, V largest) const {
    const V zero(T(0));
    RowPart<V> part = row_part(RowStats<V>{stats.shift, stats.sum_exp, zero}, terms,
                               ClassSums<V>{zero, zero, zero}, stats.spread_dot, terms.mass,
                               stats.shift, typed_.options);
    part.entropy = entropy(column, terms, target, classes);
    if (!problem_.with_stats) return part;
    const Index predicted = column.argmax(largest);
    for (int64_t i = 0; i < V::size; ++i) {
      part.predicted.lanes[i] = static_cast<T>(problem_.class_offset + predicted[i]);
      part.largest.lanes[i] = column.x[predicted[i] * V::size + i];
    }
    part.prob = column.sum_over_target([](V prob, V) { return prob; });
    part.prob_dot = -column.nll_from(finite_or_zero(part.shift), zero);
    return part;
  }

  void save_part(int64_t row, int64_t count, const Column& column, const RowPart<V>& part) const {
    const RowPart<V> invalid = invalid_part<V>();
    RowPart<V> saved = part;
    saved.shift = select(column.invalid < 0, invalid.shift, part.shift);
    saved.sum_exp = select(column.invalid < 0, invalid.sum_exp, part.sum_exp);
    for_fields(saved, typed_.options, problem_.with_stats, [&](int field, const V& value) {
      save(static_cast<T*>(problem_.parts) + field * problem_.rows, row, count, value);
    });
  }

  const LossProblem& problem_;
  const P typed_;
  const int64_t classes_;
  const Tile<Element> tile_;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
