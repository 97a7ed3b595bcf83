"""The public names, which users' code depends on, are these; and code that uses them all runs."""

from __future__ import annotations

import importlib
import pkgutil
import runpy
from pathlib import Path

import pytest
from torch import nn

import labelsmooth

NAMES = {
    "labelsmooth": [
        "FusedLabelSmoothingLoss",
        "FusedLinearLabelSmoothingLoss",
        "LossStats",
        "SparseTarget",
        "compat",
        "label_smoothing_loss",
        "linear_label_smoothing_loss",
        "release_memory",
    ],
    "labelsmooth.functional": ["LossStats", "label_smoothing_loss"],
    "labelsmooth.linear": ["linear_label_smoothing_loss"],
    "labelsmooth.memory": ["release_memory"],
    "labelsmooth.modules": ["FusedLabelSmoothingLoss", "FusedLinearLabelSmoothingLoss"],
    "labelsmooth.targets": ["SparseTarget"],
    "labelsmooth.which": ["ROWS", "Row", "as_markdown", "as_text", "libraries", "matching"],
    "labelsmooth.compat": ["LabelSmoothing", "LabelSmoothingLoss"],
    "labelsmooth.compat.annotated_transformer": ["LabelSmoothing"],
    "labelsmooth.compat.espnet": ["LabelSmoothingLoss"],
    "labelsmooth.compat.fairseq": ["label_smoothed_nll_loss", "patch"],
    "labelsmooth.compat.fairseq2": ["cross_entropy"],
    "labelsmooth.compat.fastai": [
        "LabelSmoothingCrossEntropy",
        "LabelSmoothingCrossEntropyFlat",
    ],
    "labelsmooth.compat.funasr": ["LabelSmoothingLoss"],
    "labelsmooth.compat.icefall": ["LabelSmoothingLoss"],
    "labelsmooth.compat.joeynmt": ["XentLoss"],
    "labelsmooth.compat.label_smoothing": ["LabelSmoothing", "LabelSmoothingLoss"],
    "labelsmooth.compat.nemo": ["SmoothedCrossEntropyLoss", "SmoothedNLLLoss"],
    "labelsmooth.compat.opennmt": ["LabelSmoothingLoss"],
    "labelsmooth.compat.pytorch_toolbelt": ["SoftCrossEntropyLoss"],
    "labelsmooth.compat.segmentation_models_pytorch": ["SoftCrossEntropyLoss"],
    "labelsmooth.compat.speechbrain": ["kldiv_loss", "nll_loss"],
    "labelsmooth.compat.timm": [
        "LabelSmoothingCrossEntropy",
        "MixedTarget",
        "SoftTargetCrossEntropy",
    ],
    "labelsmooth.compat.torch": ["CrossEntropyLoss", "cross_entropy", "linear_cross_entropy"],
    "labelsmooth.compat.transformers": [
        "LabelSmoother",
        "apply_to",
        "compute_loss_func",
        "patch_trainer",
    ],
    "labelsmooth.compat.wenet": ["LabelSmoothingLoss"],
}
if hasattr(nn, "LinearCrossEntropyLoss"):  # of torch 2.13 and later
    NAMES["labelsmooth.compat.torch"].append("LinearCrossEntropyLoss")


def test_every_public_module_is_listed() -> None:
    found = pkgutil.walk_packages(labelsmooth.__path__, "labelsmooth.")
    public = {module.name for module in found if "._" not in module.name}
    assert {"labelsmooth", *public} == NAMES.keys()
    assert {f"labelsmooth.compat.{name}" for name in labelsmooth.compat.LIBRARIES} < public


@pytest.mark.parametrize("module", NAMES)
def test_all_gives_just_these(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(NAMES[module])
    given: dict[str, object] = {}
    exec(f"from {module} import *", given)
    assert given.keys() - {"__builtins__"} == set(NAMES[module])


def test_a_users_code_runs() -> None:
    runpy.run_path(str(Path(__file__).with_name("consumer.py")), run_name="__main__")
