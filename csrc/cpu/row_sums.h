// Sums over the vectors of a row, and what is looked for in it.
#pragma once

#include "row.h"

namespace labelsmooth::cpu::LABELSMOOTH_ISA {

// Independent accumulators, which hide the latency of an addition.
constexpr int unroll = 4;
// Rounding errors must not grow with the classes: so many vectors are added to an accumulator, then
// the accumulators to those of a block, then the lanes of a block to the row's sum, a double.
constexpr int64_t run = 16;
constexpr int64_t block_classes = 4096;

// ---- sums ---------------------------------------------------------------------------------------

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
      for (int i = 0; i < unroll; ++i)
        row.template accumulate<true>(parts[i], c + i * V::size, V::size, shift);
    for (const RowSums<V>& part : parts) R::add(block, part);
  }
  for (; c + V::size <= end; c += V::size) row.template accumulate<true>(block, c, V::size, shift);
  if (c < end) row.template accumulate<false>(block, c, end - c, shift);
  return block;
}

template <class R>
void add_lanes(RowSums<double>& total, const RowSums<typename R::V>& block) {
  total.stats.sum_exp += sum_lanes(block.stats.sum_exp);
  total.stats.spread_dot += sum_lanes(block.stats.spread_dot);
  if constexpr (R::dense) {
    total.target_dot += sum_lanes(block.target_dot);
    total.target_sum += sum_lanes(block.target_sum);
  }
  if constexpr (R::is_general) {
    total.classes.coef += sum_lanes(block.classes.coef);
    total.classes.coef_log += sum_lanes(block.classes.coef_log);
    total.classes.prior += sum_lanes(block.classes.prior);
  }
}

// Relative to `shift`.
template <class R>
RowSums<typename R::T> row_sums(const R& row, int64_t classes, typename R::T shift) {
  using T = typename R::T;
  RowSums<double> total = empty_sums<double>();
  for (int64_t begin = 0; begin < classes; begin += block_classes) {
    const int64_t end = begin + block_classes < classes ? begin + block_classes : classes;
    add_lanes<R>(total, block_sums(row, begin, end, shift));
  }
  return {{shift, T(total.stats.sum_exp), T(total.stats.spread_dot)},
          T(total.target_dot),
          T(total.target_sum),
          {T(total.classes.coef), T(total.classes.coef_log), T(total.classes.prior)}};
}

// ---- logits -------------------------------------------------------------------------------------

template <class R>
typename R::T largest_logit(const R& row, int64_t classes) {
  using T = typename R::T;
  using V = typename R::V;
  V largest(-infinity<T>());
  int64_t c = 0;
  for (; c + V::size <= classes; c += V::size)
    largest = max(row.template logits_at<true>(c, V::size), largest);
  if (c < classes) {
    const V last =
        V::first(classes - c, row.template logits_at<false>(c, classes - c), V(-infinity<T>()));
    largest = max(last, largest);
  }
  return max_lanes(largest);
}

// The first class whose logit is `value`, which may be NaN; or the number of classes.
template <class R>
int64_t find_logit(const R& row, int64_t classes, typename R::T value) {
  using V = typename R::V;
  for (int64_t c = 0; c < classes; c += V::size) {
    const int64_t count = classes - c < V::size ? classes - c : V::size;
    const V x = count == V::size ? row.template logits_at<true>(c, count)
                                 : row.template logits_at<false>(c, count);
    const auto found = value == value ? x == V(value) : ~(x == x);
    if (!any_lane<typename R::T>(found)) continue;
    for (int i = 0; i < count; ++i)
      if (found[i]) return c + i;
  }
  return classes;
}

}  // namespace labelsmooth::cpu::LABELSMOOTH_ISA
