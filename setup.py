"""Builds labelsmooth._C: the CPU kernels and, where nvcc is found, the CUDA kernels.

LABELSMOOTH_CUDA=0|1   never or always build the CUDA kernels
TORCH_CUDA_ARCH_LIST   GPU architectures, e.g. "8.0;9.0+PTX"
LABELSMOOTH_CXXFLAGS   flags of the C++ compiler after ours, e.g. "-O0 -fsanitize=address"
LABELSMOOTH_WERROR=1   warnings are errors, for development
"""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

WARNINGS = ["-Wall", "-Wextra"]
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", *WARNINGS, "-Wpedantic"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xfatbin=-compress-all", f"-I{os.path.abspath('csrc')}"]
NVCC_FLAGS += [f"-Xcompiler={flag}" for flag in ("-fPIC", "-fvisibility=hidden", *WARNINGS)]
if os.environ.get("LABELSMOOTH_WERROR") == "1":
    CXX_FLAGS += ["-Werror"]
    NVCC_FLAGS += ["--Werror=all-warnings"]
CXX_FLAGS += shlex.split(os.environ.get("LABELSMOOTH_CXXFLAGS", ""))

CUDA_ARCHS = ("8.0", "9.0", "10.0", "12.0")

# A free-threaded Python has no limited API; the extension is then for that Python alone.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

# The pip of a virtual environment that is not activated leaves that environment's ninja off PATH.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])


def find_nvcc() -> str | None:
    """The nvcc to build with, or None for an extension without CUDA kernels."""
    wanted = os.environ.get("LABELSMOOTH_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise ValueError(f"LABELSMOOTH_CUDA must be 0, 1 or auto, got {wanted!r}")
    if wanted == "0":
        return None
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    search = os.pathsep.join([f"{home}/bin" for home in homes] + [os.environ["PATH"]])
    nvcc = shutil.which("nvcc", path=f"{search}{os.pathsep}/usr/local/cuda/bin")
    if nvcc is None and wanted == "1":
        raise FileNotFoundError("LABELSMOOTH_CUDA=1, but nvcc is not on PATH or in CUDA_HOME")
    return nvcc


def host_flags(nvcc: str) -> tuple[list[str], list[str]]:
    """What nvcc itself hands the host compiler and linker to find CUDA.

    Asked for rather than derived from nvcc's path, which may be a wrapper script's.
    """
    command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
    dryrun = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    includes, libraries = (
        shlex.split(" ".join(re.findall(rf"^#\$ {name}=(.*)$", dryrun, re.MULTILINE)))
        for name in ("INCLUDES", "LIBRARIES")
    )
    return [flag.replace("-I", "-isystem", 1) for flag in includes], libraries


def architectures(nvcc: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, by default those of CUDA_ARCHS that nvcc knows, each with its PTX:
    newer GPUs can then run it, and the tests run it without one."""
    archs = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if archs != [""]:
        return archs
    known = subprocess.check_output([nvcc, "--list-gpu-code"], text=True).split()
    return [f"{arch}+PTX" for arch in CUDA_ARCHS if f"sm_{arch.replace('.', '')}" in known]


def arch_flags(archs: list[str]) -> list[str]:
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        kinds = ["sm", "compute"] if arch.endswith("+PTX") else ["sm"]
        codes = ",".join(f"{kind}_{number}" for kind in kinds)
        flags += [f"-gencode=arch=compute_{number},code=[{codes}]"]
    return flags


def compile_cuda(nvcc: str, sources: list[str], archs: list[str], build_dir: Path) -> list[str]:
    """Compiles the kernels with nvcc and ninja and returns their object files.

    Not by BuildExtension: that needs a torch built for the same CUDA version, but the kernels see
    no torch, and so can be built beside any.
    """

    def escaped(path: str) -> str:
        return re.sub(r"([$ :])", r"$\1", os.path.abspath(path))

    build_dir.mkdir(parents=True, exist_ok=True)
    objects = [f"{build_dir.resolve()}/{Path(source).stem}.o" for source in sources]
    command = shlex.join([nvcc, *NVCC_FLAGS, *arch_flags(archs)]).replace("$", "$$")
    lines = [
        "rule nvcc",
        f"  command = {command} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        *(f"build {escaped(o)}: nvcc {escaped(s)}" for o, s in zip(objects, sources, strict=True)),
    ]
    (build_dir / "build.ninja").write_text("\n".join(lines) + "\n")
    subprocess.run(["ninja"], cwd=build_dir, check=True)
    return objects


class BuildKernels(BuildExtension):
    def finalize_options(self) -> None:
        super().finalize_options()
        if self.inplace:  # pip gives each editable install a new folder, and so a full rebuild
            self.build_temp = "build/inplace"

    def build_extensions(self) -> None:
        sources = sorted(glob("csrc/cuda/*.cu"))
        nvcc = find_nvcc()
        if sources and nvcc:
            [extension] = self.extensions
            includes, libraries = host_flags(nvcc)
            archs = architectures(nvcc)
            extension.sources += sorted(glob("csrc/cuda/*.cpp"))
            extension.define_macros += [("LABELSMOOTH_CUDA_ARCHITECTURES", f'"{" ".join(archs)}"')]
            extension.extra_compile_args += includes
            folder = Path(self.build_temp, "cuda")
            extension.extra_objects += compile_cuda(nvcc, sources, archs, folder)
            # The static runtime, hidden: the extension loads where there is no CUDA, and shares no
            # symbol with the runtime that torch brings.
            extension.extra_link_args += [*libraries, "-Wl,--exclude-libs,ALL"]
            extension.extra_link_args += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
        super().build_extensions()


setup(
    ext_modules=[
        Extension(
            "labelsmooth._C",
            sources=["csrc/torch/ops.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
            include_dirs=[os.path.abspath("csrc")],
            # Only what torch 2.10 promised to keep: one binary for that version and every later.
            define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
            # -isystem: our warnings are not for torch's headers.
            extra_compile_args=CXX_FLAGS + [f"-isystem{path}" for path in include_paths()],
            library_dirs=library_paths(),
            libraries=["torch_cpu"],
            language="c++",
            py_limited_api=LIMITED_API,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {},
)
