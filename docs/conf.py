"""Sphinx: `make docs` writes build/docs; a warning is an error."""

import labelsmooth

project = "labelsmooth"
author = copyright = "labelsmooth contributors"
version = release = labelsmooth.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"labelsmooth {release}"

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
