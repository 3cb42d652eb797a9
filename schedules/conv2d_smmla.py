"""Direct int8 convolution by Arm's matrix product of bytes (i8mm), NCHW4c in and out.

``smmla`` multiplies 2 pixels x 8 channels by 8 channels x 2 outputs: 32 multiply-adds, twice
those of ``sdot``. In loops, for one image::

    for oc, oh, ow: out = requantise(sum over ic, kh, kw of x * w)          # before

    parallel for task in (spatial block):                    # after, order = "row"
        image = [ic / 8][pixel][8 channels], zero point around                 # pad = "task"
        for oc outer, tile in the block:
            acc[oc_tile][2][pairs of pixels][2 pixels][2 outputs] = 0          # int32, registers
            for ic / 8, kh, kw:
                unrolled for pairs, oc_tile, 2: acc += x (2 x 8) * w (8 x 2)   # smmla
            unrolled: out = requantise(two acc, unzipped to 4 outputs of a pixel, + bias, residual)

The pixels of a tile are paired in their order, row after row: neighbours are one load, others
(strides without a split image, the end of one row and the start of the next) two halves. The image
puts the channels of two blocks of 4 beside each other; order = "oc" makes it once, ahead
(pad = "root"). With a stride of 2 its rows hold the even columns first, then the odd ones.

Weights are packed [oc / 4][ic / 8][kh][kw][2][2 outputs][8 channels].
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tvmx._tvm import builder, tirx
from tvmx.ir import ROUNDINGS, Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.numerics import LayerConstants
from tvmx.targets import Target
from tvmx.templates import (
    DEPTH,
    PARAMS,
    Constant,
    ConvGeometry,
    DirectEmitter,
    DotForm,
    Kernel,
    Part,
    ScheduleTemplate,
    WordImage,
    Words,
    concat,
    divisors,
    epilogue_constants,
    factor,
    factor_buffer,
    finished,
    flat,
    half_pairs,
    has_mmla,
    in_squares,
    interleave,
    line_cycles,
    load,
    pack_mmla_weight,
    permuted,
    pixel_of,
    repeat,
    runs,
    smmla,
    spread,
    store,
)

V = 4
"""Channels of a block in memory."""
WORDS = DEPTH // V
FORM = DotForm("sdot", V, V)
"""The image's words are those of ``sdot``; two of them lie together."""
MAX_OC_TILE = 4
MOST_SUMS = 16
CHUNKS = (1, 2, 4, 7, 8, 14, 16)
TASK_UNITS = 0.15
"""What a task costs beside its units, in units."""
Tile = tuple[int, int, int]


class Conv2dSmmla(ScheduleTemplate):
    """NCHW4c in and out; int8 on cores with i8mm."""

    name = "conv2d_smmla"
    op = "conv2d"
    precision = "int8"
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 20
    preferred = 5

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if workload.dtype != "int8":
            return f"computes int8, not {workload.dtype}"
        if not has_mmla(target):
            return "needs a core with i8mm"
        per_group = (
            workload.in_channels // workload.groups, workload.out_channels // workload.groups,
        )  # fmt: skip
        if per_group[0] <= V:
            return f"{per_group[0]} input channels would leave half of each product empty"
        if workload.groups > 1 and (per_group[0] % DEPTH or per_group[1] % V):
            return f"channels per group {per_group} are not multiples of ({DEPTH}, {V})"
        return None

    def preference(self, workload: Any, target: Target) -> int:
        return self.preferred if _pays(workload) else self.priority

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (blocked(V), blocked(V))

    def space(self, workload: Any, target: Target) -> Space:
        g = _geometry(workload)
        tiles = _ranked_tiles(workload, g, target)
        return Space(
            {
                "oc_tile": sorted({t[0] for t in tiles}),
                "oh_tile": sorted({t[1] for t in tiles}),
                "ow_tile": sorted({t[2] for t in tiles}),
                "order": ["oc", "row"],
                "chunk": list(CHUNKS),
                "pad": ["root", "task"],
            },
            default=_default(workload, g, target, tiles[0]),
            constraint=lambda c: (
                _sums(c["oc_tile"], c["oh_tile"] * c["ow_tile"]) <= MOST_SUMS
                and c["chunk"] <= g.units(c["oh_tile"], c["ow_tile"])
                and (c["pad"] != "task" or c["order"] == "row")
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)

        def pack(layer: LayerConstants) -> tuple[Constant, ...]:
            constants = epilogue_constants(layer, workload.epilogue, V)
            return (pack_mmla_weight(layer.weight), *constants)

        func = _Emitter(workload, _geometry(workload), config, target).function()
        return Kernel(func=func, pack=pack)


def _geometry(w: Conv2dWorkload) -> ConvGeometry[DotForm]:
    g = ConvGeometry.of(w, FORM, gather=True)
    split = w.strides[1] == 2 and w.dilation[1] == 1 and w.kernel[1] > 1
    return dataclasses.replace(
        g, in_blocks=ceil_div(w.in_channels, DEPTH), block_words=WORDS, split=split,
        image_step=(g.image_step[0], 1 if split else g.image_step[1]),
    )  # fmt: skip


def _sums(oc_tile: int, pixels: int) -> int:
    """Vectors of sums of a tile."""
    return 2 * oc_tile * ceil_div(pixels, 2)


def _pays(w: Conv2dWorkload) -> bool:
    """Whether it beats sdot: not on one pixel, nor where the image serves one block of outputs."""
    if w.out_height * w.out_width == 1:
        return False
    return w.kernel != (1, 1) or w.out_channels > V


def _ranked_tiles(w: Conv2dWorkload, g: ConvGeometry[DotForm], target: Target) -> list[Tile]:
    """(oc_tile, oh_tile, ow_tile) that do not spill, best first: five per oc_tile."""
    depth = g.group_in_blocks * w.kernel[0] * w.kernel[1]

    def cycles(tile: Tile) -> float:
        count = ceil_div(g.out_blocks, tile[0]) * math.prod(g.tiles(*tile[1:]))
        return count * _tile_cycles(target, tile, depth)

    oc_tiles = [d for d in divisors(g.group_out_blocks) if d <= MAX_OC_TILE]
    if g.groups == 1:  # the last tile is moved back
        oc_tiles = list(range(1, min(g.out_blocks, MAX_OC_TILE) + 1))
    best: list[Tile] = []
    for oc in oc_tiles:
        fitting = [
            (oc, h, p)
            for p in range(1, min(g.out_width, MOST_SUMS) + 1)
            for h in range(1, min(g.out_height, 1 if g.is_flat else 4) + 1)
            if _sums(oc, h * p) <= MOST_SUMS and (h == 1 or p == g.out_width)
        ]
        best += sorted(fitting, key=lambda t: (cycles(t), t))[:5]
    return sorted(best, key=lambda t: (cycles(t), t))


def _tile_cycles(target: Target, tile: Tile, depth: int) -> float:
    """Modelled cycles of one tile over ``depth`` steps, its requantisation included."""
    oc, pixels = tile[0], tile[1] * tile[2]
    sums, pairs = _sums(oc, pixels), ceil_div(pixels, 2)
    torn = pairs - tile[1] * (tile[2] // 2)  # pairs that are no neighbours
    step = max((sums + torn) / 2, (2 * oc + pairs + torn) / 3, 4) + 0.5
    weights = 4 * DEPTH * oc * depth
    return depth * step + weights / 64 * line_cycles(target, weights) + 3.5 * oc * pixels + 20


def _default(
    w: Conv2dWorkload, g: ConvGeometry[DotForm], target: Target, tile: Tile
) -> dict[str, int | str]:
    """Tasks of rows where the weights stay in L2 and there are enough of them, else of blocks."""
    in_l2 = math.prod(w.weight_shape) <= target.big.l2_kib * 512
    row = in_l2 and w.batch * g.units(*tile[1:]) >= 2 * target.cores
    order = "row" if row else "oc"
    return {
        "oc_tile": tile[0], "oh_tile": tile[1], "ow_tile": tile[2],
        "order": order, "chunk": _chunk(w, g, target, tile, order),
        "pad": "task" if row else "root",
    }  # fmt: skip


def _chunk(
    w: Conv2dWorkload, g: ConvGeometry[DotForm], target: Target, tile: Tile, order: str
) -> int:
    """The chunk that computes fewest pixels twice, its image in L1, with work for all cores."""
    units = g.units(*tile[1:])
    slabs = w.batch * (1 if order == "row" else ceil_div(g.out_blocks, tile[0]))

    def in_l1(chunk: int) -> bool:
        rows, columns = (1, chunk * tile[2]) if g.is_flat else (chunk * tile[1], g.out_width)
        pixels = (
            ((rows - 1) * g.image_step[0] + (w.kernel[0] - 1) * w.dilation[0] + 1)
            * ((columns - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilation[1] + 1)
        )  # fmt: skip
        return V * g.words * pixels <= target.big.l1d_kib * 768

    enough = [
        c for c in CHUNKS if c <= units and slabs * ceil_div(units, c) >= 2 * target.cores
    ] or [1]  # fmt: skip
    fitting = [c for c in enough if in_l1(c)] or enough[:1]
    return min(fitting, key=lambda c: (ceil_div(units, c) * (c + TASK_UNITS), -c))


class _Image(WordImage):
    """The words of two blocks of channels beside each other."""

    def _copy_pixels(
        self, image: Any, at: Any, n: Any, block: Any, row: Any, column: Any, pixels: int
    ) -> None:
        first = self._sources(n, block, row, column)
        step = self.g.source_step[1]
        if step > 1:
            with builder.serial(0, pixels) as p:
                self._copy(image, at + p * WORDS, [f + p * (step * V) for f in first], 1)
        elif pixels < 4:
            for size, offset in runs(pixels, 4):
                self._copy(image, at + offset * WORDS, [f + offset * V for f in first], size)
        else:
            with builder.serial(0, ceil_div(pixels, 4)) as i:
                p = builder.Bind(tirx.min(i * 4, pixels - 4))  # the last vector is moved back
                self._copy(image, at + p * WORDS, [f + p * V for f in first], 4)

    def _copy_row(
        self, image: Any, at: Any, n: Any, block: Any, row: Any, column: Any, columns: int
    ) -> None:
        if not self.g.split:
            super()._copy_row(image, at, n, block, row, column, columns)
            return
        w, g = self.w, self.g
        top, left = w.padding[:2]
        source = builder.Bind(row - top)
        half = ceil_div(columns, 2)
        if any(w.padding):
            with builder.serial(0, columns) as i:
                store(image, spread(self._fill(), WORDS), at + i * WORDS, lanes=WORDS)
        with builder.If(tirx.all(source >= 0, source < g.height)), builder.Then():
            for odd in (0, 1):
                # Image columns 2i + odd have their pixel in the data from i = begin on.
                begin = max(0, ceil_div(left - odd, 2))
                end = ceil_div(min(columns, g.width + left) - odd, 2)
                first = self._sources(n, block, source, 2 * begin + odd - left)
                place = builder.Bind(at + (odd * half + begin) * WORDS)
                with builder.serial(0, max(0, end - begin)) as i:
                    self._copy(image, place + i * WORDS, [f + i * (2 * V) for f in first], 1)

    def _sources(self, n: Any, block: Any, row: Any, column: Any) -> list[Any]:
        """Where a pixel's channels are in the data: two blocks of 4, the last perhaps twice."""
        g, blocks = self.g, ceil_div(self.w.in_channels, V)
        # What stands in for a block that is not there meets weights of zero.
        places = (tirx.min(block * WORDS + k, blocks - 1) for k in range(WORDS))
        return [
            builder.Bind((((n * blocks + b) * g.height + row) * g.width + column) * V)
            for b in places
        ]

    def _copy(self, image: Any, at: Any, sources: list[Any], pixels: int) -> None:
        """Emit the copy of some neighbouring pixels."""
        planes = [self.form.words(load(self.data, s, lanes=V * pixels), pixels) for s in sources]
        store(image, interleave(planes[0], planes[1], pixels), at, lanes=WORDS * pixels)


class _Emitter(DirectEmitter):
    """The tile of pairs and what is around it."""

    def __init__(
        self, w: Conv2dWorkload, g: ConvGeometry[DotForm], config: Config, target: Target
    ) -> None:
        super().__init__(w, g, config)
        self.target = target
        pixels = [(i, j) for i in range(self.oh) for j in range(self.ow)]
        self.pairs = [pixels[i : i + 2] for i in range(0, len(pixels), 2)]

    def _arguments(self) -> None:
        w, g = self.w, self.g
        shape = (w.batch, g.out_blocks, w.out_height, w.out_width, V)
        weight = (g.out_blocks, g.group_in_blocks, *w.kernel, 2, 2 * DEPTH)

        def argument(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            return builder.arg(name, builder.buffer(shape, dtype))

        blocks = ceil_div(w.in_channels, V)
        data = argument("data", (w.batch, blocks, w.height, w.width, V), "int8")
        weights = argument("weight", weight, "int8")
        self.bias = argument("bias", (g.out_blocks, V), "int32")
        factors = factor_buffer(w.epilogue, g.out_blocks, V)
        self.multiplier = argument("multiplier", *factors)
        self.params = argument("params", (PARAMS,), "float32")
        residual = argument("residual", shape, w.out_dtype) if w.epilogue.residual else None
        out = argument("out", shape, w.out_dtype)
        self.image = _Image(w, g, flat(data), self.params)
        self.weight, self.out = flat(weights), flat(out)
        self.residual = None if residual is None else flat(residual)

    def _tile(
        self, words: Words, n: Any, c: Any, y: Any, x: Any, down: Any, across: Any, part: Part
    ) -> None:
        del part  # all input blocks: there is no ic_chunk here
        g = self.g
        step = g.image_step
        sums = builder.alloc_buffer((2 * self.oc * len(self.pairs) * V,), "int32", scope="local")
        for o in range(self.oc):
            bias = builder.Bind(load(self.bias, c + o, 0, lanes=V))
            for half in range(2):
                for pair in range(len(self.pairs)):
                    at = self._square(o, half, pair)
                    store(sums, half_pairs(bias, half), at, lanes=V)
        block = (c // g.group_out_blocks) * g.group_in_blocks if g.groups > 1 else 0
        start = builder.Bind(
            words.start + block * words.block + down * step[0] * words.row
            + across * step[1] * words.column
        )  # fmt: skip
        self._reduce(words, sums, start, c)
        self._write(sums, n, c, y + down, x + across)

    def _reduce(self, words: Words, sums: Any, start: Any, c: Any) -> None:
        """Emit the loops over input channels and kernel taps."""
        w, g = self.w, self.g
        (kh, kw), (dh, dw) = w.kernel, w.dilation
        blocks, wide = g.group_in_blocks, 4 * DEPTH
        with (
            builder.serial(0, blocks) as b,
            builder.serial(0, kh) as ry,
            builder.serial(0, kw) as rx,
        ):
            across = ((rx % 2) * words.half + rx // 2) if g.split else rx * dw
            at = builder.Bind(start + b * words.block + ry * dh * words.row + across * words.column)
            weight = builder.Bind((((c * blocks + b) * kh + ry) * kw + rx) * wide)
            self._step(words, sums, at, weight, blocks * kh * kw * wide)

    def _step(self, words: Words, sums: Any, at: Any, weight: Any, out_stride: int) -> None:
        """Emit the products of one step: 8 channels of every pair of pixels and of outputs."""
        columns = [(o, half) for o in range(self.oc) for half in range(2)]
        weights = [
            builder.Bind(load(self.weight, weight + o * out_stride + half * 16, lanes=16))
            for o, half in columns
        ]
        for number, pair in enumerate(self.pairs):
            rows = builder.Bind(self._pixels(words, at, pair))
            for (o, half), other in zip(columns, weights, strict=True):
                slot = self._square(o, half, number)
                store(sums, smmla(load(sums, slot, lanes=V), rows, other), slot, lanes=V)

    def _square(self, o: int, half: int, pair: int) -> int:
        """Where the sums of two outputs and two pixels are."""
        return ((2 * o + half) * len(self.pairs) + pair) * V

    def _pixels(self, words: Words, at: Any, pair: list[tuple[int, int]]) -> Any:
        """8 channels of two pixels (of one pixel twice, where its pair has no other)."""
        step = self.g.image_step
        offsets = [i * step[0] * words.row + j * step[1] * words.column for i, j in pair]
        if offsets[-1] == offsets[0] + WORDS:
            both = words.load(at + offsets[0], 2 * WORDS)
        else:
            single = [words.load(at + offset, WORDS) for offset in offsets]
            both = concat(single * (2 // len(single)), WORDS)
        return tirx.reinterpret("int8x16", both)

    def _write(self, sums: Any, n: Any, c: Any, y: Any, x: Any) -> None:
        """Emit the requantisation of the tile's sums and their stores, 16 bytes at once."""
        g = self.g
        first = builder.Bind((((n * g.out_blocks + c) * g.out_height + y) * g.out_width + x) * V)
        for o in range(self.oc):
            scales = factor(self.w.epilogue, lambda *at, c=c + o: builder.Bind(
                load(self.multiplier, *at, c, 0, lanes=V)
            ))  # fmt: skip
            for i in range(self.oh):
                for count, j in runs(self.ow, 4):
                    at = first + ((o * g.out_height + i) * g.out_width + j) * V
                    self._write_run(sums, scales, o, i * self.ow + j, count, at)

    def _write_run(
        self, sums: Any, scales: tuple[Any, ...], o: int, pixel: int, count: int, at: Any
    ) -> None:
        """Emit the outputs of neighbouring pixels; whole pairs are put in order as bytes."""
        lanes, order = count * V, list(range(count * V))
        squares = [
            [load(sums, self._square(o, half, pair), lanes=V) for half in range(2)]
            for pair in range(pixel // 2, ceil_div(pixel + count, 2))
        ]
        if count % 2 or pixel % 2:
            totals = [
                pixel_of(squares[(pixel + k) // 2 - pixel // 2], (pixel + k) % 2)
                for k in range(count)
            ]
        else:
            order = in_squares(count)
            totals = [square for pair in squares for square in pair]
        result = finished(
            concat(totals, V),
            tuple(permuted(repeat(scale, V, count), order) for scale in scales),
            self.params,
            self.target,
            self._residual(at, lanes, order),
            lanes,
            self.w.epilogue,
        )
        # The permutation swaps places pairwise: it is its own inverse.
        store(self.out, permuted(result, order), at, lanes=lanes)

    def _residual(self, at: Any, lanes: int, order: list[int]) -> Any | None:
        if self.residual is None:
            return None
        return permuted(load(self.residual, at, lanes=lanes), order)
