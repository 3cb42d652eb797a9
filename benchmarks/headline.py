"""The paper's headline: tvmx's best plan against im2col and OpenBLAS in float, speed and memory.

::

    python benchmarks/headline.py --out bench-headline --devices a53,a72,a76
    python benchmarks/headline.py --out bench-headline --build-only
    python benchmarks/headline.py --out bench-headline --devices host --rounds 15

Plans: template defaults in float, the same in int8 wherever a template supports it, and the best
one of an exploration (``--explorations``, the OUT of ``search.py --measure``) where there is one.
``host`` is this machine and must be quiet while it is timed, so its libraries can be built before
(``--build-only``); the others are simulated, and load changes nothing. What is in OUT is not
measured again. See ``docs/search.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._candidates import ONE_THREAD
from benchmarks._headline_host import BLAS, HOST, HostFigures, host_path, measure_host
from benchmarks._headline_peaks import float_macs_per_cycle, int8_macs_per_cycle
from benchmarks._headline_plans import (
    EXPLORED,
    FLOAT,
    INT8,
    Layers,
    Sizes,
    Wanted,
    build_plans,
    sizes_path,
    write_network,
)
from benchmarks._headline_results import Headline, PlanFigures, Row, print_headline
from benchmarks._headline_simulated import fastest_blas, mcycles, plan_runner, run_cells
from benchmarks._profile import INT8_PEAK
from benchmarks._search_measured import BOARDS, DEVICES, DIGITS, MINUTES, Exploration
from benchmarks._sim_cells import Cells
from benchmarks._sim_models import FULL_SIZE, SimFolder
from benchmarks._stages import alone, say
from tvmx.errors import TvmxError, UsageError
from tvmx.simulate._core import simulated_core
from tvmx.targets import load_target

_GFLOP = 2e-9  # of a multiply-add


def main(
    out: Annotated[Path, typer.Option(help="Folder of models, libraries and figures.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(MINUTES),
    devices: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(DEVICES),
    explorations: Annotated[
        Path | None, typer.Option(help="OUT of search.py --measure. Default: OUT.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=4, help="Paired rounds on the host.")] = 15,
    build_only: Annotated[bool, typer.Option("--build-only", help="Time nothing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Build and measure tvmx anew.")] = False,
) -> None:
    """Build and measure what is not in OUT yet, then print a table for each device."""
    os.environ.update(ONE_THREAD)
    try:
        run = _Run(out.resolve(), (explorations or out).resolve(), rounds, again)
        rows = [
            row
            for network in _chosen(networks, MINUTES)
            for row in run.network(network, _chosen(devices, DEVICES), build_only=build_only)
        ]
        if build_only:
            return
        versions = {name: version(name) for name in ("tvmx", "apache-tvm", "numpy")}
        headline = Headline(
            machine=load_target(HOST).description, versions=versions, rows=tuple(rows)
        )
        headline.save(run.out / "headline.json")
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    print_headline(headline)
    say(f"figures: {run.out / 'headline.json'}")


def _chosen(text: str, known: Sequence[str] | dict[str, float]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no {name!r}; there are {', '.join(known)}")
    return names


@dataclass(frozen=True)
class _Run:
    """One start of the benchmark."""

    out: Path
    explorations: Path
    rounds: int
    again: bool

    def network(self, network: str, devices: Sequence[str], *, build_only: bool) -> list[Row]:
        """The rows of one network; none where nothing is to be timed."""
        folder = SimFolder(self.out / "networks" / network)
        say(f"{network}: models and libraries")
        alone(write_network, folder, Exploration(DIGITS, HOST, self.explorations))
        wanted = {device: self._wanted(network, device) for device in devices}
        missing = [w for plans in wanted.values() for w in plans if not _built(folder, w)]
        if missing or self.again:
            chosen = [w for plans in wanted.values() for w in plans] if self.again else missing
            alone(build_plans, folder, chosen)
        if build_only:
            return []
        rows = []
        for device, plans in wanted.items():
            row = self._timed if device == HOST else self._simulated
            rows.append(row(folder, device, plans))
        return rows

    def _wanted(self, network: str, device: str) -> list[Wanted]:
        target = BOARDS.get(device, HOST)
        plans = [Wanted(target, FLOAT), Wanted(target, INT8)]
        exploration = Exploration(network, device, self.explorations)
        if exploration.finished() is not None:
            plans.append(Wanted(target, EXPLORED, exploration))
        return plans

    def _simulated(self, folder: SimFolder, device: str, plans: Sequence[Wanted]) -> Row:
        cells, target = Cells(self.out / "simulated.json"), load_target(BOARDS[device])
        run_cells(cells, folder, target.name, plans, again=self.again)
        found, core = fastest_blas(cells, folder.network, target.name), simulated_core(target)
        times = {}
        for plan in plans:
            cell = cells.get(folder.network, FULL_SIZE, target.name, plan_runner(plan.plan).name)
            assert cell is not None
            times[plan.plan] = mcycles(cell)
        megamacs = Layers.of(folder).macs / 1e6
        return _row(
            folder, device, "Mcycles", mcycles(found), found.facts["kernels"], times, plans,
            megamacs / int8_macs_per_cycle(target, core), megamacs / float_macs_per_cycle(core),
        )  # fmt: skip

    def _timed(self, folder: SimFolder, device: str, plans: Sequence[Wanted]) -> Row:
        names = [plan.plan for plan in plans]
        found = HostFigures.load(host_path(folder))
        if found is None or self.again or any(found.rounds.get(name) is None for name in names):
            say(f"{folder.network}: {self.rounds} rounds")
            found = alone(measure_host, folder, names, self.rounds)
            found.save(host_path(folder))
        medians = {series.name: series.median_ms for series in found.rounds.series}
        ratios = {name: found.rounds.ratio(BLAS, name) for name in names}
        float_ms = Layers.of(folder).macs * _GFLOP / found.peak_gflops * 1e3
        row = _row(
            folder, device, "ms", medians[BLAS], found.kernels,
            {name: medians[name] for name in names}, plans, float_ms / INT8_PEAK, float_ms,
        )  # fmt: skip
        paired = [p.model_copy(update={"speed": ratios[p.plan]}) for p in row.plans]
        return row.model_copy(update={"plans": tuple(paired)})


def _built(folder: SimFolder, wanted: Wanted) -> bool:
    place = folder.for_target(wanted.target)
    return Sizes.load(sizes_path(place, wanted.plan)) is not None


def _row(
    folder: SimFolder, device: str, unit: str, blas: float, kernels: str,
    times: dict[str, float], plans: Sequence[Wanted], int8_least: float, float_least: float,
) -> Row:  # fmt: skip
    """``int8_least`` and ``float_least`` are what the multiply-adds take at the core's peaks."""
    found, layers = [], Layers.of(folder)
    sizes = {p.plan: Sizes.load(sizes_path(folder.for_target(p.target), p.plan)) for p in plans}
    for plan in plans:
        one, accuracy, drop = sizes[plan.plan], None, None
        assert one is not None, plan
        result = plan.exploration.finished() if plan.exploration else None
        if result is not None and folder.network == DIGITS:  # no other network is trained
            best = result.candidates[result.best]
            accuracy, drop = best.accuracy, best.accuracy_drop
        found.append(
            PlanFigures(
                plan=plan.plan, time=times[plan.plan], speed=blas / times[plan.plan], sizes=one,
                accuracy=accuracy, drop=drop,
            )
        )  # fmt: skip
    arena = sizes[FLOAT]
    assert arena is not None
    return Row(
        network=folder.network, device=device, unit=unit, blas=blas, kernels=kernels,
        ceiling=blas / int8_least, float_ceiling=blas / float_least,
        blas_bytes=layers.weights_bytes + arena.arena_bytes + layers.column_bytes,
        plans=tuple(found),
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
