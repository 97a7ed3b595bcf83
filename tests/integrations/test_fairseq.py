"""The swap beside fairseq's function and criterion, on its own base classes of models. Their files
are loaded by themselves: Python 3.11 does not import the package."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from drop_ins import DTYPES, assert_same
from integrations.original import load
from torch import Tensor, nn

from labelsmooth.compat import fairseq

UTILS = SimpleNamespace(
    item=Tensor.item,
    log_softmax=lambda x, dim, onnx_trace: x.log_softmax(dim, dtype=torch.float32),
)
CORE = {
    "fairseq": SimpleNamespace(utils=UTILS, metrics=None),
    "fairseq.data": None,
    "fairseq.dataclass": SimpleNamespace(FairseqDataclass=object),
    "fairseq.dataclass.utils": None,
    "omegaconf": None,
}
CRITERIONS = SimpleNamespace(
    CRITERION_REGISTRY={},
    FairseqCriterion=load("fairseq.criterions.fairseq_criterion", CORE).FairseqCriterion,
    register_criterion=lambda name, dataclass: lambda kind: kind,
)
NAME = "fairseq.criterions.label_smoothed_cross_entropy"
ORIGINAL = load(NAME, {**CORE, "fairseq.criterions": CRITERIONS})
FairseqDecoder = load("fairseq.models.fairseq_decoder", CORE).FairseqDecoder
BASES = SimpleNamespace(FairseqDecoder=FairseqDecoder, FairseqEncoder=nn.Module)
MODELS = load("fairseq.models.fairseq_model", {**CORE, "fairseq.models": BASES})
TARGET = torch.tensor([[3, 1, 5, 1], [2, 2, 0, 1], [4, 1, 1, 1]])
TASK = SimpleNamespace(target_dictionary=SimpleNamespace(pad=lambda: 1))
with patch.dict(sys.modules, {"fairseq.criterions": CRITERIONS, NAME: ORIGINAL}):
    OURS = fairseq.LabelSmoothedCrossEntropyCriterion


class Model(MODELS.BaseFairseqModel):
    """Of a decoder that returns what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = FairseqDecoder(None)

    def forward(self, logits: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return logits, {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [0, 1], ids=["loss", "nll"])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("ignore_index", [1, None])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_the_function(
    epsilon: float, ignore_index: int | None, reduce: bool, which: int, dtype: torch.dtype
) -> None:
    x = (3 * torch.randn(3, 4, 11, dtype=dtype)).log_softmax(-1)
    functions = fairseq.label_smoothed_nll_loss, ORIGINAL.label_smoothed_nll_loss
    for target in (TARGET, TARGET.unsqueeze(-1)):
        given = target, epsilon, ignore_index, reduce
        assert_same(*(lambda x, f=f, g=given: f(x, *g)[which] for f in functions), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("arguments", [(True, 0.1), (False, 0.0), (False, 0.1, 1, True)])
def test_the_criterion(
    arguments: tuple[Any, ...], reduce: bool, adaptive: bool, dtype: torch.dtype
) -> None:
    criteria = OURS(TASK, *arguments), ORIGINAL.LabelSmoothedCrossEntropyCriterion(TASK, *arguments)
    model = Model()
    if adaptive:  # whose log-probabilities are not those of the logits
        model.decoder.adaptive_softmax = SimpleNamespace(
            get_log_prob=lambda x, target: (2 * x).log_softmax(-1, dtype=torch.float32)
        )
    x = 3 * torch.randn(3, 4, 11, dtype=dtype)

    def results(criterion: Any, logits: Tensor) -> Any:
        sample = {"net_input": {"logits": logits}, "target": TARGET, "ntokens": 7}
        return criterion(model, sample, reduce=reduce)

    exact = {"rtol": 1e-5} if dtype == torch.float64 else {}  # the original's are of float32
    assert_same(*(lambda x, c=c: results(c, x)[0] for c in criteria), x, **exact)
    (_, size, log), (_, its_size, its_log) = (results(c, x) for c in criteria)
    assert size == its_size
    assert log.keys() == its_log.keys()
    for name, its in its_log.items():
        torch.testing.assert_close(log[name], its)


@pytest.mark.parametrize("name", sorted(fairseq._MODELS | fairseq._DECODERS))
def test_classes_are_where_the_criterion_looks_for_them(name: str) -> None:
    module, kind = name.rsplit(".", 1)
    spec = find_spec("fairseq")
    assert spec is not None
    file = Path(str(spec.origin)).parent.parent / f"{module.replace('.', '/')}.py"
    text = file.read_text()
    assert f"\nclass {kind}(" in text
    assert "def get_normalized_probs(" in text


def test_patch() -> None:
    with patch.dict(sys.modules, {"fairseq.criterions": CRITERIONS, NAME: ORIGINAL}):
        before = ORIGINAL.label_smoothed_nll_loss
        try:
            fairseq.patch()
            assert ORIGINAL.label_smoothed_nll_loss is fairseq.label_smoothed_nll_loss
            assert CRITERIONS.CRITERION_REGISTRY == {"label_smoothed_cross_entropy": OURS}
        finally:
            ORIGINAL.label_smoothed_nll_loss = before
