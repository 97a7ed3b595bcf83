// The CPU kernel where a lane is a row: for classes that lie apart in memory, (N, C, d1, ...), and
// for few, where what is done once a row, sums across lanes and a logarithm, would be the most.
//
// By tiles of rows (tile.h):
//
//   in      in long runs of memory
//   column  a vector of rows: loss and gradient, which takes the logits' place
//   out     as it came, into grad_logits, which may be the logits themselves
#pragma once

#include "column.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Rows of so many adjacent classes are turned into lanes, unless group_kernel.h takes them.
constexpr int64_t most_adjacent = 64;

template <class Element, Kind kind>
class TileKernel {
  static constexpr bool soft = kind == Kind::soft;
  using P = TypedProblem<Element>;
  using T = typename P::T;
  using V = Vec<T>;
  using Column = cpu::LABELSMOOTH_ISA::Column<Element, kind>;
  using Targets = cpu::LABELSMOOTH_ISA::Targets<T>;
  using OneClass = cpu::LABELSMOOTH_ISA::OneClass<T>;
  using Index = typename Column::Index;

 public:
  explicit TileKernel(const LossProblem& problem)
      : problem_(problem),
        typed_(problem),
        classes_(problem.classes),
        transform_(typed_.options),
        tile_(typed_, soft) {}

  // With too many classes a tile would not stay in cache; and rows that workers may share are no
  // tile's. Masks are looked for in the logits as they were given, which a tile of transformed ones
  // does not keep; and where masked classes are left out, a part has what is spread by itself.
  static bool takes(const LossProblem& problem) {
    const int64_t most = problem.logits.class_stride == 1 ? most_adjacent : most_in_tile / V::size;
    return problem.classes <= most && problem.classes < classes_to_share &&
           !(problem.options.over_unmasked() &&
             (problem.parts || TypedProblem<Element>(problem).transformed));
  }

  // Tiles begin at multiples of their width, wherever the rows begin: whole cache lines.
  void process(int64_t begin, int64_t end) {
    const bool adjacent = problem_.logits.class_stride == 1;
    for (int64_t row = begin, count; row < end; row += count) {
      const int64_t place = problem_.inner == 1 ? row : row % problem_.inner;
      const int64_t left = problem_.inner == 1 ? end - row : problem_.inner - place;
      count = min(min(end - row, left), tile_.width - place % tile_.width);
      tile_.read(row, count);
      next_ = adjacent && row + 2 * V::size <= end ? typed_.row_of(problem_.logits, row + V::size)
                                                   : nullptr;
      for (int64_t first = 0; first < count; first += V::size)
        process_column(row + first, min(count - first, V::size), tile_.logits + first * classes_,
                       soft ? tile_.probs + first * classes_ : nullptr);
      if (problem_.grad_logits.data) tile_.write(row, count);
    }
  }

 private:
  // ---- a column: C vectors of rows --------------------------------------------------------------

  void process_column(int64_t row, int64_t count, T* logits, const T* probs) {
    const bool forward = makes_sums(problem_), masks = typed_.options.over_unmasked();
    const Column column = {classes_,      logits, probs,          typed_.class_coef,
                           typed_.weight, next_,  typed_.uniform, typed_.options};
    V largest(T(0));
    if (forward || typed_.transformed) largest = transform_and_find_largest(column);
    const Targets targets = targets_of<soft>(typed_, row, count);
    const ClassSums<V> classes =
        masks && forward ? sums_of_unmasked(column)
                         : ClassSums<V>{V(typed_.sums.coef), V(typed_.sums.coef_log), V(T(1))};
    RowTerms<V> terms = row_terms(targets.prior, classes, typed_.options);
    if (!forward) {
      terms.beta = load_rows<T>(problem_.row_beta, row, count);
      terms.mass = load_rows<T>(problem_.row_mass, row, count);
    }
    const OneClass one = one_class(column, targets, terms);
    // The gradient takes the exponentials that the sums were made of, if nothing else needs the
    // logits.
    const bool keep = forward && problem_.grad_logits.data && !typed_.transformed && !masks &&
                      !problem_.with_stats && !any_lane<T>(one.infinite());
    RowStats<V> stats;
    if (forward) {
      const typename Column::Sums sums = Column::sums(column, terms, finite_or_zero(largest), keep);
      stats = sums.stats;
      terms.mass = soft ? sums.mass : terms.mass + one.terms.tau;
      if (problem_.parts)
        return save_part(row, count, part(column, terms, targets, one, classes, stats, largest),
                         targets);
      save_row_stats(problem_, row, count, stats, terms);
      save_rows<T>(problem_.loss, row, count,
                   targets.if_it_counts(row_weights(typed_, row, count) *
                                        loss(column, terms, targets, one, classes, stats)));
      if (problem_.with_stats) save_statistics(row, count, column, targets, one, stats, largest);
    } else {
      stats.shift = load_rows<T>(problem_.row_shift, row, count);
      stats.sum_exp = load_rows<T>(problem_.row_sum_exp, row, count);
    }
    if (problem_.grad_logits.data) {
      const GradTerms<V> grad =
          grad_terms(stats, terms, incoming(typed_, row, count), typed_.options);
      make_gradient(column, grad, targets.counts, keep);
      if (!soft)
        targets.scatter(gradient_of(targets, one, grad),
                        [&](int64_t i, int64_t c, T value) { column.at(i, c) = value; });
    }
  }

  // Nothing where the target is several classes.
  OneClass one_class(const Column& column, const Targets& targets, const RowTerms<V>& terms) const {
    OneClass one;
    one.logit = targets.gather([&](int64_t i, int64_t c) { return column.at(i, c); });
    one.terms =
        target_terms(V(T(1)), targets.weight, targets.prior, one.logit, terms, typed_.options);
    one.terms.tau = targets.if_here(one.terms.tau);
    one.terms.coef = targets.if_here(one.terms.coef);
    return one;
  }

  V transform_and_find_largest(const Column column) const {
    const Transform<Element> transform = transform_;
    const bool transformed = typed_.transformed;
    V largest(-infinity<T>());
    for (int64_t c = 0; c < column.classes; ++c) {
      V x = column.logit(c);
      if (transformed) {
        x = transform(x);
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

  // Without what a target of one class has at it.
  void make_gradient(const Column column, const GradTerms<V> terms, Index counts, bool kept) const {
    const Transform<Element> transform = transform_;
    const bool transformed = typed_.transformed;
    for (int64_t c = 0; c < column.classes; ++c) {
      const V x = column.logit(c);
      const V exp_x = kept ? x : exp_of<Element>(x - terms.shift);
      V coef = terms.beta * column.spread_at(c, x);
      if constexpr (soft) coef = coef + column.target_at(c, terms.kappa);
      V grad = logit_grad(exp_x, coef, terms);
      if (transformed) grad = grad * transform.slope(x);
      store(column.x + c * V::size, Targets::if_it_counts(grad, counts));
    }
  }

  V gradient_of(const Targets& targets, const OneClass& one, const GradTerms<V>& terms) const {
    V grad = target_grad<Element>(one.logit, one.terms.coef, terms);
    if (typed_.transformed) grad = grad * transform_.slope(one.logit);
    return targets.if_it_counts(grad);
  }

  // ---- loss and statistics ----------------------------------------------------------------------

  // What row_loss takes; of probabilities the sums hold it already.
  struct Dots {
    V spread, target;
  };
  Dots dots(const Column& column, const OneClass& one, const Targets& targets,
            const RowStats<V>& stats) const {
    if constexpr (soft) return {stats.spread_dot, V(T(0))};
    const Index infinite = one.infinite();
    const V finite = weighted(one.terms.tau, one.logit - stats.shift);
    Dots dots = {stats.spread_dot,
                 select(infinite != 0, weighted(one.terms.coef, one.logit), finite)};
    const Index without = infinite & (one.terms.coef == V(T(0)));
    if (any_lane<T>(without))
      dots.spread =
          select(without != 0, column.spread_dot_without(targets.here, stats.shift), dots.spread);
    return dots;
  }

  V loss(const Column& column, RowTerms<V> terms, const Targets& targets, const OneClass& one,
         const ClassSums<V>& classes, RowStats<V> stats) const {
    const V entropy = this->entropy(column, terms, targets, one, classes);
    const Dots dots = this->dots(column, one, targets, stats);
    stats.spread_dot = dots.spread;
    if (soft) terms.beta = V(T(1));
    return row_loss(stats, terms, dots.target, stats.shift, typed_.options) + entropy;
  }

  V entropy(const Column& column, const RowTerms<V>& terms, const Targets& targets,
            const OneClass& one, const ClassSums<V>& classes) const {
    if (!typed_.options.kl_div) return V(T(0));
    return smoothing_entropy(terms, classes) +
           (soft ? entropy_of_probs(column, terms) : targets.if_here(target_entropy(one.terms)));
  }

  V entropy_of_probs(const Column& column, const RowTerms<V>& terms) const {
    return column.sum_over_classes([&](int64_t c) {
      return target_entropy(target_terms(load(column.probs + c * V::size), V(typed_.weight_of(c)),
                                         V(typed_.prior_of(c)), column.logit(c), terms,
                                         typed_.options));
    });
  }

  // The tile still holds the logits.
  void save_statistics(int64_t row, int64_t count, const Column& column, const Targets& targets,
                       const OneClass& one, const RowStats<V>& stats, V largest) const {
    const V lse = log_sum_exp_from(stats.shift, stats, typed_.options);
    save_rows<T>(problem_.lse, row, count, log_sum_exp(stats, typed_.options));
    save_rows<T>(problem_.nll, row, count,
                 targets.unless_ignored(column.nll_from(targets, one, stats.shift, lse)));
    const Index predicted = column.argmax(largest);
    for (int64_t i = 0; i < count; ++i) problem_.predicted[row + i] = predicted[i];
  }

  // ---- a part of a row --------------------------------------------------------------------------

  // Of probabilities the sums hold all that the part has.
  RowPart<V> part(const Column& column, const RowTerms<V>& terms, const Targets& targets,
                  const OneClass& one, const ClassSums<V>& classes, const RowStats<V>& stats,
                  V largest) const {
    const Dots dots = this->dots(column, one, targets, stats);
    const V zero(T(0));
    RowPart<V> part =
        soft ? row_part(RowStats<V>{stats.shift, stats.sum_exp, zero}, terms,
                        ClassSums<V>{zero, zero, zero}, dots.spread, terms.mass, stats.shift,
                        typed_.options)
             : row_part(RowStats<V>{stats.shift, stats.sum_exp, dots.spread}, terms, classes,
                        dots.target, one.terms.tau, stats.shift, typed_.options);
    part.entropy = entropy(column, terms, targets, one, classes);
    if (!problem_.with_stats) return part;
    const Index predicted = column.argmax(largest);
    for (int64_t i = 0; i < V::size; ++i) {
      part.predicted.lanes[i] = static_cast<T>(problem_.class_offset + predicted[i]);
      part.largest.lanes[i] = column.x[predicted[i] * V::size + i];
    }
    part.prob = column.sum_over_target(targets, one, [](V prob, V) { return prob; });
    part.prob_dot = -column.nll_from(targets, one, finite_or_zero(part.shift), zero);
    return part;
  }

  void save_part(int64_t row, int64_t count, const RowPart<V>& part, const Targets& targets) const {
    const Index unread = problem_.with_stats ? Index{} : ~targets.counts;
    V fields[12] = {};
    const auto fill = [&](const RowPart<V>& from, Index lanes) {
      for_fields(from, typed_.options, problem_.with_stats, [&](int field, const V& value) {
        fields[field] = select(lanes != 0, value, fields[field]);
      });
    };
    fill(part, Index{} - 1);
    fill(empty_part<V>(), unread);
    fill(invalid_part<V>(), targets.invalid);
    for_fields(part, typed_.options, problem_.with_stats, [&](int field, const V&) {
      save_rows<T>(static_cast<T*>(problem_.parts) + field * problem_.rows, row, count,
                   fields[field]);
    });
  }

  const LossProblem& problem_;
  const P typed_;
  const int64_t classes_;
  const Transform<Element> transform_;
  const Tile<Element> tile_;
  const Element* next_ = nullptr;
};

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
