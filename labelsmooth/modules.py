"""FusedLabelSmoothingLoss: the loss as a module."""

from dataclasses import fields, replace
from typing import Any, cast

from torch import Tensor, nn

from ._call.checks import check_prior
from ._call.problem import Backend, Objective, Options, Reduction, SmoothOver
from .functional import LossStats, loss


def _option(name: str) -> Any:
    """One of the options as an attribute of the module."""

    def set_option(module: "FusedLabelSmoothingLoss", value: object) -> None:
        options = replace(module.options, **{name: value})  # type: ignore[arg-type]
        if module.prior is not None:
            check_prior(module.prior, options)
        module.options = options

    return property(lambda module: getattr(module.options, name), set_option)


class FusedLabelSmoothingLoss(nn.Module):
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
        ignore_index: rows with this target give no loss and no gradient. Default: -100.
        reduction: ``"mean"`` divides the sum by the sum of the rows' :math:`w_y`, ignored rows left
            out (by the number of rows, for class probabilities); ``"sum"``; ``"none"``.
        label_smoothing: :math:`a` in [0, 1]. Default: 0.
        smooth_over: ``"all"`` classes, as PyTorch has it, or the ``"others"`` beside the target.
        prior: (C,), non-negative, sums to 1: where the smoothing mass goes. Default: uniform.
        objective: ``"kl_div"`` adds :math:`\sum_c w_c q_c \log q_c`, so that the loss is the
            Kullback-Leibler divergence from the smoothed target.
        from_log_probs: the input already is log-probabilities; lse is taken as 0.
        lse_square_scale: :math:`L` adds :math:`L \operatorname{lse}^2` to each row ("z-loss").
        logit_scale, softcap: :math:`s` and :math:`k` make the logits
            :math:`x = k \tanh(s x_0 / k)`, or :math:`s x_0` without softcap.
        inplace: the gradient may overwrite the logits' storage. After the call the logits' values
            are gone; autograd raises where another operation still needs them. A fresh gradient is
            made all the same where the logits are needed again: under ``retain_graph``,
            ``create_graph`` and torch.func.
        return_stats: also return :class:`labelsmooth.LossStats`.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"eager"``, which is plain
            torch operations.

    Shape:
        logits (C,), (N, C) or (N, C, d1, ...) in float16, bfloat16, float32 or float64; target
        without the class axis, of any integer dtype, or of the logits' shape and dtype: class
        probabilities. The loss is a scalar, or for ``"none"`` has the shape of a class-index
        target; its dtype is float32, or float64 for float64 logits.

    Raises:
        TypeError: logits are not floating-point; target is neither integer nor of their dtype.
        ValueError: an option outside of its range, shapes that do not fit, other devices.
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

    weight: Tensor | None
    prior: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        smooth_over: SmoothOver = "all",
        prior: Tensor | None = None,
        objective: Objective = "cross_entropy",
        from_log_probs: bool = False,
        lse_square_scale: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        inplace: bool = False,
        return_stats: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.options = Options(
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            smooth_over=smooth_over,
            objective=objective,
            from_log_probs=from_log_probs,
            lse_square_scale=lse_square_scale,
            logit_scale=logit_scale,
            softcap=softcap,
            inplace=inplace,
            return_stats=return_stats,
            backend=backend,
        )
        if prior is not None:
            check_prior(prior, self.options)
        self.register_buffer("weight", weight)
        self.register_buffer("prior", prior)

    def forward(
        self, logits: Tensor, target: Tensor, *, normalizer: Tensor | float | None = None
    ) -> Tensor | tuple[Tensor, LossStats]:
        """The loss; ``normalizer``, a number or 0-d tensor, replaces the denominator of "mean"."""
        return loss(logits, target, self.weight, self.prior, normalizer, self.options)

    # Read, and set between calls.
    ignore_index = _option("ignore_index")
    reduction = _option("reduction")
    label_smoothing = _option("label_smoothing")
    smooth_over = _option("smooth_over")
    objective = _option("objective")
    from_log_probs = _option("from_log_probs")
    lse_square_scale = _option("lse_square_scale")
    logit_scale = _option("logit_scale")
    softcap = _option("softcap")
    inplace = _option("inplace")
    return_stats = _option("return_stats")
    backend = _option("backend")

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        changed = (f for f in fields(Options) if getattr(self.options, f.name) != f.default)
        shown = [f"{f.name}={getattr(self.options, f.name)!r}" for f in changed]
        for name in ("weight", "prior"):
            vector = cast("Tensor | None", getattr(self, name))
            if vector is not None:
                shown.append(f"{name}=({vector.numel()},)")
        return ", ".join(shown)
