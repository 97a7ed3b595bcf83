"""WeNet's loss of the attention decoder, wenet.transformer.label_smoothing_loss.LabelSmoothingLoss,
read at decd0cf and 04e207e: ESPnet's, without the argument ``criterion``, which is the last.

At 04e207e a smoothing of 0 makes NaN of 0 * log 0, a negative target that is not ``padding_idx`` is
taken for class 0, and targets from 2^24 on are rounded. These are bugs: here smoothing 0 is the
cross-entropy, as at decd0cf, and such a target an error. ``other_value`` and ``offset``, attributes
there alone, are left out.
"""

from .espnet import LabelSmoothingLoss

__all__ = ["LabelSmoothingLoss"]
