"""Direct convolution in NCHW<v>c: a register tile of oc_tile channel blocks x pixels.

In loops, for one image (v lanes are one vector register)::

    for oc, oh, ow, v:                                       # before
        for ic, kh, kw: out += x * w

    parallel for task in (spatial block):                    # after, order = "row"
        image = the pixels this task reads, zeros around     # pad = "task"
        for oc outer, tile in the block:
            acc[oc_tile][oh_tile][ow_tile][v] = 0            # registers
            for ic block, kh, kw, ic inner:
                unrolled for pixels, oc_tile: acc += x (broadcast) * w (vector)
            unrolled: out = clip(acc + bias + residual)

order = "oc" has oc outer in the task and makes the image once, ahead (pad = "root"). Where nothing
is padded there need be no image (pad = "none"); a 1x1 convolution may have one of just the pixels
it reads, copied channel block by channel block as prefetchers like it. A 1x1 stride-1 convolution
without padding sees the data as one row of H*W pixels. ``chunk`` is the number of tiles (of rows of
tiles, where the image has rows) of a spatial block.

Tiles at a ragged border are moved back to end there: the pixels they share with their neighbours
are computed twice, to the same bits.
"""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import builder
from tvmx.ir import PLAIN, Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Accumulators,
    ConvGeometry,
    DirectEmitter,
    FloatForm,
    Kernel,
    Part,
    ScheduleTemplate,
    WordImage,
    Words,
    clipped,
    divisors,
    fits_registers,
    flat,
    float_form,
    line_cycles,
    load,
    multiply_block,
    multiply_rows,
    pack_conv_weight,
    pack_vector,
    store,
    tile_cycles,
)

MAX_OC_TILE = 6
CHUNKS = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 28)
NAMES = ("oc_tile", "oh_tile", "ow_tile", "order", "chunk", "pad", "ic_chunk")
IC_CHUNKS = (64, 128, 256)
COPY_CYCLES = 3
"""Modelled cycles to copy one vector into an image."""
SUM_CYCLES = 3
"""Modelled cycles to store one vector of sums and load it again."""
STREAMS = 16
"""Places in memory that prefetchers follow at a time."""
TASK_CYCLES = 2_000
"""Modelled cycles to start a task, on top of its work."""

Tile = tuple[int, int, int]
Geometry = ConvGeometry[FloatForm]


class Conv2dDirect(ScheduleTemplate):
    """NCHW<v>c in and out (NCHW in for fewer input channels than lanes); f32."""

    name = "conv2d_direct"
    op = "conv2d"
    priority = 10

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if workload.dtype != "float32":
            return f"computes float32, not {workload.dtype}"
        v = target.lanes("float32")
        if workload.groups > 1:
            per_group = (
                workload.in_channels // workload.groups,
                workload.out_channels // workload.groups,
            )
            if any(c % v for c in per_group):
                return f"channels per group {per_group} are not multiples of {v} lanes"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (PLAIN if workload.in_channels < target.lanes("float32") else layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        g = _geometry(workload, target)
        tiles = _ranked_tiles(workload, g, target)
        legal = set(tiles)
        best = min(
            _candidates(workload, g, target, tiles[:6]),
            key=lambda c: (_cycles(workload, g, target, *c), c),
        )
        return Space(
            {
                "oc_tile": sorted({t[0] for t in tiles}),
                "oh_tile": sorted({t[1] for t in tiles}),
                "ow_tile": sorted({t[2] for t in tiles}),
                "order": ["oc", "row"],
                "chunk": list(CHUNKS),
                "pad": _pads(workload, g),
                "ic_chunk": _ic_chunks(g),
            },
            default=dict(zip(NAMES, (*best[0], *best[1:]), strict=True)),
            constraint=lambda c: (
                (c["oc_tile"], c["oh_tile"], c["ow_tile"]) in legal
                and c["chunk"] <= g.units(c["oh_tile"], c["ow_tile"])
                and (c["pad"] != "task" or c["order"] == "row")
                and (c["chunk"] > 1 or not c["ic_chunk"])
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        g = _geometry(workload, target, gather=config["pad"] != "none")
        return Kernel(
            func=_Emitter(workload, g, config).function(),
            pack_weight=lambda w: pack_conv_weight(w, g.form.lanes, g.out_blocks, g.block_words),
            pack_bias=lambda b: pack_vector(b, g.form.lanes, g.out_blocks),
        )


def _geometry(w: Conv2dWorkload, target: Target, *, gather: bool = False) -> Geometry:
    return ConvGeometry.of(w, float_form(target), gather=gather)


def _pads(w: Conv2dWorkload, g: Geometry) -> list[str]:
    """Where an image may be made."""
    if g.staged:
        return ["root", "task"]
    if w.kernel != (1, 1):
        return ["none"]
    return ["none", "task"] if g.is_flat else ["none", "root", "task"]


def _ic_chunks(g: Geometry) -> list[int]:
    """Input channels summed over at a time; 0 is all. Tiles of one task have it in common."""
    channels = g.group_in_blocks * g.block_words
    return [0, *(c for c in IC_CHUNKS if c < channels and not g.plain)]


def _ranked_tiles(w: Conv2dWorkload, g: Geometry, target: Target) -> list[Tile]:
    """(oc_tile, oh_tile, ow_tile) that do not spill, best first: five per oc_tile."""
    oc_tiles = [d for d in divisors(g.group_out_blocks) if d <= MAX_OC_TILE]
    if g.groups == 1:
        oc_tiles = list(range(1, min(g.out_blocks, MAX_OC_TILE) + 1))

    def cycles(tile: Tile) -> float:
        return _tile_count(g, tile) * tile_cycles(target, tile[0], tile[1] * tile[2], _depth(w, g))

    best: list[Tile] = []
    for oc in oc_tiles:
        fitting = [
            (oc, h, p)
            for p in range(1, min(g.out_width, target.vector_registers) + 1)
            for h in range(1, min(g.out_height, 1 if g.is_flat else 4) + 1)
            if fits_registers(target, oc, h * p) and (h == 1 or p == g.out_width)
        ]
        best += sorted(fitting, key=lambda t: (cycles(t), t))[:5]
    return sorted(best, key=lambda t: (cycles(t), t))


def _tile_count(g: Geometry, tile: Tile) -> int:
    return ceil_div(g.out_blocks, tile[0]) * math.prod(g.tiles(*tile[1:]))


def _depth(w: Conv2dWorkload, g: Geometry) -> int:
    """Steps of the reduction behind one output element."""
    return g.group_in_blocks * g.block_words * w.kernel[0] * w.kernel[1]


def _candidates(
    w: Conv2dWorkload, g: Geometry, target: Target, tiles: list[Tile]
) -> list[tuple[Tile, str, int, str, int]]:
    # In-order cores lose by the sums' way there and back what L1 saves them (llvm-mca's A53).
    ic_chunks = [0] if target.big.in_order else _ic_chunks(g)
    return [
        (tile, order, chunk, pad, ic_chunk)
        for tile in tiles
        for order in ("oc", "row")
        for chunk in CHUNKS
        if chunk <= g.units(*tile[1:])
        for pad in _pads(w, g)
        if pad != "task" or order == "row"
        for ic_chunk in (ic_chunks if chunk > 1 else [0])
    ]


def _cycles(
    w: Conv2dWorkload, g: Geometry, target: Target, tile: Tile, order: str, chunk: int, pad: str,
    ic_chunk: int,
) -> float:  # fmt: skip
    """Modelled cycles of one image on the target's cores."""
    lane, (oc, oh, ow) = 4 * g.form.lanes, tile
    oc_tiles, units = ceil_div(g.out_blocks, oc), g.units(oh, ow)
    blocks = ceil_div(units, chunk)
    tiles_per_block = chunk * (1 if g.is_flat else ceil_div(g.out_width, ow))
    work = oc_tiles * blocks * tiles_per_block * tile_cycles(target, oc, oh * ow, _depth(w, g))
    # Bytes of the image, of what one block reads of it, of all weights, of one oc tile's.
    gathered = pad != "none" and w.kernel == (1, 1)
    steps = (1, 1) if gathered else w.strides
    rows, columns = (1, chunk * ow) if g.is_flat else (chunk * oh, g.out_width)

    def extent(rows: int, columns: int) -> int:
        height, width = ((k - 1) * d + 1 for k, d in zip(w.kernel, w.dilation, strict=True))
        return ((rows - 1) * steps[0] + height) * ((columns - 1) * steps[1] + width)

    pixel = 4 * g.words
    image = pixel * extent(g.out_height, g.out_width)
    block = pixel * extent(min(rows, g.out_height), min(columns, g.out_width))
    weights = lane * g.out_blocks * _depth(w, g)
    tile_weights = weights / oc_tiles

    def line(working_set: float, *, scattered: bool = False) -> float:
        """Per byte."""
        return line_cycles(target, working_set, scattered=scattered) / 64

    # The weights of a tile serve the block's tiles, and a tile's pixels the oc tile's.
    parts = ceil_div(g.group_in_blocks * g.block_words, ic_chunk) if ic_chunk else 1
    reread = tile_weights + pixel * extent(oh, ow)

    def weight_line(working_set: float) -> float:
        near = working_set < 2 * 1024 * target.big.l1d_kib  # part of it stays in L1
        return line(working_set) * (0.5 if near else 1.0)

    # With parts all tiles of the block but the first find a part's weights.
    tiles_after = tiles_per_block - 1
    lines = weight_line(reread) + tiles_after * weight_line(reread / parts)
    cycles = oc_tiles * blocks * tile_weights * lines
    # Between the parts of the input blocks the sums of all tiles of the block wait in a cache.
    sums = tiles_per_block * oc * oh * ow * lane
    moved = oc_tiles * blocks * sums * (parts - 1)
    cycles += moved * (SUM_CYCLES / lane + line(sums + reread / parts))
    if order == "row":
        cycles += blocks * weights * line(weights + block)
        cycles += blocks * oc_tiles * block * line(block + 2 * tile_weights)
    else:
        cycles += weights * line(math.inf) + oc_tiles * image * line(1.5 * image)
    if pad == "none":
        # All channel blocks of a tile are read in turn.
        cycles += image * line(math.inf, scattered=g.in_blocks > STREAMS)
    else:
        copied = block * blocks if pad == "task" else image
        cycles += copied / lane * COPY_CYCLES
        cycles += image * line(math.inf) + copied * line(block if pad == "task" else image)
    tasks = w.batch * blocks * (1 if order == "row" else oc_tiles)
    idle = ceil_div(tasks, target.cores) * target.cores / tasks
    return float((cycles + work) * idle + tasks * TASK_CYCLES)


class _Emitter(DirectEmitter):
    """The float tile and what is around it."""

    def _arguments(self) -> None:
        w, g, v = self.w, self.g, self.v
        blocks = (w.in_channels,) if g.plain else (g.in_blocks,)
        lanes = () if g.plain else (v,)
        shape = (w.batch, g.out_blocks, w.out_height, w.out_width, v)
        weight = (g.out_blocks, g.group_in_blocks, *w.kernel, g.block_words, v)

        def argument(name: str, shape: tuple[int, ...]) -> Any:
            return builder.arg(name, builder.buffer(shape, "float32"))

        has = w.epilogue
        data = argument("data", (w.batch, *blocks, w.height, w.width, *lanes))
        weights = argument("weight", weight)
        bias = argument("bias", (g.out_blocks, v)) if has.bias else None
        residual = argument("residual", shape) if has.residual else None
        out = argument("out", shape)
        self.image = WordImage(w, g, flat(data))
        self.weight, self.out = flat(weights), flat(out)
        self.bias = None if bias is None else flat(bias)
        self.residual = None if residual is None else flat(residual)

    def _tile(
        self, words: Words, n: Any, c: Any, y: Any, x: Any, down: Any, across: Any, part: Part
    ) -> None:
        g, step = self.g, self.g.image_step
        sums = Accumulators(self.oc * self.oh * self.ow, self.v)
        if not part.starts:
            sums.restore(part.sums, part.at)
        block = (c // g.group_out_blocks) * g.group_in_blocks if g.groups > 1 else 0
        start = builder.Bind(
            words.start + block * words.block + down * step[0] * words.row
            + across * step[1] * words.column
        )  # fmt: skip
        self._reduce(words, sums, start, c, part)
        if part.ends:
            self._write(sums, n, c, y + down, x + across)
        else:
            sums.save(part.sums, part.at)

    def _reduce(self, words: Words, sums: Accumulators, start: Any, c: Any, part: Part) -> None:
        """Emit the loops over a part's input channels and kernel taps.

        Where a step is short its rows are the inner loop: LLVM would unroll the columns, keep in
        registers the pixels that they share, and spill the sums.
        """
        (kh, kw), (dh, dw), g, v = self.w.kernel, self.w.dilation, self.g, self.v
        blocks, q, step = g.group_in_blocks, g.block_words, g.image_step
        depth = blocks * kh * kw * q
        rows = [i * step[0] * words.row for i in range(self.oh)]
        loops = [part.blocks, kw, kh] if q == 1 else [part.blocks, kh, kw]
        with (
            builder.serial(0, loops[0]) as number,
            builder.serial(0, loops[1]) as middle,
            builder.serial(0, loops[2]) as inner,
        ):
            b = part.first + number
            rx, ry = (middle, inner) if q == 1 else (inner, middle)
            across = (rx % 2) * words.half + rx // 2 if g.split else rx * dw * words.column
            data = builder.Bind(start + b * words.block + ry * dh * words.row + across)
            at = builder.Bind((((c * blocks + b) * kh + ry) * kw + rx) * (q * v))

            def weights(r: Any) -> list[Any]:
                return [
                    load(self.weight, at + (o * depth + r) * v, lanes=v) for o in range(self.oc)
                ]

            if q == 1 and step[1] == 1:
                places = [(words.buffer, data + row) for row in rows]
                multiply_rows(sums, g.form, places, self.ow, weights(0))
            else:
                columns = [j * step[1] * words.column for j in range(self.ow)]
                pixels = [(words.buffer, data + (row + j)) for row in rows for j in columns]
                multiply_block(sums, g.form, q, pixels, weights)

    def _write(self, sums: Accumulators, n: Any, c: Any, y: Any, x: Any) -> None:
        g, v = self.g, self.v
        first = builder.Bind((((n * g.out_blocks + c) * g.out_height + y) * g.out_width + x) * v)
        for o in range(self.oc):
            bias = None
            if self.bias is not None:
                bias = builder.Bind(load(self.bias, (c + o) * v, lanes=v))
            for i in range(self.oh):
                for j in range(self.ow):
                    at = first + ((o * g.out_height + i) * g.out_width + j) * v
                    value = sums.total((o * self.oh + i) * self.ow + j)
                    if bias is not None:
                        value = value + bias
                    if self.residual is not None:
                        value = value + load(self.residual, at, lanes=v)
                    store(self.out, clipped(value, self.w.epilogue, v), at, lanes=v)
