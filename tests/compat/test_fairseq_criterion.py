"""fairseq's criterion, beside a stand-in for fairseq."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from translation import assert_truth, batch, outcome

from labelsmooth.compat import fairseq

TARGET = torch.tensor([[0, 2, 3, 1], [6, 5, 1, 1]])  # 1 is padding


def formula(logits: Tensor) -> list[Tensor]:
    """Rows of loss and nll."""
    x = logits.double().log_softmax(-1)
    of_target = -x.gather(-1, TARGET.unsqueeze(-1)).squeeze(-1)
    of_others = (-x.sum(-1) - of_target) / 6
    return [
        row.masked_fill(TARGET == 1, 0.0) for row in (0.9 * of_target + 0.1 * of_others, of_target)
    ]


class Decoder(nn.Module):
    """By name fairseq's; its log-probabilities are what a criterion asks for at most once."""

    __module__, __qualname__ = "fairseq.models.fairseq_decoder", "FairseqDecoder"
    adaptive_softmax: Any = None
    asked = 0

    def get_normalized_probs(self, net_output: Any, log_probs: bool) -> Tensor:
        return self.get_normalized_probs_scriptable(net_output, log_probs)

    def get_normalized_probs_scriptable(self, net_output: Any, log_probs: bool) -> Tensor:
        assert log_probs
        Decoder.asked += 1
        return net_output[0].log_softmax(-1, dtype=torch.float32)


class Model(nn.Module):
    """By name fairseq's; it returns what it is given."""

    __module__, __qualname__ = "fairseq.models.fairseq_model", "BaseFairseqModel"

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def forward(self, logits: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return logits, {}

    def get_targets(self, sample: dict[str, Any], net_output: Any) -> Tensor:
        return sample["target"]

    def get_normalized_probs(self, net_output: Any, log_probs: bool) -> Tensor:
        return self.get_normalized_probs_scriptable(net_output, log_probs)

    def get_normalized_probs_scriptable(self, net_output: Any, log_probs: bool) -> Tensor:
        return self.decoder.get_normalized_probs(net_output, log_probs)


class Own(Model):
    """With probabilities of its own."""

    def get_normalized_probs(self, net_output: Any, log_probs: bool) -> Tensor:
        return super().get_normalized_probs(net_output, log_probs)


class Criterion(nn.Module):
    """What ours inherits of fairseq's."""

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__()
        self.padding_idx, self.eps = task.pad, label_smoothing
        self.ignore_prefix_size = ignore_prefix_size

    def get_lprobs_and_target(self, model: Any, output: Any, sample: Any) -> tuple[Tensor, Tensor]:
        lprobs = model.get_normalized_probs(output, log_probs=True)[:, self.ignore_prefix_size :]
        target = model.get_targets(sample, output)[:, self.ignore_prefix_size :]
        return lprobs.flatten(0, 1), target.flatten()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    names = "fairseq", "fairseq.criterions", "fairseq.criterions.label_smoothed_cross_entropy"
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules[names[1]].CRITERION_REGISTRY = {}  # type: ignore[attr-defined]
    modules[names[2]].LabelSmoothedCrossEntropyCriterion = Criterion  # type: ignore[attr-defined]
    return modules


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("kind", ["logits", "adaptive", "own"])
@pytest.mark.usefixtures("library")
def test_the_criterion(kind: str, prefix: int, reduce: bool, dtype: torch.dtype) -> None:
    ours = fairseq.LabelSmoothedCrossEntropyCriterion
    criterion = ours(SimpleNamespace(pad=1), False, 0.1, prefix)
    assert isinstance(criterion, Criterion)
    model = Own() if kind == "own" else Model()
    model.decoder.adaptive_softmax = object() if kind == "adaptive" else None
    sample = {"target": TARGET}
    logits = batch(dtype, 2, 4, 7) * 3

    def loss(x: Tensor) -> Tensor:
        return criterion.compute_loss(model, model(x), sample, reduce=reduce)[0]

    def truth(x: Tensor, which: int) -> Tensor:
        rows = formula(x)[which][:, prefix:]
        return rows.sum() if reduce else rows.reshape(-1, 1)

    Decoder.asked = 0
    value, grad = outcome(loss, logits)
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    assert_truth([value, grad], outcome(truth, logits.double(), 0))
    _, nll = criterion.compute_loss(model, model(logits), sample, reduce)
    assert_truth([nll], [truth(logits, 1)])
    correct, total = criterion.compute_accuracy(model, model(logits), sample)
    counts = TARGET[:, prefix:] != 1
    right = logits[:, prefix:].argmax(-1) == TARGET[:, prefix:]
    assert (correct, total) == ((right & counts).sum(), counts.sum())
    assert Decoder.asked == (0 if kind == "logits" else 3)


def test_patch(library: dict[str, ModuleType]) -> None:
    """The line of a --user-dir."""
    exec("from labelsmooth.compat import fairseq; fairseq.patch()")
    *_, criterions, original = library.values()
    assert original.label_smoothed_nll_loss is fairseq.label_smoothed_nll_loss
    assert original.LabelSmoothedCrossEntropyCriterion is Criterion
    ours = fairseq.LabelSmoothedCrossEntropyCriterion
    name = "label_smoothed_cross_entropy"
    assert criterions.CRITERION_REGISTRY[name] is ours
    fairseq.patch()  # again
    assert criterions.CRITERION_REGISTRY[name] is ours


def test_fairseq_is_not_imported_before_it_must_be() -> None:
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        fairseq.absent  # noqa: B018
    code = "import sys, labelsmooth.compat.fairseq; assert 'fairseq' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
