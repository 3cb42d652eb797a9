"""int8 depthwise convolution in NCHW<v>c: pairs of taps summed in int16, then in int32.

In loops, for one image and one block of v channels::

    for oh, ow, v:                                           # before
        for kh, kw: out += x * w

    parallel for task in (channel block, block of rows):     # after
        local = the rows this task reads, zero point around  # stays in L1; stride s: split
        for tile in (rows outer, ow outer):                  #   into s phases of columns
            acc[oh_tile][ow_tile][px * v] = 0                # int32, registers
            for taps 2t, 2t+1:
                unrolled: acc += int16(x0 * w0 + x1 * w1)    # vectors of px pixels
            unrolled: out = requantise(acc)                  # guarded at ragged borders

``px`` pixels of one phase lie side by side, so that on NEON one load of 8 bytes, ``smull`` and
``smlal`` serve two pixels of four channels. Two products of s8 by weights in [-127, 127] fit
int16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx._tvm import s_tir, te, tirx
from tvmx.ir import ROUNDINGS, Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.numerics import LayerConstants
from tvmx.targets import Target
from tvmx.templates import (
    PARAMS,
    Constant,
    Kernel,
    ScheduleTemplate,
    data_zero_point,
    divisors,
    epilogue_constants,
    factor,
    factor_buffer,
    finished,
    int8_arguments,
    is_x86,
    pad_axis,
)

OH_TILES = (1, 2, 4)
MAX_UNROLLED_TAPS = 50


class DepthwiseInt8(ScheduleTemplate):
    """Depthwise convolution without channel multiplier, NCHW<v>c in and out; int8."""

    name = "depthwise_int8"
    op = "conv2d"
    precision = "int8"
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if not workload.is_depthwise:
            return "computes depthwise convolutions without channel multiplier only"
        if workload.dtype != "int8":
            return f"computes int8, not {workload.dtype}"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        budget = _accumulators(target)
        oh, groups = workload.out_height, ceil_div(workload.out_width, _pixels(target))
        widths = sorted(
            range(1, min(groups, budget) + 1), key=lambda p: (ceil_div(groups, p) * (p + 1), -p)
        )[:5]
        return Space(
            {
                "oh_tile": [t for t in OH_TILES if t <= oh],
                "ow_tile": sorted(widths),
                "chunk": divisors(oh)[-6:],
            },
            default={
                "oh_tile": 1,
                "ow_tile": widths[0],
                "chunk": _rows_per_task(workload, target),
            },
            constraint=lambda c: (
                c["oh_tile"] * c["ow_tile"] <= budget and c["chunk"] % c["oh_tile"] == 0
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        v, pixels = target.lanes("float32"), _pixels(target)
        func = _schedule(_compute(workload, target, config), workload, config)

        def pack(layer: LayerConstants) -> tuple[Constant, ...]:
            constants = epilogue_constants(layer, workload.epilogue, v)
            return (_pack_weight(layer.weight, v, pixels), *constants)

        return Kernel(func=func.with_attr("tirx.is_scheduled", True), pack=pack)


def _pixels(target: Target) -> int:
    """Pixels of one vector of int16 products."""
    return target.vector_bits // 16 // target.lanes("float32")


def _accumulators(target: Target) -> int:
    """Vectors of ``px * v`` sums in a tile: each takes as many int32 registers as ``px``."""
    return target.vector_registers // (2 if is_x86(target) else 4) // _pixels(target)


def _rows_per_task(w: Conv2dWorkload, target: Target) -> int:
    """The most output rows whose padded input stays in half of L1, with work for all cores."""
    v = target.lanes("float32")
    row_bytes = v * (w.width + w.padding[1] + w.padding[3])
    fitting = [
        rows
        for rows in divisors(w.out_height)
        if (rows * w.strides[0] + w.kernel[0]) * row_bytes <= target.big.l1d_kib * 1024 // 2
        and w.batch * ceil_div(w.in_channels, v) * (w.out_height // rows) >= 2 * target.cores
    ]
    return max(fitting, default=1)


def _pack_weight(weight: Constant, v: int, pixels: int) -> Constant:
    """``(C, 1, H, W)`` -> ``(ceil(C / v), taps (even), pixels, v)`` s8, zero-padded."""
    taps = weight.reshape(len(weight), -1)
    blocks = ceil_div(len(weight), v)
    taps = pad_axis(pad_axis(taps, 0, blocks * v), 1, 2 * ceil_div(taps.shape[1], 2))
    packed = taps.reshape(blocks, v, -1).transpose(0, 2, 1)
    return np.repeat(packed[:, :, None], pixels, axis=2)


def _compute(w: Conv2dWorkload, target: Target, config: Config) -> Any:
    """The convolution over whole tiles, and the output cut out of it, as a PrimFunc."""
    v, pixels = target.lanes("float32"), _pixels(target)
    (kh, kw), (sh, sw), (dh, dw) = w.kernel, w.strides, w.dilation
    top, left = w.padding[:2]
    blocks, taps, ow_tile = ceil_div(w.in_channels, v), kh * kw, config.int("ow_tile")
    groups = ceil_div(w.out_width, pixels * ow_tile) * ow_tile
    data = te.placeholder((w.batch, blocks, w.height, w.width, v), "int8", name="data")
    weight = te.placeholder((blocks, 2 * ceil_div(taps, 2), pixels, v), "int8", name="weight")
    bias = te.placeholder((blocks, v), "int32", name="bias")
    multiplier = te.placeholder(*factor_buffer(w.epilogue, blocks, v), name="multiplier")
    params = te.placeholder((PARAMS,), "float32", name="params")
    shape = (w.batch, blocks, w.out_height, w.out_width, v)
    residual = te.placeholder(shape, w.out_dtype, name="residual")

    def padded(n: Any, c: Any, y: Any, phase: Any, x: Any, i: Any) -> Any:
        row, column = y - top, x * sw + phase - left
        inside = tirx.all(row >= 0, row < w.height, column >= 0, column < w.width)
        return tirx.if_then_else(inside, data[n, c, row, column, i], data_zero_point(params))

    need_h = (w.out_height - 1) * sh + (kh - 1) * dh + 1
    need_w = groups * pixels + (kw - 1) * dw // sw
    image = te.compute((w.batch, blocks, need_h, sw, need_w, v), padded, name="pad")
    pair = te.reduce_axis((0, ceil_div(taps, 2)), "pair")

    def product(index: tuple[Any, ...], tap: Any) -> Any:
        n, c, y, g, px, i = index
        at = tirx.min(tap, taps - 1)  # an odd last tap has a partner of weight 0
        rx = at % kw * dw
        x = image[n, c, y * sh + at // kw * dh, rx % sw, g * pixels + px + rx // sw, i]
        return x.astype("int16") * weight[c, tap, px, i].astype("int16")

    conv = te.compute(
        (w.batch, blocks, w.out_height, groups, pixels, v),
        lambda *at: te.sum(
            (product(at, pair * 2) + product(at, pair * 2 + 1)).astype("int32"), axis=pair
        ),
        name="conv",
    )
    out = te.compute(
        shape,
        lambda n, c, y, x, i: finished(
            conv[n, c, y, x // pixels, x % pixels, i] + bias[c, i],
            factor(w.epilogue, lambda *at: multiplier[(*at, c, i)]), params,
            target, residual[n, c, y, x, i] if w.epilogue.residual else None, 1, w.epilogue,
        ),
        name="out",
    )  # fmt: skip
    constants = (bias, multiplier, params)
    return te.create_prim_func(int8_arguments(data, weight, constants, residual, w.epilogue, out))


def _schedule(func: Any, w: Conv2dWorkload, config: Config) -> Any:
    sch = s_tir.Schedule(func)
    conv, out, pad = (sch.get_sblock(name) for name in ("conv", "out", "pad"))
    n, c, y, g, px, i, pair = sch.get_loops(conv)
    lanes = sch.fuse(px, i)
    oh_tile = config.int("oh_tile")
    block, rows, yi = sch.split(y, [None, config.int("chunk") // oh_tile, oh_tile])
    xo, xi = sch.split(g, [None, config.int("ow_tile")])
    sch.reorder(n, c, block, rows, xo, pair, yi, xi, lanes)
    task = sch.fuse(n, c, block)
    sch.parallel(task)
    sch.reverse_compute_at(out, xo, preserve_unit_loops=True)
    sch.set_scope(conv, 0, "local")
    *tile, channel = sch.get_loops(out)[3:]
    for loop in [*tile, yi, xi]:
        sch.unroll(loop)
    sch.vectorize(channel)
    sch.vectorize(lanes)
    sch.compute_at(pad, task)
    sch.vectorize(sch.get_loops(pad)[-1])
    if w.kernel[0] * w.kernel[1] <= MAX_UNROLLED_TAPS:
        sch.unroll(pair)
    sch.decompose_reduction(conv, pair)
    return sch.mod["main"]
