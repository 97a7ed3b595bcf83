"""Whether a layer is what its weight says: then the weight may stand for it."""

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .checks import check_gathered
from .values import described


def check_is_its_weight(name: str, linear: Any) -> None:
    """Raises for an adapter of LoRA, or a layer whose weight a hook makes before each call, as
    those of torch.nn.utils.spectral_norm (not parametrizations) and fully_shard do."""
    came = described(linear)
    if type(linear).forward is nn.Linear.forward:
        if "forward" in linear.__dict__:
            came += " with another forward"
        elif not _has_weight(linear):
            came += " whose weight a hook makes"
        else:
            return check_gathered(linear)
    raise TypeError(
        f"{name}: expected a torch.nn.Linear, whose weight is all there is to it, got {came}, "
        "whose forward or hooks would not be called"
    )


def _has_weight(linear: Any) -> bool:
    """In a replica of DataParallel parameters are attributes, and named apart."""
    parameters = {**linear._parameters, **linear.__dict__.get("_former_parameters", {})}
    return "weight" in parameters or is_parametrized(linear, "weight")
