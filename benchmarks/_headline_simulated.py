"""The headline on simulated cores: cycles of one inference, whatever else this machine does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks._headline_plans import Wanted
from benchmarks._sim_cells import Cell, Cells
from benchmarks._sim_models import FULL_SIZE, SimFolder
from benchmarks._sim_peers import guest_wheels
from benchmarks._sim_runs import Place, Runner, model_of, run_cell
from benchmarks._stages import say
from tvmx.errors import UsageError
from tvmx.simulate import find_guest
from tvmx.simulate._core import simulated_core
from tvmx.simulate._emulator import Emulator
from tvmx.simulate._guest import PREPARE
from tvmx.targets import load_target

KERNELS = {
    "rpi3b+": ("CORTEXA53", "CORTEXA57", "ARMV8"),
    "rpi4": ("CORTEXA72", "NEOVERSEN1", "ARMV8"),
    "rpi5": ("CORTEXA72", "NEOVERSEN1", "ARMV8"),
}
"""OpenBLAS's kernels that each board is tried with; its fastest count."""
_BLAS = "im2col+openblas"


@dataclass(frozen=True)
class _BlasPlace(Place):
    """Where OpenBLAS takes the kernels of the core that is named."""

    kernels: str = ""

    def environment(self, *, generic: bool = False) -> dict[str, str]:
        """See :class:`Place`."""
        return {**super().environment(generic=generic), "OPENBLAS_CORETYPE": self.kernels}


def blas_runner(kernels: str) -> Runner:
    """Im2col with those kernels of OpenBLAS."""
    return Runner(f"{_BLAS} {kernels}", "im2col", "layers")


def plan_runner(plan: str) -> Runner:
    """A plan of tvmx."""
    return Runner(f"tvmx {plan}", "tvm", plan, plan=True)


def run_cells(
    cells: Cells, folder: SimFolder, target: str, plans: Sequence[Wanted], *, again: bool
) -> None:
    """Run what has no figures yet on one board. Raises MeasureError.

    ``again``: tvmx's plans have been built anew.
    """
    guest = find_guest()
    if guest is None:
        raise UsageError("the arm64 guest is not prepared", hint=PREPARE)
    board = load_target(target)
    with Emulator(simulated_core(board), simulated=False) as emulator:
        model = model_of(emulator)
        wheels = guest_wheels(guest, lambda text: None)
        jobs: list[tuple[Runner, Place]] = [
            (blas_runner(kernels), _BlasPlace(guest, wheels, board, emulator, kernels))
            for kernels in KERNELS[target]
        ]
        jobs += [(plan_runner(w.plan), Place(guest, wheels, board, emulator)) for w in plans]
        for runner, place in jobs:
            known = cells.has(folder.network, FULL_SIZE, target, runner.name, model)
            if known and not (again and runner.plan):
                continue
            cell = run_cell(folder, FULL_SIZE, runner, place)
            cells.add(cell)
            counts = cell.counts
            say(
                f"{folder.network} on {target}, {runner.name}: {counts.core_mcycles:.1f} Mcycles, "
                f"{counts.mcycles:.1f} with memory"
            )


def mcycles(cell: Cell) -> float:
    """The figure that counts on the cell's core, in millions of cycles."""
    core = simulated_core(load_target(cell.target))
    return cell.counts.core_mcycles if core.figure == "core" else cell.counts.mcycles


def fastest_blas(cells: Cells, network: str, target: str) -> Cell:
    """Im2col with the kernels of OpenBLAS that take the fewest cycles there."""
    found = [
        cell
        for kernels in KERNELS[target]
        if (cell := cells.get(network, FULL_SIZE, target, blas_runner(kernels).name)) is not None
    ]
    return min(found, key=mcycles)
