"""The figures as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks._ort_int8 import float_layers
from benchmarks._peers import NCNN_PEER, OPENVINO_INT8, PEERS
from benchmarks._profile import INT8_PEAK, OpRow, Profile
from benchmarks._quantised import INT8
from benchmarks._results import OF_THE_RANGE, NetworkResult, Rounds, Series
from benchmarks._stages import DEFAULTS, EXPLORED, ORT, ORT_INT8, UNTUNED

FLOAT_PEERS = (ORT, *PEERS)
INT8_PEERS = (ORT_INT8, OPENVINO_INT8)
_BUSY = 0.97  # under this share of the wall time somebody else was on the core

_LEGEND = (
    "Ratios are medians over paired rounds; in brackets the same of CPU time, which other load "
    "disturbs less. Errors are over the range of the output: float plans against ONNX Runtime "
    "without optimisations, tvmx's int8 and mixed plans against their simulation, ONNX Runtime's "
    "int8 against its quantised model without optimisations. A deviation is the relative L2 "
    "distance from the float outputs; with random weights it says nothing about accuracy."
)


def print_networks(results: Sequence[NetworkResult]) -> None:
    """Tables of latencies, ratios, memory, and what was verified; one row per network each."""
    console = _console()
    for make in (_latency_table, _ratio_table, _memory_table, _checked_table):
        console.print(make(results))
    for threads in sorted({n for result in results for n in result.threaded}):
        console.print(_threaded_table(results, threads))
    for line in _notes(results):
        console.print(line)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column("network")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _latency_table(results: Sequence[NetworkResult]) -> Table:
    table = _table(
        "ms per inference, 1 thread, median ± interquartile range",
        "untuned TVM", "tvmx defaults", "tvmx explored", "ONNX Runtime", "OpenVINO", "ncnn", "MNN",
        "tvmx int8", "ONNX Runtime int8", "OpenVINO int8",
    )  # fmt: skip
    for result in results:
        main, untuned = result.main, result.untuned
        table.add_row(
            result.network,
            _latency(untuned, UNTUNED),
            _latency(main or untuned, DEFAULTS),
            *(_latency(main, name) for name in (EXPLORED, ORT, *PEERS, INT8, *INT8_PEERS)),
        )
    return table


def _ratio_table(results: Sequence[NetworkResult]) -> Table:
    table = _table(
        "ratios of latencies",
        "defaults / best peer", "explored / best peer", "best peer", "defaults / ORT",
        "int8 / best int8 peer", "best int8 peer", "float / int8 (tvmx)", "float / int8 (ORT)",
        "untuned / defaults",
    )  # fmt: skip
    for result in results:
        best, best_int8 = _best_peer(result.main), _best_peer(result.main, INT8_PEERS)
        table.add_row(
            result.network,
            *(_ratio(result.main, name, best) for name in (DEFAULTS, EXPLORED)),
            best,
            _ratio(result.main, DEFAULTS, ORT),
            _ratio(result.main, INT8, best_int8),
            best_int8,
            *(_ratio(result.main, *pair) for pair in ((DEFAULTS, INT8), (ORT, ORT_INT8))),
            _ratio(result.untuned, UNTUNED, DEFAULTS),
        )
    return table


def _threaded_table(results: Sequence[NetworkResult], threads: int) -> Table:
    names = (DEFAULTS, EXPLORED, ORT, *PEERS, INT8, *INT8_PEERS)
    table = _table(
        f"ms per inference, {threads} threads, median ± interquartile range",
        "tvmx defaults", "tvmx explored", "ONNX Runtime", "OpenVINO", "ncnn", "MNN", "tvmx int8",
        "ONNX Runtime int8", "OpenVINO int8", "defaults / best peer", "explored / best peer",
        "best peer", "int8 / best int8 peer",
    )  # fmt: skip
    for result in results:
        rounds = result.threaded.get(threads)
        best = _best_peer(rounds)
        ratios = [rounds.ratio(name, best) if rounds else None for name in (DEFAULTS, EXPLORED)]
        table.add_row(
            result.network,
            *(_latency(rounds, name) for name in names),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            best if rounds else "-",
            _ratio(rounds, INT8, _best_peer(rounds, INT8_PEERS)),
        )
    return table


def _memory_table(results: Sequence[NetworkResult]) -> Table:
    table = _table(
        "peak resident memory in MB above a process with nothing loaded, 1 thread",
        "weights, defaults / int8", "arena, defaults / int8", "tvmx defaults", "tvmx explored",
        "ONNX Runtime", "OpenVINO", "ncnn", "MNN", "tvmx int8", "ONNX Runtime int8",
        "OpenVINO int8", "defaults / ncnn",
    )  # fmt: skip
    for result in results:
        names = (DEFAULTS, EXPLORED, ORT, *PEERS, INT8, *INT8_PEERS)
        found = [result.footprint(name) for name in names]
        mine, ncnn = result.footprint(DEFAULTS), result.footprint(NCNN_PEER)
        table.add_row(
            result.network,
            _sizes(result.weights_bytes, result.quantised and result.quantised.weights_bytes),
            _sizes(result.arena_bytes, result.quantised and result.quantised.arena_bytes),
            *(f"{one.peak_mb:.0f}" if one else "-" for one in found),
            f"{mine.peak_kib / ncnn.peak_kib:.2f}" if mine and ncnn else "-",
        )
    return table


def _sizes(defaults: int, int8: int | None) -> str:
    return " / ".join(f"{size / 1e6:.1f}" if size else "-" for size in (defaults, int8))


def _best_peer(rounds: Rounds | None, names: Sequence[str] = FLOAT_PEERS) -> str:
    """The one of the peers of these names that has the smallest median."""
    found = [s for s in rounds.series if s.name in names] if rounds else []
    return min(found, key=lambda s: s.median_ms).name if found else names[0]


def _means(results: Sequence[NetworkResult]) -> list[str]:
    """Geometric means over the networks of tvmx against the best peer of each."""
    lines = []
    for threads in (1, *sorted({n for result in results for n in result.threaded})):
        found = [r.main if threads == 1 else r.threaded.get(threads) for r in results]
        measured = [rounds for rounds in found if rounds is not None]
        kinds = ((DEFAULTS, FLOAT_PEERS), (EXPLORED, FLOAT_PEERS), (INT8, INT8_PEERS))
        for name, peers in kinds:
            ratios = [rounds.ratio(name, _best_peer(rounds, peers)) for rounds in measured]
            known = [ratio for ratio in ratios if ratio is not None]
            if known:
                mean = statistics.geometric_mean(known)
                peer = "best int8 peer" if name == INT8 else "best peer"
                on = "1 thread" if threads == 1 else f"{threads} threads"
                lines.append(
                    f"{name} / {peer}, {on}, geometric mean of {len(known)}: {mean:.3f}, "
                    f"worst {max(known):.2f}"
                )
    return lines


def _checked_table(results: Sequence[NetworkResult]) -> Table:
    table = _table(
        "verified: largest error (allowed); deviation from the float outputs, random weights",
        "float plans", "tvmx int8", "ORT int8", "mixed plan", "deviation tvmx int8",
        "deviation ORT int8", "int8 layers",
    )  # fmt: skip
    for result in results:
        table.add_row(
            result.network,
            _float_error(result),
            _int8_error(result, INT8),
            _int8_error(result, ORT_INT8),
            f"{result.mixed.max_error:.1e} ({result.mixed.limit:g})" if result.mixed else "-",
            _deviation(result, INT8),
            _deviation(result, ORT_INT8),
            _int8_layers(result),
        )
    return table


def _latency(rounds: Rounds | None, name: str) -> str:
    series = rounds.get(name) if rounds else None
    return f"{series.median_ms:.2f} ± {series.spread_ms:.2f}" if series else "-"


def _ratio(rounds: Rounds | None, first: str, second: str) -> str:
    if rounds is None:
        return "-"
    wall, cpu = rounds.ratio(first, second), rounds.cpu_ratio(first, second)
    return f"{wall:.2f} (cpu {cpu:.2f})" if wall is not None else "-"


def _float_error(result: NetworkResult) -> str:
    errors = [s.max_error for s in _series(result) if s.name not in (INT8, *INT8_PEERS)]
    return f"{max(errors):.1e} ({OF_THE_RANGE:g})" if errors else "-"


def _int8_error(result: NetworkResult, name: str) -> str:
    series = result.main.get(name) if result.main else None
    return f"{series.max_error:.1e} ({series.limit:g})" if series else "-"


def _deviation(result: NetworkResult, name: str) -> str:
    series = result.main.get(name) if result.main else None
    return f"{series.deviation:.2%}" if series else "-"


def _int8_layers(result: NetworkResult) -> str:
    if result.quantised is None:
        return "-"
    counts = result.quantised.layers
    int8 = sum(count for how, count in counts.items() if how.startswith("int8"))
    return f"{int8} of {result.layers}"


def _series(result: NetworkResult) -> list[Series]:
    return [s for rounds in (result.main, result.untuned) if rounds for s in rounds.series]


def _notes(results: Sequence[NetworkResult]) -> list[str]:
    """What a reader of the table must know."""
    notes = [*_means(results), _LEGEND]
    notes += [
        f"{result.network}: no figure of {name}: {why}"
        for result in results
        for name, why in (result.main.failed if result.main else {}).items()
    ]
    for result in results:
        if result.explored and result.explored.is_baseline:
            notes.append(f"{result.network}: no explored plan beat the defaults: they are both.")
        nodes = result.quantised.ort_nodes if result.quantised else {}
        if float_layers(nodes):
            notes.append(
                f"{result.network}: ONNX Runtime int8 keeps {float_layers(nodes)} convolutions "
                "and matrix products in float."
            )
        if result.mixed:
            counts = ", ".join(f"{n} {how}" for how, n in result.mixed.kinds.items())
            notes.append(f"{result.network}: the mixed plan's layers are {counts}.")
        least = min((s.busy for s in _series(result)), default=1.0)
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
        + (f", int8 shares are of {INT8_PEAK} times that" if profile.plan == "int8" else "")
    )


def _layer_table(profile: Profile) -> Table:
    table = Table(title=f"{profile.network}: layers of plan {profile.plan}, slowest first")
    compared = any(row.float_us is not None for row in profile.layers)
    for name in ("workload", "template", "config"):
        table.add_column(name)
    columns = ("calls", "us", "share", "GOP/s", "of peak", "alone", "of peak")
    for name in (*columns, *(("float us", "float / this") if compared else ())):
        table.add_column(name, justify="right")
    for row in sorted(profile.layers, key=lambda r: -r.us * r.calls):
        peak = row.peak(profile.peak_gflops)
        float_us = row.float_us
        table.add_row(
            row.workload, row.template, row.config, str(row.calls), f"{row.us:.0f}",
            f"{row.us * row.calls / profile.network_us:.1%}",
            f"{row.gops:.1f}", f"{row.gops / peak:.0%}",
            f"{row.alone_gops:.1f}", f"{row.alone_gops / peak:.0%}",
            *(() if float_us is None else (f"{float_us:.0f}", f"{float_us / row.us:.2f}")),
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
