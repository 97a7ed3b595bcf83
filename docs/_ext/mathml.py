"""Formulas as MathML, made when the pages are: no script and no font is asked for."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def mathml(latex: str, display: str = "inline") -> str:
    """A name such as lse is an identifier, without an operator's space around it; within a text an
    underscore is one."""
    converted = convert(latex, display=display).replace(r"\_", "_")
    return re.sub(r"<mo>(\w\w+)</mo>", r"<mi>\1</mi>", converted)


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """What \\qquad sets apart stands side by side where there is room, else one below the other."""
    parts = "".join(mathml(part, "block") for part in node.astext().split(r"\qquad"))
    translator.body.append(f'<div class="formula">{parts}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True}
