"""The code of the pages that needs a library (blocks marked ``py``) runs, each page's from top to
bottom, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from checks import ROOT
from integrations.small_models import model_of
from torch.nn.functional import cross_entropy, one_hot
from transformers import Trainer, TrainingArguments

from labelsmooth.compat.transformers import LabelSmoother

PAGES = {
    path.name: code
    for path in sorted(ROOT.glob("docs/*.md"))
    if (code := re.findall(r"^```py\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE))
}


def run(page: str, **given: Any) -> dict[str, Any]:
    exec(compile("\n".join(PAGES[page]), page, "exec"), given)
    return given


def test_each_page_has_its_test() -> None:
    assert list(PAGES) == ["drop-ins.md", "vision.md"]


def test_drop_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = transformers.trainer.LabelSmoother
    monkeypatch.setattr(transformers.trainer, "LabelSmoother", stock)  # put back after this
    quiet: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, **quiet)
    ids = list(range(3, 11))
    rows = [{"input_ids": ids, "labels": ids}]
    model = model_of("llama")
    made = run("drop-ins.md", Trainer=Trainer, model=model, arguments=arguments, rows=rows)
    assert transformers.trainer.LabelSmoother is LabelSmoother
    assert made["trainer"].train().training_loss > 0
    batch = torch.tensor([ids])
    assert model.train()(batch, labels=batch).logits is None


def test_vision() -> None:
    """Beside the dense target that the sparse one stands for, smoothed over all classes."""
    made = run("vision.md")
    images, y = torch.rand(4, 3, 8, 8), torch.randint(21_841, (4,))
    mixed, target = made["mixup"](images, y)
    assert mixed.shape == images.shape
    assert target.classes.shape == (4, 2)
    dense = (one_hot(target.classes, 21_841) * target.probs[..., None]).sum(1)
    logits = torch.randn(4, 21_841)
    expected = cross_entropy(logits, dense, label_smoothing=0.1)
    torch.testing.assert_close(made["loss_fn"](logits, target), expected)
