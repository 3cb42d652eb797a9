"""The command line starts fast: help and version load nothing heavy."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tvmx import __version__

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("tvm", "torch", "numpy", "xgboost", "onnx", "scipy")
SCRIPT = (
    "import sys\nfrom tvmx.cli import main\n"
    "try: main()\n"
    f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
)


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["explore", "--help"], []])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    assert start(*arguments).stderr.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert start("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # The aim is 0.4 s on an idle machine. Tests run beside other tests: processor time, and room.
    assert statistics.median(seconds) < 1.0


def test_version() -> None:
    done = start("--version")
    assert (done.returncode, done.stdout) == (0, f"tvmx {__version__}\n")


def test_help_names_every_command_of_the_workflow() -> None:
    text = start("--help").stdout
    for name in ("import", "targets", "tracker", "serve", "devices", "schedules", "explore",
                 "build", "export", "run", "bench"):  # fmt: skip
        assert f" {name} " in text
