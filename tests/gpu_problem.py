"""One call of the loss as a backend is given it, made from a few values, and what must come of it.

A `Case` is values only; `case.make()` builds its `Problem` (the same tensors each time, on the CPU)
and `check_case` does the rest: one step or forward and backward, fresh or in place, loss, gradient
and statistics against tests/reference.py, and that nothing else was written. Logits, and class
probabilities, lie within a larger buffer, laid out as `case.layout` says.

Where a target is no class, loss, nll and gradient of its row must be NaN and those of the others as
if its row were ignored.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from checks import ACCUMULATION, Outcome, assert_equals_reference
from reference import Reference, reference
from shards import InShards
from torch import Tensor

from labelsmooth._call.problem import Inputs, Options, Outputs

INF = math.inf
GUARD = 77  # what lies around the logits
IGNORED = -100


class Backend(Protocol):
    def forward(self, inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs: ...
    def backward(
        self,
        grad_loss: Tensor,
        row_stats: Tensor,
        inputs: Inputs,
        options: Options,
        *,
        inplace: bool,
    ) -> Tensor: ...


class Problem(NamedTuple):
    inputs: Inputs
    options: Options
    grad_loss: Tensor  # what backward is given, where the gradient is made there
    buffer: Tensor  # (elements,): the logits' memory and the guards around it
    truth: Reference
    bad: Tensor  # of the rows: whether the target is no class


@dataclass(frozen=True)
class Case:
    name: str
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = (2, 37)  # (N, C) or (N, C, S)
    layout: str = "rows"  # see `_place`
    values: str = "normal"  # see `_values`
    targets: str = "classes"  # see `_targets`
    probs_dtype: torch.dtype | None = None  # of class probabilities, if not that of the logits
    vectors: tuple[str, ...] = ()  # "weight", "prior": each 0 for class 3; "normalizer"; or
    # "row_weight", which is 0 for the last row of several
    weight_of_3: float = 0.0  # else no row has class 3 for its target
    prior_of_3: float = 0.0
    one_step: bool = True  # the gradient is made in forward, for grad_loss 1
    expanded: bool = False  # grad_loss is one number, of stride 0
    options: dict[str, Any] = field(default_factory=dict)  # of Options; smoothing is 0.1

    def __str__(self) -> str:
        return self.name

    @property
    def classes(self) -> int:
        return self.shape[1]

    @property
    def rows(self) -> tuple[int, ...]:
        return self.shape[:1] + self.shape[2:]

    def make(self) -> Problem:
        torch.manual_seed(zlib.crc32(self.name.encode()))
        options = Options(**{"label_smoothing": 0.1, **self.options})
        target, probs = _targets(self)
        buffer, logits = _place(_values(self, target, options), self.layout)
        if target.is_floating_point():
            target = _place(target, self.layout)[1]
        accumulate = torch.float64 if self.dtype == torch.float64 else torch.float32
        made = {
            "weight": _with_3(torch.rand(self.classes, dtype=accumulate) + 0.5, self.weight_of_3),
            "prior": _normalised(_with_3(torch.rand(self.classes, dtype=accumulate) + 0.1, 0.0)),
            "normalizer": torch.tensor(11.0, dtype=accumulate),
            "row_weight": torch.rand(self.rows, dtype=accumulate) + 0.5,
        }
        made["prior"] = _with_3(made["prior"], self.prior_of_3)
        if made["row_weight"].numel() > 1:
            made["row_weight"].view(-1)[-1] = 0.0
        vectors = (made[n] if n in self.vectors else None for n in made)
        inputs = Inputs(logits, target, probs, *vectors)
        shape = self.rows if options.reduction == "none" else ()
        grad_loss = torch.randn(() if self.expanded else shape, dtype=accumulate).expand(shape)
        if self.one_step:
            grad_loss = torch.ones_like(grad_loss)
        return Problem(inputs, options, grad_loss, buffer, *_truth(inputs, options, grad_loss))


def _with_3(vector: Tensor, value: float) -> Tensor:
    return vector.where(torch.arange(len(vector)) != 3, value)


def _normalised(prior: Tensor) -> Tensor:
    return (prior.double() / prior.double().sum()).to(prior.dtype)


def _targets(case: Case) -> tuple[Tensor, Tensor | None]:
    """classes        the first, the last, and others
    ignored        as classes, but the second row is ignored; "all ignored": every one is
    below, beyond  as ignored, but the first row's target is -1, C
    int32          as ignored, in that dtype
    few, many      3 or 70 classes a row with their probabilities; some of them twice, some ignored
                   in part, the second row wholly; "few below", "few beyond": as few, but one of the
                   first row's is no class
    probabilities  of every class but class 3; of the logits' dtype, or probs_dtype
    """
    if case.targets == "probabilities":
        probs = torch.randn(case.shape).softmax(1)
        probs[:, 3:4] = 0.0
        if case.values in ("masked probabilities", "far"):
            probs[:, ::2] = 0.0
        return probs.to(case.probs_dtype or case.dtype), None
    kind, *more = case.targets.split()
    several = {"few": 3, "many": 70}.get(kind)
    outer, *inner = case.rows
    shape = case.rows if several is None else (outer, several, *inner)
    target = torch.randint(case.classes, shape)
    if case.weight_of_3 != 0:
        target[target == 3] = 4
    if several is not None:
        of_rows = target.movedim(1, -1)  # a view
        of_rows[..., 2] = of_rows[..., 0]
        rows = of_rows.unbind(0) if not inner else [r for o in of_rows.unbind(0) for r in o]
        for row in rows[:1]:
            row[1] = {"below": -1, "beyond": case.classes}[more[0]] if more else IGNORED
        for row in rows[1:2]:
            row[:] = IGNORED
        accumulate = torch.float64 if case.dtype == torch.float64 else torch.float32
        return target, torch.rand(shape, dtype=accumulate) / several
    rows = target.view(-1)
    rows[:1], rows[1:2] = 0, case.classes - 1
    if case.targets != "classes":
        rows[1:2] = IGNORED
    if case.targets == "all ignored":
        rows[:] = IGNORED
    if case.targets in ("below", "beyond"):
        rows[:1] = -1 if case.targets == "below" else case.classes
    return (target.int() if case.targets == "int32" else target), None


def _values(case: Case, target: Tensor, options: Options) -> Tensor:
    """normal        a few units around 0
    offset        around 10000; "negative": around -10000, below what fills a chunk
    half, masked  as normal, but the first half of the classes, every second class is -inf (the
                  target's logit excepted); "lowest": as masked, but the lowest finite number;
                  "masked probabilities": as masked, and those classes have no probability; "far":
                  as masked, but -1e9, which is a logit like any other
    target        as normal, but the target's logit is -inf
    class 3       as normal, but class 3, which has no weight, prior or probability, is -inf
    empty         as normal, but the second row is -inf; "garbage": NaN
    rising        the largest at the end: every block of classes has a larger maximum than the last
    """
    x = 2 * torch.randn(case.shape, dtype=torch.float64)
    if case.values in ("offset", "negative"):
        x = x + (10000 if case.values == "offset" else -10000)
    if case.values == "rising":
        ramp = torch.linspace(-60, 60, case.classes, dtype=torch.float64)
        x = x + ramp.view(-1, *(1,) * (x.dim() - 2))
    x = x.to(case.dtype)
    if case.values == "class 3":
        x[:, 3:4] = -INF
    dense = target.is_floating_point()
    if case.values == "masked probabilities" or (case.values == "far" and dense):
        x[:, ::2] = -INF if case.values == "masked probabilities" else -1e9
    elif case.values in ("half", "masked", "lowest", "target", "far"):
        inside = target.clamp(0, case.classes - 1).long()
        if inside.dim() < x.dim():
            inside = inside.unsqueeze(1)
        kept = x.gather(1, inside)
        if case.values == "half":
            x[:, : case.classes // 2] = -INF
        elif case.values != "target":
            masks = {"masked": -INF, "lowest": torch.finfo(case.dtype).min, "far": -1e9}
            x[:, ::2] = masks[case.values]
        x.scatter_(1, inside, torch.full_like(kept, -INF) if case.values == "target" else kept)
    if case.values in ("empty", "garbage"):
        x[1] = -INF if case.values == "empty" else math.nan
    return x.log_softmax(1).nan_to_num(-INF) if options.from_log_probs else x


def _place(values: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Guards, and the values within as a view.

    rows       contiguous, at an address that is a multiple of 16 bytes
    odd        contiguous, but beginning one element further
    padded     rows of 3 elements more than there are classes
    columns    the class axis is the slowest
    every 2nd  of the class axis
    """
    order = list(range(values.dim()))
    if layout == "columns":
        order = [1, 0, *order[2:]]
    shape = [values.shape[d] for d in order]
    pad = {"padded": 3, "every 2nd": values.shape[-1]}.get(layout, 0)
    count = math.prod(shape[:-1]) * (shape[-1] + pad)
    start = 17 if layout == "odd" else 16
    buffer = torch.full((start + count + 16,), GUARD, dtype=values.dtype)
    view = buffer[start : start + count].view(*shape[:-1], shape[-1] + pad)
    view = view[..., ::2] if layout == "every 2nd" else view[..., : shape[-1]]
    view = view.permute([order.index(d) for d in range(values.dim())])
    view.copy_(values)
    return buffer, view


def _truth(inputs: Inputs, options: Options, grad_loss: Tensor) -> tuple[Reference, Tensor]:
    target = inputs.target
    rows = inputs.logits.shape[:1] + inputs.logits.shape[2:]
    bad = torch.zeros(rows, dtype=torch.bool)
    if not target.is_floating_point():
        classes = inputs.logits.shape[1]
        wrong = (target != options.ignore_index) & ((target < 0) | (target >= classes))
        bad = wrong if inputs.target_probs is None else wrong.any(1)
        of_row = bad if inputs.target_probs is None else bad.unsqueeze(1)
        target = target.masked_fill(of_row, options.ignore_index)
    truth = reference(
        inputs.logits,
        target if inputs.target_probs is None else (target, inputs.target_probs),
        inputs.weight,
        options.ignore_index,
        options.reduction,
        options.label_smoothing,
        smooth_over=options.smooth_over,
        weight_over=options.weight_over,
        prior=inputs.prior,
        objective=options.objective,
        from_log_probs=options.from_log_probs,
        lse_square_scale=options.lse_square_scale,
        logit_scale=options.logit_scale,
        softcap=options.softcap,
        normalizer=inputs.normalizer,
        row_weight=inputs.row_weight,
        grad_loss=grad_loss,
    )
    per_row = options.reduction == "none"
    nan = torch.full_like(truth.loss, math.nan)
    loss = truth.loss.where(~(bad if per_row else bad.any()), nan)
    grad = truth.grad_logits.masked_fill(bad.unsqueeze(1), math.nan)
    nll = truth.nll.masked_fill(bad, math.nan)
    return truth._replace(loss=loss, grad_logits=grad, nll=nll), bad


def check_case(case: Case, backend: Backend) -> Outputs:
    """Returns what forward returned."""
    problem = case.make()
    inputs, options, grad_loss = problem.inputs, problem.options, problem.grad_loss
    before = problem.buffer.view(torch.uint8).clone()
    logits = inputs.logits.clone()  # in memory of their own

    outputs = backend.forward(inputs, options, with_grad=case.one_step)
    grad = outputs.grad_logits
    if not case.one_step:
        assert torch.equal(problem.buffer.view(torch.uint8), before), (
            "forward without gradient wrote to the logits"
        )
        inplace = options.inplace
        grad = backend.backward(grad_loss, outputs.row_stats, inputs, options, inplace=inplace)

    shares_memory = grad.data_ptr() == inputs.logits.data_ptr()
    assert shares_memory == options.inplace or grad.numel() == 0
    assert grad.shape == inputs.logits.shape
    made = grad.clone()
    if options.inplace:
        inputs.logits.copy_(logits)  # undone, to see that the rest is as it was
    assert torch.equal(problem.buffer.view(torch.uint8), before), (
        "memory other than the gradient's was written"
    )

    assert outputs.loss.shape == problem.truth.loss.shape
    bad = problem.bad.unsqueeze(1).expand_as(made)
    assert torch.equal(made.isnan(), bad), "NaN elsewhere than in the rows of bad targets"
    truth = problem.truth._replace(grad_logits=problem.truth.grad_logits.masked_fill(bad, 0.0))
    assert_equals_reference(Outcome(outputs.loss, made.masked_fill(bad, 0.0)), truth, logits)
    has_lse = ~problem.bad if isinstance(backend, InShards) else torch.ones_like(problem.bad)
    _check_stats(case, problem, outputs, has_lse)
    return outputs


def _check_stats(case: Case, problem: Problem, outputs: Outputs, has_lse: Tensor) -> None:
    truth, kept = problem.truth, ~problem.bad
    if not problem.options.return_stats:
        assert outputs.row_stats.shape == (4, problem.bad.numel())
        assert outputs.predicted.numel() == 0
        return
    *_, lse, nll = (stat.view(case.rows) for stat in outputs.row_stats)
    if not problem.inputs.target.is_floating_point():  # the reference blanks what is ignored
        counts = problem.inputs.target != problem.options.ignore_index
        kept = kept & (counts if problem.inputs.target_probs is None else counts.any(1))
    close = {"rtol": ACCUMULATION[case.dtype], "atol": ACCUMULATION[case.dtype]}
    torch.testing.assert_close(nll.double(), truth.nll, **close, equal_nan=True)
    torch.testing.assert_close(lse.double()[kept], truth.lse[kept], **close)
    assert not lse[has_lse].isnan().any()  # ranks tell each other of a bad target, not its lse
    assert torch.equal(outputs.predicted[kept], truth.predicted[kept])
    assert ((outputs.predicted >= 0) & (outputs.predicted < case.classes)).all()
