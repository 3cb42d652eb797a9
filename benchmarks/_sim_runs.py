"""Cells of the benchmark on simulated cores: a runner started in the guest, checked, counted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tvmx
from benchmarks._folder import Array, Folder
from benchmarks._results import OF_THE_RANGE
from benchmarks._sim_cells import Cell, Counts
from benchmarks._sim_models import DEFAULTS, INT8, SimFolder
from benchmarks._sim_peers import build_im2col
from benchmarks._stages import ORT_INT8
from tvmx.errors import MeasureError
from tvmx.simulate import Guest, guest_server
from tvmx.simulate._emulator import Emulator
from tvmx.simulate._overlay import board_root
from tvmx.simulate._tools import said
from tvmx.targets import Target, load_target

_SCRIPT = Path(__file__).with_name("_sim_guest.py")
_DEADLINE_S = 3600.0
_LAYERS = "layers"


@dataclass(frozen=True)
class Runner:
    """A column: its name, how the guest's script calls it, and what it must output.

    ``expected`` names the expectation kept in the network's folder, or in the target's where
    ``plan`` is set; None: the golden outputs. ``generic``: it is told that the core is another, and
    takes the kernels it has for that one.
    """

    name: str
    loader: str
    expected: str | None = None
    plan: bool = False
    int8: bool = False
    generic: bool = False

    def runs_on(self, target: Target) -> bool:
        """Whether the core is told from the one that generic kernels are for."""
        return target.big.in_order or not self.generic


# For in-order cores ncnn and OpenBLAS have kernels that load halves of vectors between the
# multiplications. LLVM's table of the Cortex-A53 takes three times as long for those as that of any
# other core, so there they are also run with the kernels they have for this board's core.
_GENERIC = "rpi4"
RUNNERS = (
    Runner("tvmx", "tvm", DEFAULTS, plan=True),
    Runner("onnxruntime", "onnxruntime"),
    Runner("ncnn", "ncnn"),
    Runner("mnn", "mnn"),
    Runner("im2col+openblas", "im2col", _LAYERS),
    Runner("ncnn generic", "ncnn", generic=True),
    Runner("im2col+openblas generic", "im2col", _LAYERS, generic=True),
    Runner("tvmx int8", "tvm", INT8, plan=True, int8=True),
    Runner(ORT_INT8, "onnxruntime", ORT_INT8, int8=True),
)


@dataclass(frozen=True)
class Place:
    """Where runners run: the guest with the frameworks' packages, and a target's emulator."""

    guest: Guest
    wheels: Path
    target: Target
    emulator: Emulator

    def command(self, script: Sequence[str], *, generic: bool = False) -> list[str]:
        """A command line of the guest's Python, which sees another board where ``generic``."""
        root = board_root(self.guest, load_target(_GENERIC) if generic else self.target)
        # -P: the script's folder is no place to look for modules.
        return [*self.emulator.command(root), str(self.guest.python), "-P", *script]

    def environment(self, *, generic: bool = False) -> dict[str, str]:
        """Variables for it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        if generic:  # OpenBLAS asks the core itself
            kept["OPENBLAS_CORETYPE"] = load_target(_GENERIC).big.core.replace("-", "").upper()
        return {**kept, **self.guest.environment(self.wheels), **self.emulator.environment}


def model_of(emulator: Emulator) -> str:
    """All that an emulator's figures depend on, in one line."""
    settings = ", ".join(f"{k} {v}" for k, v in emulator.core.plugin_arguments().items())
    return f"{emulator.costs.model.name}; {settings}"


def run_cell(folder: SimFolder, size: int, runner: Runner, place: Place) -> Cell:
    """Start the guest, run, compare. Raises MeasureError when it fails or computes nonsense."""
    started, model = time.monotonic(), _model(folder, runner, place.target)
    with tempfile.TemporaryDirectory(prefix="tvmx-cell-") as scratch:
        outputs, report = Path(scratch) / "out.npz", Path(scratch) / "report.json"
        script = [str(_SCRIPT), runner.loader, "--model", str(model)]
        script += ["--inputs", str(folder.golden), "--clock", str(Path(guest_server.__file__))]
        script += ["--outputs", str(outputs), "--report", str(report)]
        if runner.loader == "im2col":
            script += ["--library", str(build_im2col(place.target, folder.path))]
        _run(runner, place, script)
        told = json.loads(report.read_text(encoding="utf-8"))
        with np.load(outputs, allow_pickle=False) as data:
            found = [data[name] for name in data.files]
    wanted, limit = _expected(folder, runner, place.target)
    error = largest_error(runner.name, found, wanted, limit)
    seconds = {**told["seconds"], "all": time.monotonic() - started}
    facts = {name: str(value) for name, value in told["facts"].items()}
    version = facts.pop("version")
    if runner.plan:
        facts["tvm"], version = version, tvmx.__version__
        facts["library"] = hashlib.sha256(model.read_bytes()).hexdigest()[:16]
    return Cell(
        network=folder.network,
        size=size,
        target=place.target.name,
        runner=runner.name,
        version=version,
        model=model_of(place.emulator),
        counts=Counts(**{name: told["counts"][name] for name in Counts.model_fields}),
        max_error=error,
        limit=limit,
        seconds={name: round(value, 1) for name, value in seconds.items()},
        facts=facts,
    )


def _model(folder: SimFolder, runner: Runner, target: Target) -> Path:
    if runner.plan:
        assert runner.expected is not None
        return folder.for_target(target.name).library(runner.expected)
    if runner.int8:
        return folder.onnx_int8
    return {
        "onnxruntime": folder.onnx, "ncnn": folder.ncnn, "mnn": folder.mnn, "im2col": folder.layers,
    }[runner.loader]  # fmt: skip


def _expected(folder: SimFolder, runner: Runner, target: Target) -> tuple[list[Array], float]:
    if runner.expected is None:
        return folder.load_golden()[1], OF_THE_RANGE
    place: Folder = folder.for_target(target.name) if runner.plan else folder
    return place.load_expected(runner.expected), place.load_limit(runner.expected)


def _run(runner: Runner, place: Place, script: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            place.command(script, generic=runner.generic),
            env=place.environment(generic=runner.generic), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=_DEADLINE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as err:
        raise MeasureError(f"{runner.name} was not done after {_DEADLINE_S:.0f} s") from err
    if place.emulator.costs.failure is not None:
        raise place.emulator.costs.failure
    if done.returncode:
        raise MeasureError(
            f"{runner.name} on {place.target.name} ended with {done.returncode}:"
            f" {said(done.stdout + done.stderr)}"
        )


def largest_error(
    name: str, found: Sequence[Array], wanted: Sequence[Array], limit: float
) -> float:
    """The largest error over the range of what must come out; shapes may differ by ones.

    Raises:
        MeasureError: it is larger than ``limit``, or an output is not finite or of another shape.
    """
    worst = 0.0
    for got, want in zip(found, wanted, strict=True):
        if _plain(got) != _plain(want) or not np.isfinite(got).all():
            raise MeasureError(f"{name}: an output of shape {got.shape} for {want.shape}")
        difference = np.abs(got.reshape(want.shape) - want).max()
        worst = max(worst, float(difference / (np.ptp(want) or 1.0)))
    if worst > limit:
        raise MeasureError(f"{name}: output off by {worst:.1e} of the range, allowed {limit:g}")
    return worst


def _plain(array: Array) -> tuple[int, ...]:
    return tuple(size for size in array.shape if size != 1)
