"""Winograd F(m x m, 3x3) convolution in NCHW<v>c, m = 2, 4 or 6, in strips of tiles.

A tile of m x m output pixels is computed from a patch d of (m + 2)^2 image pixels (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2015; matrices: ``tvmx.templates.Winograd``)::

    U = G g G'      of each 3x3 filter g, once, at compile time (pack_weight)
    V = B' d B      of each patch and input channel
    M = sum over input channels of U * V, for each of the (m + 2)^2 places: as many matrix products
    Y = A' M A      the m x m output pixels

In loops, v lanes are one vector register; a *strip* is ``chunk`` runs of ``p_tile`` tiles::

    parallel for strip:
        for run, ic block, tile: V = transform of the patch          # stays in L2
        for group of ``oc_chunk`` oc tiles:
            for place, oc tile of the group, run:
                acc[oc_tile][p_tile][v] = 0                          # registers
                for ic block, ic inner: acc += V (broadcast) * U (vector)
                M = acc                                              # stays in L2
            for oc block of the group, tile: out = clip(transform of M + bias + residual)

Where an image makes fewer strips than two per core, the strips are serial, the patches of one are
transformed in parallel, and so are its groups computed. Strips, runs, oc tiles and groups at a
ragged end are moved back to end there: what they share with their neighbours is computed twice, to
the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmx._tvm import IRBuilder, builder, tirx
from tvmx.ir import Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Accumulators,
    Array,
    Kernel,
    ScheduleTemplate,
    Winograd,
    clipped,
    fits_registers,
    flat,
    float_form,
    is_x86,
    line_cycles,
    load,
    multiply_block,
    pack_conv_weight,
    pack_vector,
    prefetch,
    spread,
    store,
    tile_cycles,
)

SIZES = (2, 4, 6)
MAX_OC_TILE = 6
CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16)
OC_CHUNKS = (1, 2, 4, 8, 16, 64)
NAMES = ("m", "oc_tile", "p_tile", "chunk", "oc_chunk")


MARGIN = 0.9
"""Of a direct convolution's modelled cycles: below it, this one is preferred."""
_LINE, _L2_LINE = 64, 4.0
"""Bytes of a cache line, and modelled cycles to have the next one from L2."""


class Conv2dWinograd(ScheduleTemplate):
    """3x3 stride-1 convolutions of at least one vector of channels, NCHW<v>c in and out; f32."""

    name = "conv2d_winograd"
    op = "conv2d"
    priority = 20
    preferred = 5
    """The priority where it is modelled to be faster than a direct convolution."""

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if workload.dtype != "float32":
            return f"computes float32, not {workload.dtype}"
        if workload.kernel != (3, 3) or workload.strides != (1, 1) or workload.dilation != (1, 1):
            return "computes 3x3 convolutions of stride and dilation 1 only"
        if workload.groups != 1:
            return "computes ungrouped convolutions only"
        if workload.in_channels < target.lanes("float32"):
            return "reads channels in whole vectors; this layer has fewer"
        return None

    def preference(self, workload: Any, target: Target) -> int:
        points = _legal(workload, target)
        own = min(_cycles(workload, target, *point, cores=1) for point in points)
        direct = _direct_cycles(workload, target)
        return self.preferred if own < MARGIN * direct else self.priority

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        legal = _legal(workload, target)
        best = min(legal, key=lambda c: (_cycles(workload, target, *c, cores=target.cores), c))
        return Space(
            {name: sorted({c[i] for c in legal}) for i, name in enumerate(NAMES)},
            default=dict(zip(NAMES, best, strict=True)),
            constraint=lambda c: tuple(c[name] for name in NAMES) in legal,
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        v, transform = target.lanes("float32"), Winograd.of(config.int("m"))
        emitter = _Emitter(workload, transform, config, target)

        def pack_weight(weight: Array) -> Array:
            # (O/v, I/v, place, 1, ic, oc) -> (place, O/v, I/v, ic, oc)
            places = transform.weights(weight).reshape(*weight.shape[:2], -1, 1)
            packed = pack_conv_weight(places, v, emitter.out_blocks, v)
            return np.ascontiguousarray(packed[:, :, :, 0].transpose(2, 0, 1, 3, 4))

        return Kernel(
            func=emitter.function(),
            pack_weight=pack_weight,
            pack_bias=lambda b: pack_vector(b, v, emitter.out_blocks),
        )


def _legal(w: Conv2dWorkload, target: Target) -> set[tuple[int, ...]]:
    """The values of all configs, in the order of ``NAMES``."""
    out_blocks = _blocks(w.out_channels, target)
    return {
        (m, o, p, c, g)
        for m in SIZES
        for o in range(1, min(out_blocks, MAX_OC_TILE) + 1)
        for p in range(1, min(_tiles(w, m), target.vector_registers) + 1)
        if fits_registers(target, o, p)
        for c in CHUNKS
        if c == 1 or c <= ceil_div(_tiles(w, m), p)
        for g in OC_CHUNKS
        if g == 1 or g < 2 * ceil_div(out_blocks, o)
    }


def _blocks(channels: int, target: Target) -> int:
    return ceil_div(channels, target.lanes("float32"))


def _tiles(w: Conv2dWorkload, m: int) -> int:
    """Tiles of one image."""
    return ceil_div(w.out_height, m) * ceil_div(w.out_width, m)


def _cycles(
    w: Conv2dWorkload, target: Target, m: int, oc: int, p: int, chunk: int, oc_chunk: int, *,
    cores: int,
) -> float:  # fmt: skip
    """Modelled cycles of one image: those of the busiest of so many cores."""
    v = target.lanes("float32")
    tiles, places = _tiles(w, m), (m + 2) ** 2
    strip = min(chunk * p, tiles)
    strips = ceil_div(tiles, strip)
    in_blocks, out_blocks = _blocks(w.in_channels, target), _blocks(w.out_channels, target)
    oc_tiles = ceil_div(out_blocks, oc)
    group_tiles = min(oc_chunk, oc_tiles)
    group_blocks = min(oc * group_tiles, out_blocks)
    groups = ceil_div(out_blocks, group_blocks)  # the last one overlaps the one before it
    tile = tile_cycles(target, oc, p, in_blocks * v)
    products = places * strips * ceil_div(strip, p) * groups * group_tiles * tile
    # A transform is about 2.5 operations a place each way.
    transform = 6.0 * places * strips * strip
    vectors = places * strip * v * 4  # bytes of V or M for one block
    v_bytes, m_bytes = vectors * in_blocks, vectors * group_blocks
    u_bytes = 4 * v * v * places * in_blocks * out_blocks
    l2 = target.big.l2_kib * 1024
    stream = line_cycles(target, math.inf)
    missed = line_cycles(target, math.inf, scattered=True)
    # What a group touches before V, and M, are read again.
    stays = v_bytes + m_bytes + u_bytes / groups <= 0.9 * l2
    again, scattered = (_L2_LINE, _L2_LINE) if stays else (stream, missed)
    weights = _L2_LINE if u_bytes + v_bytes + m_bytes <= 0.8 * l2 else stream
    # V is written, and M read, in one stream for each place: more than prefetchers follow.
    first = scattered if strips > 1 else missed
    forward = v_bytes * first
    rest = u_bytes * weights + v_bytes * groups * again + m_bytes * groups * (again + scattered)
    if _parallel_inside(w, target, strips):
        busy_first, busy = _busiest(in_blocks, cores), _busiest(groups, cores)
    else:
        busy_first = busy = _busiest(w.batch * strips, cores)
    transforms = transform * (in_blocks * busy_first + groups * group_blocks * busy)
    lines = strips * (forward * busy_first + rest * busy) / _LINE
    return products * busy + transforms + lines


def _parallel_inside(w: Conv2dWorkload, target: Target, strips: int) -> bool:
    """Whether a strip's patches and groups are shared out, not whole strips."""
    return w.batch * strips < 2 * target.cores


def _busiest(tasks: int, cores: int) -> float:
    """The share of ``tasks`` that the busiest core gets."""
    return ceil_div(tasks, cores) / tasks


def _direct_cycles(w: Conv2dWorkload, target: Target) -> float:
    """Modelled cycles of one image by direct convolution, without those for memory."""
    depth = _blocks(w.in_channels, target) * target.lanes("float32") * 9
    vectors = _blocks(w.out_channels, target) * w.out_height * w.out_width
    tiles = [(o, p) for o in (1, 2) for p in range(1, w.out_width + 1)]
    return min(
        ceil_div(vectors, o * p) * tile_cycles(target, o, p, depth)
        for o, p in tiles
        if fits_registers(target, o, p)
    )


class _Emitter:
    """Writes the kernel statement by statement."""

    def __init__(
        self, w: Conv2dWorkload, transform: Winograd, config: Config, target: Target
    ) -> None:
        self.w, self.transform, self.v = w, transform, target.lanes("float32")
        self.form = float_form(target)
        self.m, self.size = transform.m, transform.m + 2
        self.places = self.size**2
        self.in_blocks, self.out_blocks = (
            ceil_div(c, self.v) for c in (w.in_channels, w.out_channels)
        )
        self.oc, self.p = config.int("oc_tile"), config.int("p_tile")
        self.columns = ceil_div(w.out_width, self.m)
        self.tiles = _tiles(w, self.m)
        self.runs = min(config.int("chunk"), ceil_div(self.tiles, self.p))
        self.strip = min(self.runs * self.p, self.tiles)
        self.strips = ceil_div(self.tiles, self.strip)
        self.oc_tiles = ceil_div(self.out_blocks, self.oc)
        self.group = min(config.int("oc_chunk"), self.oc_tiles)  # oc tiles
        self.group_blocks = min(self.group * self.oc, self.out_blocks)
        self.groups = ceil_div(self.out_blocks, self.group_blocks)
        weights = 4 * self.places * self.in_blocks * self.out_blocks * self.v**2
        self.prefetches = is_x86(target) and weights > 4 * 1024 * target.big.l2_kib
        self.parallel_inside = w.batch * self.strips < 2 * target.cores

    def function(self) -> Any:
        with IRBuilder() as ir, builder.prim_func(s_tir=True):
            builder.func_name("main")
            builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            self._arguments()
            outer = builder.serial if self.parallel_inside else builder.parallel
            with outer(0, self.w.batch * self.strips) as task:
                n = builder.Bind(task // self.strips)
                first = builder.Bind(
                    tirx.min(task % self.strips * self.strip, self.tiles - self.strip)
                )
                patches = builder.alloc_buffer((self._slot(self.in_blocks),), "float32")
                self._forward(patches, n, first)
                with self._inner(self.groups) as group:
                    block = builder.Bind(
                        tirx.min(group * self.group_blocks, self.out_blocks - self.group_blocks)
                    )
                    products = builder.alloc_buffer((self._slot(self.group_blocks),), "float32")
                    self._multiply(patches, products, block)
                    self._inverse(products, n, first, block)
        return ir.get()

    def _slot(self, blocks: int) -> int:
        """Elements of V or M: [place][run][block][tile of the run][lane]."""
        return self.places * blocks * self.runs * self.p * self.v

    def _arguments(self) -> None:
        w, v = self.w, self.v
        shape = (w.batch, self.out_blocks, w.out_height, w.out_width, v)

        def argument(name: str, shape: tuple[int, ...]) -> Any:
            return builder.arg(name, builder.buffer(shape, "float32"))

        has = w.epilogue
        data = argument("data", (w.batch, self.in_blocks, w.height, w.width, v))
        weight = argument("weight", (self.places, self.out_blocks, self.in_blocks, v, v))
        bias = argument("bias", (self.out_blocks, v)) if has.bias else None
        residual = argument("residual", shape) if has.residual else None
        out = argument("out", shape)
        self.data, self.weight, self.out = flat(data), flat(weight), flat(out)
        self.bias = None if bias is None else flat(bias)
        self.residual = None if residual is None else flat(residual)

    def _inner(self, extent: int) -> Any:
        return (builder.parallel if self.parallel_inside else builder.serial)(0, extent)

    def _pixel(self, first: Any, tile: Any) -> tuple[Any, Any]:
        """Top left output pixel of a tile of the strip."""
        index = builder.Bind(first + tile)
        return (
            builder.Bind(tirx.floordiv(index, self.columns) * self.m),
            builder.Bind(tirx.floormod(index, self.columns) * self.m),
        )

    # V = B' d B

    def _forward(self, patches: Any, n: Any, first: Any) -> None:
        w, v, size = self.w, self.v, self.size
        top, left = w.padding[:2]
        # A strip may end in the middle of a run: what lies beyond its tiles is never written out,
        # but must be numbers.
        with (
            self._inner(self.in_blocks) as block,
            builder.serial(0, self.runs) as run,
            builder.serial(0, self.p) as t,
        ):
            tile = builder.Bind(tirx.min(run * self.p + t, self.strip - 1))
            oy, ox = self._pixel(first, tile)
            y, x = builder.Bind(oy - top), builder.Bind(ox - left)
            plane = builder.Bind((n * self.in_blocks + block) * (w.height * w.width))
            to = builder.Bind(((run * self.in_blocks + block) * self.p + t) * v)
            inside = tirx.all(
                y >= 0, x >= 0, y + size <= w.height, x + size <= w.width
            )  # fmt: skip
            middle = builder.alloc_buffer((self.places * v,), "float32")
            with builder.If(inside):
                with builder.Then():
                    start = builder.Bind((plane + y * w.width + x) * v)
                    self._forward_columns(
                        middle,
                        lambda i, j: load(self.data, start + (i * w.width + j) * v, lanes=v),
                    )
                with builder.Else():
                    patch = builder.alloc_buffer((self.places * v,), "float32")
                    with builder.serial(0, size) as i, builder.serial(0, size) as j:
                        self._copy_guarded(patch, plane, y, x, i, j)
                    self._forward_columns(
                        middle, lambda i, j: load(patch, (i * size + j) * v, lanes=v)
                    )
            stride = self.runs * self.in_blocks * self.p * v
            with builder.serial(0, size) as i:
                row = [builder.Bind(load(middle, (i * size + j) * v, lanes=v)) for j in range(size)]
                for j, value in enumerate(self.transform.forward(row, v)):
                    store(patches, value, to + (i * size + j) * stride, lanes=v)

    def _copy_guarded(self, patch: Any, plane: Any, y: Any, x: Any, i: Any, j: Any) -> None:
        w, v = self.w, self.v
        at = (i * self.size + j) * v
        row, column = builder.Bind(y + i), builder.Bind(x + j)
        with builder.If(tirx.all(row >= 0, row < w.height, column >= 0, column < w.width)):
            with builder.Then():
                pixel = load(self.data, (plane + row * w.width + column) * v, lanes=v)
                store(patch, pixel, at, lanes=v)
            with builder.Else():
                store(patch, spread(tirx.const(0, "float32"), v), at, lanes=v)

    def _forward_columns(self, middle: Any, pixel: Any) -> None:
        with builder.serial(0, self.size) as j:
            column = [builder.Bind(pixel(i, j)) for i in range(self.size)]
            for i, value in enumerate(self.transform.forward(column, self.v)):
                store(middle, value, (i * self.size + j) * self.v, lanes=self.v)

    # M = U V

    def _multiply(self, patches: Any, products: Any, start: Any) -> None:
        """Emit the products of the group of output blocks from ``start`` on."""
        depth, v = self.in_blocks * self.v, self.v
        with builder.serial(0, self.places) as place, builder.serial(0, self.group) as tile:
            c = builder.Bind(tirx.min(tile * self.oc, self.group_blocks - self.oc))
            weight = builder.Bind((place * self.out_blocks + start + c) * (depth * v))
            ahead = builder.Bind(self._next_weight(place, tile, start)) if self.prefetches else None
            with builder.serial(0, self.runs) as run:
                sums = Accumulators(self.oc * self.p, v)
                data = builder.Bind((place * self.runs + run) * (depth * self.p))
                with builder.serial(0, self.in_blocks) as block:
                    at = data + block * (self.p * v)
                    if ahead is not None:
                        self._prefetch(ahead, run * self.in_blocks + block)
                    self._block(sums, patches, at, weight + block * (v * v))
                to = builder.Bind(
                    ((place * self.runs + run) * self.group_blocks + c) * (self.p * v)
                )
                for number in range(self.oc * self.p):
                    store(products, sums.total(number), to + number * v, lanes=v)

    def _next_weight(self, place: Any, tile: Any, start: Any) -> Any:
        """Where the weights of the oc tile after this one begin."""
        last = tile == self.group - 1
        block = tirx.Select(last, place * 0, (tile + 1) * self.oc)
        place = tirx.Select(last, tirx.min(place + 1, self.places - 1), place)
        return (place * self.out_blocks + start + block) * (self.in_blocks * self.v * self.v)

    def _prefetch(self, weight: Any, step: Any) -> None:
        """Emit the prefetches to L2 of one step's share of the next oc tile's weights.

        A strip reads 4 (m + 2)^2 bytes for each pair of channels, from behind L2 if they are many;
        the hardware's prefetchers stop at every page.
        """
        steps, line = self.runs * self.in_blocks, 16
        lines = self.oc * self.in_blocks * self.v * self.v // line
        share = ceil_div(lines, steps)
        for number in range(share):
            prefetch(self.weight, weight + (step * share + number) * line)

    def _block(self, sums: Accumulators, patches: Any, data: Any, weight: Any) -> None:
        """Emit the products of one block of input channels."""
        v, depth = self.v, self.in_blocks * self.v
        data, weight = builder.Bind(data), builder.Bind(weight)
        multiply_block(
            sums, self.form, v, [(patches, data + t * v) for t in range(self.p)],
            lambda r: [
                load(self.weight, weight + (o * depth + r) * v, lanes=v) for o in range(self.oc)
            ],
        )  # fmt: skip

    # Y = A' M A

    def _inverse(self, products: Any, n: Any, first: Any, first_block: Any) -> None:
        v, size, m = self.v, self.size, self.m
        stride = self.runs * self.group_blocks * self.p * v
        with builder.serial(0, self.group_blocks) as b, builder.serial(0, self.strip) as tile:
            block = builder.Bind(first_block + b)
            oy, ox = self._pixel(first, tile)
            start = builder.Bind(
                ((tirx.floordiv(tile, self.p) * self.group_blocks + b) * self.p
                 + tirx.floormod(tile, self.p)) * v
            )  # fmt: skip
            middle = builder.alloc_buffer((m * size * v,), "float32")
            with builder.serial(0, size) as j:
                column = [
                    builder.Bind(load(products, start + (i * size + j) * stride, lanes=v))
                    for i in range(size)
                ]
                for i, value in enumerate(self.transform.inverse(column, v)):
                    store(middle, value, (i * size + j) * v, lanes=v)
            bias = None if self.bias is None else builder.Bind(load(self.bias, block * v, lanes=v))
            plane = builder.Bind((n * self.out_blocks + block) * self.w.out_height)
            with builder.serial(0, m) as i:
                y = builder.Bind(oy + i)
                row = [builder.Bind(load(middle, (i * size + j) * v, lanes=v)) for j in range(size)]
                values = [builder.Bind(value) for value in self.transform.inverse(row, v)]
                with builder.If(y < self.w.out_height), builder.Then():
                    to = builder.Bind(((plane + y) * self.w.out_width + ox) * v)
                    for j, value in enumerate(values):
                        if j == 0 or self.w.out_width % m == 0:
                            self._write(value, bias, to + j * v)
                        else:
                            with builder.If(ox + j < self.w.out_width), builder.Then():
                                self._write(value, bias, to + j * v)

    def _write(self, value: Any, bias: Any, at: Any) -> None:
        if bias is not None:
            value = value + bias
        if self.residual is not None:
            value = value + load(self.residual, at, lanes=self.v)
        store(self.out, clipped(value, self.w.epilogue, self.v), at, lanes=self.v)
