"""FunASR's loss of the attention decoder, funasr.losses.label_smoothing_loss.LabelSmoothingLoss,
as of 1.4.16: ESPnet's to the letter, but that it takes logits of any strides. Here both do."""

from .espnet import LabelSmoothingLoss

__all__ = ["LabelSmoothingLoss"]
