"""Whether a layer is what its weight says: then the weight may stand for it."""

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .checks import check_gathered
from .values import described


def check_is_its_weight(name: str, linear: Any) -> None:
    """Raises for an adapter of LoRA, or a layer whose weight is made by a hook before each call, as
    torch.nn.utils.spectral_norm does (parametrizations make it when it is looked at), or by
    fully_shard."""
    if not (
        type(linear).forward is nn.Linear.forward
        and "forward" not in linear.__dict__
        and ("weight" in linear._parameters or is_parametrized(linear, "weight"))
    ):
        raise TypeError(
            f"{name}: expected a torch.nn.Linear, whose weight is all there is to it, got "
            f"{described(linear)}, whose forward or hooks would not be called"
        )
    check_gathered(linear)
