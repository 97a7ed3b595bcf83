"""`labelsmooth.which`: what is asked for is found, what is said can be written, and the
documentation says the same."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

import pytest
from checks import ROOT

import labelsmooth
from labelsmooth import compat, which
from labelsmooth.which import ROWS, Row

DROP_INS = [row for row in ROWS if "labelsmooth.compat" in row.write]


def found(*words: str) -> list[str]:
    return [f"{row.library} {row.loss}" for row in which.matching(words)]


def test_case_dashes_and_underscores_do_not_matter() -> None:
    for words in (["espnet"], ["ESPnet"], ["esp-net", "label_smoothing", "loss"]):
        assert found(*words) == ["ESPnet LabelSmoothingLoss"]
    assert found("megatron_lm") == ["Megatron-LM vocab_parallel_cross_entropy"]
    assert found("labelsmoothednllloss") == ["fairseq label_smoothed_nll_loss"]


def test_all_words_must_match_and_none_finds_all() -> None:
    assert found("speechbrain") == ["SpeechBrain nll_loss", "SpeechBrain kldiv_loss"]
    assert found("speechbrain", "kldiv") == ["SpeechBrain kldiv_loss"]
    assert found("speechbrain", "xent") == []
    assert len(found()) == len(ROWS)


def test_said_in_a_line_each() -> None:
    assert which.as_text(which.matching(["espnet"])).splitlines() == [
        "ESPnet: LabelSmoothingLoss",
        "    others; KL divergence",
        "    from labelsmooth.compat.espnet import LabelSmoothingLoss",
        "    where the library makes its loss itself: espnet2.asr.espnet_model.LabelSmoothingLoss ="
        " labelsmooth.compat.espnet.LabelSmoothingLoss",
    ]
    assert which.KEEP in which.as_text(which.matching(["multi_label"]))


def test_rows_are_in_order_and_of_one_line() -> None:
    names = [row.library.lower() for row in ROWS]
    assert names == sorted(names)
    assert len(set(ROWS)) == len({(row.library, row.loss) for row in ROWS}) == len(ROWS)
    assert not any(mark in "".join(row) for row in ROWS for mark in "|\n`")


@pytest.mark.parametrize("row", DROP_INS, ids=lambda row: f"{row.library}-{row.loss}")
def test_a_drop_in_is_there(row: Row) -> None:
    """What is called takes these arguments."""
    (line,) = ast.parse(row.write).body
    if isinstance(line, ast.ImportFrom):
        for alias in line.names:
            assert line.module is not None
            assert callable(taken(line.module, alias.name))
        return
    assert isinstance(line, ast.Expr)
    assert isinstance(line.value, ast.Call)
    path, _, name = ast.unparse(line.value.func).rpartition(".")
    given = {keyword.arg: None for keyword in line.value.keywords}
    inspect.signature(taken(path, name)).bind(*line.value.args, **given)


@pytest.mark.parametrize("row", [row for row in ROWS if row.there], ids=lambda row: row.library)
def test_what_is_put_there_is_what_is_imported(row: Row) -> None:
    if row.write.startswith("from "):
        _, module, _, name = row.write.split()
        assert f"{module}.{name}" in row.there
    else:
        assert row.there.endswith(row.write)


def taken(module: str, name: str) -> Any:
    """A subclass of a class of a library that is not installed is asked for, and that is all. (A
    name that is not there would be an AttributeError.)"""
    there = importlib.import_module(module)
    try:
        return getattr(there, name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == module.rpartition(".")[2]:
            return object
        raise


def test_each_drop_in_has_a_row() -> None:
    modules = {row.write.partition("labelsmooth.compat.")[2] for row in DROP_INS}
    named = {words.replace(".", " ").split()[0] for words in modules if words}
    assert named == set(compat.LIBRARIES)
    copied = {row.write.rpartition(" ")[2] for row in ROWS if row.library == "widely copied"}
    assert copied == set(labelsmooth.compat.__all__)


def test_the_page_ends_with_the_table() -> None:
    """To write it anew: sed -i '/^| you have/,$d' docs/drop-ins.md, then
    python -m labelsmooth which --markdown >> docs/drop-ins.md"""
    page = (ROOT / "docs" / "drop-ins.md").read_text()
    assert page.endswith(f"\n\n{which.as_markdown(ROWS)}\n")


def test_the_conventions_name_the_libraries_that_have_them() -> None:
    page = (ROOT / "docs" / "conventions.md").read_text().partition("## Which library means")[2]
    table = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    named = {cells[0].removeprefix("| "): cells[-1] for cells in table[1:]}
    for row in ROWS:
        assert row.library in named[row.mass.partition(";")[0]], row
