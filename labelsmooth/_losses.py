"""The data of `which`: losses that people use, in the order of docs/drop-ins.md."""

from collections.abc import Iterator
from typing import NamedTuple


class Row(NamedTuple):
    """A loss of a library: where its smoothing mass goes, as docs/conventions.md has it, and the
    line in its place; empty where the loss is none of these."""

    library: str
    loss: str
    mass: str
    write: str
    there: str = ""  # the line where the library makes its loss itself
    also: str = ""  # other words that it is known by


# library: loss
#     mass
#     write
#     there: ...
#     also: ...
# A line that is indented twice continues the one above.
_TEXT = """
Annotated Transformer: LabelSmoothing(size, padding_idx, smoothing)
    others, none on padding; KL divergence of log-probabilities, summed
    from labelsmooth.compat.annotated_transformer import LabelSmoothing
Composer: smooth_labels and soft_cross_entropy
    all
    labelsmooth.label_smoothing_loss(logits, target, label_smoothing=0.1)
ESPnet: LabelSmoothingLoss
    others; KL divergence
    from labelsmooth.compat.espnet import LabelSmoothingLoss
    there: espnet2.asr.espnet_model.LabelSmoothingLoss =
        labelsmooth.compat.espnet.LabelSmoothingLoss
    also: espnet2
fairseq: label_smoothed_nll_loss
    others; of log-probabilities, the likelihood beside it
    from labelsmooth.compat.fairseq import label_smoothed_nll_loss
fairseq: label_smoothed_cross_entropy (LabelSmoothedCrossEntropyCriterion)
    others
    labelsmooth.compat.fairseq.patch()
fairseq2: cross_entropy
    others
    from labelsmooth.compat.fairseq2 import cross_entropy
fastai: LabelSmoothingCrossEntropy
    all; weights on the target's term
    from labelsmooth.compat.fastai import LabelSmoothingCrossEntropy
    there: fastai.learner.Learner(data, model,
        loss_func=labelsmooth.compat.fastai.LabelSmoothingCrossEntropy())
fastai: LabelSmoothingCrossEntropyFlat
    all; weights on the target's term
    from labelsmooth.compat.fastai import LabelSmoothingCrossEntropyFlat
FunASR: LabelSmoothingLoss
    others; KL divergence
    from labelsmooth.compat.funasr import LabelSmoothingLoss
    there: funasr.models.paraformer.model.LabelSmoothingLoss =
        labelsmooth.compat.funasr.LabelSmoothingLoss
icefall: LabelSmoothingLoss
    all
    from labelsmooth.compat.icefall import LabelSmoothingLoss
JoeyNMT: XentLoss
    others, none on padding; KL divergence of log-probabilities, summed
    from labelsmooth.compat.joeynmt import XentLoss
    there: joeynmt.model.XentLoss = labelsmooth.compat.joeynmt.XentLoss
Keras: CategoricalCrossentropy(from_logits=True)
    all; the mean is over the rows
    labelsmooth.label_smoothing_loss(y_pred, y_true, label_smoothing=0.1)
Liger: LigerCrossEntropyLoss
    all; lse_square_scale and softcap have the same names
    labelsmooth.FusedLabelSmoothingLoss(label_smoothing=0.1)
Liger: LigerFusedLinearCrossEntropyLoss
    all
    labelsmooth.linear_label_smoothing_loss(hidden, lin_weight, target, linear_bias=bias,
        label_smoothing=0.1)
Marian: --label-smoothing, --cost-type ce-sum
    all
    labelsmooth.label_smoothing_loss(logits.movedim(-1, 1), target, reduction='sum',
        label_smoothing=0.1, row_weight=mask)
Megatron-LM: vocab_parallel_cross_entropy
    others; of the classes of its own rank
    labelsmooth.label_smoothing_loss(vocab_parallel_logits.movedim(-1, 1), target,
        reduction='none', label_smoothing=0.1, smooth_over='others', process_group=group)
MMPretrain: LabelSmoothLoss(mode='original')
    all; the mean is over the rows
    labelsmooth.label_smoothing_loss(cls_score, label, class_weight, label_smoothing=0.1,
        normalizer=len(label))
MMPretrain: LabelSmoothLoss(mode='classy_vision')
    all, at a/(1+a); the mean is over the rows
    labelsmooth.label_smoothing_loss(cls_score, label, class_weight, label_smoothing=0.1 / 1.1,
        normalizer=len(label))
MMPretrain: LabelSmoothLoss(mode='multi_label')
    each class by itself; a sigmoid, no softmax
MONAI: DiceCELoss
    all
    loss.cross_entropy = labelsmooth.FusedLabelSmoothingLoss(loss.cross_entropy.weight,
        label_smoothing=0.1)
NeMo: SmoothedCrossEntropyLoss
    others; of log-probabilities
    from labelsmooth.compat.nemo import SmoothedCrossEntropyLoss
    there: nemo.collections.asr.models.transformer_bpe_models.SmoothedCrossEntropyLoss =
        labelsmooth.compat.nemo.SmoothedCrossEntropyLoss
NeMo: SmoothedNLLLoss
    all; of log-probabilities
    from labelsmooth.compat.nemo import SmoothedNLLLoss
OLMo: cross_entropy_loss(compute_z_loss=True)
    none; 1e-4 lse² is added
    labelsmooth.label_smoothing_loss(logits, labels, reduction='sum', lse_square_scale=1e-4)
OpenNMT-py: label_smoothing (from 3.0.3: nn.CrossEntropyLoss)
    all
    labelsmooth.FusedLabelSmoothingLoss(ignore_index=padding_idx, reduction='sum',
        label_smoothing=0.1)
    there: trainer.train_loss.criterion =
        labelsmooth.FusedLabelSmoothingLoss(ignore_index=padding_idx, reduction='sum',
        label_smoothing=0.1)
    also: onmt
OpenNMT-py: LabelSmoothingLoss (up to 3.0.2)
    others, none on padding; KL divergence of log-probabilities, summed
    from labelsmooth.compat.opennmt import LabelSmoothingLoss
    there: onmt.utils.loss.LabelSmoothingLoss = labelsmooth.compat.opennmt.LabelSmoothingLoss
    also: onmt
Paddle: label_smooth and cross_entropy(soft_label=True)
    all, with a prior; the mean is over the rows
    labelsmooth.label_smoothing_loss(logits, target, label_smoothing=0.1,
        prior=prior_dist.flatten())
PyTorch: nn.CrossEntropyLoss
    all
    from labelsmooth.compat.torch import CrossEntropyLoss
    also: lightning accelerate
PyTorch: F.cross_entropy
    all
    from labelsmooth.compat.torch import cross_entropy
    there: torch.nn.functional.cross_entropy = labelsmooth.compat.torch.cross_entropy
    also: torch.nn.functional.cross_entropy
PyTorch: F.log_softmax and F.nll_loss
    none
    labelsmooth.label_smoothing_loss(logits, target)
PyTorch: nn.LinearCrossEntropyLoss
    all
    from labelsmooth.compat.torch import LinearCrossEntropyLoss
PyTorch: F.linear_cross_entropy
    all
    from labelsmooth.compat.torch import linear_cross_entropy
    also: torch.nn.functional.linear_cross_entropy
pytorch-toolbelt: SoftCrossEntropyLoss
    all; the mean is over all pixels, ignored too
    from labelsmooth.compat.pytorch_toolbelt import SoftCrossEntropyLoss
segmentation-models-pytorch: SoftCrossEntropyLoss
    all; the mean is over all pixels, ignored too
    from labelsmooth.compat.segmentation_models_pytorch import SoftCrossEntropyLoss
    also: smp
SpeechBrain: nll_loss
    all; weights on the target's term
    from labelsmooth.compat.speechbrain import nll_loss
SpeechBrain: kldiv_loss
    others; KL divergence of log-probabilities
    from labelsmooth.compat.speechbrain import kldiv_loss
    there: seq_cost: !name:labelsmooth.compat.speechbrain.kldiv_loss
tensor2tensor: smoothing_cross_entropy
    others; KL divergence
    labelsmooth.label_smoothing_loss(logits.movedim(-1, 1), labels, reduction='none',
        label_smoothing=1 - confidence, smooth_over='others', objective='kl_div')
timm: LabelSmoothingCrossEntropy
    all
    from labelsmooth.compat.timm import LabelSmoothingCrossEntropy
    also: pytorch-image-models
timm: Mixup, FastCollateMixup, SoftTargetCrossEntropy
    all; there in Mixup's target, here in SoftTargetCrossEntropy
    from labelsmooth.compat.timm import FastCollateMixup, Mixup, SoftTargetCrossEntropy
    also: pytorch-image-models cutmix
torchtune: CEWithChunkedOutputLoss
    none
    loss_fn.compute_cross_entropy = functools.partial(labelsmooth.label_smoothing_loss,
        reduction='sum', label_smoothing=0.1)
torchvision: v2.MixUp and v2.CutMix, beside CrossEntropyLoss
    all; of the mixed target
    labelsmooth.FusedLabelSmoothingLoss(label_smoothing=0.1)
transformers: LabelSmoother
    all
    from labelsmooth.compat.transformers import LabelSmoother
    also: huggingface hf
transformers: Trainer with label_smoothing_factor
    all
    labelsmooth.compat.transformers.patch_trainer()
    also: huggingface hf seq2seqtrainer t5 bart whisper bert llama qwen mistral gemma gpt2
transformers: a model's own loss
    none; smoothed and, with fused_head=True, without logits
    labelsmooth.compat.transformers.apply_to(model, label_smoothing=0.1)
    also: huggingface hf trainer llama qwen mistral gemma gpt2
WeNet: LabelSmoothingLoss
    others; KL divergence
    from labelsmooth.compat.wenet import LabelSmoothingLoss
widely copied: LabelSmoothing(size, smoothing)
    others; KL divergence of log-probabilities, summed
    from labelsmooth.compat import LabelSmoothing
widely copied: LabelSmoothingLoss(classes, smoothing, dim, weight)
    others; the mean of rows times weights, 1/C unless given
    from labelsmooth.compat import LabelSmoothingLoss
"""


def _rows(text: str) -> Iterator[Row]:
    for row in text.replace("\n        ", " ").replace("\n    ", "\t").split("\n")[1:-1]:
        named, mass, *lines = row.split("\t")
        library, _, loss = named.partition(": ")
        more = {"write": "", "there": "", "also": ""}
        for line in lines:
            name, found, value = line.partition(": ")
            more |= {name: value} if found else {"write": line}
        yield Row(library, loss, mass, **more)


ROWS = tuple(_rows(_TEXT))
