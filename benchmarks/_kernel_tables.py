"""The figures of kernels as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks._kernel_layers import LAYERS
from benchmarks._kernel_results import ORT, PEAK, READ, TORCH, KernelFigures, LayerFigures
from benchmarks._results import Rounds

_BUSY = 0.97  # under this share of the wall time somebody else was on the core
_LEGEND = (
    "Default configs. Shares are of multiply-adds in registers; of a matrix-vector product, of the"
    " rate at which its weights can be read in the same place (marked r). Ratios are medians over"
    " paired rounds; ONNX Runtime and PyTorch run the layer alone, between plain NCHW arrays."
)


def print_kernels(figures: KernelFigures, layers: Sequence[str]) -> None:
    """One row for each layer and template, of the layers named."""
    console = Console(width=140)
    shown = [layer for layer in _ordered(figures) if layer.layer in layers]
    if any(layer.simulated for layer in shown):
        console.print(_simulated_table(figures, shown))
        return
    console.print(_table(figures, shown))
    console.print(_LEGEND)
    for layer in shown:
        if layer.rounds is not None and _busy(layer.rounds) < _BUSY and figures.threads == 1:
            console.print(
                f"{layer.layer}: had {_busy(layer.rounds):.0%} of the core; "
                f"load {layer.rounds.load_before:.1f}"
            )


def _ordered(figures: KernelFigures) -> list[LayerFigures]:
    """In the order of the list, however they were measured."""
    names = list(LAYERS)
    return sorted(
        figures.layers, key=lambda f: names.index(f.layer) if f.layer in names else len(names)
    )


def _busy(rounds: Rounds) -> float:
    return min(series.busy for series in rounds.series)


def _table(figures: KernelFigures, layers: Sequence[LayerFigures]) -> Table:
    title = f"{figures.machine}, {figures.threads} thread{'s' * (figures.threads > 1)}"
    table = Table(title=title)
    for name in ("layer", "template"):
        table.add_column(name, no_wrap=True)
    for name in (
        "us, median ± iqr", "GFLOP/s", "share", "ONNX Runtime us", "/ ORT", "torch us", "/ torch",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for layer in layers:
        for number, name in enumerate(_by_speed(layer)):
            table.add_row(
                layer.layer if number == 0 else "",
                name,
                _latency(layer, name),
                _rate(layer, name),
                _share(layer, name),
                _latency(layer, ORT),
                _ratio(layer, name, ORT),
                _latency(layer, TORCH),
                _ratio(layer, name, TORCH),
            )
    return table


def _by_speed(layer: LayerFigures) -> list[str]:
    assert layer.rounds is not None
    others = (PEAK, READ, ORT, TORCH)
    series = [s for s in layer.rounds.series if s.name not in others]
    return [s.name for s in sorted(series, key=lambda s: s.median_ms)]


def _latency(layer: LayerFigures, name: str) -> str:
    series = layer.rounds.get(name) if layer.rounds else None
    return f"{series.median_ms * 1e3:.0f} ± {series.spread_ms * 1e3:.0f}" if series else "-"


def _rate(layer: LayerFigures, name: str) -> str:
    series = layer.rounds.get(name) if layer.rounds else None
    return f"{layer.gflop / series.median_ms * 1e3:.1f}" if series else "-"


def _share(layer: LayerFigures, name: str) -> str:
    read, peak = layer.read_share(name), layer.peak_share(name)
    if read is not None:
        return f"{read:.0%} r"
    return f"{peak:.0%}" if peak is not None else "-"


def _ratio(layer: LayerFigures, name: str, other: str) -> str:
    ratio = layer.rounds.ratio(name, other) if layer.rounds else None
    return f"{ratio:.2f}" if ratio is not None else "-"


def _simulated_table(figures: KernelFigures, layers: Sequence[LayerFigures]) -> Table:
    table = Table(title=f"{figures.target}: {figures.machine}", title_justify="left")
    for name in ("layer", "template"):
        table.add_column(name, no_wrap=True)
    for name in ("core Mcycles", "core+memory", "MAC/cycle of the core", "config"):
        table.add_column(name, justify="left" if name == "config" else "right")
    for layer in layers:
        for number, found in enumerate(layer.simulated):
            core = found.counts.core_cycles
            table.add_row(
                layer.layer if number == 0 else "",
                found.template,
                f"{core / 1e6:.2f}",
                f"{(core + found.counts.memory_cycles) / 1e6:.2f}",
                f"{layer.gflop * 1e9 / 2 / core:.2f}",
                found.config.removeprefix("Config"),
            )
    return table
