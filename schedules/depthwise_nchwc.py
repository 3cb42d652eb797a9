"""Depthwise convolution in NCHW<v>c: one channel block at a time, a tile of rows x pixels.

In loops, for one image and one block of v channels::

    for oh, ow, v:                                           # before
        for kh, kw: out += x * w

    parallel for task in (channel block, block of rows):     # after
        local = the rows this task reads, zero-padded        # stays in L1 or L2
        for tile in (rows outer, ow outer):
            acc[oh_tile][ow_tile][v] = 0                     # registers
            for kh, kw (unrolled when "unroll"):
                unrolled for oh_tile, ow_tile: acc += x * w  (vectors)
            unrolled: out = clip(acc + bias + residual)      # guarded at ragged borders

Nothing is copied when the convolution has no padding and tiles cover the output exactly.
"""

from __future__ import annotations

from typing import Any

from tvmx._tvm import s_tir, te, tirx
from tvmx.ir import Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Kernel,
    ScheduleTemplate,
    apply_epilogue,
    divisors,
    is_x86,
    kernel_arguments,
    pack_depthwise_weight,
    pack_vector,
)

OH_TILES = (1, 2, 4)
NARROW = (3, 4, 6)
"""Pixels that leave registers for several rows, or for what unrolled taps share."""
MAX_UNROLLED = 400
"""Multiply-adds in one unrolled tile: beyond this the code outgrows the decoder's cache."""


class DepthwiseNchwc(ScheduleTemplate):
    """Depthwise convolution without channel multiplier, NCHW<v>c in and out; f32."""

    name = "depthwise_nchwc"
    op = "conv2d"
    priority = 10

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if not workload.is_depthwise:
            return "computes depthwise convolutions without channel multiplier only"
        if workload.dtype != "float32":
            return f"computes float32, not {workload.dtype}"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        budget = _accumulators(target)
        oh, ow = workload.out_height, workload.out_width
        taps = workload.kernel[0] * workload.kernel[1]
        widths = sorted(
            range(1, min(ow, budget) + 1), key=lambda p: (ceil_div(ow, p) * (p + 2), -p)
        )[:6]
        return Space(
            {
                "oh_tile": [t for t in OH_TILES if t <= oh],
                "ow_tile": sorted({*widths, *(p for p in NARROW if p <= ow)}),
                "chunk": divisors(oh)[-6:],
                "unroll": [False, True],
            },
            default={
                "oh_tile": 1,
                "ow_tile": widths[0],
                "chunk": _rows_per_task(workload, target),
                "unroll": False,
            },
            constraint=lambda c: (
                c["oh_tile"] * c["ow_tile"] <= budget
                and c["chunk"] % c["oh_tile"] == 0
                and not (c["unroll"] and c["oh_tile"] * c["ow_tile"] * taps > MAX_UNROLLED)
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        v = target.lanes("float32")
        func = _schedule(_compute(workload, v, config), workload, config)
        return Kernel(
            func=func.with_attr("tirx.is_scheduled", True),
            pack_weight=lambda w: pack_depthwise_weight(w, v),
            pack_bias=lambda b: pack_vector(b, v),
        )


def _accumulators(target: Target) -> int:
    """Every tap loads its own vectors of x, so a tile needs more spare registers than in GEMM."""
    return target.vector_registers // (2 if is_x86(target) else 4)


def _rows_per_task(w: Conv2dWorkload, target: Target) -> int:
    """The most output rows whose padded input stays in half of L2, with work for all cores."""
    v = target.lanes("float32")
    row_bytes = 4 * v * (w.width + w.padding[1] + w.padding[3])
    fitting = [
        rows
        for rows in divisors(w.out_height)
        if (rows * w.strides[0] + w.kernel[0]) * row_bytes <= target.big.l2_kib * 1024 // 2
        and w.batch * ceil_div(w.in_channels, v) * (w.out_height // rows) >= 2 * target.cores
    ]
    return max(fitting, default=1)


def _copies_input(w: Conv2dWorkload, config: Config) -> bool:
    """Whether whole tiles read outside the image, so that a padded copy is needed."""
    width = ceil_div(w.out_width, config.int("ow_tile")) * config.int("ow_tile")
    need_w = (width - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilation[1] + 1
    return any(w.padding) or need_w > w.width


def _compute(w: Conv2dWorkload, v: int, config: Config) -> Any:
    """The convolution over whole tiles, and the output cut out of it, as a PrimFunc."""
    (kh, kw), (sh, sw), (dh, dw) = w.kernel, w.strides, w.dilation
    top, left = w.padding[:2]
    blocks = ceil_div(w.in_channels, v)
    width = ceil_div(w.out_width, config.int("ow_tile")) * config.int("ow_tile")
    data = te.placeholder((w.batch, blocks, w.height, w.width, v), name="data")
    image = data
    if _copies_input(w, config):
        need_h = (w.out_height - 1) * sh + (kh - 1) * dh + 1
        need_w = (width - 1) * sw + (kw - 1) * dw + 1
        image = te.compute(
            (w.batch, blocks, need_h, need_w, v),
            lambda n, c, y, x, i: tirx.if_then_else(
                tirx.all(y >= top, y < top + w.height, x >= left, x < left + w.width),
                data[n, c, y - top, x - left, i],
                tirx.const(0, "float32"),
            ),
            name="pad",
        )
    weight = te.placeholder((blocks, kh, kw, v), name="weight")
    bias = te.placeholder((blocks, v), name="bias")
    shape = (w.batch, blocks, w.out_height, w.out_width, v)
    residual = te.placeholder(shape, name="residual")
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    conv = te.compute(
        (w.batch, blocks, w.out_height, width, v),
        lambda n, c, y, x, i: te.sum(
            image[n, c, y * sh + ry * dh, x * sw + rx * dw, i] * weight[c, ry, rx, i],
            axis=[ry, rx],
        ),
        name="conv",
    )
    out = te.compute(
        shape,
        lambda n, c, y, x, i: apply_epilogue(
            conv[n, c, y, x, i],
            w.epilogue,
            bias=lambda: bias[c, i],
            residual=lambda: residual[n, c, y, x, i],
        ),
        name="out",
    )
    return te.create_prim_func(kernel_arguments(data, weight, bias, residual, w.epilogue, out))


def _schedule(func: Any, w: Conv2dWorkload, config: Config) -> Any:
    sch = s_tir.Schedule(func)
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    n, c, y, x, i, ry, rx = sch.get_loops(conv)
    oh_tile = config.int("oh_tile")
    block, rows, yi = sch.split(y, [None, config.int("chunk") // oh_tile, oh_tile])
    xo, xi = sch.split(x, [None, config.int("ow_tile")])
    sch.reorder(n, c, block, rows, xo, ry, rx, yi, xi, i)
    task = sch.fuse(n, c, block)
    sch.parallel(task)
    sch.reverse_compute_at(out, xo, preserve_unit_loops=True)
    sch.set_scope(conv, 0, "local")
    *tile, lanes = sch.get_loops(out)[3:]
    for loop in [*tile, yi, xi]:
        sch.unroll(loop)
    sch.vectorize(lanes)
    sch.vectorize(i)
    if _copies_input(w, config):
        pad = sch.get_sblock("pad")
        sch.compute_at(pad, task)
        sch.vectorize(sch.get_loops(pad)[-1])
    if config["unroll"]:
        sch.unroll(ry)
        sch.unroll(rx)
    sch.decompose_reduction(conv, ry)
    return sch.mod["main"]
