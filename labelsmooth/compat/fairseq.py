"""fairseq's label-smoothed loss and its criterion.

In a ``--user-dir``, the line that puts both in place of fairseq's::

    from labelsmooth.compat import fairseq; fairseq.patch()

The criterion and `patch` import fairseq; the function does without.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..functional import label_smoothing_loss
from ._shared import NO_INDEX, classes_second, in_dtype_of

__all__ = ["label_smoothed_nll_loss", "patch"]  # without fairseq

_ORIGINAL = "fairseq.criterions.label_smoothed_cross_entropy"


def label_smoothed_nll_loss(
    lprobs: Tensor,
    target: Tensor,
    epsilon: float,
    ignore_index: int | None = None,
    reduce: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""(loss, nll_loss), as of fairseq 0.12.2, of log-probabilities.

    .. math::
        \text{nll}_i = -x_{i y_i}, \qquad
        \ell_i = (1-\epsilon)\, \text{nll}_i - \frac{\epsilon}{C-1} \sum_{c \ne y_i} x_{ic}

    Args:
        lprobs: x.
        target: y.
        epsilon: in [0, 1].
        ignore_index: rows of this target count 0 in both. Default: no row is ignored.
        reduce: sum over the rows. Default: True.

    Shape: lprobs (..., C) of any strides, target (...) or (..., 1). Both results have lprobs'
    dtype. They are scalars; without ``reduce`` they are (..., 1) if there is an ignore_index and
    (...) if there is none, as there. Both have a gradient.

    Older versions spread epsilon over all classes, as :func:`labelsmooth.label_smoothing_loss` does
    by default.

    Raises:
        ValueError: epsilon outside of [0, 1], shapes that do not fit.
        IndexError: on the CPU, a target that is no class and not ignore_index.
    """
    if target.dim() == lprobs.dim():
        target = target.squeeze(-1)
    loss = label_smoothing_loss(
        classes_second(lprobs),
        target,
        ignore_index=NO_INDEX if ignore_index is None else ignore_index,
        reduction="sum" if reduce else "none",
        label_smoothing=epsilon,
        smooth_over="others",
        from_log_probs=True,
    )
    classes, ignored = target.long(), None
    if ignore_index is not None:
        ignored = classes == ignore_index
        classes = classes.masked_fill(ignored, 0)
    nll = -lprobs.gather(-1, classes.unsqueeze(-1)).squeeze(-1)
    if ignored is not None:
        nll = nll.masked_fill(ignored, 0.0)
    if reduce:
        nll = nll.sum()
    elif ignore_index is not None:
        loss, nll = loss.unsqueeze(-1), nll.unsqueeze(-1)
    return in_dtype_of(lprobs, loss), nll


class _OfLogits:
    """LabelSmoothedCrossEntropyCriterion of fairseq 0.12.2, which it is a subclass of, but from the
    model's logits: in one pass, without log-probabilities in float32, B x T x C.

    ``(task, sentence_avg, label_smoothing, ignore_prefix_size=0, report_accuracy=False)``, its
    configuration, its logging outputs and their reduction are inherited.

    The logits are the first of what the model returns where its log-probabilities are fairseq's own
    log-softmax of that. Of models with an adaptive softmax or another ``get_normalized_probs``,
    `label_smoothed_nll_loss` takes the log-probabilities.

    The nll_loss of `compute_loss` has no gradient where it comes from logits. The loss is float32,
    as there. `compute_accuracy` takes the largest logit: no rounding makes a tie.

    `patch` registers it as "label_smoothed_cross_entropy". For another name::

        register_criterion("fused", dataclass=LabelSmoothedCrossEntropyCriterionConfig)(
            labelsmooth.compat.fairseq.LabelSmoothedCrossEntropyCriterion)
    """

    eps: float
    padding_idx: int
    ignore_prefix_size: int
    get_lprobs_and_target: Callable[..., tuple[Tensor, Tensor]]

    def compute_loss(
        self, model: Any, net_output: Any, sample: Any, reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        if not _gives_logits(model):
            lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
            return label_smoothed_nll_loss(lprobs, target, self.eps, self.padding_idx, reduce)
        logits, target = self._logits_and_target(model, net_output, sample)
        loss, stats = label_smoothing_loss(
            classes_second(logits),
            target,
            ignore_index=self.padding_idx,
            reduction="sum" if reduce else "none",
            label_smoothing=self.eps,
            smooth_over="others",
            return_stats=True,
        )
        if reduce:
            return loss.float(), stats.nll.sum().float()
        return loss.reshape(-1, 1).float(), stats.nll.reshape(-1, 1).float()

    def compute_accuracy(self, model: Any, net_output: Any, sample: Any) -> tuple[Tensor, Tensor]:
        if _gives_logits(model):
            scores, target = self._logits_and_target(model, net_output, sample)
        else:
            scores, target = self.get_lprobs_and_target(model, net_output, sample)
        counts = target != self.padding_idx
        return ((scores.argmax(-1) == target) & counts).sum(), counts.sum()

    def _logits_and_target(self, model: Any, net_output: Any, sample: Any) -> tuple[Tensor, Tensor]:
        """(B, T, C) and (B, T), without the prefix."""
        prefix = max(self.ignore_prefix_size, 0)
        target: Tensor = model.get_targets(sample, net_output)
        return net_output[0][:, prefix:], target[:, prefix:]


# Whose log-probabilities are those that the model's decoder makes.
_MODELS = {
    "fairseq.models.fairseq_model.BaseFairseqModel",
    "fairseq.models.speech_to_text.convtransformer.ConvTransformerModel",
    "fairseq.models.speech_to_text.s2t_transformer.S2TTransformerModel",
    "fairseq.models.speech_to_text.xm_transformer.XMTransformerModel",
    "fairseq.models.transformer.transformer_base.TransformerModelBase",
}
_DECODERS = {"fairseq.models.fairseq_decoder.FairseqDecoder"}


def _gives_logits(model: Any) -> bool:
    """Whether its log-probabilities are the log-softmax of the first of what it returns."""
    decoder = getattr(model, "decoder", None)
    return (
        decoder is not None
        and getattr(decoder, "adaptive_softmax", None) is None
        and all(
            _owner(getattr(of, name, None)) in owners
            for of, owners in ((model, _MODELS), (decoder, _DECODERS))
            for name in ("get_normalized_probs", "get_normalized_probs_scriptable")
        )
    )


def _owner(method: Any) -> str | None:
    """The class that defines it."""
    owners = type(getattr(method, "__self__", None)).__mro__
    name = getattr(method, "__name__", None)
    return next((f"{o.__module__}.{o.__qualname__}" for o in owners if name in vars(o)), None)


@cache
def _criterion(original: Any) -> Any:
    named = {"__doc__": _OfLogits.__doc__, "__module__": __name__}
    return type("LabelSmoothedCrossEntropyCriterion", (_OfLogits, original), named)


if TYPE_CHECKING:
    LabelSmoothedCrossEntropyCriterion: Any  # a class, derived from fairseq's
else:

    def __getattr__(name):
        if name != "LabelSmoothedCrossEntropyCriterion":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _criterion(getattr(import_module(_ORIGINAL), name))


def patch() -> None:
    """Puts `label_smoothed_nll_loss` and the criterion in the place of fairseq's.

    What is derived from fairseq's criterion (with alignment, with CTC, ...) gets the function, and
    so does what imports it afterwards from where it is defined.
    """
    original = import_module(_ORIGINAL)
    original.label_smoothed_nll_loss = label_smoothed_nll_loss  # type: ignore[attr-defined]
    registry = import_module("fairseq.criterions").CRITERION_REGISTRY
    registry["label_smoothed_cross_entropy"] = _criterion(
        original.LabelSmoothedCrossEntropyCriterion
    )
