// Sums over the vectors of a row, and what is looked for in it.
#pragma once

#include "blocks.h"
#include "row.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Independent accumulators, which hide the latency of an addition.
constexpr int unroll = 4;
// Rounding errors must not grow with the classes: so many vectors are added to an accumulator, then
// the accumulators to those of a block, then the lanes of a block to the row's sum, a double.
constexpr int64_t run = 16;

// ---- sums ---------------------------------------------------------------------------------------

// The classes from c on, one vector after another.
template <class R>
LABELSMOOTH_HD void add_rest(const R& row, RowSums<typename R::V>& sums, int64_t c, int64_t end,
                             typename R::T shift) {
  constexpr int64_t size = R::V::size;
  for (; c + size <= end; c += size) row.template accumulate<true>(sums, c, size, shift);
  if (c < end) row.template accumulate<false>(sums, c, end - c, shift);
}

template <class R>
RowSums<typename R::V> block_sums(const R& given, int64_t begin, int64_t end, typename R::T shift) {
  using V = typename R::V;
  const R row = given;
  RowSums<V> block = empty_sums<V>();
  int64_t c = begin;
  while (c + unroll * V::size <= end) {
    RowSums<V> parts[unroll];
    for (RowSums<V>& part : parts) part = empty_sums<V>();
    for (int64_t k = 0; k < run && c + unroll * V::size <= end; ++k, c += unroll * V::size)
      row.accumulate(parts, c, shift);
    for (const RowSums<V>& part : parts) R::add(block, part);
  }
  add_rest(row, block, c, end, shift);
  return row.finished(block);
}

// Of a row so short that one accumulator does.
template <class R>
constexpr bool is_short(int64_t classes) {
  return classes <= 2 * run * R::V::size;
}
template <class R>
LABELSMOOTH_HD RowSums<typename R::V> short_sums(const R& row, int64_t classes,
                                                 typename R::T shift) {
  RowSums<typename R::V> sums = empty_sums<typename R::V>();
  add_rest(row, sums, 0, classes, shift);
  return row.finished(sums);
}

// Whether a sum of exponentials was taken from near the largest logit. Else it has lost digits, or
// is about to.
template <class X>
LABELSMOOTH_HD auto is_well_scaled(X sum_exp) {
  return (sum_exp > X(0.5f)) & (X(1e12f) > sum_exp);
}

template <class R>
RowSums<double> sums_of_lanes(const RowSums<typename R::V>& block) {
  RowSums<double> sums = empty_sums<double>();
  sums.stats.sum_exp = sum_lanes(block.stats.sum_exp);
  sums.stats.spread_dot = sum_lanes(block.stats.spread_dot);
  if constexpr (R::dense) {
    sums.target_dot = sum_lanes(block.target_dot);
    sums.target_sum = sum_lanes(block.target_sum);
  }
  if constexpr (R::is_general) {
    sums.classes.coef = sum_lanes(block.classes.coef);
    sums.classes.coef_log = sum_lanes(block.classes.coef_log);
    sums.classes.prior = sum_lanes(block.classes.prior);
  }
  return sums;
}

// Relative to `shift`. `of_blocks` takes the sums of each.
template <class R>
RowSums<typename R::T> row_sums(const R& row, const Blocks& blocks, typename R::T shift,
                                RowSums<double>* of_blocks) {
  using T = typename R::T;
  blocks.for_each([&](int64_t block, int64_t begin, int64_t end) {
    of_blocks[block] = sums_of_lanes<R>(block_sums(row, begin, end, shift));
  });
  RowSums<double> total = empty_sums<double>();
  for (int64_t block = 0; block < blocks.count; ++block) R::add(total, of_blocks[block]);
  return {{shift, T(total.stats.sum_exp), T(total.stats.spread_dot)},
          T(total.target_dot),
          T(total.target_sum),
          {T(total.classes.coef), T(total.classes.coef_log), T(total.classes.prior)}};
}

// The sum of term(c, count), a vector of `count` classes from c on, over all of them. `of_blocks`
// takes the sums of each.
template <class V, class Term>
double sum_over_classes(const Blocks& blocks, double* of_blocks, const Term& term) {
  blocks.for_each([&](int64_t block, int64_t begin, int64_t end) {
    of_blocks[block] = sum_of_terms<V>(begin, end, V::size, [&](int64_t c) {
                         return term(c, min(end - c, V::size));
                       }).total();
  });
  double sum = 0;
  for (int64_t block = 0; block < blocks.count; ++block) sum += of_blocks[block];
  return sum;
}

// ---- logits -------------------------------------------------------------------------------------

template <class R>
typename R::T largest_in(const R& row, int64_t begin, int64_t end) {
  using T = typename R::T;
  using V = typename R::V;
  V largest(-infinity<T>());
  int64_t c = begin;
  for (; c + V::size <= end; c += V::size)
    largest = max(row.template logits_at<true>(c, V::size), largest);
  if (c < end) {
    const V last = V::first(end - c, row.template logits_at<false>(c, end - c), V(-infinity<T>()));
    largest = max(last, largest);
  }
  return max_lanes(largest);
}

// `of_blocks` takes the largest of each.
template <class R>
typename R::T largest_logit(const R& row, const Blocks& blocks, typename R::T* of_blocks) {
  blocks.for_each([&](int64_t block, int64_t begin, int64_t end) {
    of_blocks[block] = largest_in(row, begin, end);
  });
  typename R::T largest = -infinity<typename R::T>();
  for (int64_t block = 0; block < blocks.count; ++block)
    largest = of_blocks[block] > largest ? of_blocks[block] : largest;
  return largest;
}

// The first class of [begin, end) whose logit is `value`, which may be NaN; or `end`.
template <class R>
int64_t find_logit(const R& row, int64_t begin, int64_t end, typename R::T value) {
  using V = typename R::V;
  for (int64_t c = begin; c < end; c += V::size) {
    const int64_t count = end - c < V::size ? end - c : V::size;
    const V x = count == V::size ? row.template logits_at<true>(c, count)
                                 : row.template logits_at<false>(c, count);
    const auto found = value == value ? x == V(value) : ~(x == x);
    if (!any_lane<typename R::T>(found)) continue;
    for (int i = 0; i < count; ++i)
      if (found[i]) return c + i;
  }
  return end;
}

// The first class whose logit is the largest; 0 where all are NaN.
template <class R>
int64_t find_largest(const R& row, const Blocks& blocks, typename R::T* of_blocks) {
  const auto largest = largest_logit(row, blocks, of_blocks);
  for (int64_t block = 0; block < blocks.count; ++block) {
    if (of_blocks[block] != largest) continue;
    const int64_t end = blocks.end_of(block);
    const int64_t first = find_logit(row, blocks.begin_of(block), end, largest);
    if (first < end) return first;
  }
  return 0;
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
