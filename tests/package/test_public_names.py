"""The public names, which users' code depends on, are these; and code that uses them all runs."""

from __future__ import annotations

import ast
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
# In no __all__: made of a class of the library, which a star would import.
LAZY = {
    "labelsmooth.compat.fairseq": ["LabelSmoothedCrossEntropyCriterion"],
    "labelsmooth.compat.timm": ["FastCollateMixup", "Mixup"],
}
CONSUMER = Path(__file__).with_name("consumer.py")


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


def test_every_module_with_lazy_names_is_listed() -> None:
    lazy = {name for name in NAMES if hasattr(importlib.import_module(name), "__getattr__")}
    assert lazy == {*LAZY, "labelsmooth.compat"}


@pytest.mark.parametrize("module", NAMES)
def test_a_users_code_has_every_name(module: str) -> None:
    nodes = ast.walk(ast.parse(CONSUMER.read_text()))
    used = {ast.unparse(node) for node in nodes if isinstance(node, (ast.Attribute, ast.Name))}
    library = module.removeprefix("labelsmooth.compat.")
    qualifier = f"compat.{library}." if library in labelsmooth.compat.LIBRARIES else ""
    assert {qualifier + name for name in NAMES[module] + LAZY.get(module, [])} <= used


def test_a_users_code_runs() -> None:
    runpy.run_path(str(CONSUMER), run_name="__main__")
