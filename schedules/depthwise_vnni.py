"""int8 depthwise convolution in NCHW16c by AVX-512 VNNI: four rows of the kernel at once.

``vpdpbusd`` adds four products of bytes into each int32 lane. A depthwise convolution has no
channels to sum over, so the four are rows of one column: quads of rows are interleaved once
and serve every column of the kernel, and two output rows where the stride is 1::

    parallel for task in (channel block, block of row groups):
        image = the rows this task reads as u8 = s8 + 128, zero point around; columns of a
                strided convolution split into phases
        for group in row groups:                       # 2 output rows at stride 1, else 1
            quads[q][phase][k][column] = channels 4k..4k+3 of rows 4q..4q+3, interleaved
            for 4 pixels of the output row:            # lanes: 4 pixels x 4 channels
                acc[row][k] = bias
                unrolled for q, kw, k, row: acc[row][k] += quads * w
                out = requantise(acc), its 4 vectors packed back to 4 pixels x 16 channels

The weights of a row that a quad holds too much are zero. Where the output's width or height is
no multiple of the group, the last group overlaps the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmx._tvm import IRBuilder, tirx
from tvmx._tvm import builder as ir
from tvmx.ir import ROUNDINGS, Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.numerics import LayerConstants
from tvmx.targets import Target
from tvmx.templates import (
    PARAMS,
    Constant,
    Kernel,
    ScheduleTemplate,
    clipped,
    data_zero_point,
    divisors,
    epilogue_constants,
    factor,
    factor_buffer,
    fused,
    is_x86,
    requantised_int32,
)

V, PIXELS, QUAD = 16, 4, 4
WIDE = V * PIXELS
"""Bytes of one vector: four pixels of sixteen channels, or one group's interleaved quads."""
FORWARDING_BYTES = 3072
"""Written before the first is read: a load across two stores that are on their way waits."""
FLIP = 0x80
"""s8 ^ 0x80 is u8 = s8 + 128."""


class DepthwiseVnni(ScheduleTemplate):
    """Depthwise convolution without channel multiplier, NCHW16c in and out; int8, AVX-512 VNNI."""

    name = "depthwise_vnni"
    op = "conv2d"
    precision = "int8"
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 10

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if not workload.is_depthwise:
            return "computes depthwise convolutions without channel multiplier only"
        if workload.dtype != "int8":
            return f"computes int8, not {workload.dtype}"
        if not (is_x86(target) and "+avx512vnni" in target.features):
            return "needs AVX-512 VNNI"
        if workload.strides[1] > 2:
            return "strides over 2 columns are left to depthwise_int8"
        if workload.out_width < PIXELS:
            return f"outputs narrower than {PIXELS} pixels are left to depthwise_int8"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (blocked(V), blocked(V))

    def space(self, workload: Any, target: Target) -> Space:
        sizes = [r for r in (1, 2) if r == 1 or _may_pair(workload)]
        chunks = {r: divisors(ceil_div(workload.out_height, r)) for r in sizes}
        rows = sizes[-1]
        return Space(
            {"rows": sizes, "chunk": sorted({c for r in sizes for c in chunks[r][-6:]})},
            default={"rows": rows, "chunk": _groups_per_task(workload, target, chunks[rows], rows)},
            constraint=lambda c: c["chunk"] in chunks[c["rows"]][-6:],
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        plan = _Plan.of(workload, config.int("rows"), config.int("chunk"))

        def pack(layer: LayerConstants) -> tuple[Constant, ...]:
            weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
            constants = epilogue_constants(
                layer, workload.epilogue, V, weight_correction=128 * weight.sum(axis=1)
            )
            return (_pack_weight(layer.weight, plan), *constants)

        func = _Emitter(workload, plan, target.cores).function()
        return Kernel(func=func.with_attr("tirx.is_scheduled", True), pack=pack)


@dataclass(frozen=True)
class _Plan:
    """Sizes of the loops and of the local buffers, in rows, columns and groups."""

    rows: int  # output rows of a group
    groups: int
    chunk: int  # groups of a task
    quads: int  # quads of input rows of a group
    image_rows: int
    columns: int  # of one phase of the image, a multiple of PIXELS
    batch: int  # groups whose quads are made before any is read

    @classmethod
    def of(cls, w: Conv2dWorkload, rows: int, chunk: int) -> _Plan:
        (kh, kw), (sh, sw), (dh, dw) = w.kernel, w.strides, w.dilation
        quads = ceil_div(kh + rows - 1, QUAD)
        columns = ceil_div(w.out_width + (kw - 1) * dw // sw, PIXELS) * PIXELS
        enough = ceil_div(FORWARDING_BYTES, quads * sw * columns * WIDE)
        return cls(
            rows=rows, groups=ceil_div(w.out_height, rows), chunk=chunk, quads=quads,
            image_rows=(chunk - 1) * rows * sh + (QUAD * quads - 1) * dh + 1, columns=columns,
            batch=next(d for d in divisors(chunk) if d >= min(enough, chunk)),
        )  # fmt: skip


def _may_pair(w: Conv2dWorkload) -> bool:
    """Whether two output rows read the same quads."""
    return w.strides[0] == 1 and w.dilation[0] == 1 and w.out_height > 1


def _groups_per_task(w: Conv2dWorkload, target: Target, chunks: Sequence[int], rows: int) -> int:
    """The most groups whose image stays in half of L1, with work for all cores."""
    fitting = []
    for chunk in chunks[-6:]:
        plan = _Plan.of(w, rows, chunk)
        size = plan.image_rows * plan.columns * w.strides[1] * V
        tasks = w.batch * ceil_div(w.in_channels, V) * (plan.groups // chunk)
        if size <= target.big.l1d_kib * 1024 // 2 and tasks >= 2 * target.cores:
            fitting.append(chunk)
    return max(fitting, default=chunks[-6:][0])


def _pack_weight(weight: Constant, plan: _Plan) -> Constant:
    """``(C, 1, H, W)`` -> s8 ``(C / 16, rows, quads, W, 4 * 16)``: channel-major quads of rows.

    Output row j of a group meets the kernel j rows further down its quads.
    """
    c, _, kh, kw = weight.shape
    blocks = ceil_div(c, V)
    shifted = np.zeros((blocks * V, plan.rows, plan.quads * QUAD, kw), np.int8)
    for j in range(plan.rows):
        shifted[:c, j, j : j + kh] = weight[:, 0]
    split = shifted.reshape(blocks, V, plan.rows, plan.quads, QUAD, kw)
    return split.transpose(0, 2, 3, 5, 1, 4).reshape(blocks, plan.rows, plan.quads, kw, WIDE)


class _Emitter:
    """Writes the kernel statement by statement, in vectors of 64 bytes."""

    def __init__(self, w: Conv2dWorkload, plan: _Plan, cores: int) -> None:
        self.w, self.plan, self.cores = w, plan, cores
        self.blocks = ceil_div(w.in_channels, V)
        self.quad_bytes = plan.quads * w.strides[1] * plan.columns * WIDE

    def function(self) -> Any:
        w, plan = self.w, self.plan
        tasks = plan.groups // plan.chunk
        total = w.batch * self.blocks * tasks
        span = max(d for d in divisors(total) if d == 1 or total // d >= 4 * self.cores)
        image = plan.image_rows * w.strides[1] * plan.columns * V
        with IRBuilder() as builder, ir.prim_func(s_tir=True):
            ir.func_name("main")
            ir.func_attr({"tirx.noalias": True})
            self._arguments()
            with ir.parallel(0, total // span) as part:
                # Allocated for several tasks: it takes as long as 20 vectors.
                self.image, self.work = _local(image), _local(plan.batch * self.quad_bytes)
                with ir.serial(0, span) as index:
                    task = part * span + index
                    self.n = task // (self.blocks * tasks)
                    self.c = task // tasks % self.blocks
                    self.first = task % tasks * plan.chunk
                    self._task()
        return builder.get()

    def _task(self) -> None:
        plan = self.plan
        self._copy()
        with ir.serial(0, plan.chunk // plan.batch) as batch:
            for step in (self._interleave, self._convolve):
                with ir.serial(0, plan.batch) as group:
                    step(batch * plan.batch + group, group * self.quad_bytes)

    def _arguments(self) -> None:
        w, plan = self.w, self.plan
        shape = (w.batch, self.blocks, w.out_height, w.out_width, V)

        def argument(name: str, extents: tuple[int, ...], dtype: str) -> Any:
            return ir.arg(name, ir.buffer(extents, dtype, layout=None))

        self.data = argument("data", (w.batch, self.blocks, w.height, w.width, V), "int8")
        weights = (self.blocks, plan.rows, plan.quads, w.kernel[1], WIDE)
        self.weight = argument("weight", weights, "int8")
        self.bias = argument("bias", (self.blocks, V), "int32")
        self.multiplier = argument("multiplier", *factor_buffer(w.epilogue, self.blocks, V))
        self.params = argument("params", (PARAMS,), "float32")
        self.residual = argument("residual", shape, w.out_dtype) if w.epilogue.residual else None
        self.out = argument("out", shape, w.out_dtype)

    # the image

    def _base(self, group: Any) -> Any:
        """First output row of a group; the last group may overlap the one before it."""
        return tirx.min(group * self.plan.rows, self.w.out_height - self.plan.rows)

    def _copy(self) -> None:
        """The rows of this task as u8 with the zero point around them."""
        w, plan = self.w, self.plan
        top, left = w.padding[:2]
        phases, columns = w.strides[1], plan.columns
        inner = min(w.width, columns * phases - left)
        zero = data_zero_point(self.params)
        start = self._base(self.first) * w.strides[0] - top
        with ir.serial(0, plan.image_rows) as row:
            source = start + row
            with ir.If(tirx.all(source >= 0, source < w.height)):
                with ir.Then():
                    border = [
                        *range(min(left, columns * phases)),
                        *range(left + max(inner, 0), columns * phases),
                    ]
                    self._fill(row, border, zero)
                    self._copy_row(row, source, inner)
                with ir.Else():
                    wide = tirx.Broadcast(zero ^ tirx.const(-FLIP, "int8"), WIDE)
                    with ir.serial(0, phases * columns // PIXELS) as x:
                        _store(self.image, row * phases * columns * V + x * WIDE, wide)

    def _fill(self, row: Any, border: Sequence[int], zero: Any) -> None:
        phases, columns = self.w.strides[1], self.plan.columns
        pixel = tirx.Broadcast(zero ^ tirx.const(-FLIP, "int8"), V)
        for column in border:
            at = ((row * phases + column % phases) * columns + column // phases) * V
            _store(self.image, at, pixel)

    def _copy_row(self, row: Any, source: Any, inner: int) -> None:
        """The pixels of one row; at stride 2 even and odd columns go to rows of their own."""
        w, plan = self.w, self.plan
        left, phases = w.padding[1], w.strides[1]
        step = PIXELS * phases

        def load(column: Any, lanes: int) -> Any:
            raw = self.data.vload([self.n, self.c, source, column, 0], f"int8x{lanes}")
            return raw ^ tirx.Broadcast(tirx.const(-FLIP, "int8"), lanes)

        def at(padded: Any) -> Any:
            phase, column = padded % phases, padded // phases
            return ((row * phases + phase) * plan.columns + column) * V

        head = min(-left % phases, inner)
        vectors = (inner - head) // step
        for column in [*range(head), *range(head + vectors * step, inner)]:
            _store(self.image, at(column + left), load(column, V))
        if not vectors:
            return
        with ir.serial(0, vectors) as x:
            column = head + x * step
            wide = [load(column + PIXELS * i, WIDE) for i in range(phases)]
            for phase in range(phases):
                to = (row * phases + phase) * plan.columns + (head + left) // phases + x * PIXELS
                value = wide[0] if phases == 1 else _shuffle(wide, _every_second(phase))
                _store(self.image, to * V, value)

    # quads

    def _interleave(self, group: Any, at: Any) -> None:
        """Four rows byte by byte: per 16 bytes four channels of one column."""
        w, plan = self.w, self.plan
        phases, dilation = w.strides[1], w.dilation[0]
        row = (self._base(self.first + group) - self._base(self.first)) * w.strides[0]
        for q in range(plan.quads):
            with ir.serial(0, phases * plan.columns // PIXELS) as x:
                starts = [
                    (row + (q * QUAD + r) * dilation) * phases * plan.columns * V + x * WIDE
                    for r in range(QUAD)
                ]
                rows = [self.image.vload([start], f"int8x{WIDE}") for start in starts]
                for k, value in enumerate(_interleaved(rows)):
                    _store(
                        self.work,
                        at + ((q * QUAD + k) * phases * plan.columns) * V + x * WIDE,
                        value,
                    )

    # sums and output

    def _convolve(self, group: Any, at: Any) -> None:
        w, plan = self.w, self.plan
        y = self._base(self.first + group)
        with ir.serial(0, ceil_div(w.out_width, PIXELS)) as tile:
            x = tirx.min(tile * PIXELS, w.out_width - PIXELS)
            sums = [[self._bias(k) for k in range(QUAD)] for _ in range(plan.rows)]
            for q in range(plan.quads):
                for rx in range(w.kernel[1]):
                    for k in range(QUAD):
                        self._dot(sums, q, rx, k, at + x * V)
            for j in range(plan.rows):
                self._write(sums[j], y + j, x)

    def _bias(self, k: int) -> Any:
        return _repeat(self.bias.vload([self.c, k * 4], "int32x4"), 4)

    def _dot(self, sums: list[list[Any]], q: int, rx: int, k: int, at: Any) -> None:
        w, plan = self.w, self.plan
        phases = w.strides[1]
        phase, offset = rx * w.dilation[1] % phases, rx * w.dilation[1] // phases
        at += (((q * QUAD + k) * phases + phase) * plan.columns + offset) * V
        pixels = self.work.vload([at], f"int8x{WIDE}")
        for j in range(plan.rows):
            weights = _repeat(self.weight.vload([self.c, j, q, rx, k * V], f"int8x{V}"), PIXELS)
            sums[j][k] = _llvm(
                "int32x16", "llvm.x86.avx512.vpdpbusd.512", sums[j][k], pixels, weights
            )

    def _write(self, sums: list[Any], y: Any, x: Any) -> None:
        """Emit the outputs of 4 vectors of 4 pixels x 4 channels, stored as 4 pixels."""
        if self.w.epilogue.float_out:
            self._write_floats(sums, y, x)
        else:
            self._write_bytes(sums, y, x)

    def _write_floats(self, sums: list[Any], y: Any, x: Any) -> None:
        """Scaled, then put in order, for the residual lies there by pixels."""
        epilogue = self.w.epilogue
        kind = f"float32x{V}"
        scaled = []
        for k, value in enumerate(sums):
            multiplier, bias = self._scales(k)
            scaled.append(fused(tirx.Cast(kind, value), multiplier, bias, V))
        for pixel in range(PIXELS):
            at = [self.n, self.c, y, x + pixel, 0]
            order = [k * V + pixel * 4 + i for k in range(QUAD) for i in range(4)]
            value = _shuffle(scaled, order)
            if self.residual is not None:
                value = value + self.residual.vload(at, kind)
            value = clipped(value, epilogue, V)
            ir.buffer_store(self.out, value, [*at[:-1], tirx.Ramp(0, 1, V)])

    def _write_bytes(self, sums: list[Any], y: Any, x: Any) -> None:
        at = [self.n, self.c, y, x, 0]
        residuals = self._residuals(at)
        whole = [
            requantised_int32(
                value, self._scales(k), self.params, residual, V, self.w.epilogue.rounding
            )
            for k, (value, residual) in enumerate(zip(sums, residuals, strict=True))
        ]  # fmt: skip
        pack = "llvm.x86.avx512.packssdw.512"
        halves = [_llvm("int16x32", pack, whole[k], whole[k + 1]) for k in (0, 2)]
        packed = _llvm(f"int8x{WIDE}", "llvm.x86.avx512.packsswb.512", *halves)
        ir.buffer_store(self.out, packed, [*at[:-1], tirx.Ramp(0, 1, WIDE)])

    def _scales(self, k: int) -> tuple[Any, ...]:
        """What the sums of channels 4k..4k+3 of 4 pixels are multiplied by."""
        kind = f"{self.multiplier.dtype}x4"
        return factor(
            self.w.epilogue,
            lambda *at: _repeat(self.multiplier.vload([*at, self.c, k * 4], kind), 4),
        )

    def _residuals(self, at: list[Any]) -> list[Any]:
        """The residual of 4 pixels in the order of the sums, int32."""
        if self.residual is None:
            return [None] * QUAD
        pixels = self.residual.vload(at, f"int8x{WIDE}")
        top = tirx.Broadcast(tirx.const(24, "int32"), V)
        return [
            tirx.shift_right(ir.reinterpret(f"int32x{V}", bytes_), top)
            for bytes_ in _interleaved([pixels] * QUAD)
        ]


# vectors


def _local(size: int) -> Any:
    return ir.alloc_buffer((size,), "int8", scope="local", align=WIDE, layout=None)


def _store(buffer: Any, at: Any, value: Any) -> None:
    lanes = value.ty.dtype.lanes
    ir.buffer_store(buffer, value, [tirx.Ramp(at, 1, lanes)])


def _llvm(dtype: str, name: str, *args: Any) -> Any:
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def _shuffle(vectors: list[Any], indices: Sequence[int]) -> Any:
    return tirx.Shuffle(vectors, [tirx.const(i, "int32") for i in indices])


def _repeat(vector: Any, times: int) -> Any:
    """The elements of a vector, so many times over."""
    return _shuffle([vector] * times, range(times * vector.ty.dtype.lanes))


def _every_second(phase: int) -> list[int]:
    """Indices of every second pixel of two vectors."""
    return [p * V + i for p in range(phase, 2 * PIXELS, 2) for i in range(V)]


def _unpack(a: Any, b: Any, size: int, high: bool) -> Any:
    """x86's unpack: per 16 bytes, elements of ``size`` bytes of both low or high halves in turn."""
    indices = []
    for lane in range(0, WIDE, 16):
        start = lane + (8 if high else 0)
        for i in range(start, start + 8, size):
            indices += [*range(i, i + size), *range(WIDE + i, WIDE + i + size)]
    return _shuffle([a, b], indices)


def _interleaved(rows: list[Any]) -> list[Any]:
    """Per 16 bytes of four rows: vector k holds channels 4k..4k+3, row by row in each."""
    low, high = ([_unpack(rows[i], rows[i + 1], 1, h) for i in (0, 2)] for h in (False, True))
    return [_unpack(a, b, 2, h) for a, b in (low, high) for h in (False, True)]
