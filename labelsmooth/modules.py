"""FusedLabelSmoothingLoss: the loss as a module."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._buffers import Float32Buffers
from ._call.checks import check_class_vector, check_prior
from ._call.declare import check_names, initialiser_of
from ._call.problem import ModuleArguments, Options
from .functional import LossStats, loss

if TYPE_CHECKING:  # the attributes have the types of the declaration

    class _Module(Float32Buffers, ModuleArguments): ...
else:
    _Module = Float32Buffers


class FusedLabelSmoothingLoss(_Module):
    r"""Cross-entropy with label smoothing: loss and gradient in one step, without an N x C target.

    A drop-in for :class:`torch.nn.CrossEntropyLoss`. For logits :math:`x`, a target class
    :math:`y`, smoothing :math:`a`, class weights :math:`w` and a prior :math:`u`,

    .. math::
        \ell = \sum_c w_c\, q_c\, (\operatorname{lse}(x) - x_c), \qquad
        q_c = \begin{cases}
            (1-a)\,[c=y] + a\,u_c & \text{smooth\_over="all"} \\
            (1-a)\,[c=y] + a\,\dfrac{u_c}{1-u_y}\,[c \ne y] & \text{smooth\_over="others"}
        \end{cases}

    Args:
        weight: class weights, (C,). Default: 1 for every class.
        ignore_index: rows with this target give no loss and no gradient. Default: -100. Class
            probabilities have no such rows; beside them it must be negative.
        reduction: ``"mean"`` divides the sum by the sum of the rows' :math:`w_y`, ignored rows left
            out (by the number of rows, for class probabilities); ``"sum"``; ``"none"``.
        label_smoothing: :math:`a` in [0, 1]. Default: 0.
        smooth_over: ``"all"`` classes, as PyTorch has it, or the ``"others"`` beside the target.
        prior: (C,), non-negative, sums to 1: where the smoothing mass goes. Default: uniform.
        objective: ``"kl_div"`` adds :math:`\sum_c w_c q_c \log q_c`, so that the loss is the
            Kullback-Leibler divergence from the smoothed target.
        from_log_probs: the input already is log-probabilities; lse is taken as 0.
        lse_square_scale: :math:`L` adds :math:`L \operatorname{lse}^2` to each row ("z-loss"); must
            be 0 with from_log_probs.
        logit_scale, softcap: :math:`s` and :math:`k` make the logits
            :math:`x = k \tanh(s x_0 / k)`, or :math:`s x_0` without softcap.
        inplace: the gradient may overwrite the logits' storage. After the call the logits' values
            are gone; autograd raises where another operation still needs them, or lets NaN through
            where it cannot look (a GPU, compiled code). Where they are a part of a tensor, saved
            through hooks (a checkpoint), or wanted again (``retain_graph``, torch.func), the
            gradient is a fresh one all the same; the documentation's page on options has the list.
        return_stats: also return :class:`labelsmooth.LossStats`.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"eager"``, which is plain
            torch operations.

    All of them are attributes, which may be set between calls; what is set is checked as here. A
    number may also be a NumPy scalar or a 0-d tensor, whose value is taken; one that requires grad
    is an error, since nothing would come of it: a ``logit_scale`` to be learned is given to
    :func:`labelsmooth.label_smoothing_loss`.

    ``weight`` and ``prior`` are buffers of float32 or better: they are widened where they are given
    in 16 bits, and ``.half()``, ``.bfloat16()``, ``.to(dtype)`` and the ``buffer_dtype`` of
    FullyShardedDataParallel leave their values as they are.

    Shape:
        logits (C,), (N, C) or (N, C, d1, ...) in float16, bfloat16, float32 or float64; target
        without the class axis, of any integer dtype, or of the logits' shape and any floating-point
        dtype: class probabilities. The loss is a scalar, or for ``"none"`` has the shape of a
        class-index target; its dtype is float32, or float64 for float64 logits. Where logits and
        probabilities differ in dtype, the narrower is widened, which takes a tensor of its shape.

    Raises:
        TypeError: an argument of another type or dtype; a nested or sparse tensor; a DTensor, whose
            ``to_local()`` is wanted; a number that requires grad.
        ValueError: an option outside of its range, or without a meaning beside another one or for
            the given target; shapes that do not fit, other devices.
        IndexError: on the CPU, a target that is no class and not ignore_index; nothing is written.
            On a GPU such a row's loss and gradient are NaN, without a synchronisation, and it does
            not count in the mean's denominator; ``LABELSMOOTH_CHECK=1`` in the environment makes it
            the IndexError.
        RuntimeError: a backend that is not built or does not fit the device; ``inplace=True`` on a
            leaf that requires grad.

    Gradients of weight, prior, class probabilities and normalizer, second derivatives, and forward
    mode are taken of the eager formulas; loss and gradient of the logits stay the kernel's.
    ``torch.compile`` traces the loss without a graph break, ``torch.vmap`` runs one kernel over all
    samples. A logit of +inf has no honest loss: it is NaN, or +inf where the target's is finite and
    there is no smoothing, and the gradient at that logit is NaN.

    Sources: label smoothing, Szegedy et al. 2016, arXiv:1512.00567; its KL form, Pereyra et al.
    2017, arXiv:1701.06548; when it helps, Mueller et al. 2019, arXiv:1906.02629; the online
    softmax, Milakov and Gimelshein 2018, arXiv:1805.02867.
    """

    @initialiser_of(ModuleArguments)
    def __init__(
        self,
        weight: Tensor | None = None,
        *positional: Any,
        prior: Tensor | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        try:
            self.options = Options(*positional, **keywords)
        except TypeError:
            check_names(FusedLabelSmoothingLoss, weight, *positional, **keywords)
            raise
        for name, vector in (("weight", weight), ("prior", prior)):
            self.register_buffer(name, self._checked(name, vector))

    def forward(
        self, logits: Tensor, target: Tensor, *, normalizer: Tensor | float | None = None
    ) -> Tensor | tuple[Tensor, LossStats]:
        """The loss; ``normalizer``, a number or 0-d tensor, replaces the denominator of "mean"."""
        weight, prior = self.in_float32("weight"), self.in_float32("prior")
        return loss(logits, target, weight, prior, normalizer, self.options)

    def __setattr__(self, name: str, value: Any) -> None:
        """Options, weight and prior may be set between calls; they are checked as at first."""
        if name in OPTIONS:
            options = replace(self.options, **{name: value})
            check_prior(self.prior, options)
            name, value = "options", options
        elif name in ("weight", "prior"):
            value = self._checked(name, value)
        super().__setattr__(name, value)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        try:
            check_prior(self.prior, self.options)
        except ValueError as error:
            arguments[-1].append(str(error))  # which load_state_dict raises with all others

    def _checked(self, name: str, vector: Tensor | None) -> Tensor | None:
        if vector is not None:
            check_class_vector(name, vector)
        if name == "prior":
            check_prior(vector, self.options)
        return vector

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        changed = (f for f in fields(Options) if getattr(self.options, f.name) != f.default)
        shown = [f"{f.name}={getattr(self.options, f.name)!r}" for f in changed]
        for name, vector in (("weight", self.weight), ("prior", self.prior)):
            if vector is not None:
                shown.append(f"{name}=({vector.numel()},)")
        return ", ".join(shown)


def _option(name: str) -> property:
    return property(lambda module: getattr(module.options, name))


OPTIONS = {field.name: _option(field.name) for field in fields(Options)}
for _name, _property in OPTIONS.items():
    setattr(FusedLabelSmoothingLoss, _name, _property)
