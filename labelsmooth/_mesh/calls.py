"""Calls with DTensors, as calls with their local tensors.

Classes lie over at most one mesh dimension, whose ranks are then the process group; rows over any
others. Nothing is moved: what lies otherwise is an error. Imported where a DTensor comes. A
compiled graph breaks here: Dynamo does not follow what is asked of placements.
"""

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import Dynamo
from torch.distributed.tensor import DTensor, Partial

from .._autograd.operator import in_transform
from .._autograd.sharded import check_derivatives
from .._backends.eager import mean_denominator, target_weights
from .._backends.exchange import RanksDifferError, together
from .._backends.ranks import AnyOptions, summed, with_share
from .._call.checks import (
    GATHER_PARAMETERS,
    check_logit_scale,
    check_prior,
    check_tensor,
    check_writable,
    is_real,
)
from .._call.problem import (
    CommonOptions,
    Inputs,
    LinearInputs,
    LinearOptions,
    Options,
    accumulate_dtype,
)
from .layout import (
    Layout,
    layout_of_logits,
    layout_of_projection,
    local_of,
    on_this_rank,
    over_mesh,
    placements_of_target,
    summed_over_rows,
)

# ---- a call --------------------------------------------------------------------------------------


def loss_over_mesh(loss: Callable[..., Any], given: Inputs | LinearInputs, *others: Any) -> Any:
    """`loss` of these arguments, of which the logits or the linear weight are a DTensor."""
    if isinstance(given, LinearInputs):
        return _loss_of_projection(loss, given, *others)
    return _loss_of_logits(loss, given, *others)


@_disable_dynamo
def _loss_of_logits(
    loss: Callable[..., Any],
    given: Inputs,
    normalizer: Any,
    options: Options,
    scale: Tensor | None,
) -> Any:
    logits: Any = given.logits
    axis = min(logits.dim(), 2) - 1
    layout = layout_of_logits(logits, axis)
    _check_alone(options, logits.shape[axis] if logits.dim() else None, "logits")
    if options.inplace:
        check_writable(logits)
        # Whoever saved the DTensor would not find a new version of it in backward.
        options = replace(options, inplace=False)
    local = on_this_rank(logits, logits.placements)
    denominator = _Denominator(layout, normalizer, options, local.device)
    with together(layout.class_group, local), denominator:
        options = _in_share(options, layout, logits.shape, axis, local)
        given = given._replace(logits=local)
        rows = logits.shape[:axis] + logits.shape[axis + 1 :]
        return _called(loss, given, normalizer, options, scale, layout, rows, axis, denominator)


@_disable_dynamo
def _loss_of_projection(
    loss: Callable[..., Any],
    given: LinearInputs,
    normalizer: Any,
    options: LinearOptions,
    scale: Tensor | None,
) -> Any:
    hidden: Any = given.hidden
    linear_weight: Any = given.linear_weight
    layout = layout_of_projection(hidden, linear_weight)
    if not isinstance(hidden, DTensor):
        check_tensor("hidden", hidden)
    _check_alone(options, linear_weight.shape[0] if linear_weight.dim() else None, "linear_weight")
    rows, axis = hidden.shape[:-1], max(hidden.dim() - 1, 0)
    of_hidden = list(layout.rows)
    if options.partial_hidden_grad and layout.classes is not None:
        of_hidden[layout.classes] = Partial()
    if isinstance(hidden, DTensor):
        hidden = on_this_rank(hidden, tuple(of_hidden))
    of_weight = layout.of_classes
    denominator = _Denominator(layout, normalizer, options, hidden.device)
    try:
        with together(layout.class_group, hidden), denominator:
            local = local_of("linear_weight", linear_weight, of_weight, layout)
            options = _in_share(options, layout, linear_weight.shape, 0, local)
            bias = local_of("linear_bias", given.linear_bias, of_weight, layout)
            given = given._replace(
                hidden=hidden,
                linear_weight=summed_over_rows(local, layout),
                linear_bias=summed_over_rows(bias, layout),
            )
            return _called(loss, given, normalizer, options, scale, layout, rows, axis, denominator)
    except RanksDifferError as error:
        raise ValueError(
            f"{error}. Where fully_shard() made linear_weight a DTensor, each rank has rows of its "
            f"own: {GATHER_PARAMETERS}"
        ) from None


def _called(
    loss: Callable[..., Any],
    given: Any,
    normalizer: Any,
    options: CommonOptions,
    scale: Any,
    layout: Layout,
    rows: torch.Size,
    axis: int,
    denominator: "_Denominator",
) -> Any:
    """With all other tensors taken from the mesh, and the results put there."""
    expected = {
        **placements_of_target(given, layout, rows, axis),
        **dict.fromkeys(("weight", "prior"), layout.replicated),
        "row_weight": layout.rows,
    }
    sparse = {"target": "target.classes", "target_probs": "target.probs"}
    names = sparse if given.target_probs is not None else {}
    others = {
        name: local_of(names.get(name, name), getattr(given, name), placements, layout)
        for name, placements in expected.items()
    }
    normalizer = local_of("normalizer", normalizer, layout.replicated, layout)
    tensors = {**others, "normalizer": normalizer}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    check_derivatives(tensors, transformed=in_transform())
    if isinstance(given.prior, DTensor):
        check_prior(others["prior"], options)
    if scale is not None:
        scale = local_of("logit_scale", scale, layout.replicated, layout)
        check_logit_scale(scale, given[0])
        scale = summed_over_rows(scale, layout)
    result = loss(given._replace(**others), normalizer, options, scale, denominator)
    made, stats = result if options.return_stats else (result, None)
    if options.reduction == "none":
        made = over_mesh(layout, made, layout.rows, rows)
    else:
        made = over_mesh(layout, made, layout.of_sum, torch.Size())
    if stats is None:
        return made
    return made, stats._make(over_mesh(layout, stat, layout.rows, rows) for stat in stats)


def _check_alone(options: CommonOptions, classes: int | None, name: str) -> None:
    """Raises where the options say what the DTensor says."""
    for option in ("process_group", "class_offset"):
        if (value := getattr(options, option)) is not None:
            raise ValueError(
                f"{option}: expected None beside {name} in a DTensor, whose placements tell it, "
                f"got {value!r}"
            )
    asked = options.num_classes
    if classes is not None and asked is not None and asked > classes:
        raise ValueError(
            f"num_classes: expected at most {classes}, the classes of the {name}, got {asked}"
        )


def _in_share(
    options: AnyOptions, layout: Layout, shape: torch.Size, axis: int, local: Tensor
) -> AnyOptions:
    """The options with the classes of this rank, of a DTensor of that shape."""
    if layout.class_group is None:
        return options
    shared, count = with_share(options, layout.class_group, shape[axis])
    if local.shape[axis] != count:
        raise ValueError(
            f"expected {count} of {shape[axis]} classes on this rank, as Shard({axis}) has them, "
            f"got {local.shape[axis]}"
        )
    return shared


# ---- the mean over rows on other ranks -----------------------------------------------------------


class _Denominator:
    """Of the mean: the sum of all rows' target weights, by one exchange. An error before it is told
    to the ranks that would wait."""

    def __init__(
        self, layout: Layout, normalizer: Any, options: CommonOptions, device: torch.device
    ) -> None:
        is_own = options.reduction == "mean" and normalizer is None
        self._groups, self._device = layout.row_groups if is_own else [], device
        self._is_due = bool(self._groups)

    def __call__(self, inputs: Inputs, options: CommonOptions) -> Tensor | None:
        if not self._is_due:
            return inputs.normalizer
        total = self._exchange(target_weights(inputs, options).sum().double(), failed=0.0)
        return mean_denominator(total).to(accumulate_dtype(inputs.logits))

    def _exchange(self, total: Tensor, failed: float) -> Tensor:
        self._is_due = False
        sums = torch.stack([total, torch.full_like(total, failed)])
        for group in self._groups:
            sums = summed(sums, group)
        if not failed and is_real(sums):
            said = "the call failed on another rank of the mesh, which raised the error"
            if not sums.is_cpu:
                torch._assert_async(sums[1] == 0, said)
            elif sums[1] != 0:
                raise RuntimeError(said)
        return sums[0]

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._is_due and isinstance(error, Exception):
            nothing = torch.zeros((), dtype=torch.float64, device=self._device)
            self._exchange(nothing, failed=1.0)
