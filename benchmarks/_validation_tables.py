"""Real and modelled cycles as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks._validation_runs import FIGURES, TIE, Agreement, Validation

_BUSY = 0.97  # under this share of the wall time somebody else was on the core
_UNSTEADY = 0.1


def print_validation(found: Validation, groups: Mapping[str, Sequence[Agreement]]) -> None:
    """One row per kernel; then how well each figure agrees, for each group of kernels."""
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(_kernel_table(found, groups["all"]))
    console.print(_agreement_table(groups))
    for line in _notes(found):
        console.print(line)


def _kernel_table(found: Validation, all_kernels: Sequence[Agreement]) -> Table:
    table = Table(title=f"thousand cycles of one call, {found.machine}")
    for name in ("kernel", "kind"):
        table.add_column(name)
    for name in ("real", "spread", "core", "memory", "real / core", "real / (core+memory)"):
        table.add_column(name, justify="right")
    for kernel in found.kernels:
        model = kernel.model
        assert model is not None
        table.add_row(
            kernel.name, kernel.kind, f"{kernel.cycles / 1e3:.1f}", f"{kernel.spread:.1%}",
            f"{model.core / 1e3:.1f}", f"{model.memory / 1e3:.1f}",
            f"{kernel.cycles / model.core:.2f}",
            f"{kernel.cycles / (model.core + model.memory):.2f}",
        )  # fmt: skip
    return table


def _agreement_table(groups: Mapping[str, Sequence[Agreement]]) -> Table:
    table = Table(title="agreement of the model with real cycles")
    table.add_column("kernels")
    table.add_column("figure")
    columns = ("count", "Spearman", "scale", "median error", "worst", "pairs", "configs")
    for name in columns:
        table.add_column(name, justify="right")
    for group, found in groups.items():
        for one in found:
            table.add_row(
                group, one.figure, str(one.kernels), f"{one.spearman:.3f}", f"{one.scale:.2f}",
                f"x{one.error:.2f}", f"x{one.worst:.2f}", _right(one.pairs_right, one.pairs),
                _right(one.rivals_right, one.rivals),
            )  # fmt: skip
    return table


def _right(share: float | None, count: int) -> str:
    return "-" if share is None else f"{share:.1%} of {count}"


def _notes(found: Validation) -> list[str]:
    legend = (
        f"Figures: {', '.join(FIGURES)}. Errors are factors after one common scale. Pairs of "
        "kernels, and of configs of one workload, that the model tells apart by more than "
        f"{TIE - 1:.0%}: the share it puts in the right order."
    )
    origin = (
        f"{found.model}; {found.qemu}; {len(found.loads)} rounds, load "
        f"{min(found.loads):.1f} to {max(found.loads):.1f}."
    )
    notes = [legend, origin]
    least = min(r.busy for kernel in found.kernels for r in kernel.rounds)
    if least < _BUSY:
        notes.append(
            f"The machine was busy: in its worst round a kernel had the core for {least:.0%} of "
            "the time. Real cycles are of CPU time, but caches were shared."
        )
    unsteady = [kernel.name for kernel in found.kernels if kernel.spread > _UNSTEADY]
    if unsteady:
        notes.append(f"Spread above {_UNSTEADY:.0%}: {', '.join(unsteady)}.")
    return notes
