"""Direct int8 convolution in NCHW<v>c: dot products of bytes in a register tile.

In loops, for one image; a *word* is the 32 bits that one dot product reads of a pixel (``step``
neighbouring channels, see ``tvmx.templates.DotForm``)::

    for oc, oh, ow: out = requantise(sum over ic, kh, kw of x * w)          # before

    parallel for task in (spatial block):                    # after, order = "row"
        image = the words this task reads, zero point around # pad = "task"
        for oc outer, tile in the block:
            acc[oc_tile][oh_tile][ow_tile][v] = 0            # int32, registers
            for ic block, kh, kw, word:
                unrolled for pixels, oc_tile: acc += dot(word (broadcast), w (vector))
            unrolled: out = requantise(acc + bias, residual)

order = "oc" has oc outer in the task and makes the image once, ahead (pad = "root"). Where words
are bytes as they are in memory (Arm) and nothing is padded there is no image (pad = "none"). A
1x1 stride-1 convolution without padding sees the image as one row of H*W pixels. ``chunk`` is
the number of tiles (of rows of tiles, where the image has rows) of a spatial block.

Tiles at a ragged border are moved back to end there: the pixels they share with their neighbours
are computed twice, to the same integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from tvmx._tvm import builder, tirx
from tvmx.ir import PLAIN, ROUNDINGS, Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.numerics import LayerConstants
from tvmx.targets import Target
from tvmx.templates import (
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
    dot_form,
    epilogue_constants,
    factor,
    factor_buffer,
    finished,
    flat,
    is_x86,
    load,
    pack_dot_weight,
    repeat,
    runs,
    spread,
    spread_lane,
    store,
)

MAX_OC_TILE = 4
CHUNKS = (1, 2, 4, 7, 8, 14, 16)
TASK_UNITS = 0.15
"""What a task costs beside its units, in units."""
X86_SUMS = 10
"""Sums that hide the latency of dot products on two ports."""
EASY_SUMS = 20
"""Sums that leave registers for the constants of the requantisation (x86)."""


class Conv2dInt8(ScheduleTemplate):
    """NCHW<v>c in and out (NCHW in for fewer input channels than lanes); int8."""

    name = "conv2d_int8"
    op = "conv2d"
    precision = "int8"
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 10

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if workload.dtype != "int8":
            return f"computes int8, not {workload.dtype}"
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
        g = ConvGeometry.of(workload, dot_form(target))
        tiles = _ranked_tiles(workload, g, target)
        pads = ["root", "task"] if g.staged else ["none"]
        return Space(
            {
                "oc_tile": sorted({t[0] for t in tiles}),
                "oh_tile": sorted({t[1] for t in tiles}),
                "ow_tile": sorted({t[2] for t in tiles}),
                "order": ["oc", "row"],
                "chunk": list(CHUNKS),
                "pad": pads,
            },
            default=_default(workload, g, target, tiles[0]),
            constraint=lambda c: (
                _fits(target, c["oc_tile"], c["oh_tile"] * c["ow_tile"], g)
                and c["chunk"] <= g.units(c["oh_tile"], c["ow_tile"])
                and (c["pad"] != "task" or c["order"] == "row")
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        g = ConvGeometry.of(workload, dot_form(target))
        in_block = g.block_words * g.form.step

        def pack(layer: LayerConstants) -> tuple[Constant, ...]:
            correction = g.form.weight_correction(layer.weight)
            constants = epilogue_constants(
                layer, workload.epilogue, g.form.lanes, weight_correction=correction
            )
            return (pack_dot_weight(layer.weight, g.form, in_block), *constants)

        return Kernel(func=_Emitter(workload, g, config, target).function(), pack=pack)


def _fits(target: Target, oc_tile: int, pixels: int, g: ConvGeometry[DotForm]) -> bool:
    """Whether a tile's sums leave registers for its operands.

    Arm: half of the registers as for float tiles; less where two words of every pixel are loaded
    one by one, because LLVM then holds all of them and the halves of the weights.
    """
    sums = oc_tile * pixels * g.form.parts
    if is_x86(target):
        return sums + oc_tile + 2 <= target.vector_registers
    single_words = g.form.pairs and not g.by_lane
    return sums <= (
        3 * target.vector_registers // 8 if single_words else target.vector_registers // 2
    )


def _ranked_tiles(
    w: Conv2dWorkload, g: ConvGeometry[DotForm], target: Target
) -> list[tuple[int, int, int]]:
    """(oc_tile, oh_tile, ow_tile) that do not spill, best first: five per oc_tile."""
    oc_tiles = [d for d in divisors(g.group_out_blocks) if d <= MAX_OC_TILE]
    if g.groups == 1:
        oc_tiles = list(range(1, min(g.out_blocks, MAX_OC_TILE) + 1))
    depth = g.group_in_blocks * g.block_words * w.kernel[0] * w.kernel[1]

    def cycles(tile: tuple[int, int, int]) -> float:
        oc, pixels = tile[0], tile[1] * tile[2]
        count = ceil_div(g.out_blocks, oc) * math.prod(g.tiles(*tile[1:]))
        return count * _tile_cycles(target, oc, pixels, depth, g.form, w.epilogue.residual)

    best: list[tuple[int, int, int]] = []
    for oc in oc_tiles:
        fitting = [
            (oc, h, p)
            for p in range(1, min(g.out_width, target.vector_registers) + 1)
            for h in range(1, min(g.out_height, 1 if g.is_flat else 4) + 1)
            if _fits(target, oc, h * p, g) and (h == 1 or p == g.out_width)
        ]
        best += sorted(fitting, key=lambda t: (cycles(t), t))[:5]
    return sorted(best, key=lambda t: (cycles(t), t))


def _tile_cycles(
    target: Target, oc: int, pixels: int, depth: int, form: DotForm, residual: bool
) -> float:
    """Modelled cycles of one tile over ``depth`` words, its requantisation included."""
    sums = oc * pixels
    if is_x86(target):
        step = max(sums / 2, (oc + pixels) / 2, X86_SUMS / 2) + 0.5
        end = (8.0 if residual else 5.0) * (1.0 if sums <= EASY_SUMS else 1.4)
        return depth * step + end * sums + 20
    step = max(sums * form.parts, 8) + oc + pixels / 2 + 4 * max(0, oc - 2) + 1
    return depth * step + 10 * sums + 20


def _default(
    w: Conv2dWorkload, g: ConvGeometry[DotForm], target: Target, tile: tuple[int, int, int]
) -> dict[str, int | str]:
    """Tasks of rows where the weights stay in L2 and there are enough of them, else of blocks."""
    units = g.units(*tile[1:])
    in_l2 = math.prod(w.weight_shape) <= target.big.l2_kib * 512
    order = "row" if in_l2 and w.batch * units >= 2 * target.cores else "oc"
    pad = "none" if not g.staged else "task" if order == "row" else "root"
    return {
        "oc_tile": tile[0], "oh_tile": tile[1], "ow_tile": tile[2],
        "order": order, "chunk": _chunk(w, g, target, tile, order), "pad": pad,
    }  # fmt: skip


def _chunk(
    w: Conv2dWorkload,
    g: ConvGeometry[DotForm],
    target: Target,
    tile: tuple[int, int, int],
    order: str,
) -> int:
    """The chunk that computes fewest pixels twice, its image in L1, with work for all cores."""
    units = g.units(*tile[1:])
    slabs = w.batch * (1 if order == "row" else ceil_div(g.out_blocks, tile[0]))

    share = 0.9 if is_x86(target) else 0.75  # A72: two ways

    def in_l1(chunk: int) -> bool:
        rows, columns = (1, chunk * tile[2]) if g.is_flat else (chunk * tile[1], g.out_width)
        pixels = (
            ((rows - 1) * g.image_step[0] + (w.kernel[0] - 1) * w.dilation[0] + 1)
            * ((columns - 1) * g.image_step[1] + (w.kernel[1] - 1) * w.dilation[1] + 1)
        )  # fmt: skip
        return 4 * g.words * pixels <= target.big.l1d_kib * 1024 * share

    enough = [
        c for c in CHUNKS if c <= units and slabs * ceil_div(units, c) >= 2 * target.cores
    ] or [1]  # fmt: skip
    fitting = [c for c in enough if in_l1(c)] or enough[:1]
    return min(fitting, key=lambda c: (ceil_div(units, c) * (c + TASK_UNITS), -c))


class _Emitter(DirectEmitter):
    """The int8 tile and what is around it."""

    def __init__(
        self, w: Conv2dWorkload, g: ConvGeometry[DotForm], config: Config, target: Target
    ) -> None:
        super().__init__(w, g, config)
        self.form, self.target = g.form, target

    def _arguments(self) -> None:
        w, g, v = self.w, self.g, self.v
        blocks = (w.in_channels,) if g.plain else (g.in_blocks,)
        lanes = () if g.plain else (v,)
        shape = (w.batch, g.out_blocks, w.out_height, w.out_width, v)
        weight = (g.out_blocks, g.group_in_blocks, *w.kernel, g.block_words, v * self.form.step)

        def argument(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            return builder.arg(name, builder.buffer(shape, dtype))

        data = argument("data", (w.batch, *blocks, w.height, w.width, *lanes), "int8")
        weights = argument("weight", weight, "int8")
        self.bias = argument("bias", (g.out_blocks, v), "int32")
        factors = factor_buffer(w.epilogue, g.out_blocks, v)
        self.multiplier = argument("multiplier", *factors)
        self.params = argument("params", (PARAMS,), "float32")
        residual = argument("residual", shape, w.out_dtype) if w.epilogue.residual else None
        out = argument("out", shape, w.out_dtype)
        self.image = WordImage(w, g, flat(data), self.params)
        self.weight, self.out = flat(weights), flat(out)
        self.residual = None if residual is None else flat(residual)

    def _tile(
        self, words: Words, n: Any, c: Any, y: Any, x: Any, down: Any, across: Any, part: Part
    ) -> None:
        del part  # all input blocks: there is no ic_chunk here
        g, v, parts = self.g, self.v, self.form.parts
        step = g.image_step
        sums = builder.alloc_buffer(
            (self.oc * self.oh * self.ow * parts * v,), "int32", scope="local"
        )
        count = self.oc * self.oh * self.ow * parts
        for slot in range(count):
            store(sums, spread(tirx.const(0, "int32"), v), slot * v, lanes=v)
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
        blocks, q, wide = g.group_in_blocks, g.block_words, self.v * self.form.step

        def step(taps: list[tuple[Any, Any, Any]]) -> None:
            """One word of each (block, row, column) of the kernel, for all words of a block."""
            for word in range(q):
                places = [
                    (
                        builder.Bind(
                            start
                            + b * words.block
                            + ry * dh * words.row
                            + rx * dw * words.column
                            + word
                        ),
                        builder.Bind(
                            (((c * blocks + b) * kh + ry) * kw + rx) * (q * wide) + word * wide
                        ),
                    )
                    for b, ry, rx in taps
                ]
                self._step(words, sums, places, blocks * kh * kw * q * wide)

        if not self.form.pairs:
            self._taps(blocks, kw, lambda b, ry, rx: step([(b, ry, rx)]))
        elif blocks > 1:
            self._taps(
                blocks // 2, kw, lambda b, ry, rx: step([(b * 2, ry, rx), (b * 2 + 1, ry, rx)])
            )
            if blocks % 2:
                self._taps(1, kw, lambda _, ry, rx: step([(blocks - 1, ry, rx)]))
        else:
            if kw > 1:
                self._taps(
                    1, kw // 2, lambda b, ry, rx: step([(b, ry, rx * 2), (b, ry, rx * 2 + 1)])
                )
            if kw % 2:
                self._taps(1, 1, lambda b, ry, _: step([(b, ry, kw - 1)]))

    def _taps(self, blocks: int, columns: int, step: Callable[[Any, Any, Any], None]) -> None:
        """Emit ``step(block, row, column)`` over input blocks and the taps of the kernel.

        Where a step is short its rows are the inner loop: LLVM would unroll the columns, keep in
        registers the words that they share, and spill the sums.
        """
        rows = self.w.kernel[0]
        with builder.serial(0, blocks) as b:
            if self.g.block_words == 1:
                with builder.serial(0, columns) as rx, builder.serial(0, rows) as ry:
                    step(b, ry, rx)
            else:
                with builder.serial(0, rows) as ry, builder.serial(0, columns) as rx:
                    step(b, ry, rx)

    def _step(
        self, words: Words, sums: Any, places: list[tuple[Any, Any]], out_stride: int
    ) -> None:
        """Emit the dots of one step: a word of every pixel with a vector of every block."""
        v, parts, wide = self.v, self.form.parts, self.v * self.form.step
        weights = [
            [builder.Bind(load(self.weight, at + o * out_stride, lanes=wide)) for _, at in places]
            for o in range(self.oc)
        ]
        for pixel, data in self._pixel_words(words, [at for at, _ in places]):
            for o in range(self.oc):
                slots = [(o * self.oh * self.ow + pixel) * parts + p for p in range(parts)]
                old = [load(sums, s * v, lanes=v) for s in slots]
                for s, new in zip(slots, self.form.dot(old, data, weights[o]), strict=True):
                    store(sums, new, s * v, lanes=v)

    def _pixel_words(self, words: Words, starts: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Per pixel of the tile its words (one per start), each broadcast to a vector."""
        step = self.g.image_step
        for i in range(self.oh):
            row = i * step[0] * words.row
            if self.g.by_lane and self.ow >= 4:
                yield from self._by_lane(words, starts, i, row)
                continue
            for j in range(self.ow):
                at = row + j * step[1] * words.column
                spreads = [builder.Bind(spread(words.load(s + at), self.v)) for s in starts]
                yield i * self.ow + j, spreads

    def _by_lane(
        self, words: Words, starts: list[Any], i: int, row: int
    ) -> Iterator[tuple[int, list[Any]]]:
        """One row of :meth:`_pixel_words` by loads of four neighbours, the last moved back."""
        done = 0
        while done < self.ow:
            first = min(done, self.ow - 4)
            four = [builder.Bind(words.load(s + (row + first), 4)) for s in starts]
            for lane in range(done - first, 4):
                spreads = [spread_lane(vector, lane, self.v) for vector in four]
                yield i * self.ow + first + lane, spreads
            done = first + 4

    def _write(self, sums: Any, n: Any, c: Any, y: Any, x: Any) -> None:
        """Emit the requantisation of the tile's sums and their stores, 16 bytes at once."""
        g, v, epilogue = self.g, self.v, self.w.epilogue
        first = builder.Bind((((n * g.out_blocks + c) * g.out_height + y) * g.out_width + x) * v)
        for o in range(self.oc):
            bias = builder.Bind(load(self.bias, c + o, 0, lanes=v))
            scales = factor(epilogue, lambda *at, c=c + o: builder.Bind(
                load(self.multiplier, *at, c, 0, lanes=v)
            ))  # fmt: skip
            for i in range(self.oh):
                for count, j in runs(self.ow, max(1, 16 // v)):
                    at = first + ((o * g.out_height + i) * g.out_width + j) * v
                    pixel = (o * self.oh + i) * self.ow + j
                    totals = [self._total(sums, pixel + k) for k in range(count)]
                    lanes = count * v
                    result = finished(
                        concat(totals, v) + repeat(bias, v, count),
                        tuple(repeat(scale, v, count) for scale in scales),
                        self.params,
                        self.target,
                        self._residual(at, lanes),
                        lanes,
                        epilogue,
                    )
                    store(self.out, result, at, lanes=lanes)

    def _total(self, sums: Any, slot: int) -> Any:
        v, parts = self.v, self.form.parts
        every = [load(sums, (slot * parts + p) * v, lanes=v) for p in range(parts)]
        return self.form.total(every)

    def _residual(self, at: Any, lanes: int) -> Any | None:
        if self.residual is None:
            return None
        return load(self.residual, at, lanes=lanes)
