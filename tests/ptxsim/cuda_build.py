"""Build launchers for the simulator, and take the PTX out of what was built."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def find_tool(name: str) -> str | None:
    """A CUDA tool on the path, or the one that Triton's package carries."""
    if found := shutil.which(name):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    carried = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    return str(carried) if carried.exists() else None


def extract_ptx(binary: Path) -> list[str]:
    """The PTX texts in an object, executable or library."""
    tool = find_tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump is neither on the path nor in Triton's package")
    with tempfile.TemporaryDirectory() as folder:
        command = [tool, "-xptx", "all", str(Path(binary).resolve())]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return [path.read_text() for path in sorted(Path(folder).glob("*.ptx"))]


def build_library(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    archs: Sequence[int] = (80, 90, 100, 120),
    flags: Sequence[str] = (),
) -> Path:
    """Compile .cu files (to PTX only, hence fast) and .cpp files and link them, and any .o files
    that are among them, with the stand-in runtime. Returns the library."""
    folder = Path(folder).resolve()
    targets = [f"-gencode=arch=compute_{a},code=compute_{a}" for a in archs]
    objects = [folder / "fakecudart.o"]
    _run("cc", "-O1", "-fPIC", "-c", _HERE / "fakecudart.c", "-o", objects[0])
    for source in map(Path, sources):
        if source.suffix == ".o":
            objects.append(source.resolve())
            continue
        objects.append(folder / f"{source.stem}.o")
        compiler = ["c++", "-fPIC"]
        if source.suffix == ".cu":
            compiler = ["nvcc", *targets, "-lineinfo", "-Xcompiler=-fPIC"]
        _run(*compiler, "-std=c++17", "-O3", *flags, "-c", source.resolve(), "-o", objects[-1])
    library = folder / "liblaunchers.so"
    # Bound symbolically, or a real libcudart that is loaded already would be called.
    # And a function that the stand-in lacks is named here.
    _run("c++", "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", *objects, "-o", library)
    return library


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
