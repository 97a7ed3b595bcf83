"""What the examples learn from: text and images that every machine has."""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[^\w\s]")


def library() -> list[Path]:
    """The modules of Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    foreign = {"site-packages", "dist-packages"}
    return [file for file in sorted(folder.rglob("*.py")) if foreign.isdisjoint(file.parts)]


def read(files: Sequence[Path]) -> Iterator[str]:
    for file in track(files, "reading the standard library", transient=True):
        yield file.read_text(encoding="utf-8", errors="ignore")


def read_tokens(words: int, modules: int | None = None) -> Tensor:
    """The standard library, or the first modules of it, as word numbers below `words` (0: a rare
    word)."""
    text = [word for module in read(library()[:modules]) for word in TOKEN.findall(module)]
    count = Counter(text)
    if len(count) < words - 1:
        sys.exit(f"expected a text of {words:,} different words or more, got {len(count):,}")
    common = count.most_common(words - 1)
    number = {word: index for index, (word, _) in enumerate(common, start=1)}
    return torch.tensor([number.get(word, 0) for word in text])


def read_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: images (N, 8, 8) from 0 to 1, and their classes (N,)."""
    from sklearn.datasets import load_digits  # here: the trainings' processes start without it

    digits: Any = load_digits()
    return torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()
