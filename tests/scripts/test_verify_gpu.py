"""`make gpu` where there is no GPU: all of its script, with stand-ins for the GPU and its tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from checks import ROOT

import labelsmooth

PASSES, FAILS = "def test_it(): pass\n", "def test_it(): assert False\n"
SLOW = "import time\ndef test_1(): pass\ndef test_2(): time.sleep(60)\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As a module, which writes elsewhere."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import verify_gpu

    monkeypatch.setattr(verify_gpu, "LOGS", tmp_path)
    return verify_gpu


@pytest.fixture
def step_of(script: ModuleType, tmp_path: Path) -> Callable[..., object]:
    def step_of(code: str, **fields: object) -> object:
        (tmp_path / "test_it.py").write_text(code)
        command = (*script.PYTEST, "-c", os.devnull, str(tmp_path / "test_it.py"))
        return script.Step("step", "", **{"limit": 60, "command": command, **fields})

    return step_of


def test_verdicts(script: ModuleType, step_of: Callable[..., object], tmp_path: Path) -> None:
    passed = script.run(step_of(PASSES, modules=("no_such_module",)), tmp_path)
    assert (passed.verdict, passed.tests, passed.note) == (
        "passed",
        {"passed": 1},
        "without no_such_module",
    )
    failed = script.run(step_of(FAILS), tmp_path)
    assert (failed.verdict, failed.tests) == ("failed", {"failed": 1})
    absent = script.run(step_of(PASSES, tool="no-such-tool"), tmp_path)
    assert (absent.verdict, absent.tests, absent.note) == ("absent", {}, "no no-such-tool here")


def test_a_step_whose_tests_are_all_skipped_has_not_passed(
    script: ModuleType, step_of: Callable[..., object], tmp_path: Path
) -> None:
    skips = "import pytest\n\n@pytest.mark.skip\ndef test_it(): pass\n"
    verdict = script.run(step_of(skips), tmp_path)
    assert (verdict.verdict, verdict.tests) == ("failed", {"skipped": 1})


def test_a_step_over_its_limit(
    script: ModuleType, step_of: Callable[..., object], tmp_path: Path
) -> None:
    verdict = script.run(step_of(SLOW, limit=15), tmp_path)
    assert verdict.verdict == "failed"
    assert verdict.tests == {"passed": 1}
    assert verdict.note == "over its limit of 15 s"
    assert verdict.seconds < 15 + script.GRACE + 5


def test_a_process_that_will_not_be_interrupted(script: ModuleType) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
    assert script.wait(process, 5) is None
    assert process.returncode < 0


def test_the_limits_leave_ten_minutes(script: ModuleType) -> None:
    assert sum(step.limit + script.GRACE for step in script.steps("9.0")) <= 600


def test_without_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "verify_gpu.py"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "finds no GPU here" in done.stderr


def test_the_package_of_a_wheel(script: ModuleType, tmp_path: Path) -> None:
    package = Path(labelsmooth.__file__).parent
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for file in package.rglob("*"):
            wheel.write(file, Path("labelsmooth") / file.relative_to(package))
    tree = script.unpacked(tmp_path / "a.whl")
    code = "import labelsmooth, benchmarks.gpu; print(labelsmooth.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env={**os.environ, **script.paths(tree)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tree)


SANITIZER = f"""#!{sys.executable}
import os, sys
assert {{"--tool=" + tool for tool in ("memcheck", "racecheck", "synccheck")}} & set(sys.argv)
assert "--error-exitcode=1" in sys.argv
os.execv(sys.argv[3], sys.argv[3:])
"""


def test_rehearsal(tmp_path: Path) -> None:
    """All steps but the build, from the command line."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "verify_gpu.py", "--built", "--rehearse"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "TORCHDYNAMO_DISABLE": "1",  # what Inductor makes for a CPU says nothing of a GPU
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((ROOT / "build" / "gpu" / "gpu.json").read_text())
    assert {verdict["verdict"] for verdict in made["verdict"]} == {"passed"}
    steps = [verdict["step"] for verdict in made["verdict"]]
    checks = ["memcheck", "racecheck", "synccheck"]
    assert steps == ["kernels", "cases", "large", *checks, "times"]
    assert {"main", "small", "linear"} <= {result["case"]["part"] for result in made["results"]}
    table = (ROOT / "build" / "gpu" / "gpu.md").read_text()
    assert all(f"| {step} |" in table for step in steps)
    assert "labelsmooth, in place" in table
