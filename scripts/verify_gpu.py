"""A first verdict on the GPU at hand, within ten minutes: is every kernel right, and how fast?

    python scripts/verify_gpu.py [--built | --wheel PATH] [--only STEP ...] [--rehearse]

Installs nothing and asks no network: it takes this Python as it is, with its torch, pytest and
hypothesis, and builds for the GPU at hand alone, with the nvcc that it finds; or takes what is
built here already; or the package in a wheel that was built elsewhere, in a copy of the tree.

The steps follow each other, each with a limit of its own, whatever came of those before. What is
not installed is named in the verdict, with what was left out for it. The output of each step is in
build/gpu; the machine, the verdict and the times go to gpu.json and gpu.md in benchmarks/results.

--rehearse goes through all steps without a GPU: a few tests with a stand-in for it, times of the
CPU, results in build/gpu. What comes of it says that the script is in order, and nothing else.

Status 0: every step passed that can run here. 1: one did not. 2: torch finds no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LOGS = ROOT / "build" / "gpu"
TIMES = LOGS / "times.json"
GRACE = 3  # seconds that a step over its limit has to end by itself
TAIL = 40  # lines of a failed step's output that are shown

PYTHON = sys.executable
# A line for each test: how far it came is known of what was killed, too.
PYTEST = (PYTHON, "-m", "pytest", "-v", "-rN", "--tb=short", "-p", "no:cacheprovider")
CUDA_HOMES = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
PATH = os.pathsep.join(
    [os.environ["PATH"], *(f"{home}/bin" for home in (*CUDA_HOMES, "/usr/local/cuda"))]
)

FEWER = ("--classes", "1000", "32768", "--rounds", "8")
REHEARSED = ("--rehearse", "--classes", "100", "--dtypes", "bfloat16", "--rounds", "1")


@dataclass(frozen=True)
class Step:
    name: str
    shows: str
    limit: int  # seconds
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    tool: str | None = None  # without this executable the step is absent
    modules: tuple[str, ...] = ()  # what else takes part where it is installed


@dataclass
class Verdict:
    step: str
    shows: str
    verdict: str  # "passed", "failed" or "absent"
    tests: dict[str, int] = field(default_factory=dict)  # how many passed, failed, ...
    seconds: float | None = None
    note: str = ""


def steps(capability: str) -> list[Step]:
    """Of a machine whose GPU has this compute capability, "9.0" say."""
    workers = min(12, os.cpu_count() or 1)
    parallel = ("-n", str(workers)) if is_installed("xdist") else ()
    selection = ("tests/gpu/test_cases.py", "-k", "each_kernel and cuda")
    return [
        Step(
            "build",
            "the extension, for this GPU",
            limit=145,
            command=(PYTHON, "setup.py", "build_ext", "--inplace", "--force"),
            environment={"TORCH_CUDA_ARCH_LIST": capability},
            tool="nvcc",
        ),
        Step(
            "kernels",
            "every kernel right; streams, threads, graphs, nothing waits",
            limit=115,
            command=(*PYTEST, *parallel, "tests/gpu", *without("test_cases.py", "test_large.py")),
        ),
        Step(
            "cases",
            "the table of cases that the simulator runs, of two dtypes",
            limit=60,
            command=(*PYTEST, *parallel, "tests/gpu/test_cases.py", "-k", "bfloat16 or float32"),
        ),
        Step(
            "large",
            "memory, and more than 2^31 elements",
            limit=30,
            command=(*PYTEST, "tests/gpu/test_large.py"),
        ),
        *(
            Step(
                tool,
                "compute-sanitizer on a short selection that launches every CUDA kernel",
                limit=limit,
                command=(
                    *("compute-sanitizer", f"--tool={tool}", "--error-exitcode=1"),
                    *(*PYTEST, *selection),
                ),
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                tool="compute-sanitizer",
            )
            for tool, limit in {"memcheck": 30, "racecheck": 45, "synccheck": 25}.items()
        ),
        Step(
            "times",
            "beside torch, torch.compile, Liger and a copy",
            limit=120,
            command=(*(PYTHON, "-m", "benchmarks", "gpu", "--json", str(TIMES)), *FEWER),
            modules=("triton", "liger_kernel", "cut_cross_entropy"),
        ),
    ]


def without(*files: str) -> list[str]:
    return [f"--ignore=tests/gpu/{file}" for file in files]


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def run(step: Step, tree: Path) -> Verdict:
    if step.tool and not shutil.which(step.tool, path=PATH):
        return Verdict(step.name, step.shows, "absent", note=f"no {step.tool} here")
    missing = [module for module in step.modules if not is_installed(module)]
    log = LOGS / f"{step.name}.log"
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command,
            cwd=tree,
            env={**os.environ, **paths(tree), **step.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = wait(process, step.limit)
    seconds = round(time.monotonic() - start, 1)
    text = log.read_text(errors="replace")
    each = outcomes(text) if "pytest" in step.command else []
    tests = dict(Counter(outcome for outcome, _ in each))
    passed = status == 0 and ("passed" in tests or "pytest" not in step.command)
    notes = [f"without {module}" for module in missing]
    notes += [f"over its limit of {step.limit} s"] if status is None else []
    if not passed:
        failed = [line for outcome, line in each if outcome in ("failed", "error")]
        print(*failed[:TAIL], *text.splitlines()[-TAIL:], f"-- the end of {log}", sep="\n")
    return Verdict(
        step.name,
        step.shows,
        "passed" if passed else "failed",
        tests,
        seconds,
        ", ".join(notes),
    )


def paths(tree: Path) -> dict[str, str]:
    """The tree's package before any that is installed, and nvcc and its kind."""
    known = (str(tree), str(tree / "tests"), os.environ.get("PYTHONPATH", ""))
    return {"PATH": PATH, "PYTHONPATH": os.pathsep.join(filter(None, known))}


def wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """Its status, or None of one that was ended at its limit: pytest then tells how far it came."""
    for sign, seconds in ((None, limit), (signal.SIGINT, GRACE), (signal.SIGKILL, None)):
        if sign:
            os.killpg(process.pid, sign)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        return None if sign else status
    raise AssertionError("what was killed has ended")


def outcomes(output: str) -> list[tuple[str, str]]:
    """Of pytest's lines, one for each test: its outcome, and the line."""
    found = re.finditer(r"^.*?\b(PASSED|FAILED|SKIPPED|ERROR)\b.*$", output, re.MULTILINE)
    return [(match[1].lower(), match[0]) for match in found if "::" in match[0]]


def unpacked(wheel: Path) -> Path:
    """A copy of the tree, with the wheel's package in the place of its own."""
    tree = LOGS / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, tree / name)
    shutil.copy(ROOT / "pyproject.toml", tree)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree)
    return tree


def rehearsed(step: Step) -> Step:
    command = step.command
    if step.name == "times":
        command = (*command, *REHEARSED)
    environment = {**step.environment, "PYTEST_ADDOPTS": "-p gpu_stand_in"}
    return replace(step, command=command, environment=environment, limit=10 * step.limit)


def machine() -> dict[str, Any]:
    """In a process of its own: a GPU may be lent to one at a time."""
    ask = "import json; from benchmarks import environment; print(json.dumps(environment.gpu()))"
    done = subprocess.run(
        [PYTHON, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{done.stderr}\n{sys.argv[0]}: torch finds no GPU here", file=sys.stderr)
        raise SystemExit(2)
    about: dict[str, Any] = json.loads(done.stdout)
    return about


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def write(folder: Path, about: dict[str, Any], verdicts: list[Verdict]) -> None:
    results = json.loads(TIMES.read_text())["results"] if TIMES.exists() else []
    content = {
        "environment": about,
        "verdict": [asdict(verdict) for verdict in verdicts],
        "results": results,
    }
    (folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items()),
        "",
        "### Verdict",
        "",
        row("step", "what it shows", "verdict", "tests", "seconds", "note"),
        row(*["---"] * 4, "---:", "---"),
        *(
            row(
                *(v.step, v.shows, v.verdict),
                ", ".join(f"{number} {what}" for what, number in v.tests.items()),
                *("" if v.seconds is None else v.seconds, v.note),
            )
            for v in verdicts
        ),
    ]
    if results:  # less the line that names the machine
        lines += TIMES.with_suffix(".md").read_text().splitlines()[1:]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    package = parser.add_mutually_exclusive_group()
    package.add_argument("--built", action="store_true", help="take what is built here")
    package.add_argument("--wheel", type=Path, help="take the package in this wheel")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps, in this order")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, with stand-ins")
    args = parser.parse_args()
    about = {"gpu": "none: rehearsed", "capability": "9.0"} if args.rehearse else machine()
    print(*(f"{key:>22}  {value}" for key, value in about.items()), sep="\n", flush=True)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    tree = unpacked(args.wheel) if args.wheel else ROOT
    todo = {step.name: step for step in steps(about["capability"])}
    if args.built or args.wheel:
        del todo["build"]
    if unknown := set(args.only or ()) - todo.keys():
        parser.error(f"--only: expected some of {', '.join(todo)}, got {', '.join(unknown)}")
    folder = LOGS if args.rehearse else RESULTS
    verdicts = []
    for name in args.only or todo:
        step = todo[name]
        verdicts.append(run(rehearsed(step) if args.rehearse else step, tree))
        last = verdicts[-1]
        print(f"{last.step:10} {last.verdict}  {last.tests or ''} {last.seconds or ''}", flush=True)
        write(folder, about, verdicts)
    print(f"written: {folder / 'gpu.json'}, {folder / 'gpu.md'}")
    if failed := [v.step for v in verdicts if v.verdict == "failed"]:
        raise SystemExit(f"{sys.argv[0]}: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
