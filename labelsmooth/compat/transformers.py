"""Label smoothing in Hugging Face transformers (read in 5.24), three ways.

    patch_trainer()                                   # for Trainer(label_smoothing_factor=), as is
    Trainer(..., compute_loss_func=compute_loss_func(label_smoothing=0.1, shift=True))
    apply_to(model, label_smoothing=0.1)              # where the model makes its loss

The last is the best where it can be had: it sees the logits before accelerate copies them to
float32, and can do without them (``fused_head=True``).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._call.check_module import check_is_its_weight
from .._call.problem import COMMON, LinearOptions
from .._call.schema import keywords_of
from .._call.values import described
from ..functional import label_smoothing_loss
from ..modules import FusedLabelSmoothingLoss, FusedLinearLabelSmoothingLoss
from ._deferred_logits import DeferredLogits, with_deferred_logits, with_logits
from ._shared import classes_second

__all__ = ["LabelSmoother", "apply_to", "compute_loss_func", "patch_trainer"]

OF_THE_LINEAR_FORM = keywords_of(LinearOptions, without=tuple(COMMON))


@dataclass
class LabelSmoother:
    """:class:`transformers.trainer_pt_utils.LabelSmoother`: smoothing over all classes, the mean
    over the labels that are not ``ignore_index``, or ``num_items_in_batch`` as its denominator.

    As there, a negative label that is not ``ignore_index`` counts as class 0, the loss of 16-bit
    logits is float32, and a denominator of shape (n_gpu, 1) makes a loss of that shape.
    """

    epsilon: float = 0.1
    ignore_index: int = -100

    def __call__(
        self,
        model_output: Any,
        labels: Tensor,
        shift_labels: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        logits = _logits_of(model_output)
        if labels.dim() == logits.dim():
            labels = labels.squeeze(-1)
        ignored = labels == self.ignore_index
        labels = labels.clamp(min=0).masked_fill(ignored, self.ignore_index)
        if shift_labels:
            labels = _shifted(labels, self.ignore_index)
        options = {"label_smoothing": self.epsilon}
        return _loss(logits, labels, num_items_in_batch, options, self.ignore_index)


def patch_trainer() -> None:
    """Every Trainer made from now on with ``label_smoothing_factor=`` takes `LabelSmoother`."""
    import transformers.trainer

    transformers.trainer.LabelSmoother = LabelSmoother


def compute_loss_func(
    *, label_smoothing: float = 0.0, shift: bool, **options: Any
) -> Callable[..., Tensor]:
    """For ``Trainer(compute_loss_func=)``: the loss of a model's outputs and labels.

    Args:
        label_smoothing: a in [0, 1], in evaluation too, as the Trainer's own.
        shift: True for a model that predicts the next token (Llama, GPT-2), False for one whose
            outputs stand at their labels (T5, BART, BERT).
        options: those of :func:`labelsmooth.label_smoothing_loss`. ``inplace=True`` leaves the
            gradient in ``outputs.logits``.
    """
    given = _checked(label_smoothing, options)

    def loss_func(
        outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        at = _shifted(labels, -100) if shift else labels
        return _loss(_logits_of(outputs), at, num_items_in_batch, given)

    return loss_func


def apply_to(
    model: Any,
    label_smoothing: float,
    eval_smoothing: float = 0.0,
    fused_head: bool = False,
    **options: Any,
) -> None:
    """Sets ``model.loss_function``, which a causal or masked language model calls on its logits.

    Args:
        model: a PreTrainedModel, or a PeftModel around one, before anything else wraps it.
        label_smoothing, eval_smoothing: a in [0, 1], in training and in evaluation, which has no
            ``lse_square_scale`` either.
        fused_head: in training, where labels are given, no logits are made, but
            :func:`labelsmooth.linear_label_smoothing_loss` of the hidden states; ``outputs.logits``
            is None. For models that only scale the head's output, cap it by tanh (Gemma, Cohere,
            Granite) and take the loss; others raise. The model gets a class of the same name,
            derived from its own.
        options: of :func:`labelsmooth.label_smoothing_loss`, with ``fused_head`` of
            :func:`labelsmooth.linear_label_smoothing_loss`. ``inplace=True`` leaves the gradient in
            ``outputs.logits``.

    The loss is float32, the mean over the labels that are not -100, or over ``num_items_in_batch``.
    The Trainer's ``label_smoothing_factor`` must be 0: it would take the labels away from the
    model. A second call replaces the first.

    Raises:
        TypeError: a model that does not take its loss from ``loss_function``, as T5 and BART do not
            (`patch_trainer` and `compute_loss_func` are for them), or from another kind of it.
    """
    if hasattr(model, "get_base_model"):  # of PEFT
        model = model.get_base_model()
    shift, model_class = _predicts_the_next(model), with_logits(model.__class__)
    head = None
    if fused_head:
        head, model_class = model.get_output_embeddings(), with_deferred_logits(model_class)
        check_is_its_weight("fused_head", head)
    training = _checked(label_smoothing, options, head)
    evaluation = _checked(eval_smoothing, options, head) | {"lse_square_scale": 0.0}
    model.__class__ = model_class
    model.loss_function = ModelLoss(model, shift, training, evaluation)


@dataclass(eq=False)
class ModelLoss:
    """What a model calls with its logits, and is pickled with."""

    model: Any = field(repr=False)
    shift: bool
    training: dict[str, Any]
    evaluation: dict[str, Any]

    def __call__(
        self,
        logits: Any,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if shift_labels is None:
            shift_labels = _shifted(labels, ignore_index) if self.shift else labels
        options = self.training if self.model.training else self.evaluation
        return _loss(logits, shift_labels, num_items_in_batch, options, ignore_index).float()


def _predicts_the_next(model: Any) -> bool:
    """Whether position i of its logits is for label i + 1."""
    from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss

    loss = getattr(model, "loss_function", None)
    if isinstance(loss, ModelLoss):  # of a call before
        return loss.shift
    code = getattr(inspect.unwrap(type(model).forward), "__code__", None)
    calls_it = code is not None and "loss_function" in code.co_names
    if loss not in (ForCausalLMLoss, ForMaskedLMLoss) or not calls_it:
        raise TypeError(
            "model: expected a causal or masked language model of transformers that calls its "
            f"loss_function, got {described(model)}; patch_trainer and compute_loss_func take any"
        )
    return loss is ForCausalLMLoss


def _checked(label_smoothing: float, options: dict[str, Any], head: Any = None) -> dict[str, Any]:
    """The options, refused here rather than in the first step; head: where there are no logits."""
    of_transformers = {"ignore_index", "reduction", "return_stats"}
    if head is not None:
        of_transformers |= {"logit_scale", "softcap"}  # the model's own
    if refused := of_transformers & options.keys():
        raise TypeError(f"options: expected none of {sorted(of_transformers)}, got {refused}")
    given = {"label_smoothing": label_smoothing, **options}
    if head is not None:
        FusedLinearLabelSmoothingLoss(1, head.out_features, device="meta", **given)
    else:
        FusedLabelSmoothingLoss(**given)
    return given


def _logits_of(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs[0]  # type: ignore[no-any-return]


def _shifted(labels: Tensor, ignore_index: int) -> Tensor:
    """At each position the label of the next; the last has none."""
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def _loss(
    logits: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None,
    options: dict[str, Any],
    ignore_index: int = -100,
) -> Tensor:
    """Of (..., C) and (...): the mean, or the sum over the count. Class weights and a prior move to
    the logits' device at the first call."""
    labels, count = labels.to(logits.device), num_items_in_batch
    for name in ("weight", "prior"):
        if isinstance(vector := options.get(name), Tensor):
            options[name] = vector.to(logits.device)
    given: dict[str, Any] = {**options, "ignore_index": ignore_index, "normalizer": count}
    if isinstance(count, Tensor):
        given["normalizer"] = count = count.to(logits.device)
        if count.dim():  # (n_gpu, 1), for which the Trainer takes the mean of as many losses
            return _of(logits, labels, **given | {"reduction": "sum", "normalizer": None}) / count
    return _of(logits, labels, **given)


def _of(logits: Any, labels: Tensor, **options: Any) -> Tensor:
    if isinstance(logits, DeferredLogits):
        return logits.loss(labels, **options)  # type: ignore[no-any-return]
    options = {k: v for k, v in options.items() if k not in OF_THE_LINEAR_FORM}
    loss: Tensor = label_smoothing_loss(classes_second(logits), labels, **options)
    return loss
