"""`python -m labelsmooth`: versions, backends, processor. `python -m labelsmooth which WORDS`: what
to write in place of a library's loss."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence

import torch

from . import __version__, which
from ._backends.choose import describe_backends


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m labelsmooth", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    asked = commands.add_parser("which", help="what to write in place of a library's loss")
    asked.add_argument("words", nargs="*", help="in the library's or loss's name; none: all")
    asked.add_argument("--markdown", action="store_true", help="as the table of docs/drop-ins.md")
    given = parser.parse_args(arguments)
    return answer(given.words, given.markdown) if given.command else describe()


def answer(words: Sequence[str], markdown: bool) -> int:
    rows = which.matching(words)
    if not rows:
        known = ", ".join(which.libraries())
        said = f"nothing found for {' '.join(words)!r}; known are {known}"
        print(f"{said}\nfor a loss written with torch: which CrossEntropyLoss", file=sys.stderr)
        return 1
    print(which.as_markdown(rows) if markdown else which.as_text(rows))
    return 0


def describe() -> int:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "labelsmooth": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{f"backend {name}": what for name, what in describe_backends().items()},
        "GPU": gpu,
    }
    for name, value in rows.items():
        print(f"{name:20} {value}")
    return 0


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
