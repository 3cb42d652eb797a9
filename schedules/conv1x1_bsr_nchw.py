"""Block-sparse 1x1 convolution in plain NCHW: blocks of 4 output x 1 input channels.

In loops, for one image (a vector holds ``lanes`` neighbouring pixels)::

    for oc, pixel: for ic: out += x * w                      # before; most w[4 oc][ic] are zero

    parallel for task in (run of tiles, group of oc / 4):    # after
        for row of 4 oc in the group, tile in the run:
            acc[4][vectors][lanes] = 0                       # registers
            for k in indptr[row] .. indptr[row + 1]:         # the blocks that were kept
                unrolled for 4, vectors: acc += w[k][oc] (broadcast) * x[indices[k]] (vector)
            unrolled: out = clip(acc + bias + residual)

The ``groups`` of rows hold about as many blocks each, so that threads finish together. A tile is
``pixels`` in memory order, any number of them: its last vector, and the last tile, are moved back
to end at the border, and what they share with their neighbours is computed twice, to the same
bits. Images smaller than a vector have shorter ones. With stride 2 the pixels that count are first
gathered to an image of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvmx._tvm import builder, tirx
from tvmx.ir import PLAIN, BlockSparsity, Config, Conv2dWorkload, Space, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Accumulators,
    Kernel,
    ScheduleTemplate,
    SparseBuffers,
    Views,
    apply_epilogue,
    bind,
    block_sparse_kernel,
    emit_kernel,
    for_group,
    for_kept_blocks,
    index_dtype,
    is_x86,
    load,
    refuse_pointwise,
    refuse_sparsity,
    sparsity_levels,
    spread,
    store,
)

ROWS = 4
"""Output channels of a block."""
RUNS = (1, 2, 4, 8, 16)
GROUPS = (1, 2, 4, 8, 16, 32)
UNROLLS = (1, 2, 4)


class Conv1x1BsrNchw(ScheduleTemplate):
    """NCHW in and out, blocks of 4x1; f32."""

    name = "conv1x1_bsr_nchw"
    op = "conv2d"
    sparse = True
    priority = 30

    def supports(self, workload: Any, target: Target) -> str | None:
        return refuse_pointwise(workload, self.op) or refuse_sparsity(workload, ROWS)

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        if refuse_pointwise(workload, self.op):
            return ()
        return sparsity_levels(ROWS, workload.out_channels, workload.in_channels)

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (PLAIN, PLAIN)

    def space(self, workload: Any, target: Target) -> Space:
        pixels, rows = _sizes(workload)
        tiles = _tiles(workload, target)
        runs = [r for r in RUNS if r <= max(1, pixels // tiles[-1])]
        groups = [g for g in GROUPS if g <= rows]
        enough = [
            g for g in groups if workload.batch * ceil_div(pixels, tiles[0]) * g >= 2 * target.cores
        ]
        return Space(
            {"pixels": tiles, "run": runs, "groups": groups, "unroll": list(UNROLLS)},
            default={
                "pixels": tiles[0], "run": 1, "groups": min(enough, default=groups[-1]),
                "unroll": 1,
            },
            constraint=lambda c: c["run"] <= ceil_div(pixels, c["pixels"]),
        )  # fmt: skip

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        sparsity = BlockSparsity.parse(workload.sparsity)
        assert sparsity is not None
        lanes = _lanes(workload, target)
        dtype, groups = index_dtype(workload.in_channels - 1), config.int("groups")
        func = emit_kernel(
            workload,
            workload.data_shape,
            workload.out_shape,
            dtype,
            groups,
            lambda buffers: _loops(buffers, workload, lanes, config),
        )
        return block_sparse_kernel(func, sparsity, dtype, lambda channels: channels, groups)


def _sizes(w: Conv2dWorkload) -> tuple[int, int]:
    """Pixels of an output channel, and block rows."""
    return w.out_height * w.out_width, ceil_div(w.out_channels, ROWS)


def _lanes(w: Conv2dWorkload, target: Target) -> int:
    """Pixels of a vector: the register's lanes, or the power of two a small image fills."""
    largest = 1 << (_sizes(w)[0].bit_length() - 1)
    return min(target.lanes("float32"), largest)


def _tiles(w: Conv2dWorkload, target: Target) -> list[int]:
    """Pixels per tile, of vectors that do not spill beside the weights; best first by a model."""
    pixels, lanes = _sizes(w)[0], _lanes(w, target)
    registers = target.vector_registers
    most = (registers - ROWS - 1 if is_x86(target) else registers // 2) // ROWS
    sizes = {_tile_of(pixels, vectors * lanes, lanes) for vectors in range(1, most + 1)}
    l1 = target.big.l1d_kib * 1024

    def cost(tile: int) -> int:
        """Multiply-adds and loads of a step; vectors are dear across cache lines and from L2."""
        vectors = ceil_div(tile, lanes)
        load = 1 + (pixels % lanes != 0) + (4 * w.in_channels * tile > l1)
        return ceil_div(pixels, tile) * (ROWS * vectors + ROWS + vectors * load)

    return sorted(sizes, key=lambda tile: (cost(tile), tile))


def _tile_of(pixels: int, size: int, lanes: int) -> int:
    """The tile of at most ``size`` that cuts the image into as few, evenly; a vector at least."""
    return max(lanes, ceil_div(pixels, ceil_div(pixels, size)))


def _loops(buffers: SparseBuffers, w: Conv2dWorkload, lanes: int, config: Config) -> None:
    tile, run, groups = (config.int(k) for k in ("pixels", "run", "groups"))
    pixels = _sizes(w)[0]
    tiles = ceil_div(pixels, tile)
    runs = ceil_div(tiles, run)
    views = Views(buffers)
    source = views.data if w.strides == (1, 1) else _gathered(buffers, w)
    vectors = [min(at, tile - lanes) for at in range(0, tile, lanes)]
    with builder.parallel(0, w.batch * runs * groups) as task:
        n = bind("n", task // (runs * groups))
        begin = bind("begin", task // groups % runs * run)
        with (
            for_group(buffers.splits, bind("group", task % groups)) as row,
            builder.serial(0, tirx.min(tiles - begin, run)) as i,
        ):
            pixel = bind("pixel", tirx.min((begin + i) * tile, pixels - tile))
            base = bind("base", n * (w.in_channels * pixels) + pixel)
            sums = _sums(buffers, source, row, base, vectors, lanes, pixels, config.int("unroll"))
            _store(buffers, views, w, sums, n, row, pixel, vectors)


def _gathered(buffers: SparseBuffers, w: Conv2dWorkload) -> Any:
    """Emit the gathering of the pixels a strided convolution reads; returns them as one axis."""
    pixels = _sizes(w)[0]
    image = builder.alloc_buffer((w.batch * w.in_channels * pixels,), "float32")
    with builder.parallel(0, w.batch * w.in_channels) as plane:
        n = bind("n", plane // w.in_channels)
        channel = bind("channel", plane % w.in_channels)
        with builder.grid(w.out_height, w.out_width) as (y, x):
            value = load(buffers.data, n, channel, y * w.strides[0], x * w.strides[1])
            store(image, value, plane * pixels + y * w.out_width + x)
    return image


def _sums(
    buffers: SparseBuffers, source: Any, row: Any, base: Any, vectors: list[int], lanes: int,
    pixels: int, unroll: int,
) -> Accumulators:  # fmt: skip
    """Emit the sums of four output channels over a tile: sum ``4 * vector + channel``."""
    sums = Accumulators(ROWS * len(vectors), lanes)

    def step(block: Any, channel: Any, position: int) -> None:
        first = bind("first", base + channel * pixels)
        weights = [
            bind("weight", spread(load(buffers.weight, block, oc), lanes)) for oc in range(ROWS)
        ]
        for vector, at in enumerate(vectors):
            image = bind("image", load(source, first + at, lanes=lanes))
            for oc, weight in enumerate(weights):
                sums.add(ROWS * vector + oc, image * weight, position)

    for_kept_blocks(buffers, row, unroll, step)
    return sums


def _store(
    buffers: SparseBuffers, views: Views, w: Conv2dWorkload, sums: Accumulators, n: Any, row: Any,
    pixel: Any, vectors: list[int],
) -> None:  # fmt: skip
    """Emit the epilogue and the stores of four output channels, or of those that exist."""
    pixels, lanes = _sizes(w)[0], sums.lanes

    def channel(oc: int) -> None:
        first = bind("first", (n * w.out_channels + row * ROWS + oc) * pixels + pixel)
        bias = None if buffers.bias is None else spread(load(buffers.bias, row, oc), lanes)
        for vector, at in enumerate(vectors):
            value = apply_epilogue(
                sums.total(ROWS * vector + oc),
                w.epilogue,
                bias=lambda: bias,
                residual=partial(load, views.residual, first + at, lanes=lanes),
            )
            store(views.out, value, first + at, lanes=lanes)

    for oc in range(ROWS):
        if oc == 0 or w.out_channels % ROWS == 0:
            channel(oc)
            continue
        with builder.If(row * ROWS + oc < w.out_channels), builder.Then():
            channel(oc)
