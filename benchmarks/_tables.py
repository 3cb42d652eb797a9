"""The figures as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks._profile import OpRow, Profile
from benchmarks._results import NetworkResult, Rounds
from benchmarks._stages import DEFAULTS, EXPLORED, ORT, UNTUNED

_BUSY = 0.97  # under this share of the wall time somebody else was on the core

_LEGEND = (
    "Ratios are medians over paired rounds; in brackets the same of CPU time, which other load "
    "disturbs less. Errors are over the range of the output, against ONNX Runtime without "
    "optimisations."
)


def print_networks(results: Sequence[NetworkResult]) -> None:
    """One row per network: medians in ms with the interquartile range, and ratios."""
    table = Table(title="ms per inference, 1 thread, median +- interquartile range")
    table.add_column("network")
    for name in (
        "untuned TVM", "tvmx defaults", "tvmx explored", "ONNX Runtime", "defaults / ORT",
        "explored / ORT", "untuned / defaults", "worst error",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for result in results:
        main, untuned = result.main, result.untuned
        table.add_row(
            result.network,
            _latency(untuned, UNTUNED),
            _latency(main or untuned, DEFAULTS),
            _latency(main, EXPLORED),
            _latency(main, ORT),
            _ratio(main, DEFAULTS, ORT),
            _ratio(main, EXPLORED, ORT),
            _ratio(untuned, UNTUNED, DEFAULTS),
            _error(result),
        )
    console = _console()
    console.print(table)
    for line in _notes(results):
        console.print(line)


def _latency(rounds: Rounds | None, name: str) -> str:
    series = rounds.get(name) if rounds else None
    return f"{series.median_ms:.2f} ± {series.spread_ms:.2f}" if series else "-"


def _ratio(rounds: Rounds | None, first: str, second: str) -> str:
    if rounds is None:
        return "-"
    wall, cpu = rounds.ratio(first, second), rounds.cpu_ratio(first, second)
    return f"{wall:.2f} (cpu {cpu:.2f})" if wall is not None else "-"


def _error(result: NetworkResult) -> str:
    series = [s for r in (result.main, result.untuned) if r for s in r.series]
    return f"{max(s.max_error for s in series):.1e}" if series else "-"


def _notes(results: Sequence[NetworkResult]) -> list[str]:
    """What a reader of the table must know."""
    notes = [_LEGEND]
    for result in results:
        if result.explored and result.explored.is_baseline:
            notes.append(f"{result.network}: no explored plan beat the defaults: they are both.")
        series = [s for r in (result.main, result.untuned) if r for s in r.series]
        least = min((s.busy for s in series), default=1.0)
        if least < _BUSY:
            notes.append(
                f"{result.network}: the machine was busy, a candidate had the core for only "
                f"{least:.0%} of its time: measure again on a quiet machine."
            )
    return notes


def print_profile(profile: Profile) -> None:
    """Layers, other operators and the VM, each with its share of the network's time."""
    console = _console()
    console.print(_layer_table(profile))
    ops = sum(row.us * row.calls for row in profile.ops)
    console.print(_op_table("operators between layers", profile.ops, profile.network_us))
    console.print(_op_table("TVM's VM", profile.vm, profile.network_us))
    layers = sum(row.us * row.calls for row in profile.layers)
    alone = sum(row.alone_us * row.calls for row in profile.layers)
    total = profile.network_us
    console.print(
        f"{profile.network}: {total / 1e3:.2f} ms of CPU time = layers {layers / 1e3:.2f} "
        f"(each by itself {alone / 1e3:.2f}) + other operators {ops / 1e3:.2f} "
        f"+ rest {(total - layers - ops) / 1e3:.2f}; peak {profile.peak_gflops:.1f} GFLOP/s"
    )


def _layer_table(profile: Profile) -> Table:
    table = Table(title=f"{profile.network}: layers of the defaults, slowest first")
    for name in ("workload", "template", "config"):
        table.add_column(name)
    for name in ("calls", "us", "share", "GFLOP/s", "of peak", "alone", "of peak"):
        table.add_column(name, justify="right")
    peak = profile.peak_gflops
    for row in sorted(profile.layers, key=lambda r: -r.us * r.calls):
        table.add_row(
            row.workload, row.template, row.config, str(row.calls), f"{row.us:.0f}",
            f"{row.us * row.calls / profile.network_us:.1%}",
            f"{row.gflops:.1f}", f"{row.gflops / peak:.0%}",
            f"{row.alone_gflops:.1f}", f"{row.alone_gflops / peak:.0%}",
        )  # fmt: skip
    return table


def _op_table(title: str, rows: Sequence[OpRow], network_us: float) -> Table:
    table = Table(title=title)
    table.add_column("kernel")
    table.add_column("shapes, output last")
    for name in ("calls", "us", "share"):
        table.add_column(name, justify="right")
    for row in sorted(rows, key=lambda r: -r.us * r.calls):
        shapes = " ".join("x".join(map(str, shape)) for shape in row.shapes)
        share = row.us * row.calls / network_us
        table.add_row(row.kernel, shapes, str(row.calls), f"{row.us:.1f}", f"{share:.1%}")
    return table


def _console() -> Console:
    """As wide as the tables need where nobody looks at a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
