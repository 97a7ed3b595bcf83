"""A user's code, with all public names. `make lint` checks its types by mypy and by pyright, both
strict; test_public_names.py runs it.

What must be an error is ignored as one: both say where such a comment has nothing to ignore.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import labelsmooth
from labelsmooth import (
    FusedLabelSmoothingLoss,
    FusedLinearLabelSmoothingLoss,
    LossStats,
    SparseTarget,
    compat,
    label_smoothing_loss,
    linear_label_smoothing_loss,
    release_memory,
)
from labelsmooth.compat import LabelSmoothing, LabelSmoothingLoss
from labelsmooth.which import ROWS, Row, as_markdown, as_text, libraries, matching

N, B, T, C, D = 6, 2, 3, 5, 4  # rows, which are tokens of utterances too; classes; features
PADDING = 0


def functions(logits: Tensor, target: Tensor, weight: Tensor, stats: bool) -> None:
    assert_type(label_smoothing_loss(logits, target), Tensor)
    assert_type(label_smoothing_loss(logits=logits, target=target, weight=weight), Tensor)
    assert_type(label_smoothing_loss(logits, target, weight, -100, "sum", 0.1), Tensor)
    assert_type(label_smoothing_loss(logits, target, process_group=None), Tensor)
    assert_type(
        label_smoothing_loss(logits, target, return_stats=True, prior=weight / C),
        tuple[Tensor, LossStats],
    )
    assert_type(
        label_smoothing_loss(logits, target, return_stats=stats),
        Tensor | tuple[Tensor, LossStats],
    )
    label_smoothing_loss(
        logits,
        target,
        smooth_over="others",
        weight_over="target",
        logit_scale=nn.Parameter(torch.ones(())),
        softcap=None,
        normalizer=3,
        row_weight=torch.ones(N),
        backend="eager",
    )
    loss, (nll, lse, predicted) = label_smoothing_loss(logits, target, return_stats=True)
    assert_type((loss, nll, lse, predicted), tuple[Tensor, Tensor, Tensor, Tensor])


def of_hidden_states(hidden: Tensor, head: nn.Linear, target: Tensor) -> None:
    weight = head.weight
    assert_type(linear_label_smoothing_loss(hidden, weight, target), Tensor)
    assert_type(
        linear_label_smoothing_loss(hidden, weight, target, linear_bias=head.bias, chunk_rows=64),
        Tensor,
    )
    assert_type(
        linear_label_smoothing_loss(hidden, weight, target, return_stats=True),
        tuple[Tensor, LossStats],
    )


def sparse_targets(logits: Tensor, target: Tensor) -> None:
    mixed = SparseTarget.mix(target, target.flip(0), 0.3)
    assert_type(mixed, SparseTarget)
    assert_type(mixed.classes, Tensor)
    assert_type(mixed.probs, Tensor)
    assert_type(label_smoothing_loss(logits, mixed), Tensor)
    assert_type(SparseTarget.mix(target, target, torch.rand(N)), SparseTarget)


def modules(logits: Tensor, target: Tensor, weight: Tensor) -> None:
    loss = FusedLabelSmoothingLoss(weight, ignore_index=-1, label_smoothing=0.1, prior=None)
    assert_type(loss.label_smoothing, float)
    assert_type(loss.softcap, float | None)
    assert_type(loss.inplace, bool)
    assert_type(loss.weight, Tensor | None)
    loss.label_smoothing = 0.2
    loss.softcap = None
    loss.prior = torch.full((C,), 1 / C)
    assert_type(loss.forward(logits, target, normalizer=3), Tensor | tuple[Tensor, LossStats])
    result: Tensor = loss(logits, SparseTarget.mix(target, target, 0.5), row_weight=torch.ones(N))
    result.backward()


def module_of_hidden_states(hidden: Tensor, target: Tensor) -> None:
    loss = FusedLinearLabelSmoothingLoss(D, C, bias=True, label_smoothing=0.1, recompute=True)
    assert_type(loss.chunk_rows, int | None)
    assert_type(loss.linear, nn.Linear)
    loss.chunk_rows = 128
    assert_type(loss.forward(hidden, target, normalizer=3), Tensor | tuple[Tensor, LossStats])


def copied_classes(logits: Tensor, target: Tensor, weight: Tensor) -> None:
    divergence = LabelSmoothing(C, 0.1)
    assert_type(divergence.forward(logits.log_softmax(1), target), Tensor)
    assert_type(divergence.true_dist, Tensor | None)
    assert_type(LabelSmoothingLoss(C, 0.1, weight=weight).forward(logits, target), Tensor)


def drop_ins_of_rows(logits: Tensor, target: Tensor) -> None:
    log_probs = logits.log_softmax(1)
    assert_type(
        compat.annotated_transformer.LabelSmoothing(C, PADDING, 0.1).forward(log_probs, target),
        Tensor,
    )
    assert_type(
        compat.opennmt.LabelSmoothingLoss(0.1, C, PADDING).forward(log_probs, target), Tensor
    )
    assert_type(
        compat.fairseq.label_smoothed_nll_loss(log_probs, target, 0.1), tuple[Tensor, Tensor]
    )
    assert_type(compat.fairseq2.cross_entropy(logits, target, None), Tensor)
    assert_type(compat.fastai.LabelSmoothingCrossEntropy().forward(logits, target), Tensor)
    assert_type(compat.fastai.LabelSmoothingCrossEntropyFlat(axis=1)(logits, target), Tensor)
    assert_type(compat.pytorch_toolbelt.SoftCrossEntropyLoss().forward(logits, target), Tensor)
    soft = compat.segmentation_models_pytorch.SoftCrossEntropyLoss(smooth_factor=0.1)
    assert_type(soft.forward(logits, target), Tensor)
    assert_type(compat.timm.LabelSmoothingCrossEntropy(0.1).forward(logits, target), Tensor)
    mixed = SparseTarget.mix(target, target, 0.5)
    assert_type(compat.timm.SoftTargetCrossEntropy().forward(logits, mixed), Tensor)
    assert_type(compat.torch.cross_entropy(logits, target, label_smoothing=0.1), Tensor)
    assert_type(compat.torch.CrossEntropyLoss().forward(logits, target), Tensor)


def drop_ins_of_tokens(logits: Tensor, target: Tensor) -> None:
    log_probs = logits.log_softmax(-1)
    kullback_leibler = compat.espnet.LabelSmoothingLoss(C, PADDING, 0.1)
    assert_type(kullback_leibler.forward(logits, target), Tensor)
    for same in (compat.funasr.LabelSmoothingLoss, compat.wenet.LabelSmoothingLoss):
        assert_type(same, type[compat.espnet.LabelSmoothingLoss])
    assert_type(compat.icefall.LabelSmoothingLoss().forward(logits, target), Tensor)
    assert_type(compat.joeynmt.XentLoss(PADDING, 0.1).forward(log_probs, trg=target), Tensor)
    smoothed = compat.nemo.SmoothedCrossEntropyLoss(PADDING)
    assert_type(smoothed.forward(log_probs, target), Tensor)
    assert_type(compat.nemo.SmoothedNLLLoss().forward(log_probs, target), Tensor)
    assert_type(compat.speechbrain.nll_loss(log_probs, target), Tensor)
    assert_type(compat.speechbrain.kldiv_loss(log_probs, target, label_smoothing=0.1), Tensor)


def drop_ins_of_hugging_face(logits: Tensor, target: Tensor) -> None:
    smoother = compat.transformers.LabelSmoother(epsilon=0.1)
    assert_type(smoother({"logits": logits}, target), Tensor)
    loss_func = compat.transformers.compute_loss_func(label_smoothing=0.1, shift=True)
    assert_type(loss_func, Callable[..., Tensor])
    assert_type(loss_func({"logits": logits}, target), Tensor)


def what_to_write() -> None:
    rows = matching(["timm"])
    assert_type(rows, list[Row])
    assert_type(ROWS, tuple[Row, ...])
    assert_type(libraries(), list[str])
    assert_type(as_text(rows) + as_markdown(rows), str)


def with_their_libraries(hidden: Tensor, head: nn.Linear, target: Tensor, model: Any) -> None:
    """Not run: it needs torch 2.13, timm, transformers and fairseq."""
    assert_type(compat.torch.linear_cross_entropy(hidden, head.weight, target), Tensor)
    assert_type(compat.torch.LinearCrossEntropyLoss(D, C).forward(hidden, target), Tensor)
    images, mixed = compat.timm.Mixup(label_smoothing=0.1)(hidden, target)
    assert_type(images, Tensor)
    assert_type(mixed, Tensor | compat.timm.MixedTarget)
    collate = compat.timm.FastCollateMixup(label_smoothing=0.1)
    assert_type(
        collate([(hidden, 0), (hidden, 1)]), tuple[Tensor, Tensor | compat.timm.MixedTarget]
    )
    compat.transformers.patch_trainer()
    compat.transformers.apply_to(model, label_smoothing=0.1, fused_head=True)
    compat.fairseq.patch()
    assert_type(compat.fairseq.LabelSmoothedCrossEntropyCriterion, Any)


def mistakes(logits: Tensor, target: Tensor, weight: Tensor) -> None:
    """Not run: each is an error of types."""
    label_smoothing_loss(logits, target, smoothing=0.1)  # type: ignore[call-overload]
    label_smoothing_loss(logits, target, reduction="avg")  # type: ignore[call-overload]
    label_smoothing_loss(logits, target, None, -100, "mean", 0.1, "all")  # type: ignore[call-overload]
    label_smoothing_loss(logits)  # type: ignore[call-overload]
    label_smoothing_loss(logits, [0, 1])  # type: ignore[call-overload]
    linear_label_smoothing_loss(logits, weight, target, None)  # type: ignore[call-overload]
    linear_label_smoothing_loss(logits, weight, target, inplace=True)  # type: ignore[call-overload]
    FusedLabelSmoothingLoss(smoothing=0.1)  # type: ignore[call-arg]
    FusedLabelSmoothingLoss(label_smoothing="0.1")  # type: ignore[arg-type]
    FusedLabelSmoothingLoss(None, -100, "mean", 0.1, "all")  # type: ignore[call-arg]
    FusedLabelSmoothingLoss(logit_scale=weight)  # type: ignore[arg-type]
    FusedLinearLabelSmoothingLoss(D, C, True)  # type: ignore[call-arg]
    loss = FusedLabelSmoothingLoss()
    loss.label_smoothing = "0.2"  # type: ignore[assignment]
    loss.reduction = "avg"  # type: ignore[assignment]
    loss.forward(logits, target, normaliser=3)  # type: ignore[call-arg]
    print(compat.tim)  # type: ignore[attr-defined]


def main() -> None:
    assert_type(labelsmooth.__version__, str)
    logits = torch.randn(N, C, requires_grad=True)
    target, weight = torch.arange(N) % C, torch.ones(C)
    hidden, head = torch.randn(N, D), nn.Linear(D, C)
    functions(logits, target, weight, stats=True)
    of_hidden_states(hidden, head, target)
    sparse_targets(logits, target)
    modules(logits, target, weight)
    module_of_hidden_states(hidden, target)
    copied_classes(logits, target, weight)
    drop_ins_of_rows(logits, target)
    drop_ins_of_tokens(logits.view(B, T, C), target.view(B, T))
    drop_ins_of_hugging_face(logits.view(B, T, C), target.view(B, T))
    what_to_write()
    release_memory()


if __name__ == "__main__":
    main()
