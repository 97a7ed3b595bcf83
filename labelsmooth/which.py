"""Losses that people use, and what to write in their place: `python -m labelsmooth which WORDS`."""

from collections.abc import Iterable

from ._losses import ROWS, Row

__all__ = ["ROWS", "Row", "as_markdown", "as_text", "libraries", "matching"]

THERE = "where the library makes its loss itself:"
KEEP = "keep it: no loss of labelsmooth is this one"


def matching(words: Iterable[str]) -> list[Row]:
    """The rows that have all words in their names or their line."""
    wanted = [_plain(word) for word in words]

    def has_all(row: Row) -> bool:
        text = _plain(" ".join((row.library, row.loss, row.write, row.also)))
        return all(word in text for word in wanted)

    return [row for row in ROWS if has_all(row)]


def libraries() -> list[str]:
    return list(dict.fromkeys(row.library for row in ROWS))


def as_text(rows: Iterable[Row]) -> str:
    def lines(row: Row) -> list[str]:
        there = [f"{THERE} {row.there}"] if row.there else []
        return [f"{row.library}: {row.loss}", row.mass, row.write or KEEP, *there]

    return "\n\n".join("\n    ".join(lines(row)) for row in rows)


def as_markdown(rows: Iterable[Row]) -> str:
    lines = ["| you have | its smoothing mass | write |", "|---|---|---|"]
    for row in rows:
        write = f"`{row.write}`" if row.write else KEEP
        if row.there:
            write += f"; {THERE} `{row.there}`"
        lines.append(f"| {row.library}: `{row.loss}` | {row.mass} | {write} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")
