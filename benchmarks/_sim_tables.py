"""The cells as tables, one per core."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks._sim_cells import Cell
from benchmarks._sim_runs import RUNNERS, Runner

_COLUMNS = (
    "core Mcycles", "core + memory", "of tvmx", "with memory", "M instructions", "L1 misses, k",
    "L2 misses, k", "error (allowed)", "wall s",
)  # fmt: skip
_LEGEND = (
    "One inference, batch 1, 1 thread, float32 or int8, random weights. Cycles are those of a model"
    " of the core: differences under 20 % are ties. Of tvmx: this over tvmx at its template"
    " defaults (int8 over int8), more than 1 is slower. im2col+openblas is convolutions and dense"
    " layers only, without bias and activation. Generic: the kernels for Cortex-A72, because LLVM's"
    " table of the Cortex-A53 overrates what those for in-order cores cost. Errors are over the"
    " range of what must come out; wall seconds are this machine's."
)


def print_cells(title: str, cells: Sequence[Cell], networks: Sequence[str]) -> None:
    """The table of one core."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(title=title)
    for name in ("network", "runner"):
        table.add_column(name)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for network in networks:
        for row in rows([cell for cell in cells if cell.network == network]):
            table.add_row(network, *row)
        table.add_section()
    console.print(table)
    console.print(_LEGEND)


def rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """One network's cells on one core, in the order of the runners."""
    found = {cell.runner: cell for cell in cells}
    made: list[tuple[str, ...]] = []
    for runner in RUNNERS:
        if runner.name not in found:
            continue
        cell = found[runner.name]
        counts, own = cell.counts, found.get(_own(runner).name)
        made.append(
            (
                f"{runner.name} {cell.version}", f"{counts.core_mcycles:.1f}",
                f"{counts.mcycles:.1f}",
                _ratio(counts.core_mcycles, own.counts.core_mcycles if own else None),
                _ratio(counts.mcycles, own.counts.mcycles if own else None),
                f"{counts.instructions / 1e6:.1f}", f"{counts.l1_misses / 1e3:.0f}",
                f"{counts.l2_misses / 1e3:.0f}", f"{cell.max_error:.0e} ({cell.limit:g})",
                f"{cell.seconds['all']:.0f}",
            )
        )  # fmt: skip
    return made


def _own(runner: Runner) -> Runner:
    """Tvmx's runner of the same precision."""
    return next(r for r in RUNNERS if r.plan and r.int8 == runner.int8)


def _ratio(value: float, own: float | None) -> str:
    return f"{value / own:.2f}" if own else "-"
