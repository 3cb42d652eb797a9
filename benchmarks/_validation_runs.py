"""One kernel natively and in the emulator, and what came of all of them: records as JSON."""

from __future__ import annotations

import math
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks._candidates import ONE_THREAD
from benchmarks._validation_kernels import Kind, ValidationKernel
from tvmx.errors import MeasureError, SimulationError
from tvmx.simulate._core import SimulatedCore
from tvmx.simulate._emulator import Emulator
from tvmx.store import write_atomic

SCHEMA = 1
_REPEATS = 5  # of one round, each as long as the next line says
_REPEAT_MS = 5.0
_TIMEOUT_S = 300.0


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cycles(_Record):
    """What the model says of one call with warm caches."""

    core: float
    memory: float
    instructions: float
    l1_misses: float
    l2_hits: float
    prefetched: float
    l2_misses: float


class Round(_Record):
    """One native round of a kernel: the median of its repeats, of one call.

    ``cycles`` are the core's own, at the clock it had just then; ``busy`` is the share of the
    wall time for which the kernel had the core.
    """

    ns: float
    cycles: float
    busy: float


class KernelResult(_Record):
    """One kernel. ``case`` is shared by the configs of one workload."""

    name: str
    kind: Kind
    case: str
    digest: str
    model: Cycles | None = None
    rounds: tuple[Round, ...] = ()

    @property
    def cycles(self) -> float:
        """Real cycles of one call: the median over rounds."""
        return statistics.median(r.cycles for r in self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range of the rounds, over the median; all of it under four rounds."""
        found = [r.cycles for r in self.rounds]
        if len(found) < 4:
            return (max(found) - min(found)) / self.cycles
        low, _, high = statistics.quantiles(found, n=4, method="inclusive")
        return (high - low) / self.cycles


class Validation(_Record):
    """All kernels of one machine under one model. ``loads``: the machine's, at every round."""

    schema_version: int = SCHEMA
    machine: str
    qemu: str
    model: str
    core: dict[str, str | float | bool]
    kernels: tuple[KernelResult, ...] = ()
    loads: tuple[float, ...] = ()

    def save(self, path: Path) -> None:
        """Write as JSON. Raises UnwritableError."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    def resumed(self, path: Path) -> Validation:
        """This, with what an earlier start left for the same kernels, machine and model."""
        try:
            earlier = Validation.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return self
        bare = {"kernels": (), "loads": ()}
        same = earlier.model_copy(update=bare) == self.model_copy(update=bare)
        kernels = [(k.name, k.digest) for k in self.kernels]
        return (
            earlier if same and [(k.name, k.digest) for k in earlier.kernels] == kernels else self
        )


class Runner:
    """Runs kernels by the driver in ``folder``, where their libraries are.

    Natively on this machine's processor number ``cpu``.
    """

    def __init__(self, folder: Path, cpu: int) -> None:
        self._folder = folder
        self._cpu = cpu

    def native(self, kernel: ValidationKernel) -> Round:
        """One round on this machine.

        Raises:
            MeasureError: a wrong output, or the kernel died.
        """
        prefix = ["taskset", "-c", str(self._cpu)]
        lines = self._run(kernel, prefix, ["native", str(_REPEATS), str(_REPEAT_MS)])
        repeats = [tuple(map(float, line.split())) for line in lines]
        ns = statistics.median(cpu / calls for calls, _, cpu, _ in repeats)
        cycles = statistics.median(cpu / calls / cycle for calls, _, cpu, cycle in repeats)
        wall = sum(r[1] for r in repeats)
        return Round(ns=ns, cycles=cycles, busy=sum(r[2] for r in repeats) / wall)

    def simulated(self, kernel: ValidationKernel, emulator: Emulator) -> Cycles:
        """The modelled cycles of one call.

        Raises:
            MeasureError: a wrong output, or the kernel died.
            SimulationError: the model failed.
        """
        (line,) = self._run(kernel, emulator.command(), ["simulated"])
        if emulator.costs.failure is not None:
            raise emulator.costs.failure
        values = map(float, line.split())
        return Cycles(**dict(zip(Cycles.model_fields, values, strict=True)))

    def _run(self, kernel: ValidationKernel, prefix: list[str], how: list[str]) -> list[str]:
        kernel.write_arrays(self._folder / "arrays.bin")
        out = self._folder / "out.bin"
        out.unlink(missing_ok=True)
        # Names without folders: the length of a path moves the stack, and with it cache misses.
        command = [*prefix, "./driver", f"./{kernel.library.name}", kernel.symbol]
        done = subprocess.run(
            [*command, "arrays.bin", "out.bin", *how], cwd=self._folder, env=ONE_THREAD,
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            said = done.stderr.strip() or f"it ended with {done.returncode}"
            raise MeasureError(f"{kernel.name}, {how[0]}: {said}")
        last = kernel.arrays[-1]
        kernel.verify(np.fromfile(out, last.dtype).reshape(last.shape))
        return done.stdout.splitlines()


def host_core(cpu: int) -> SimulatedCore:
    """This machine's core: llvm-mca's table for it, its own caches, and the boards' latencies.

    Nothing is fitted: costs of a line and the factor are those of out-of-order boards.

    Raises:
        SimulationError: LLVM does not know the core, or its caches are not shown.
    """
    from tvmx.simulate._mca import analyser
    from tvmx.targets import load_target

    mca = analyser("x86_64-linux-gnu", "x86-64").mca
    told = subprocess.run([mca, "--version"], capture_output=True, text=True, check=True).stdout
    name = next((line.split()[-1] for line in told.splitlines() if "Host CPU:" in line), "")
    if name in ("", "generic", "x86-64"):
        raise SimulationError(f"{mca} does not know this machine's core")
    l1, l2 = _cache(cpu, 1), _cache(cpu, 2)
    return SimulatedCore(
        name="host", arch="x86_64", qemu_cpu="max", exact_isa=False, mca_cpu=name, mca_attrs=(),
        clock_mhz=load_target("host").big.clock_mhz, l1d_kib=l1[0], l1d_ways=l1[1], l2_kib=l2[0],
        l2_ways=l2[1], source="validation",
    )  # fmt: skip


def _cache(cpu: int, level: int) -> tuple[int, int]:
    """KiB and ways of the data (or unified) cache of a level."""
    root = Path(f"/sys/devices/system/cpu/cpu{cpu}/cache")
    for index in sorted(root.glob("index*")):
        facts = {p: (index / p).read_text().strip() for p in ("level", "type", "size")}
        if facts["level"] == str(level) and facts["type"] in ("Data", "Unified"):
            ways = int((index / "ways_of_associativity").read_text())
            return int(facts["size"].removesuffix("K")), ways
    raise SimulationError(f"{root} does not show the level {level} cache")


def simulate_all(
    found: Validation, kernels: Sequence[ValidationKernel], runner: Runner, emulator: Emulator,
    keep: Callable[[Validation], None],
) -> Validation:  # fmt: skip
    """The model's figures of the kernels that have none; ``keep`` is called after each."""
    for index, kernel in enumerate(kernels):
        if found.kernels[index].model is None:
            model = runner.simulated(kernel, emulator)
            found = _with(found, index, found.kernels[index].model_copy(update={"model": model}))
            keep(found)
    return found


def measure_round(
    found: Validation, kernels: Sequence[ValidationKernel], runner: Runner, load: float
) -> Validation:
    """One more native round of every kernel, every second round in reverse order."""
    order = range(len(kernels))
    rounds = {
        i: runner.native(kernels[i]) for i in (order if len(found.loads) % 2 == 0 else order[::-1])
    }
    updated = tuple(
        k.model_copy(update={"rounds": (*k.rounds, rounds[i])}) for i, k in enumerate(found.kernels)
    )
    return found.model_copy(update={"kernels": updated, "loads": (*found.loads, load)})


def _with(found: Validation, index: int, kernel: KernelResult) -> Validation:
    kernels = (*found.kernels[:index], kernel, *found.kernels[index + 1 :])
    return found.model_copy(update={"kernels": kernels})


FIGURES: dict[str, Callable[[Cycles], float]] = {
    "core": lambda c: c.core,
    "core+memory": lambda c: c.core + c.memory,
    "max(core, memory)": lambda c: max(c.core, c.memory),
    "instructions": lambda c: c.instructions,
}
"""What the model may be read as; the last needs no model and is what the others must beat."""

SHOWN = ("core", "core+memory")
"""Those that a simulated board's clock can show."""


class Agreement(_Record):
    """How well one figure of the model orders and predicts real cycles.

    ``error`` is the median factor between real and modelled cycles once one common scale is
    taken out, ``worst`` the largest. Of the pairs of kernels (``pairs``), or of configs of one
    workload (``rivals``), that the model tells apart by more than 20 %, ``*_right`` is the share
    it puts in the right order; None when there are none.
    """

    figure: str
    kernels: int
    spearman: float
    scale: float
    error: float
    worst: float
    pairs: int
    pairs_right: float | None
    rivals: int
    rivals_right: float | None


TIE = 1.2


def agreement(kernels: Sequence[KernelResult], figure: str) -> Agreement:
    """Real cycles of kernels against one figure of the model."""
    from scipy import stats

    measured = [k for k in kernels if k.model is not None and k.rounds]
    real = [k.cycles for k in measured]
    model = [FIGURES[figure](k.model) for k in measured if k.model is not None]
    ratios = [math.log(r / m) for r, m in zip(real, model, strict=True)]
    scale = statistics.median(ratios)
    errors = [abs(ratio - scale) for ratio in ratios]
    told = [
        (measured[i].case == measured[j].case, (model[i] < model[j]) == (real[i] < real[j]))
        for i in range(len(model))
        for j in range(i)
        if max(model[i], model[j]) > TIE * min(model[i], model[j])
    ]
    rivals = [right for rival, right in told if rival]
    return Agreement(
        figure=figure,
        kernels=len(measured),
        spearman=float(stats.spearmanr(real, model).statistic),
        scale=math.exp(scale),
        error=math.exp(statistics.median(errors)),
        worst=math.exp(max(errors)),
        pairs=len(told),
        pairs_right=_share([right for _, right in told]),
        rivals=len(rivals),
        rivals_right=_share(rivals),
    )


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
