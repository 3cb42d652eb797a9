"""Direct convolution in NCHW<v>c: a register tile of oc_tile channel blocks x ow_tile pixels.

In loops, for one image (v lanes are one vector register)::

    for oc, oh, ow, v:                            # before
        for ic, kh, kw: out += x * w

    parallel for task in (oc outer, spatial block):          # after, order = "oc"
        for tile in rows of the block, ow outer:
            acc[oc_tile][ow_tile][v] = 0                     # registers
            for ic block, kh, kw, ic inner:
                unrolled for oc_tile, ow_tile: acc += x (broadcast) * w (vector)
            unrolled: out = clip(acc + bias + residual)      # guarded at ragged borders

order = "row" puts the spatial block outside and oc inside the task; the padded copy of the
image is then made per task (pad = "task") or, as for order = "oc", once (pad = "root"). A
1x1 stride-1 convolution without padding sees the image as one row of H*W pixels. ``chunk``
is the number of rows (of pixel tiles, there) in a spatial block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvmx._tvm import s_tir, te, tirx
from tvmx.ir import PLAIN, Config, Conv2dWorkload, Space, blocked, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Kernel,
    ScheduleTemplate,
    apply_epilogue,
    divisors,
    fits_registers,
    kernel_arguments,
    pack_conv_weight,
    pack_vector,
    tile_cycles,
)

MAX_OC_TILE = 6
CHUNKS = (1, 2, 4, 8)
COPY_CYCLES = 4
"""Modelled cycles to copy one vector into a padded image."""
TASK_CYCLES = 10_000
"""Shorter tasks spend too much of their time on working out where they are."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of one convolution; a flat one has its pixels in a single row."""

    flat: bool
    plain: bool
    v: int
    groups: int
    in_blocks: int
    out_blocks: int
    height: int
    width: int
    out_height: int
    out_width: int

    @classmethod
    def of(cls, w: Conv2dWorkload, v: int) -> Geometry:
        flat = w.kernel == (1, 1) and w.strides == (1, 1) and not any(w.padding)
        plain = w.in_channels < v
        oh, ow = w.out_height, w.out_width
        return cls(
            flat=flat and not plain,
            plain=plain,
            v=v,
            groups=w.groups,
            in_blocks=w.in_channels if plain else ceil_div(w.in_channels, v),
            out_blocks=ceil_div(w.out_channels, v),
            height=1 if flat and not plain else w.height,
            width=w.height * w.width if flat and not plain else w.width,
            out_height=1 if flat and not plain else oh,
            out_width=oh * ow if flat and not plain else ow,
        )

    @property
    def group_out_blocks(self) -> int:
        return self.out_blocks // self.groups


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
        v = target.lanes("float32")
        layout = blocked(v)
        return (PLAIN if workload.in_channels < v else layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        g = Geometry.of(workload, target.lanes("float32"))
        tiles = _ranked_tiles(workload, g, target)
        return Space(
            {
                "oc_tile": sorted({o for o, _ in tiles}),
                "ow_tile": sorted({p for _, p in tiles}),
                "order": ["oc", "row"],
                "chunk": list(CHUNKS),
                "pad": ["root", "task"],
            },
            default=_default(workload, g, target, *tiles[0]),
            constraint=lambda c: (
                fits_registers(target, c["oc_tile"], c["ow_tile"])
                and _units(g, c["ow_tile"]) % c["chunk"] == 0
                and (
                    c["pad"] == "root"
                    or (c["order"] == "row" and _copies_input(workload, g, c["ow_tile"]))
                )
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        g = Geometry.of(workload, target.lanes("float32"))
        oc_tile, ow_tile = config.int("oc_tile"), config.int("ow_tile")
        out_blocks = ceil_div(g.out_blocks, oc_tile) * oc_tile
        func = _schedule(_compute(workload, g, out_blocks, ow_tile), workload, g, config)
        in_block = None if g.plain else g.v
        return Kernel(
            func=func.with_attr("tirx.is_scheduled", True),
            pack_weight=lambda w: pack_conv_weight(w, g.v, out_blocks, in_block),
            pack_bias=lambda b: pack_vector(b, g.v, out_blocks),
        )


def _ranked_tiles(w: Conv2dWorkload, g: Geometry, target: Target) -> list[tuple[int, int]]:
    """Register tiles that do not spill, best first by the analytical model: four per oc_tile."""
    oc_tiles = [d for d in divisors(g.group_out_blocks) if d <= MAX_OC_TILE]
    if g.groups == 1:
        oc_tiles = list(range(1, min(g.out_blocks, MAX_OC_TILE) + 1))

    def cycles(tile: tuple[int, int]) -> float:
        tiles = _oc_tiles(g, tile[0]) * ceil_div(g.out_width, tile[1])
        ragged = _copies_input(w, g, tile[1]) and not any(w.padding)
        copy = COPY_CYCLES * g.in_blocks * g.height * g.width if ragged else 0
        return tiles * tile_cycles(target, *tile, _depth(w)) + copy

    best: list[tuple[int, int]] = []
    for oc_tile in oc_tiles:
        fitting = [
            (oc_tile, p)
            for p in range(1, min(g.out_width, target.vector_registers) + 1)
            if fits_registers(target, oc_tile, p)
        ]
        best += sorted(fitting, key=lambda t: (cycles(t), t))[:4]
    return sorted(best, key=lambda t: (cycles(t), t))


def _depth(w: Conv2dWorkload) -> int:
    """Steps of the reduction behind one output element."""
    return w.weight_shape[1] * w.kernel[0] * w.kernel[1]


def _oc_tiles(g: Geometry, oc_tile: int) -> int:
    return ceil_div(g.out_blocks, oc_tile)


def _units(g: Geometry, ow_tile: int) -> int:
    """Spatial units that ``chunk`` groups into tasks: pixel tiles of a flat image, else rows."""
    return ceil_div(g.out_width, ow_tile) if g.flat else g.out_height


def _default(
    w: Conv2dWorkload, g: Geometry, target: Target, oc_tile: int, ow_tile: int
) -> dict[str, int | str]:
    """Pick the loop order that moves fewer bytes past L2, and where to pad."""
    l2 = target.big.l2_kib * 1024
    data = 4 * math.prod(w.data_shape)
    weights = 4 * math.prod(w.weight_shape)
    units = _units(g, ow_tile)
    by_row = data + weights * (1 if weights <= l2 // 2 else units)
    by_oc = weights + data * (1 if data <= l2 // 2 else _oc_tiles(g, oc_tile))
    order, pad, chunk = "oc", "root", 1
    if _oc_tiles(g, oc_tile) > 1 and by_row <= by_oc and w.batch * units >= 4 * target.cores:
        order = "row"
    slabs = w.batch * (1 if order == "row" else _oc_tiles(g, oc_tile))
    chunks = [c for c in CHUNKS if units % c == 0 and slabs * units // c >= 4 * target.cores]
    if order == "row" and data > l2 and _copies_input(w, g, ow_tile):
        pad, chunk = "task", max(chunks)
    elif g.flat:  # the weights of one oc tile serve all pixel tiles of a task from L1
        pixels = 4 * w.in_channels * ow_tile
        chunk = max((c for c in chunks if c * pixels <= l2 // 4), default=1)
    else:
        tiles = ceil_div(g.out_width, ow_tile) * (_oc_tiles(g, oc_tile) if order == "row" else 1)
        unit = tiles * tile_cycles(target, oc_tile, ow_tile, _depth(w))
        chunk = min((c for c in chunks if c * unit >= TASK_CYCLES), default=max(chunks, default=1))
    return {"oc_tile": oc_tile, "ow_tile": ow_tile, "order": order, "chunk": chunk, "pad": pad}


def _copies_input(w: Conv2dWorkload, g: Geometry, ow_tile: int) -> bool:
    """Whether whole tiles read outside the image, so that a padded copy is needed."""
    width = ceil_div(g.out_width, ow_tile) * ow_tile
    need_w = (width - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilation[1] + 1
    return any(w.padding) or need_w > g.width


def _compute(w: Conv2dWorkload, g: Geometry, out_blocks: int, ow_tile: int) -> Any:
    """The convolution over whole tiles, and the output cut out of it, as a PrimFunc."""
    (kh, kw), (sh, sw), (dh, dw) = w.kernel, w.strides, w.dilation
    top, left = w.padding[:2]
    width = ceil_div(g.out_width, ow_tile) * ow_tile
    need_h = (g.out_height - 1) * sh + (kh - 1) * dh + 1
    need_w = (width - 1) * sw + (kw - 1) * dw + 1
    lanes = () if g.plain else (g.v,)
    data = te.placeholder((w.batch, g.in_blocks, g.height, g.width, *lanes), name="data")
    image = data
    if _copies_input(w, g, ow_tile):
        image = te.compute(
            (w.batch, g.in_blocks, need_h, need_w, *lanes),
            lambda n, c, y, x, *i: tirx.if_then_else(
                tirx.all(y >= top, y < top + g.height, x >= left, x < left + g.width),
                data(n, c, y - top, x - left, *i),
                tirx.const(0, "float32"),
            ),
            name="pad",
        )
    group_in, block_in = g.in_blocks // g.groups, 1 if g.plain else g.v
    weight = te.placeholder((out_blocks, group_in, kh, kw, block_in, g.v), name="weight")
    bias = te.placeholder((out_blocks, g.v), name="bias")
    shape = (w.batch, g.out_blocks, g.out_height, g.out_width, g.v)
    residual = te.placeholder(shape, name="residual")
    rc, ry = te.reduce_axis((0, group_in), "rc"), te.reduce_axis((0, kh), "ry")
    rx = te.reduce_axis((0, kw), "rx")
    ri = te.reduce_axis((0, block_in), "ri")

    def product(n: Any, c: Any, y: Any, x: Any, i: Any) -> Any:
        block = rc if g.groups == 1 else tirx.floordiv(c, g.group_out_blocks) * group_in + rc
        inner = () if g.plain else (ri,)
        pixel = image(n, block, y * sh + ry * dh, x * sw + rx * dw, *inner)
        return te.sum(pixel * weight[c, rc, ry, rx, ri, i], axis=[rc, ry, rx, ri])

    conv = te.compute((w.batch, out_blocks, g.out_height, width, g.v), product, name="conv")
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


def _schedule(func: Any, w: Conv2dWorkload, g: Geometry, config: Config) -> Any:
    sch = s_tir.Schedule(func)
    conv, out = sch.get_sblock("conv"), sch.get_sblock("out")
    n, c, y, x, i, rc, ry, rx, ri = sch.get_loops(conv)
    co, ci = sch.split(c, [None, config.int("oc_tile")])
    xo, xi = sch.split(x, [None, config.int("ow_tile")])
    if g.flat:
        block, tile = sch.split(xo, [None, config.int("chunk")])
        tiles = [y, tile]
    else:
        block, tile = sch.split(y, [None, config.int("chunk")])
        tiles = [tile, xo]
    outer = [n, co, block, *tiles] if config["order"] == "oc" else [n, block, co, *tiles]
    sch.reorder(*outer, rc, ry, rx, ri, xi, ci, i)
    task = sch.fuse(*(outer[:3] if config["order"] == "oc" else outer[:2]))
    sch.parallel(task)
    sch.reverse_compute_at(out, tiles[-1], preserve_unit_loops=True)
    sch.set_scope(conv, 0, "local")
    inner = sch.get_loops(out)[len(sch.get_loops(conv)) - 7 :]
    for loop in inner[:-1]:
        sch.unroll(loop)
    sch.vectorize(inner[-1])
    copied = _copies_input(w, g, config.int("ow_tile"))
    if copied:
        _schedule_pad(sch, task if config["pad"] == "task" else None, g)
    sch.unroll(ci)
    sch.unroll(xi)
    sch.vectorize(i)
    sch.decompose_reduction(conv, rc)
    if g.flat:
        _unflatten(sch, w, "pad" if copied else "conv_update")
    return sch.mod["main"]


def _schedule_pad(sch: Any, task: Any, g: Geometry) -> None:
    pad = sch.get_sblock("pad")
    if task is not None:
        sch.compute_at(pad, task)
    else:
        sch.parallel(sch.fuse(*sch.get_loops(pad)[:3]))
    if not g.plain:
        sch.vectorize(sch.get_loops(pad)[-1])


def _unflatten(sch: Any, w: Conv2dWorkload, reader: str) -> None:
    """Give the buffers their rows back: the one-row view was only for the loops."""

    def rows(n: Any, c: Any, _: Any, p: Any, i: Any) -> list[Any]:
        return [n, c, tirx.floordiv(p, w.width), tirx.floormod(p, w.width), i]

    sch.transform_layout(sch.get_sblock(reader), "data", rows)
    sch.transform_layout(sch.get_sblock("out"), "out", rows)
    if w.epilogue.residual:
        sch.transform_layout(sch.get_sblock("out"), "residual", rows)
