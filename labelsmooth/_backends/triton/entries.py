"""A target of a few classes: tiles (ROWS, ENTRIES) of what is known of them, read class by class.

Entries of the same class add up: they have one gradient, which each of them writes.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .reading import accumulated, uniform
from .row_math import target_entropy, target_terms, transform_logit
from .rows import row_sum
from .tile_sums import TargetSums, target_sums


class Entries(NamedTuple):
    target: tl.tensor  # the class, 0 where the entry counts nothing
    counts: tl.tensor  # it is a class of this program's part of the row
    prob: tl.tensor
    weight: tl.tensor  # w_c
    prior: tl.tensor  # u_c
    x0: tl.tensor  # the logit as it was given
    x: tl.tensor


@triton.jit
def class_of_entry(rows, k, inside):
    """And whether it is one, of these."""
    pointers = rows.entries + tl.cast(k, tl.int64) * rows.target_stride
    c = tl.load(pointers, mask=inside, other=0).to(tl.int64)
    counts = inside & (c != rows.ignore_index)
    if rows.class_offset.dtype != tl.int1:
        c -= rows.class_offset
    counts &= (c >= 0) & (c < rows.classes)
    return tl.where(counts, c, 0), counts


@triton.jit
def prob_of_entry(rows, k, counts):
    pointers = rows.probs + tl.cast(k, tl.int64) * rows.target_stride
    return tl.load(pointers, mask=counts, other=0.0)


@triton.jit
def entries_of(rows, begin, end, options, dtype: tl.constexpr, ENTRIES: tl.constexpr):
    """Those of the classes from begin to end."""
    k = tl.arange(0, ENTRIES)[None, :]
    c, counts = class_of_entry(rows, k, rows.inside & (k < rows.entry_count))
    counts &= (c >= begin) & (c < end)
    weight = tl.zeros_like(c).to(dtype) + 1
    prior = tl.zeros_like(c).to(dtype) + uniform(rows, dtype)
    if rows.prior.dtype.is_ptr():
        weight = tl.load(rows.weight + c, mask=counts, other=0.0)
        prior = tl.load(rows.prior + c, mask=counts, other=0.0)
    x0 = tl.load(rows.logits + c * rows.logits_stride, mask=counts & rows.read, other=0.0)
    x0 = accumulated(x0)
    prob = prob_of_entry(rows, k, counts)
    return Entries(c, counts, prob, weight, prior, x0, transform_logit(x0, options))


@triton.jit
def of_classes_of(entries, rows, ENTRIES: tl.constexpr):
    """The probability of each entry's class, over all its entries; and whether it is the class's
    first."""
    total = tl.zeros_like(entries.prob)
    first = entries.counts
    for k in range(rows.entry_count):
        c, counts = class_of_entry(rows, k, rows.inside)
        same = counts & (c == entries.target)
        total += tl.where(same, prob_of_entry(rows, k, counts), 0.0)
        first &= (same == 0) | (tl.arange(0, ENTRIES)[None, :] <= k)
    return total, first


@triton.jit
def entropy_of_entries(entries, rows, terms, options, ENTRIES: tl.constexpr):
    total, first = of_classes_of(entries, rows, ENTRIES)
    target = target_terms(total, entries.weight, entries.prior, entries.x0, terms, options)
    return row_sum(tl.where(first, target_entropy(target), 0.0))


@triton.jit
def target_sums_of_entries(entries, reference):
    sums = target_sums(entries.prob, entries.weight, entries.x - reference, 1, 1)
    return TargetSums(row_sum(sums.dot), row_sum(sums.mass), row_sum(sums.prob), row_sum(sums.nll))


@triton.jit
def coef_of_entries(entries, rows, terms, options, ENTRIES: tl.constexpr):
    total, _ = of_classes_of(entries, rows, ENTRIES)
    target = target_terms(total, entries.weight, entries.prior, entries.x0, terms, options)
    return target.coef
