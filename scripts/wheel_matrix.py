"""Holds one wheel against several Pythons and torches: the whole suite must pass on each.

    python scripts/wheel_matrix.py dist python3:torch==2.13.0 python3.13:torch==2.14.1

`dist` holds a wheel and the sdist that it was built from. First the wheel's symbols are audited and
its size is told, and the sdist is built once more without CUDA. Each pair gets an environment of
its own, in build/matrix, which the next run takes again, and a copy of the tree without the
package: the tests import the wheel. Arguments after `--` go to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MATRIX = ROOT / "build" / "matrix"
KERNELS = ROOT / "build" / "inplace" / "cuda"
BIN = Path(sys.executable).parent


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    print("+", *command, flush=True)
    subprocess.run([*map(str, command)], cwd=cwd, env={**os.environ, **environment}, check=True)


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder}: expected one {pattern}, got {[path.name for path in found]}")
    return found[0].resolve()


def copy_tree(to: Path) -> None:
    """What is committed, less the package."""
    to.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "x"], cwd=to, input=archive.stdout, check=True)
    shutil.rmtree(to / "labelsmooth")


def install(python: Path, *requirements: str) -> None:
    """All at once, so that nothing that one of them asks for changes another's version.

    Where pip's configuration forbids a version, by a constraint say, once more without it.
    """
    pip = (python, "-m", "pip")
    run(*pip, "uninstall", "--quiet", "--yes", "labelsmooth")  # of an older wheel
    command = (*pip, "install", "--quiet", *requirements)
    try:
        run(*command)
    except subprocess.CalledProcessError:
        run(*command, PIP_CONFIG_FILE=os.devnull)


def check(python: str, torch: str, wheel: Path, pytest_arguments: list[str]) -> None:
    folder = MATRIX / f"{Path(python).name}-{torch.replace('==', '-')}"
    run(python, "-m", "venv", folder)
    tools = ("cmake", "ninja", "pybind11", "setuptools")
    install(folder / "bin" / "python", torch, f"{wheel}[test,triton]", *tools)
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    copy_tree(tree)
    if KERNELS.is_dir():  # the tests link them with a simulated CUDA
        shutil.copytree(KERNELS, tree / "build" / "inplace" / "cuda")
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run("cmake", "--preset", "default", f"-DPython_ROOT_DIR={folder}", cwd=tree, PATH=path)
    run("cmake", "--build", "--preset", "default", cwd=tree, PATH=path)
    run(folder / "bin" / "python", "-m", "labelsmooth", cwd=tree)
    run(folder / "bin" / "python", "-m", "pytest", *pytest_arguments, cwd=tree, PATH=path)


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    dist, *pairs = arguments[:split]
    pytest_arguments = arguments[split + 1 :] or ["-n", "2", "--dist", "worksteal"]
    wheel, sdist = only(Path(dist), "*.whl"), only(Path(dist), "*.tar.gz")
    no_cuda = MATRIX / "no-cuda"
    shutil.rmtree(no_cuda, ignore_errors=True)

    run(BIN / "abi3audit", "--strict", wheel)
    pip_wheel = (BIN / "python", "-m", "pip", "wheel", "--quiet", "--no-deps")
    run(*pip_wheel, "--no-build-isolation", "-w", no_cuda, sdist, LABELSMOOTH_CUDA="0")
    for path in (wheel, only(no_cuda, "*.whl")):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    failed = []
    for pair in pairs:
        python, _, torch = pair.partition(":")
        try:
            check(python, torch, wheel, pytest_arguments)
        except subprocess.CalledProcessError as error:
            print(error, flush=True)
            failed.append(pair)
    if failed:
        raise SystemExit(f"{wheel.name}: failed under {', '.join(failed)}")
    print(f"{wheel.name}: the suite passed under {', '.join(pairs)}")


if __name__ == "__main__":
    main()
