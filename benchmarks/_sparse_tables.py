"""The figures of block-sparse kernels as tables: latency, then work, then crossovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks._sparse_layers import LAYERS, MORE
from benchmarks._sparse_results import LayerFigures, SparseFigures, WayFigures

KINDS = {"f32": "float", "int8": "int8"}


def print_sparse(figures: SparseFigures, layers: Sequence[str]) -> None:
    """Tables of the layers named."""
    console = Console(width=150)
    order = [*LAYERS, *MORE]
    shown = sorted(
        (f for f in figures.layers if f.layer in layers), key=lambda f: order.index(f.layer)
    )
    levels = sorted({level for layer in shown for level in layer.levels()})
    title = f"{figures.machine}, {figures.threads} thread{'s' * (figures.threads > 1)}"
    console.print(_table(f"us of one call: {title}", shown, levels, lambda w: f"{w.us:.0f}"))
    console.print(_table("MFLOP", shown, levels, lambda w: f"{w.mflop:.1f}"))
    console.print(_table("KiB of constants", shown, levels, lambda w: f"{w.bytes / 1024:.0f}"))
    console.print(_crossovers(shown))


def _table(
    title: str, layers: Sequence[LayerFigures], levels: Sequence[int],
    show: Callable[[WayFigures], str],
) -> Table:  # fmt: skip
    """One row for each layer and precision: dense, then every level."""
    table = Table(title=title, title_justify="left")
    for name in ("layer", "", "blocks"):
        table.add_column(name, no_wrap=True)
    for name in ("dense", *(f"{level} %" for level in levels)):
        table.add_column(name, justify="right")
    for layer in layers:
        for precision, kind in KINDS.items():
            found = [layer.best(precision, level) for level in (0, *levels)]
            blocks = "/".join(dict.fromkeys(w.blocks for w in found[1:] if w))
            cells = [show(w) if w else "-" for w in found]
            table.add_row(layer.layer if precision == "f32" else "", kind, blocks, *cells)
    return table


def _crossovers(layers: Sequence[LayerFigures]) -> Table:
    title = "Percent of blocks to drop until the sparse kernel is faster than the best dense one"
    table = Table(title=title, title_justify="left")
    table.add_column("layer", no_wrap=True)
    pairs = [("f32", "f32"), ("f32", "int8"), ("int8", "f32"), ("int8", "int8")]
    for sparse, dense in pairs:
        table.add_column(f"{KINDS[sparse]} / {KINDS[dense]}", justify="right")
    for layer in layers:
        found = [layer.crossover(*pair) for pair in pairs]
        table.add_row(layer.layer, *("-" if c is None else str(c) for c in found))
    return table
