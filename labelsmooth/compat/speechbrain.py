"""SpeechBrain's losses of log-probabilities."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .._call.checks import check_tensor
from .._call.problem import accumulate_dtype
from ..functional import label_smoothing_loss
from ..targets import SparseTarget
from ._shared import NO_INDEX, check_shape, classes_second, in_dtype_of

__all__ = ["kldiv_loss", "nll_loss"]


def nll_loss(
    log_probabilities: Tensor,
    targets: Tensor,
    length: Tensor | None = None,
    label_smoothing: float = 0.0,
    allowed_len_diff: int = 3,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""speechbrain.nnet.losses.nll_loss, as of 1.1.2.

    .. math::
        \ell_{bt} = -(1-a)\, w_y\, x_y - \frac{a}{C} \sum_c x_c

    of the log-probabilities x of frame t of utterance b, whose target is y.

    Args:
        log_probabilities: (B, T, C) or (B, C), of any strides.
        targets: class indices, (B, T) or (B,). Where the two T differ, the longer is cut.
        length: (B,), the share of T that counts: frames t < length * T - 1e-6. Default: all count.
        label_smoothing: a in [0, 1]. Default: 0.
        allowed_len_diff: by how much the two T may differ. Default: 3.
        weight: class weights w, (C,). Default: 1.
        reduction: ``"mean"``, the default, over the frames that count; ``"batch"``, (B,), that of
            each utterance; ``"batchmean"``, the sum divided by B; any other gives (B, T) or (B,),
            with 0 for frames that do not count.

    The loss is in the dtype of the log-probabilities.

    Oddities, as there: ``"sum"`` does not sum. The weights are neither in the mean's denominator
    nor in the smoothing's term. A target of -100 leaves out the target's term
    alone: the frame's smoothing and its place in the denominator stay. Where nothing counts, "mean"
    and "batch" are NaN; the gradient is 0, NaN there. "batch" of (B, C) with smoothing, an
    IndexError there, is (B,).

    Raises:
        ValueError: T differs by more than allowed_len_diff; other shapes; a length for (B, C).
    """
    _check_axes(log_probabilities, targets)
    x = log_probabilities
    if x.dim() == 3 and targets.dim() == 2:
        frames, of_targets = x.shape[1], targets.shape[1]
        if abs(frames - of_targets) > allowed_len_diff:
            raise ValueError(
                f"targets: expected {frames} frames, as log_probabilities has them, give or take "
                f"allowed_len_diff={allowed_len_diff}, got {of_targets}"
            )
        x, targets = x[:, :of_targets], targets[:, :frames]
    check_shape("targets", targets, *x.shape[:-1])
    mask = _counted(length, targets)
    loss = masked_nll(classes_second(x), targets, mask, reduction, label_smoothing, weight)
    return in_dtype_of(x, loss)


def kldiv_loss(
    log_probabilities: Tensor,
    targets: Tensor,
    length: Tensor | None = None,
    label_smoothing: float = 0.0,
    allowed_len_diff: int = 3,
    pad_idx: int = 0,
    reduction: str = "mean",
) -> Tensor:
    r"""speechbrain.nnet.losses.kldiv_loss, as of 1.1.2.

    .. math::
        \ell_{bt} = \sum_c q_c (\log q_c - x_c), \qquad
        q_c = \begin{cases} 1-a & c = y \\ a/(C-1) & \text{else} \end{cases}

    of the log-probabilities x of frame t of utterance b, whose target is y; 0 where y is pad_idx.

    Args:
        log_probabilities: (B, T, C) or (B, C), of any strides.
        targets: class indices, (B, T) or (B,), or of another shape with as many elements.
        length: (B,), by which ``"batch"`` divides.
        label_smoothing: a in [0, 1]. Default: 0.
        allowed_len_diff: is not looked at.
        pad_idx: targets that count nothing. Default: 0.
        reduction: ``"mean"``, the default, and ``"sum"``: the sum; ``"batchmean"``: that divided by
            B; ``"batch"``: (B,), the sum of each utterance divided by its length. Any other gives
            (B*T, C), the terms of each class, by plain torch.

    The loss is in the dtype of the log-probabilities; of "batch", in what dividing by length makes.

    Oddities, as there: with a label_smoothing of 0, the default, or less it is :func:`nll_loss` of
    the first three arguments and the reduction, which knows no padding, masks by length and takes
    means by frames. With smoothing "batch" divides by length, a share of T, and no other reduction
    looks at it.

    Raises:
        TypeError: "batch" without a length.
        ValueError: other shapes; a label_smoothing above 1; one class.
    """
    if label_smoothing <= 0:
        return nll_loss(log_probabilities, targets, length, reduction=reduction)
    _check_axes(log_probabilities, targets)
    x = log_probabilities
    if targets.numel() != x.shape[:-1].numel():
        check_shape("targets", targets, *x.shape[:-1])
    targets = targets.reshape(x.shape[:-1])
    if reduction not in ("mean", "sum", "batchmean", "batch"):
        return _terms(x.reshape(-1, x.shape[-1]), targets.reshape(-1), label_smoothing, pad_idx)
    loss = label_smoothing_loss(
        classes_second(x),
        targets,
        ignore_index=pad_idx,
        reduction="none" if reduction == "batch" else "sum",
        label_smoothing=label_smoothing,
        smooth_over="others",
        objective="kl_div",
        from_log_probs=True,
    )
    if reduction == "batchmean":
        loss = loss / x.shape[0]
    if reduction != "batch":
        return in_dtype_of(x, loss)
    if length is None:
        raise TypeError("length: expected a tensor of shape (B,) for reduction='batch', got None")
    return in_dtype_of(x, loss.reshape(x.shape[0], -1).sum(1)) / length


def masked_nll(
    log_probs: Tensor,
    targets: Tensor,
    mask: Tensor,
    reduction: str,
    label_smoothing: float,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    eps: float = 0.0,
) -> Tensor:
    """Of log-probabilities (B, C) or (B, C, T), mask and targets (B,) or (B, T). A row whose target
    is ignore_index has its smoothing's term alone."""
    classes = targets.long().unsqueeze(1)
    known = classes != ignore_index
    dtype = torch.promote_types(mask.dtype, torch.float32)
    normalizer: Tensor | int | None = None
    if reduction == "mean":
        normalizer = mask.sum(dtype=dtype) + eps
    elif reduction == "batchmean":
        normalizer = targets.shape[0]
    loss = label_smoothing_loss(
        log_probs,
        SparseTarget(classes.masked_fill(~known, 0), known.to(accumulate_dtype(log_probs))),
        weight,
        ignore_index=NO_INDEX,
        reduction="none" if normalizer is None else "mean",
        label_smoothing=label_smoothing,
        weight_over="target",
        from_log_probs=True,
        row_weight=mask,
        normalizer=normalizer,
    )
    if reduction != "batch":
        return loss
    loss, mask = (of_rows.reshape(targets.shape[0], -1) for of_rows in (loss, mask))
    return loss.sum(1) / (mask.sum(1, dtype=dtype) + eps)


def _check_axes(log_probabilities: Tensor, targets: Tensor) -> None:
    check_tensor("log_probabilities", log_probabilities)
    check_tensor("targets", targets)
    if log_probabilities.dim() not in (2, 3):
        came = tuple(log_probabilities.shape)
        raise ValueError(f"log_probabilities: expected shape (B, T, C) or (B, C), got {came}")


def _counted(length: Tensor | None, targets: Tensor) -> Tensor:
    """Which frames lie within their utterance."""
    if length is None:
        return torch.ones_like(targets, dtype=torch.bool)
    check_tensor("length", length)
    if targets.dim() != 2 or length.shape != targets.shape[:1]:
        expected = f"shape {tuple(targets.shape[:1])}" if targets.dim() == 2 else "None for (B, C)"
        raise ValueError(f"length: expected {expected}, got a tensor of {tuple(length.shape)}")
    end = length * targets.shape[1] - 1e-6
    frame = torch.arange(targets.shape[1], dtype=end.dtype, device=end.device)
    return frame < end.unsqueeze(1)


def _terms(x: Tensor, targets: Tensor, label_smoothing: float, pad_idx: int) -> Tensor:
    """q (log q - x), (N, C)."""
    classes = targets.long().unsqueeze(1)
    padding = classes == pad_idx
    q = torch.full_like(x, label_smoothing / (x.shape[1] - 1))
    q.scatter_(1, classes.masked_fill(padding, 0), 1 - label_smoothing)
    return F.kl_div(x, q, reduction="none").masked_fill(padding, 0)
