"""The changelog's newest release, CITATION.cff and the package name the same version and day."""

from __future__ import annotations

import re

from checks import ROOT

import labelsmooth


def test_every_file_names_the_same_release() -> None:
    headings = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == ("Unreleased", "")
    cited = re.findall(
        r"^(?:version|date-released): (.+)$", (ROOT / "CITATION.cff").read_text(), re.M
    )
    assert headings[1] == tuple(cited)
    assert headings[1][0] == labelsmooth.__version__
