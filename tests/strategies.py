"""Hypothesis strategies: a call of the loss drawn from all that it accepts.

Structure is drawn (and shrinks); the numbers themselves come from a generator with a drawn seed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from checks import DTYPES, REDUCTIONS
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from labelsmooth import SparseTarget

# Most sizes around the edges of vectors, of the unrolled step and of several of them.
CLASSES = st.integers(1, 70) | st.sampled_from([127, 128, 129, 255, 257, 1000, 1025])


class Problem(NamedTuple):
    """`options` are keywords that `check` and the loss understand."""

    logits: Tensor
    target: Any  # a tensor or, where `several` are drawn, a SparseTarget
    options: dict[str, Any]

    @property
    def class_axis(self) -> int:
        return 1 if self.logits.dim() > 1 else 0

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape that class indices have."""
        return self.logits.shape[:1] * self.class_axis + self.logits.shape[2:]

    @property
    def terms(self) -> float:
        """How large the terms are whose sum the loss is: a divergence is a difference of two."""
        kl_div = self.options.get("objective") == "kl_div"
        return 1.0 + 2 * kl_div * math.log(self.logits.shape[self.class_axis])


@st.composite
def memory_layouts(draw: st.DrawFn, values: Tensor) -> Tensor:
    """Axes in any order, gaps, an odd address; NaN around them."""
    order = draw(st.permutations(range(values.dim())))
    step, offset = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    sizes = [values.shape[axis] for axis in order]
    sizes[-1] *= step
    buffer = torch.full((offset + math.prod(sizes) + offset,), math.nan, dtype=values.dtype)
    middle = buffer[offset : offset + math.prod(sizes)].view(sizes)[..., ::step]
    tensor = middle.permute([order.index(axis) for axis in range(values.dim())])
    return tensor.copy_(values)


@st.composite
def seeds(draw: st.DrawFn) -> None:
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))


@st.composite
def shapes(draw: st.DrawFn, classes: st.SearchStrategy[int] = CLASSES) -> tuple[int, ...]:
    """(C,), (N, C), (N, C, d1) or (N, C, d1, d2); N, d1 and d2 may be 0."""
    rows = draw(st.lists(st.integers(0, 5), max_size=3))
    return (*rows[:1], draw(classes), *rows[1:])


def class_vector(classes: int, dtype: torch.dtype, *, zeros: bool) -> Tensor:
    """Positive numbers within a factor of 4 and, with `zeros`, 0 for about a fifth of the classes,
    the first two never."""
    vector = 0.5 + 1.5 * torch.rand(classes, dtype=dtype)
    if zeros:
        vector[2:][torch.rand(classes)[2:] < 0.2] = 0.0
    return vector


@st.composite
def class_options(draw: st.DrawFn, classes: int, dtype: torch.dtype) -> dict[str, Any]:
    """In float32 for half logits, as models hold them."""
    dtype = torch.promote_types(dtype, torch.float32)
    options: dict[str, Any] = {}
    for name in ("weight", "prior"):
        if draw(st.booleans()):
            vector = class_vector(classes, dtype, zeros=draw(st.booleans()))
            options[name] = vector if name == "weight" else vector / vector.sum()
    return options


@st.composite
def logits_of(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Equal, ordinary, or confident rows; some with an offset in common, which may be large where
    the reference still has digits left for it."""
    spread = draw(st.sampled_from([0.0, 1.0, 4.0, 30.0]))
    offset = draw(st.sampled_from([0.0, -20.0] + [1e4] * (dtype != torch.float64)))
    return (spread * torch.randn(shape) + offset).to(dtype)


def masked(logits: Tensor, class_axis: int, part: float) -> Tensor:
    """A part of each row's classes, one class never."""
    score = torch.rand(logits.shape)
    best = score == score.amax(class_axis, keepdim=True)
    return logits.masked_fill((score < part) & ~best, -math.inf)


@st.composite
def targets(draw: st.DrawFn, problem: Problem, several: bool) -> Problem:
    """Class indices, some or all rows ignored; class probabilities; with `several` a few classes a
    row too."""
    logits, _, options = problem
    classes = logits.shape[problem.class_axis]
    kinds = ["indices", "some ignored", "all ignored"]
    if options["smooth_over"] != "others":
        kinds += ["probabilities"] + ["sparse"] * several
    kind = draw(st.sampled_from(kinds))
    if kind == "probabilities":
        target = (2 * torch.randn(logits.shape)).softmax(problem.class_axis)
        target = target.masked_fill(torch.rand(logits.shape) < 0.2, 0.0)
        target = target.to(draw(st.sampled_from([logits.dtype, *DTYPES])))
        return Problem(logits, draw(memory_layouts(target)), options)
    if kind == "sparse":
        shape = list(logits.shape)
        shape[problem.class_axis] = draw(st.integers(1, 5) | st.sampled_from([40]))
        named = torch.randint(classes, shape).masked_fill(torch.rand(shape) < 0.3, -100)
        return Problem(logits, SparseTarget(named, torch.rand(shape) / shape[0]), options)
    dtypes = [torch.int64, torch.int32] + [torch.uint8] * (classes <= 200)
    dtype = draw(st.sampled_from(dtypes))
    target = torch.randint(classes, problem.rows)
    if kind != "indices":
        outside = 255 if dtype == torch.uint8 else -7
        ignore_index = draw(st.sampled_from([outside, classes // 2]))
        chance = 1.0 if kind == "all ignored" else 0.4
        target = target.masked_fill(torch.rand(problem.rows) < chance, ignore_index)
        options = options | {"ignore_index": ignore_index}
    return Problem(logits, target.to(dtype), options)


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    dtypes: list[torch.dtype] = DTYPES,
    reductions: list[str] = REDUCTIONS,
    plain_logits: bool = False,
    several: bool = False,
) -> Problem:
    """Any valid call. With `plain_logits` the logits are finite and enter the loss as they are.
    With `several` there may be several classes or a weight for each row."""
    draw(seeds())
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes())
    class_axis = min(len(shape) - 1, 1)
    classes = shape[class_axis]
    options: dict[str, Any] = {
        "reduction": draw(st.sampled_from(reductions)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1, width=32)),
        "smooth_over": draw(st.sampled_from(["all", "unmasked"] + ["others"] * (classes > 1))),
        "weight_over": draw(st.sampled_from(["all", "target"])),
    }
    options |= draw(class_options(classes, dtype))
    optional: dict[str, st.SearchStrategy[Any]] = {"objective": st.just("kl_div")}
    if options["reduction"] == "mean":
        optional["normalizer"] = st.floats(1, 100) | st.integers(1, 100)
    transformed = not plain_logits and draw(st.booleans())
    if transformed:
        optional |= {
            "logit_scale": st.sampled_from([0.5, 1.5, -0.7]),
            "softcap": st.sampled_from([15.0, 30.0]),
            "lse_square_scale": st.sampled_from([1e-4, 0.1]),
        }
    options |= draw(st.fixed_dictionaries({}, optional=optional))
    # softcap and scale round once more, by as much as the logits are large
    logits = torch.randn(shape).to(dtype) if transformed else draw(logits_of(shape, dtype))
    if not plain_logits:
        if draw(st.booleans()) and not transformed:
            options["from_log_probs"] = True
            logits = torch.randn(shape, dtype=torch.float64).log_softmax(class_axis).to(dtype)
        part = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
        if part and options.get("logit_scale", 1.0) > 0:
            logits = masked(logits, class_axis, part)
    logits = draw(memory_layouts(logits))
    problem = draw(targets(Problem(logits, torch.empty(0), options), several))
    if several and draw(st.booleans()):
        chance = draw(st.sampled_from([0.0, 0.3]))
        rows = (0.5 + torch.rand(problem.rows)).masked_fill(torch.rand(problem.rows) < chance, 0.0)
        options["row_weight"] = problem.options["row_weight"] = rows
    assume(not divides_by_weights_of_zero(problem))
    if "weight" in options and draw(st.booleans()):
        options["weight"][unused_classes(problem)] = draw(st.sampled_from([math.inf, math.nan]))
    return problem


def unused_classes(problem: Problem) -> Tensor:
    """Of each class, whether no row gives it anything: its weight may be infinite or NaN."""
    _, target, options = problem
    classes = problem.logits.shape[problem.class_axis]
    if isinstance(target, SparseTarget):
        kept = target.classes[(target.classes != -100) & (target.probs != 0)]
        used = torch.zeros(classes, dtype=torch.bool).index_fill(0, kept.flatten(), True)
    elif target.is_floating_point():
        used = (target != 0).movedim(problem.class_axis, 0).reshape(classes, -1).any(1)
    else:
        kept = target[target != options.get("ignore_index", -100)].long()
        used = torch.zeros(classes, dtype=torch.bool).index_fill(0, kept.flatten(), True)
    if options["label_smoothing"] > 0 and options["weight_over"] == "all":
        used |= options["prior"] > 0 if "prior" in options else True
    return ~used


def divides_by_weights_of_zero(problem: Problem) -> bool:
    """A mean over rows of weight 0 is 0/0, and of its gradient no element is defined."""
    _, target, options = problem
    rows = options.get("row_weight", torch.ones(problem.rows))
    if isinstance(target, SparseTarget):
        kept = (target.classes != -100).any(problem.class_axis)
        return bool(kept.any()) and not rows[kept].any()
    if target.is_floating_point():
        return rows.numel() > 0 and not rows.any()
    kept = target != options.get("ignore_index", -100)
    weights = rows[kept]
    if "weight" in options:
        weights = weights * options["weight"][target[kept].long()]
    return weights.numel() > 0 and not weights.any()
