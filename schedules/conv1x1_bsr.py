"""Block-sparse 1x1 convolution in NCHW<v>c: blocks of v output channels x 1 input channel.

In loops, for one image (v lanes are one vector register)::

    for oc, oh, ow, v:                                       # before
        for ic: out += x * w                                 # most blocks w[oc][ic][v] are zero

    parallel for task in (tile of pixels, chunk of oc):      # after, order = "pixel"
        for oc in the chunk:
            acc[pixels][v] = 0                               # registers
            for k in indptr[oc] .. indptr[oc + 1]:           # the blocks that were kept
                unrolled for pixels: acc += x[indices[k], pixel] (broadcast) * w[k] (vector)
            unrolled: out = clip(acc + bias + residual)

order = "oc" has oc in the task and a chunk of tiles inside: the weights of a block row stay in
L1, the image passes. A tile is a run of pixels, of the whole image where the stride is 1, else
``oh_tile`` x ``ow_tile`` of them. The last tiles are moved back to end at the border: the pixels
they share with their neighbours are computed twice, to the same bits.

``index`` says what ``indices`` holds: "channel", to be turned into an offset in the kernel, or
the ready "offset" of the channel in the image, which takes four bytes where it does not fit two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import builder, tirx
from tvmx.ir import BlockSparsity, Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Kernel,
    ScheduleTemplate,
    SparseBuffers,
    Views,
    apply_epilogue,
    bind,
    block_sparse_kernel,
    emit_kernel,
    index_dtype,
    load,
    max_accumulators,
    refuse_pointwise,
    refuse_sparsity,
    sparsity_levels,
    store,
    sum_pixels,
)

CHUNKS = (1, 2, 4, 8, 16)
UNROLLS = (1, 2, 4)
LATENCY = 8
"""Pixels below which a step takes as long as its multiply-adds' latency."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of one convolution; with stride 1 its pixels are a single row."""

    v: int
    in_blocks: int
    rows: int
    pixels: int
    width: int
    out_height: int
    out_width: int
    stride_h: int
    stride_w: int

    @classmethod
    def of(cls, w: Conv2dWorkload, v: int) -> Geometry:
        is_flat = w.strides == (1, 1)
        pixels = w.height * w.width
        return cls(
            v=v,
            in_blocks=ceil_div(w.in_channels, v),
            rows=ceil_div(w.out_channels, v),
            pixels=pixels,
            width=pixels if is_flat else w.width,
            out_height=1 if is_flat else w.out_height,
            out_width=pixels if is_flat else w.out_width,
            stride_h=w.strides[0],
            stride_w=w.strides[1],
        )

    def tiles(self, oh_tile: int, ow_tile: int) -> tuple[int, int]:
        """Tiles in a column and in a row of the output."""
        return ceil_div(self.out_height, oh_tile), ceil_div(self.out_width, ow_tile)

    def element(self, channel: Any) -> Any:
        """Where a channel of an image's first pixel is. For expressions and NumPy arrays."""
        block, lane = channel // self.v, channel % self.v
        return block * (self.pixels * self.v) + lane


class Conv1x1Bsr(ScheduleTemplate):
    """NCHW<v>c in and out, blocks of <v>x1; f32."""

    name = "conv1x1_bsr"
    op = "conv2d"
    sparse = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        return refuse_pointwise(workload, self.op) or refuse_sparsity(
            workload, target.lanes("float32")
        )

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        if refuse_pointwise(workload, self.op):
            return ()
        return sparsity_levels(target.lanes("float32"), workload.out_channels, workload.in_channels)

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        g = Geometry.of(workload, target.lanes("float32"))
        limit = max_accumulators(target)
        heights, widths = _tiles(g, limit)
        offsets_fit = index_dtype(_largest_offset(workload, g)) == "uint16"
        return Space(
            {
                "oh_tile": heights,
                "ow_tile": widths,
                "order": ["pixel", "oc"],
                "chunk": [*CHUNKS, g.rows],
                "unroll": list(UNROLLS),
                "index": ["offset"] if offsets_fit else ["offset", "channel"],
            },
            default=_default(workload, g, target, heights, widths),
            constraint=lambda c: (
                c["oh_tile"] * c["ow_tile"] <= limit and c["chunk"] <= _chunked(g, c)
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        g = Geometry.of(workload, target.lanes("float32"))
        sparsity = BlockSparsity.parse(workload.sparsity)
        assert sparsity is not None
        by_offset = config["index"] == "offset"
        largest = _largest_offset(workload, g) if by_offset else workload.in_channels - 1
        dtype = index_dtype(largest)

        def encode(channels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            encoded: npt.NDArray[np.int64] = g.element(channels) if by_offset else channels
            return encoded

        out_shape = (workload.batch, g.rows, workload.out_height, workload.out_width, g.v)
        func = emit_kernel(
            workload,
            (workload.batch, g.in_blocks, workload.height, workload.width, g.v),
            out_shape,
            dtype,
            lambda buffers: _loops(buffers, workload, g, config),
        )
        return block_sparse_kernel(func, sparsity, dtype, encode)


def _largest_offset(w: Conv2dWorkload, g: Geometry) -> int:
    return int(g.element(w.in_channels - 1))


def _balanced(extent: int, size: int) -> int:
    """The tile of at most ``size`` that cuts ``extent`` into as few, evenly."""
    return ceil_div(extent, ceil_div(extent, size))


def _tiles(g: Geometry, limit: int) -> tuple[list[int], list[int]]:
    """Candidate heights and widths of a tile, the largest first."""
    sizes = [limit, 3 * limit // 4, limit // 2, limit // 4]
    widths = sorted({_balanced(g.out_width, size) for size in sizes}, reverse=True)
    heights = [_balanced(g.out_height, max(1, limit // width)) for width in widths]
    return sorted({1, *heights}, reverse=True), widths


def _chunked(g: Geometry, config: dict[str, Any]) -> int:
    """How many there are of what ``chunk`` groups into tasks: block rows, or tiles."""
    if config["order"] == "pixel":
        return g.rows
    return math.prod(g.tiles(config["oh_tile"], config["ow_tile"]))


def _default(
    w: Conv2dWorkload, g: Geometry, target: Target, heights: list[int], widths: list[int]
) -> dict[str, int | str]:
    """The tile whose channels stay in L1, else the largest; all block rows in one task."""
    limit = max_accumulators(target)
    l1 = target.big.l1d_kib * 1024

    def cost(tile: tuple[int, int]) -> float:
        pixels = tile[0] * tile[1]
        count = math.prod(g.tiles(*tile))
        overhead = 2 if 4 * g.in_blocks * g.v * pixels <= l1 else 4
        return count * (max(pixels, LATENCY) + overhead)

    tiles = [(h, t) for h in heights for t in widths if h * t <= limit]
    oh_tile, ow_tile = min(tiles, key=lambda t: (cost(t), t))
    tasks = w.batch * math.prod(g.tiles(oh_tile, ow_tile))
    chunks = [c for c in (*CHUNKS, g.rows) if c <= g.rows]
    enough = [c for c in chunks if tasks * ceil_div(g.rows, c) >= 4 * target.cores]
    return {
        "oh_tile": oh_tile, "ow_tile": ow_tile, "order": "pixel",
        "chunk": max(enough, default=1), "unroll": 1, "index": "offset",
    }  # fmt: skip


def _loops(buffers: SparseBuffers, w: Conv2dWorkload, g: Geometry, config: Config) -> None:
    oh_tile, ow_tile = config.int("oh_tile"), config.int("ow_tile")
    chunk = config.int("chunk")
    down, across = g.tiles(oh_tile, ow_tile)
    views = Views(buffers)
    by_pixel = config["order"] == "pixel"
    outer, inner = (down * across, g.rows) if by_pixel else (g.rows, down * across)
    chunks = ceil_div(inner, chunk)
    with builder.parallel(0, w.batch * outer * chunks) as task:
        n = bind("n", task // (outer * chunks))
        first = bind("first", task // chunks % outer)
        begin = bind("begin", task % chunks * chunk)
        with builder.serial(0, tirx.min(inner - begin, chunk)) as i:
            second = bind("second", begin + i)
            tile, row = (first, second) if by_pixel else (second, first)
            y = bind("y", tirx.min(tile // across * oh_tile, g.out_height - oh_tile))
            x = bind("x", tirx.min(tile % across * ow_tile, g.out_width - ow_tile))
            _tile(buffers, views, w, g, config, n, row, y, x)


def _tile(
    buffers: SparseBuffers, views: Views, w: Conv2dWorkload, g: Geometry, config: Config,
    n: Any, row: Any, y: Any, x: Any,
) -> None:  # fmt: skip
    """Emit one block row over one tile of pixels, from their sums to the stores."""
    pixels = [(i, j) for i in range(config.int("oh_tile")) for j in range(config.int("ow_tile"))]

    def element(y: Any, x: Any) -> Any:
        return (y * g.stride_h * g.width + x * g.stride_w) * g.v

    base = bind("base", n * (g.in_blocks * g.pixels * g.v) + element(y, x))

    def decode(index: Any) -> Any:
        return base + (index if config["index"] == "offset" else g.element(index))

    offsets = [element(i, j) for i, j in pixels]
    sums = sum_pixels(buffers, row, views.data, offsets, g.v, config.int("unroll"), decode)
    bias = None if buffers.bias is None else bind("bias", load(buffers.bias, row, 0, lanes=g.v))
    first = bind("first", (((n * g.rows + row) * g.out_height + y) * g.out_width + x) * g.v)
    for number, (i, j) in enumerate(pixels):
        at = first + (i * g.out_width + j) * g.v
        value = apply_epilogue(
            sums.total(number),
            w.epilogue,
            bias=lambda: bias,
            residual=partial(load, views.residual, at, lanes=g.v),
        )
        store(views.out, value, at, lanes=g.v)
