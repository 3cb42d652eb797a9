"""The knobs of block-sparse convolutions, and the analytical model behind their default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvmx.ir import BlockSparsity, Conv2dWorkload, Space, ceil_div
from tvmx.targets import Target
from tvmx.templates._block_sparse import matrix_of
from tvmx.templates._image import ConvGeometry
from tvmx.templates._sparse_code import IN_CODE, IN_DATA, fits_code, structures

CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16)
GROUPS = (1, 2, 4, 8, 16, 32)
UNROLLS = (1, 2, 4)
WIDTHS = (8, 7, 6, 5, 4, 2)
"""Eighths of the largest tile that are tried."""
LATENCY = 8
"""Pixels below which a step takes as long as its multiply-adds' latency."""
IN_ORDER_PIXELS, IN_ORDER_UNROLL = 8, 4
"""Of float tiles on in-order cores, whose loads stall: the next blocks' go in between."""


def sparse_space(
    w: Conv2dWorkload, g: ConvGeometry[Any], target: Target, limit: int, pads: Sequence[str],
    *, code: bool = False, unrolls: Sequence[int] = UNROLLS,
) -> Space:  # fmt: skip
    """The space of :class:`tvmx.templates.SparseConvEmitter`'s knobs.

    Tiles have at most ``limit`` pixels; the first of ``pads`` is the default's. ``code``: there is
    the knob ``structure``, too.
    """
    heights, widths = _tiles(g, limit)
    default = _default(w, g, target, [(h, t) for h in heights for t in widths if h * t <= limit])
    default |= {"pad": pads[0]}
    if code:
        default |= {"structure": IN_DATA}
        if target.big.in_order and _code_is_legal(w, default | {"unroll": 1}):
            default |= {"structure": IN_CODE, "unroll": 1}
    return Space(
        {
            "oh_tile": heights,
            "ow_tile": widths,
            "chunk": list(CHUNKS),
            "groups": [n for n in GROUPS if n <= g.out_blocks],
            "order": ["run", "group"],
            "pad": list(pads),
            "unroll": list(unrolls),
            **({"structure": structures(w)} if code else {}),
        },
        default=default,
        constraint=lambda c: (
            c["oh_tile"] * c["ow_tile"] <= limit
            and c["chunk"] <= g.units(c["oh_tile"], c["ow_tile"])
            and (c["order"] == "run" or c["groups"] > 1)
            and (not code or c["structure"] == IN_DATA or _code_is_legal(w, c))
        ),
    )


def _code_is_legal(w: Conv2dWorkload, c: Mapping[str, Any]) -> bool:
    """Whether the structure may be code: all rows of it in one group, no loop to unroll."""
    return (
        c["groups"] == 1 and c["unroll"] == 1 and fits_code(w, c["oh_tile"] * c["ow_tile"])
    )  # fmt: skip


def _balanced(extent: int, size: int) -> int:
    """The tile of at most ``size`` that cuts ``extent`` into as few, evenly."""
    return ceil_div(extent, ceil_div(extent, size))


def _tiles(g: ConvGeometry[Any], limit: int) -> tuple[list[int], list[int]]:
    """Candidate heights and widths of a tile, the largest first."""
    sizes = [max(1, limit * part // 8) for part in WIDTHS]
    widths = sorted({_balanced(g.out_width, size) for size in sizes}, reverse=True)
    heights = [_balanced(g.out_height, max(1, limit // width)) for width in widths]
    return sorted({1, *heights}, reverse=True), widths


def _image_bytes(w: Conv2dWorkload, g: ConvGeometry[Any], rows: int, columns: int) -> int:
    """What a task copies to compute so many output pixels."""
    pixels = 1
    for count, step, kernel, dilation in zip(
        (rows, columns), g.image_step, w.kernel, w.dilation, strict=True
    ):
        pixels *= (count - 1) * step + (kernel - 1) * dilation + 1
    return 4 * g.words * pixels


def _default(
    w: Conv2dWorkload, g: ConvGeometry[Any], target: Target, tiles: list[tuple[int, int]]
) -> dict[str, int | str]:
    """The tile whose image stays in L1, else the largest; runs as long as L1 has room.

    Weights that L2 cannot hold beside the data are gone through once, group by group.
    """
    room = target.big.l1d_kib * 1024 * 15 // 16
    stalls = target.big.in_order and w.dtype == "float32"
    if stalls:
        small = [t for t in tiles if math.prod(t) <= IN_ORDER_PIXELS]
        tiles = small or [min(tiles, key=math.prod)]

    def cost(tile: tuple[int, int]) -> float:
        pixels = tile[0] * tile[1]
        count = math.prod(g.tiles(*tile))
        overhead = 2 if _image_bytes(w, g, *tile) <= room else 4
        return count * (max(pixels, LATENCY) + overhead)

    oh_tile, ow_tile = min(tiles, key=lambda t: (cost(t), t))
    units = g.units(oh_tile, ow_tile)

    def in_l1(chunk: int) -> bool:
        rows, columns = (1, chunk * ow_tile) if g.is_flat else (chunk * oh_tile, g.out_width)
        return _image_bytes(w, g, rows, columns) <= room

    def runs(chunk: int) -> int:
        return w.batch * ceil_div(units, chunk)

    enough = [c for c in CHUNKS if c <= units and in_l1(c) and runs(c) >= 2 * target.cores]
    chunk = max(enough, default=1)
    sparsity = BlockSparsity.parse(w.sparsity)
    assert sparsity is not None
    element = 1 if w.dtype == "int8" else 4
    weights = sparsity.kept(*matrix_of(w)) * (sparsity.rows * sparsity.columns * element + 2)
    wanted = ceil_div(2 * target.cores, runs(chunk))
    once = weights > target.big.l2_kib * 512 and runs(chunk) > 1
    if once:
        wanted = max(wanted, ceil_div(weights, target.big.l2_kib * 256))
    groups = [n for n in GROUPS if n <= g.out_blocks]
    return {
        "oh_tile": oh_tile, "ow_tile": ow_tile, "chunk": chunk,
        "groups": next((n for n in groups if n >= wanted), groups[-1]),
        "order": "group" if once else "run", "unroll": IN_ORDER_UNROLL if stalls else 1,
    }  # fmt: skip
