"""The losses of docs/drop-ins.md that have no drop-in: their formulas, written by hand from their
sources, in float64, against the line that `labelsmooth.which` gives for each.

Read: megatron-core 0.16.1, mmpretrain 1.2.0, ai2-olmo 0.6.0, torchtune 0.6.1, tensor2tensor 1.15.7,
liger-kernel 0.8.5, monai 1.6.1, OpenNMT-py 3.5.1, torch 2.14.1, and the repositories of Composer,
Keras, Marian and Paddle.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import labelsmooth
from labelsmooth.which import ROWS, Row

Write = Callable[..., Any]
Formula = Callable[[Write], tuple[Tensor, Tensor]]

A = 0.1  # of the lines
B, T, C = 4, 6, 11
SEQUENCES = torch.randn(
    B, T, C, dtype=torch.float64, generator=torch.manual_seed(0)
).requires_grad_()
CLASSES = torch.randint(C, (B, T))
WEIGHT = torch.rand(C, dtype=torch.float64) + 0.1
FORMULAS: dict[tuple[str, str], Formula] = {}


def of(library: str, loss: str) -> Callable[[Formula], Formula]:
    def add(formula: Formula) -> Formula:
        FORMULAS[library, loss] = formula
        return formula

    return add


def has_drop_in(row: Row) -> bool:
    return "labelsmooth.compat" in row.write


def written(line: str, **stand_ins: Any) -> Any:
    names = {"labelsmooth": labelsmooth, "functools": functools, **stand_ins}
    if isinstance(ast.parse(line).body[0], ast.Expr):
        return eval(line, names)
    return exec(line, names)


def rows() -> Tensor:
    return SEQUENCES.flatten(0, 1)


def one_hot(target: Tensor) -> Tensor:
    return F.one_hot(target, C).double()


def cross_entropy(q: Tensor, x: Tensor) -> Tensor:
    return -(q * x.log_softmax(-1)).sum(-1)


def smoothed(target: Tensor, on_target: float, elsewhere: float) -> Tensor:
    hot = one_hot(target)
    return on_target * hot + elsewhere * (1 - hot)


def over_all(target: Tensor, a: float = A) -> Tensor:
    return smoothed(target, 1 - a + a / C, a / C)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not has_drop_in(row)], ids=lambda row: f"{row[0]}-{row[1]}"
)
def test_formula(row: Row) -> None:
    formula = FORMULAS[row.library, row.loss]
    ours, expected = formula(functools.partial(written, row.write))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    upstream = torch.rand_like(expected)
    grads = [torch.autograd.grad(loss, SEQUENCES, upstream)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


def test_each_formula_has_its_row() -> None:
    assert set(FORMULAS) == {(row.library, row.loss) for row in ROWS if not has_drop_in(row)}


@of("Composer", "smooth_labels and soft_cross_entropy")
def _(write: Write) -> tuple[Tensor, Tensor]:
    target = CLASSES.flatten()
    ours = write(logits=rows(), target=target)
    return ours, cross_entropy((1 - A) * one_hot(target) + A / C, rows()).sum() / (B * T)


@of("Keras", "CategoricalCrossentropy(from_logits=True)")
def _(write: Write) -> tuple[Tensor, Tensor]:
    y_true = one_hot(CLASSES.flatten())
    ours = write(y_pred=rows(), y_true=y_true)
    return ours, cross_entropy(y_true * (1 - A) + A / C, rows()).mean()


@of("Liger", "LigerCrossEntropyLoss")
def _(write: Write) -> tuple[Tensor, Tensor]:
    target, loss_fn = CLASSES.flatten(), write()
    loss_fn.lse_square_scale, loss_fn.softcap = 1e-4, 30.0
    x = 30 * (rows() / 30).tanh()
    lse = x.logsumexp(1)
    row = (1 - A) * (lse - x.gather(1, target[:, None])[:, 0]) + A * (lse - x.mean(1))
    return loss_fn(rows(), target), (row + 1e-4 * lse.square()).sum() / (B * T)


@of("Liger", "LigerFusedLinearCrossEntropyLoss")
def _(write: Write) -> tuple[Tensor, Tensor]:
    weight, bias = torch.randn(7, C, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    target = torch.randint(7, (B * T,))
    ours = write(hidden=rows(), lin_weight=weight, target=target, bias=bias)
    log_p = (rows() @ weight.T + bias).log_softmax(1)
    picked = log_p.gather(1, target[:, None])[:, 0]
    return ours, -((1 - A) * picked + A * log_p.mean(1)).mean()


def test_liger_divides_its_z_loss_by_rows_where_there_are_weights() -> None:
    target = CLASSES.flatten()
    x, nll = rows(), -rows().log_softmax(1).gather(1, target[:, None])[:, 0]
    z_loss, total = 0.1 * x.logsumexp(1).square().sum(), WEIGHT[target].sum()
    liger = (WEIGHT[target] * nll).sum() / total + z_loss / (B * T)
    ours = labelsmooth.label_smoothing_loss(x, target, WEIGHT, lse_square_scale=0.1)
    torch.testing.assert_close(ours, liger - z_loss / (B * T) + z_loss / total)
    assert (ours - liger).abs() > 1e-3


def test_the_predicted_class_of_an_ignored_row_is_that_of_its_largest_logit() -> None:
    """Liger's is -1."""
    target = torch.full((B * T,), -100)
    _, stats = labelsmooth.label_smoothing_loss(rows(), target, return_stats=True)
    assert torch.equal(stats.predicted, rows().argmax(1))


@of("Marian", "--label-smoothing, --cost-type ce-sum")
def _(write: Write) -> tuple[Tensor, Tensor]:
    mask = (torch.rand(B, T) < 0.7).double()
    ours = write(logits=SEQUENCES, target=CLASSES, mask=mask)
    log_p = SEQUENCES.log_softmax(-1)
    ce = -log_p.gather(2, CLASSES[..., None])[..., 0]
    return ours, (((1 - A) * ce - A * log_p.mean(-1)) * mask).sum()


def megatron(ranks: int) -> list[Tensor]:
    """The loss that each rank has: the likelihood of all classes, the smoothing of its own."""
    log_p = SEQUENCES.log_softmax(-1)
    nll = -log_p.gather(2, CLASSES[..., None])[..., 0]
    losses = []
    for own in log_p.tensor_split(ranks, dim=-1):
        a = A * own.shape[-1] / (own.shape[-1] - 1)
        losses.append((1 - a) * nll - a * own.mean(-1))
    return losses


@of("Megatron-LM", "vocab_parallel_cross_entropy")
def _(write: Write) -> tuple[Tensor, Tensor]:
    (alone,) = megatron(ranks=1)
    return write(vocab_parallel_logits=SEQUENCES, target=CLASSES, group=None), alone


def test_megatron_on_two_ranks_has_two_losses_and_neither_is_that_of_one() -> None:
    (alone,), (first, second) = megatron(ranks=1), megatron(ranks=2)
    others = cross_entropy(smoothed(CLASSES, 1 - A, A / (C - 1)), SEQUENCES)
    torch.testing.assert_close(alone, others)
    for one, other in ((first, second), (first, alone), (second, alone)):
        assert (one - other).abs().min() > 1e-4


def mmpretrain(target: Tensor, q: Tensor) -> Tensor:
    return -(q * rows().log_softmax(1) * WEIGHT).sum(1).mean()


@of("MMPretrain", "LabelSmoothLoss(mode='original')")
def _(write: Write) -> tuple[Tensor, Tensor]:
    label = CLASSES.flatten()
    ours = write(cls_score=rows(), label=label, class_weight=WEIGHT)
    return ours, mmpretrain(label, one_hot(label) * (1 - A) + A / C)


@of("MMPretrain", "LabelSmoothLoss(mode='classy_vision')")
def _(write: Write) -> tuple[Tensor, Tensor]:
    label = CLASSES.flatten()
    ours = write(cls_score=rows(), label=label, class_weight=WEIGHT)
    return ours, mmpretrain(label, (one_hot(label) + A / C) / (1 + A))


@of("MMPretrain", "LabelSmoothLoss(mode='multi_label')")
def _(write: Write) -> tuple[Tensor, Tensor]:
    """A sigmoid is a softmax over a logit and 0: each class by itself is "others" of two, in a
    tensor twice as large. So there is no line, and the formula is what is held here."""
    labels = torch.randint(2, (B * T, C))
    smooth = (1 - 2 * A) * labels.double() + A
    expected = F.binary_cross_entropy_with_logits(rows(), smooth)
    two = torch.stack((torch.zeros_like(rows()), rows()), dim=1)
    ours = labelsmooth.label_smoothing_loss(two, labels, label_smoothing=A, smooth_over="others")
    return ours, expected


@of("torchvision", "v2.MixUp and v2.CutMix, beside CrossEntropyLoss")
def _(write: Write) -> tuple[Tensor, Tensor]:
    mixed = 0.3 * one_hot(CLASSES.flatten()) + 0.7 * one_hot(CLASSES.flatten().roll(1))
    q = (1 - A) * mixed + A / C
    return write()(rows(), mixed), cross_entropy(q, rows()).mean()


@of("PyTorch", "F.log_softmax and F.nll_loss")
def _(write: Write) -> tuple[Tensor, Tensor]:
    target = CLASSES.flatten()
    return write(logits=rows(), target=target), F.nll_loss(rows().log_softmax(1), target)


@of("MONAI", "DiceCELoss")
def _(write: Write) -> tuple[Tensor, Tensor]:
    loss = SimpleNamespace(cross_entropy=nn.CrossEntropyLoss(WEIGHT))
    write(loss=loss)
    x = SEQUENCES.movedim(-1, 1)  # (B, C, T), as an image's logits
    of_classes = -WEIGHT * over_all(CLASSES) * SEQUENCES.log_softmax(-1)
    return loss.cross_entropy(x, CLASSES), of_classes.sum() / WEIGHT[CLASSES].sum()


@of("OLMo", "cross_entropy_loss(compute_z_loss=True)")
def _(write: Write) -> tuple[Tensor, Tensor]:
    labels = CLASSES.flatten().clone()
    labels[3] = -100
    kept = labels != -100
    z_loss = 1e-4 * (rows().logsumexp(-1).square() * kept).sum()
    ce_loss = -rows().log_softmax(-1)[kept].gather(1, labels[kept, None]).sum()
    return write(logits=rows(), labels=labels), ce_loss + z_loss


@of("OpenNMT-py", "label_smoothing (from 3.0.3: nn.CrossEntropyLoss)")
def _(write: Write) -> tuple[Tensor, Tensor]:
    target = CLASSES.flatten()
    kept = target != 3
    return write(padding_idx=3)(rows(), target), cross_entropy(over_all(target), rows())[kept].sum()


@of("Paddle", "label_smooth and cross_entropy(soft_label=True)")
def _(write: Write) -> tuple[Tensor, Tensor]:
    prior_dist, target = WEIGHT[None] / WEIGHT.sum(), CLASSES.flatten()
    ours = write(logits=rows(), target=target, prior_dist=prior_dist)
    return ours, cross_entropy((1 - A) * one_hot(target) + A * prior_dist, rows()).mean()


@of("tensor2tensor", "smoothing_cross_entropy")
def _(write: Write) -> tuple[Tensor, Tensor]:
    confidence = 0.8
    low = (1 - confidence) / (C - 1)
    ours = write(logits=SEQUENCES, labels=CLASSES, confidence=confidence)
    normalizing = -confidence * math.log(confidence) - (C - 1) * low * math.log(low + 1e-20)
    return ours, cross_entropy(smoothed(CLASSES, confidence, low), SEQUENCES) - normalizing


@of("torchtune", "CEWithChunkedOutputLoss")
def _(write: Write) -> tuple[Tensor, Tensor]:
    """Which calls its `compute_cross_entropy` for each chunk, and divides by all labels."""
    labels = CLASSES.clone()
    labels[0, 2:] = -100
    loss_fn = SimpleNamespace()
    write(loss_fn=loss_fn)
    ours = (
        sum(
            loss_fn.compute_cross_entropy(x.reshape(-1, C), y.reshape(-1))
            for x, y in zip(SEQUENCES.chunk(3, dim=1), labels.chunk(3, dim=1), strict=True)
        )
        / (labels != -100).sum()
    )
    kept = labels != -100
    return ours, cross_entropy(over_all(labels[kept]), SEQUENCES[kept]).mean()
