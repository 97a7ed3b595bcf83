"""The losses as modules."""

from typing import Any

import torch
from torch import Tensor, nn

from . import functional, linear
from ._backends.exchange import together
from ._backends.ranks import share_of
from ._call.check_module import check_is_its_weight
from ._call.declare import initialiser_of, options_of
from ._call.problem import Inputs, LinearInputs, LinearOptions, Options, Target
from ._call.signatures import LinearModuleArguments, ModuleArguments
from ._loss_module import OfHidden, OfLogits
from .functional import Result
from .targets import classes_and_probs

__all__ = ["FusedLabelSmoothingLoss", "FusedLinearLabelSmoothingLoss"]


class FusedLabelSmoothingLoss(OfLogits):
    r"""Cross-entropy with label smoothing: loss and gradient in one step, without an N x C target.

    A drop-in for :class:`torch.nn.CrossEntropyLoss`. For logits :math:`x`, a target :math:`t`
    (:math:`t_c = [c=y]` for a class index :math:`y`), smoothing :math:`a`, class weights :math:`w`
    and a prior :math:`u`, a row costs

    .. math::
        \ell = \sum_c w_c\, q_c\, (\operatorname{lse}(x) - x_c), \qquad
        q_c = \beta\, u_c + \kappa\, t_c, \qquad
        (\beta, \kappa) = \begin{cases}
            (a,\ 1-a) & \text{smooth\_over="all"} \\
            \left(\dfrac{a}{1-u_y},\ 1-a-\beta\,u_y\right) & \text{smooth\_over="others"} \\
            \left(\dfrac{a}{\sum_{c\ \text{unmasked}} u_c},\ 1-a\right)
                & \text{smooth\_over="unmasked"}
        \end{cases}

    where with "unmasked" :math:`u_c` counts as 0 for the row's masked classes, and with
    ``weight_over="target"`` :math:`\beta u_c + \kappa w_c t_c` stands for :math:`w_c q_c`.

    Args:
        weight: class weights, (C,). Default: 1 for every class.
        ignore_index: rows with this target give no loss and no gradient, and entries of a
            :class:`SparseTarget` with this class count nothing. Default: -100. Beside class
            probabilities it must be negative; there a ``row_weight`` of 0 leaves a row out.
        reduction: ``"mean"`` divides the sum by the sum of the rows' :math:`w_y`, ignored rows left
            out (by the number of rows, for class probabilities and a :class:`SparseTarget`);
            ``"sum"``; ``"none"``.
        label_smoothing: :math:`a` in [0, 1]. Default: 0.
        smooth_over: ``"all"`` classes, as PyTorch has it; the ``"others"`` beside the target, which
            is a class index then; or those that are ``"unmasked"`` in the row: whose logit, as
            given, is neither -inf nor the lowest finite number of its dtype. Without any, nothing
            is spread.
        weight_over: what the class weights multiply: ``"all"`` terms, as PyTorch has it, or that of
            the ``"target"`` alone.
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
            where it cannot look (a GPU, compiled code). Where they are a DTensor, a part of a
            tensor, saved through hooks (a checkpoint), or wanted again (``retain_graph``,
            torch.func), the gradient is a fresh one; the documentation's page on options has the
            list.
        return_stats: also return :class:`labelsmooth.LossStats`.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"eager"``, plain torch.
        process_group: a group of torch.distributed, or its name, over whose ranks the classes lie,
            in rank order: the logits' columns are those of this rank, and so are class
            probabilities. Rows, all other targets, weight and prior (of all classes), normalizer
            and row_weight are the same on all ranks; so then is the loss. Forward takes one
            all-gather of a few numbers a row, backward none.
        class_offset: the first class of this rank, beside num_classes. Default: that of equal
            parts, padded or not, or of torch.chunk's.
        num_classes: C, the classes of all ranks; columns from there on are padding, without mass
            or gradient, also without a process_group. Default: all columns of all ranks.

    All are attributes, which may be set between calls and are checked then. A number may also be a
    NumPy scalar or a 0-d tensor, whose value is taken; one that requires grad is an error: a
    ``logit_scale`` to be learned is given to :func:`labelsmooth.label_smoothing_loss`.

    ``weight`` and ``prior`` are buffers of float32 or better: widened where they are given in 16
    bits, and left so by ``.half()``, ``.bfloat16()``, ``.to(dtype)`` and the ``buffer_dtype`` of
    FullyShardedDataParallel.

    Shape:
        logits (C,), (N, C) or (N, C, d1, ...) in float16, bfloat16, float32 or float64. target:
        class indices, without the class axis, of any integer dtype; class probabilities, of the
        logits' shape in any of these dtypes; or a :class:`SparseTarget` of (K,), (N, K) or
        (N, K, d1, ...). The loss is a scalar, or for ``"none"`` has the shape of a class-index
        target; so has row_weight. The loss's dtype is float32, or float64 for float64 logits.

        The logits may be a DTensor, of which one mesh dimension may shard the classes
        (``Shard(1)``, uneven and empty shards too) and others rows. Then target and row_weight are
        DTensors with the same placements, ``Replicate()`` where the classes are sharded and they
        have none; or plain tensors, the same on all ranks, where that leaves nothing sharded.
        weight, prior and normalizer are plain or replicated. The result is a DTensor: of the rows'
        placements, or a scalar that is ``Partial()`` where rows are sharded. "mean" is that of all
        rows of the mesh.

    Raises:
        TypeError: another type or dtype; a nested or sparse tensor; a DTensor where the logits are
            none; a number that requires grad; beside a DTensor or process_group, any tensor but
            logits and logit_scale that does.
        ValueError: an option outside of its range, or without a meaning beside another one or the
            target; shapes, devices or placements that do not fit; process_group or class_offset
            beside a DTensor.
        IndexError: on the CPU, a target that is no class and not ignore_index; nothing is written.
            On a GPU such a row's loss and gradient are NaN, and it does not count in the mean's
            denominator; ``LABELSMOOTH_CHECK=1`` in the environment makes it the IndexError.
        RuntimeError: a backend that is not built or does not fit the device; ``inplace=True`` on a
            leaf that requires grad.

    Gradients of weight, prior, probabilities, normalizer and row weights, second derivatives, and
    forward mode are taken of the eager formulas. ``torch.compile`` traces the loss without a graph
    break (but at a DTensor), ``torch.vmap`` runs one kernel over all samples. With a logit of +inf
    the loss is NaN, or +inf where the target's is finite and there is no smoothing, and the
    gradient at that logit is NaN.

    Sources: label smoothing, Szegedy et al. 2016, arXiv:1512.00567; its KL form, Pereyra et al.
    2017, arXiv:1701.06548; when it helps, Mueller et al. 2019, arXiv:1906.02629; the online
    softmax, Milakov and Gimelshein 2018, arXiv:1805.02867.
    """

    Declaration = Options

    @initialiser_of(ModuleArguments)
    def __init__(
        self,
        weight: Tensor | None = None,
        *positional: Any,
        prior: Tensor | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(
            options_of(Options, FusedLabelSmoothingLoss, (weight,), *positional, **keywords)
        )
        self.weight, self.prior = weight, prior

    def forward(
        self,
        logits: Tensor,
        target: Target,
        *,
        normalizer: Tensor | float | None = None,
        row_weight: Tensor | None = None,
    ) -> Result:
        """The loss. ``row_weight``, one real number a row, multiplies its loss; "mean" then divides
        by the sum of both weights' products. A row of weight 0 counts nothing, whatever it holds.
        ``normalizer``, a number or 0-d tensor, replaces the denominator of "mean"."""
        with together(functional.group_of(logits, self.process_group), logits):
            vectors = self.in_float32("weight"), self.in_float32("prior")
            given = Inputs(logits, *classes_and_probs(target), *vectors, None, row_weight)
            return functional.loss(given, normalizer, self.options)


class FusedLinearLabelSmoothingLoss(OfHidden):
    r"""The projection to the classes and :class:`FusedLabelSmoothingLoss` in one: the logits never
    exist whole.

    A drop-in for :class:`torch.nn.LinearCrossEntropyLoss`. Rows go in chunks through one slab of
    logits, (R, C), whose place their gradient takes. Beyond inputs and gradients that takes the
    slab, a few numbers a row, and, for a weight of 16 bits, its gradient's sums in float32, (C, D).

    Args:
        in_features: D.
        num_classes: C.
        bias: whether the projection has one. Default: False.
        device, dtype: of the projection, ``linear``, a :class:`torch.nn.Linear`, whose forward and
            hooks are not called.
        chunk_rows: R. Default: by the shapes alone; on the CPU about D, at least 512 (16 bits:
            1024, 64 bits: 256) and at most 1024, on a GPU from 1024 to 4096. Fewer rows take less
            memory and more time.
        recompute: the gradients are made in backward, from the hidden states and four numbers a
            row, with the projection done once more: nothing of the weight's size is kept until
            then. Default: False, in forward. ``reduction="none"`` and
            ``torch.compile`` always recompute.
        process_group: as there. ``linear`` then has this rank's classes: ceil(C / ranks), on the
            last ranks fewer or none.
        class_offset: as there, where ``linear`` is to begin. Default: rank times ceil(C / ranks).
        partial_hidden_grad: with a process_group, the gradient of the hidden states is that of this
            rank's classes, for a caller who sums it. Default: False, summed over the ranks in
            float32, by an all-reduce where it is made.

    All arguments of :class:`FusedLabelSmoothingLoss` but ``inplace`` and ``from_log_probs`` are
    taken too, with the same meaning and defaults.

    Shape:
        hidden (D,), (N, D) or (..., D) in float16, bfloat16, float32 or float64. target: class
        indices, (), (N,) or (...), of any integer dtype; probabilities, with a last axis of C; or a
        :class:`SparseTarget`, whose last axis is K. The loss is a scalar, or for ``"none"`` has the
        shape of a class-index target; so has row_weight. The loss's dtype is float32, or float64
        for float64. Under autocast the projection is done in autocast's dtype, as in
        :func:`torch.nn.functional.linear`; gradients have the dtypes of what they belong to.

        The parameters of ``linear`` may be DTensors, as
        ``parallelize_module(model, mesh, {"loss.linear": ColwiseParallel()})`` makes them: of
        placements ``Shard(0)`` on at most one mesh dimension, ``Replicate()`` on others. hidden is
        then a plain tensor, the same on all ranks, or a DTensor whose rows may be sharded over the
        other dimensions; all else is as for logits in a DTensor.

    Raises:
        TypeError: as :class:`FusedLabelSmoothingLoss`; hidden states, weight and bias that differ
            in dtype outside of autocast; a weight that is a DTensor in other parts than classes
            (FSDP2's ``fully_shard`` goes to this module or one around it, whose hooks then gather
            the weight, not to ``linear``); a ``linear`` that computes more than its weight says, as
            adapters do.
        ValueError: as there; an empty weight, as ZeRO-3 leaves one; ranks of its classes that are
            called with other targets or numbers of rows.
        IndexError: as there; the row is that of the batch.

    Only gradients that something requires are made: with a frozen projection nothing of its size.
    On the CPU, rows that are ignored or have a weight of 0 are left out of the products (not with
    ``return_stats``). A second backward, ``create_graph``,
    torch.func and forward mode work; they take the eager formulas, a chunk at a time.
    ``torch.compile`` and ``torch.export`` see one operator.

    Formula and sources are those of :class:`FusedLabelSmoothingLoss`, with the logits
    :math:`x = W h + b`; for gradients chunk by chunk in forward Liger, Hsu et al. 2024,
    arXiv:2410.10989.
    """

    Declaration = LinearOptions
    linear: nn.Linear

    @initialiser_of(LinearModuleArguments)
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        prior: Tensor | None = None,
        **keywords: Any,
    ) -> None:
        of, first = FusedLinearLabelSmoothingLoss, (in_features,)
        options = options_of(LinearOptions, of, first, num_classes=num_classes, **keywords)
        super().__init__(options)
        device = torch.get_default_device() if device is None else device
        made = {"bias": bias, "device": device, "dtype": dtype}
        if self.process_group is None:
            self.linear = nn.Linear(in_features, num_classes, **made)
        else:
            self.class_offset, classes = share_of(options)
            self.linear = nn.utils.skip_init(nn.Linear, in_features, classes, **made)
            _draw_unlike(self.linear, self.class_offset)
        self.weight, self.prior = weight, prior

    def forward(
        self,
        hidden: Tensor,
        target: Target,
        *,
        normalizer: Tensor | float | None = None,
        row_weight: Tensor | None = None,
    ) -> Result:
        """The loss; ``normalizer`` and ``row_weight`` are those of
        :meth:`FusedLabelSmoothingLoss.forward`."""
        weight, group = getattr(self.linear, "weight", None), self.process_group
        with together(functional.group_of(weight, group, of_weight=True), hidden):
            check_is_its_weight("linear", self.linear)
            inputs = LinearInputs(
                *(hidden, self.linear.weight, self.linear.bias, *classes_and_probs(target)),
                *(self.in_float32("weight"), self.in_float32("prior"), None, row_weight),
            )
            return linear.loss(inputs, normalizer, self.options)


def _draw_unlike(linear: nn.Linear, class_offset: int) -> None:
    """As nn.Linear does, but each rank draws others, and torch's own generator stays the same on
    all."""
    seed = int(torch.randint(1 << 62, (), device="cpu")) + class_offset
    if linear.weight.is_meta:
        return
    generator = torch.Generator(linear.weight.device).manual_seed(seed)
    bound = max(1, linear.in_features) ** -0.5
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator)
