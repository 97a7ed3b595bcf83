"""The wheel holds every file of the package and nothing else, and every module of it imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from checks import ROOT

from labelsmooth import _C

EXTENSION = Path(_C.__file__)

IMPORT_ALL = """
import importlib, pkgutil, labelsmooth
for module in pkgutil.walk_packages(labelsmooth.__path__, "labelsmooth."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name != "timm":  # of whose classes compat._timm_mixup has subclasses
            raise
    print(module.name)
"""


def install_wheel(site: Path, tree: Path) -> None:
    """From a copy of the tree's sources, around the extension that is built already."""
    shutil.copytree(ROOT / "labelsmooth", tree / "labelsmooth")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "built/labelsmooth").mkdir(parents=True)
    shutil.copy(EXTENSION, tree / "built/labelsmooth")
    (tree / "setup.cfg").write_text("[build]\nbuild_lib = built\n")
    run("setup.py", "-q", "build_py", "bdist_wheel", "--skip-build", cwd=tree)
    [wheel] = tree.glob("dist/*.whl")
    run(
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
        cwd=tree,
    )


def run(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources() -> set[str]:
    """What a source distribution lists; else what is tracked in the whole repository, wherever in
    it this tree lies."""
    if (ROOT / "PKG-INFO").is_file():
        listed = (ROOT / "labelsmooth.egg-info/SOURCES.txt").read_text().split()
        return {name for name in listed if name.startswith("labelsmooth/")}
    git = ["git", "ls-files", "--full-name", ":/labelsmooth"]
    return {
        *subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    }


def test_every_file_and_every_module(tmp_path: Path) -> None:
    """Of a wheel made here; where the tree lacks the package (`make wheel-matrix`), of the wheel
    that is installed."""
    site = EXTENSION.parent.parent
    if (ROOT / "labelsmooth").is_dir():
        site = tmp_path / "site"
        install_wheel(site, tmp_path / "tree")
    files = {
        path.relative_to(site).as_posix()
        for path in site.glob("labelsmooth/**/*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files == sources() | {f"labelsmooth/{EXTENSION.name}"}

    imported = {"labelsmooth", *run("-c", IMPORT_ALL, cwd=site).split()}  # from its own folder
    modules = {file.removesuffix(".py") for file in files if file.endswith(".py")}
    modules = {file.removesuffix("/__init__").replace("/", ".") for file in modules}
    assert imported == modules | {"labelsmooth._C"}
