"""scripts/publish_docs.sh: a folder for each version, on a branch of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from checks import ROOT


def git(*arguments: str | Path) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    done = subprocess.run(["git", *author, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_versions_lie_beside_each_other(tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    git("init", "--quiet", "--bare", origin)
    git("init", "--quiet", clone)
    git("-C", clone, "remote", "add", "origin", origin)

    def publish(name: str, text: str) -> None:
        built = tmp_path / text
        built.mkdir()
        (built / "index.html").write_text(text)
        script = (ROOT / "scripts/publish_docs.sh", name, built)
        subprocess.run(script, cwd=clone, capture_output=True, check=True)

    def page(name: str) -> str:
        return git("-C", origin, "show", f"gh-pages:{name}")

    publish("main", "first")
    assert 'url=main/"' in page("index.html")
    for name, text in (("0.2.0", "two"), ("0.10.0", "ten"), ("0.9.1", "nine"), ("main", "last")):
        publish(name, text)
    folders = ("main", "0.2.0", "0.9.1", "0.10.0", "stable")
    pages = [page(f"{folder}/index.html") for folder in folders]
    assert pages == ["last", "two", "nine", "ten", "ten"]
    assert 'url=stable/"' in page("index.html")
