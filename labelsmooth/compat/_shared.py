"""What drop-ins have in common."""

import torch
from torch import Tensor

NO_INDEX = torch.iinfo(torch.int64).min  # the ignore_index of a loss that ignores no row


def in_dtype_of(x: Tensor, loss: Tensor) -> Tensor:
    """The loss as the original has it, in the dtype of the logits or log-probabilities x; under
    autocast, which computes losses in float32, as it is."""
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    return loss if autocast else loss.to(x.dtype)
