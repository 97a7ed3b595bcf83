"""Sphinx: `make docs` writes build/docs; a warning is an error."""

import os
import sys
from pathlib import Path

import labelsmooth

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "labelsmooth"
author = copyright = "labelsmooth contributors"
version = release = labelsmooth.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
html_theme = "furo"
html_title = f"labelsmooth {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"

# Where each version has a folder beside the others: their names, for links in the sidebar.
if versions := os.environ.get("LABELSMOOTH_DOCS_VERSIONS", "").split():
    templates_path = ["_templates"]
    html_context = {"versions": versions}
    parts = ("brand", "search", "scroll-start", "navigation", "scroll-end")
    html_sidebars = {"**": [*(f"sidebar/{part}.html" for part in parts), "versions.html"]}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_mock_imports = ["timm"]  # of whose classes two are subclasses
maximum_signature_line_length = 100

nitpicky = True  # a reference that leads nowhere is an error, but those to others, not here
nitpick_ignore_regex = [
    ("py:.*", r"(torch|transformers)\..*|LinearCrossEntropyOptions|collections\.abc\.Callable")
]
