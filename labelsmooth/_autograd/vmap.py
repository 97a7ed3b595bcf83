"""torch.vmap of the loss: the samples' rows become the rows of one call."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .._backends import eager
from .._call.problem import Inputs, Options, accumulate_dtype


def has_class_vectors(in_dims: Any) -> bool:
    """Whether each sample has a weight or prior of its own."""
    dims = dict(zip(Inputs._fields, in_dims, strict=False))
    return dims["weight"] is not None or dims["prior"] is not None


class Samples:
    """B problems of N rows each as one of B N rows, whose losses are reduced afterwards."""

    def __init__(self, count: int, in_dims: Any, tensors: Any, options: Options) -> None:
        given, dims = Inputs(*tensors), dict(zip(Inputs._fields, in_dims, strict=False))
        of_rows = {
            name: with_batch(tensor, dims[name], 0, count)
            for name in ("logits", "target", "target_probs", "row_weight")
            if (tensor := getattr(given, name)) is not None
        }
        logits, normalizer = of_rows["logits"], given.normalizer
        self.shape = (*logits.shape[:2], *logits.shape[3:])  # (B, N) or (B, N, S)
        flat = {name: tensor.flatten(0, 1) for name, tensor in of_rows.items()}
        self.rows = given._replace(normalizer=None, **flat)
        self.row_options = replace(options, reduction="none", inplace=False)
        self._normalizer, self._options = normalizer, options

    def unfold(self, rows: Tensor) -> Tensor:
        return rows.reshape(*self.shape[:2], *rows.shape[1:])

    def denominator(self) -> Tensor | None:
        """What each sample's sum is divided by, if it is; (B,) or the same for all."""
        if self._options.reduction == "sum":
            return None
        if self._normalizer is not None:
            normalizer: Tensor = self._normalizer
            return normalizer.to(accumulate_dtype(self.rows.logits))
        weights = self.unfold(eager.target_weights(self.rows, self._options))
        return eager.mean_denominator(weights.flatten(1).sum(1))


def with_batch(tensor: Tensor, dim: int | None, to: int, count: int) -> Tensor:
    """With its batch axis at `to`, expanded where it has none."""
    if dim is not None:
        return tensor.movedim(dim, to)
    shape = (*tensor.shape[:to], count, *tensor.shape[to:])
    return tensor.unsqueeze(to).expand(shape)
