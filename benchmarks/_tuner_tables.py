"""The comparison of the tuners as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table

from benchmarks._tables import _console
from benchmarks._tuner_results import COLD, GRID, METASCHEDULE, METHODS, RANDOM, WARM, Curve
from benchmarks._tuner_summary import BOUNDS, Report, Summary, missed

_LEGEND = (
    "Best known: the fastest of everything any method measured, the fastest of them timed again "
    "side by side. Measurements until a run held a config within 5 % of it: median of the seeds, "
    "in brackets the most. cold: tvmx's tuner without history; warm: taught by the cold runs of "
    "the other workloads, same seed. tvmx, random and grid choose among the configs of all float "
    "templates; one journal serves them, so a config has one figure, whoever asks for it, and a "
    "recalled figure counts as a measurement. us and the ratio are of what each run would deploy, "
    "the fastest of its three best, timed side by side: median of the seeds, in brackets the "
    "seeds on which tvmx is faster at 95 % confidence."
)


def print_tuners(report: Report, curves: Sequence[Curve]) -> None:
    """The workloads, what each method took, and which bounds were missed."""
    console = _console()
    console.print(_workload_table(report))
    console.print(_time_table(curves))
    console.print(_LEGEND)
    console.print(
        f"MetaSchedule: channels-last data, free weight layout, {report.metaschedule_round} trials "
        "a round, its cost model ranks from the second round on; tvmx's builds, timing and checks."
    )
    lines = missed(report.workloads)
    console.print(
        f"Wanted: within 5 % after {BOUNDS[COLD]} measurements cold and {BOUNDS[WARM]} warm, and "
        f"ahead of MetaSchedule. {'Missed:' if lines else 'Nothing was missed.'}"
    )
    for line in lines:
        console.print(f"  {line}")


def _workload_table(report: Report) -> Table:
    table = Table(
        title="measurements until within 5 % of the best known config; "
        f"seeds: {report.seeds}, measurements of each run: {report.trials}"
    )
    table.add_column("workload")
    for name in (
        "best known us", "GFLOP/s", "by", COLD, WARM, RANDOM, GRID, METASCHEDULE,
        "tvmx us", "MetaSchedule us", "tvmx / MetaSchedule",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for summary in report.workloads:
        table.add_row(
            summary.description, f"{summary.best_us:.1f}",
            f"{summary.gflop / summary.best_us * 1e6:.1f}", summary.best_template,
            *(_needed(summary, method, report.trials) for method in METHODS),
            *(_median(summary.winners_us.get(method)) for method in (COLD, METASCHEDULE)),
            _ratio(summary),
        )  # fmt: skip
    return table


def _needed(summary: Summary, method: str, trials: int) -> str:
    counts = summary.needed.get(method)
    if not counts:
        return "-"
    median = summary.median_needed(method)
    most = f"> {trials}" if None in counts else str(max(c for c in counts if c is not None))
    return f"> {trials}" if median is None else f"{median:g} ({most})"


def _median(values: Sequence[float] | None) -> str:
    return f"{statistics.median(values):.1f}" if values else "-"


def _ratio(summary: Summary) -> str:
    if summary.ratio is None:
        return "-"
    faster = sum(verdict == "faster" for verdict in summary.verdicts)
    return f"{summary.ratio:.3f} ({faster} of {len(summary.verdicts)})"


def _time_table(curves: Sequence[Curve]) -> Table:
    table = Table(title="wall time; recalled measurements took none")
    table.add_column("method")
    for name in ("runs", "measurements", "of them recalled", "failed", "s", "s per run"):
        table.add_column(name, justify="right")
    for method in METHODS:
        runs = [c for c in curves if c.method == method]
        if runs:
            points = [p for c in runs for p in c.points]
            seconds = sum(c.seconds for c in runs)
            table.add_row(
                method, str(len(runs)), str(len(points)), str(sum(c.recalled for c in runs)),
                str(sum(p.us is None for p in points)), f"{seconds:.0f}",
                f"{seconds / len(runs):.1f}",
            )  # fmt: skip
    return table
