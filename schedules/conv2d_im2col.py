"""Convolution in plain NCHW as im2col + GEMM, a column buffer per tile of pixels.

Covers every convolution: any groups, channels, kernel, stride, dilation and padding. With v
lanes to a vector register and K = input channels per group * kh * kw::

    for oc, oh, ow: for ic, kh, kw: out += x * w                 # before

    parallel for task in tiles of chunk * nv * v pixels:         # after
        col[K][pixels] = the pixels each weight meets            # stays in L2
        for oc outer, pixel tile in the task:
            acc[oc_tile][nv][v] = 0                              # registers
            for k:
                unrolled for oc_tile, nv: acc += w (broadcast) * col (vector of pixels)
            out = clip(acc + bias + residual)                    # guarded at ragged borders

Pixels run along one output row, or along the whole flattened image when "flatten": denser
vectors where rows are shorter than a vector, dearer to gather. A 1x1 stride-1 convolution
reads the image itself as columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvmx._tvm import s_tir, te, tirx
from tvmx.ir import PLAIN, Config, Conv2dWorkload, Space, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Kernel,
    ScheduleTemplate,
    apply_epilogue,
    divisors,
    fits_registers,
    kernel_arguments,
    pack_matrix,
    pack_vector,
    tile_cycles,
)

VECTORS = (1, 2, 3, 4)
CHUNKS = (1, 2, 4, 8)
FLAT_GATHER = 0.7
"""Modelled cycles to gather one column element whose pixel needs a division."""
ROW_GATHER = 12.0
"""Modelled cycles to start copying one row of a column tile."""


@dataclass(frozen=True)
class Pixels:
    """How output pixels are laid out for vectors: ``rows`` rows of ``width``, padded to tiles."""

    flat: bool
    rows: int
    width: int
    padded: int

    @classmethod
    def of(cls, w: Conv2dWorkload, flatten: bool, tile: int) -> Pixels:
        rows, width = (1, w.out_height * w.out_width) if flatten else (w.out_height, w.out_width)
        return cls(flatten, rows, width, ceil_div(width, tile) * tile)


class Conv2dIm2col(ScheduleTemplate):
    """NCHW in and out, any convolution; f32."""

    name = "conv2d_im2col"
    op = "conv2d"
    priority = 50

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes conv2d, not {workload.op}"
        if workload.dtype != "float32":
            return f"computes float32, not {workload.dtype}"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (PLAIN, PLAIN)

    def space(self, workload: Any, target: Target) -> Space:
        v = target.lanes("float32")
        ranked = _ranked(workload, target)
        oc_tile, nv, flatten = ranked[0]
        chunk = _default_chunk(workload, target, nv, flatten)
        return Space(
            {
                "oc_tile": sorted({o for o, _, _ in ranked}),
                "nv": sorted({n for _, n, _ in ranked}),
                "flatten": sorted({f for _, _, f in ranked}),
                "chunk": list(CHUNKS),
            },
            default={"oc_tile": oc_tile, "nv": nv, "flatten": flatten, "chunk": chunk},
            constraint=lambda c: (
                fits_registers(target, c["nv"], c["oc_tile"])
                and Pixels.of(workload, c["flatten"], c["nv"] * v).padded
                % (c["chunk"] * c["nv"] * v)
                == 0
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        v, oc_tile = target.lanes("float32"), config.int("oc_tile")
        pixels = Pixels.of(workload, bool(config["flatten"]), config.int("nv") * v)
        blocks = ceil_div(workload.out_channels, oc_tile)
        func = _schedule(_compute(workload, pixels, oc_tile), workload, pixels, v, config)
        return Kernel(
            func=func.with_attr("tirx.is_scheduled", True),
            pack_weight=lambda w: pack_matrix(w.reshape(w.shape[0], -1), oc_tile, blocks),
            pack_bias=lambda b: pack_vector(b, oc_tile, blocks),
        )


def _is_gemm(w: Conv2dWorkload) -> bool:
    """Whether the image itself is the column matrix."""
    return w.kernel == (1, 1) and w.strides == (1, 1)


def _ranked(w: Conv2dWorkload, target: Target) -> list[tuple[int, int, bool]]:
    """(oc_tile, nv, flatten) best first by the analytical model, two per oc_tile and mode."""
    v, k = target.lanes("float32"), w.weight_shape[1] * w.kernel[0] * w.kernel[1]
    per_group = w.out_channels // w.groups
    most = target.vector_registers // 2
    oc_tiles = list(range(1, min(per_group, most) + 1))
    if w.groups > 1:
        oc_tiles = [d for d in divisors(per_group) if d <= most]

    def cycles(choice: tuple[int, int, bool]) -> float:
        oc_tile, nv, flatten = choice
        pixels = Pixels.of(w, flatten, nv * v)
        tiles = pixels.rows * pixels.padded // (nv * v)
        gather = 0.0
        if not _is_gemm(w):
            row = ROW_GATHER + nv * (1 if w.strides[1] == 1 else v)
            gather = k * w.groups * (nv * v * FLAT_GATHER if flatten else row)
        blocks = ceil_div(w.out_channels, oc_tile)
        return tiles * (blocks * tile_cycles(target, nv, oc_tile, k) + gather)

    best: list[tuple[int, int, bool]] = []
    modes = [True] if _is_gemm(w) and not any(w.padding) else [False, True]
    for flatten in modes:
        fitting = [
            (o, n, flatten) for o in oc_tiles for n in VECTORS if fits_registers(target, n, o)
        ]
        best += sorted(fitting, key=lambda c: (cycles(c), c))[:8]
    return sorted(best, key=lambda c: (cycles(c), c))


def _default_chunk(w: Conv2dWorkload, target: Target, nv: int, flatten: bool) -> int:
    """The most pixel tiles per task whose columns stay in half of L2, with work for all cores."""
    tile = nv * target.lanes("float32")
    pixels = Pixels.of(w, flatten, tile)
    tiles = pixels.padded // tile
    column_bytes = 4 * w.in_channels * w.kernel[0] * w.kernel[1] * tile
    fitting = [
        c
        for c in CHUNKS
        if tiles % c == 0
        and c * column_bytes <= target.big.l2_kib * 1024 // 2
        and w.batch * pixels.rows * tiles // c >= 2 * target.cores
    ]
    return max(fitting, default=1)


def _compute(w: Conv2dWorkload, pixels: Pixels, oc_tile: int) -> Any:
    """Padded image, columns, GEMM over whole tiles, and the output cut out of it."""
    (kh, kw), (sh, sw), (dh, dw) = w.kernel, w.strides, w.dilation
    taps, group_in, group_out = kh * kw, w.weight_shape[1], w.out_channels // w.groups
    k_size = group_in * taps
    blocks = ceil_div(w.out_channels, oc_tile)
    data = te.placeholder(w.data_shape, name="data")
    weight = te.placeholder((blocks, k_size, oc_tile), name="weight")
    bias = te.placeholder((blocks, oc_tile), name="bias")
    shape = (w.batch, w.out_channels, pixels.rows, pixels.width)
    residual = te.placeholder(shape, name="residual")
    image = _padded_image(w, pixels, data)

    def pixel(n: Any, channel: Any, tap: Any, y: Any, x: Any) -> Any:
        oy, ox = y, x
        if pixels.flat:
            oy, ox = tirx.floordiv(x, w.out_width), tirx.floormod(x, w.out_width)
        ry, rx = tirx.floordiv(tap, kw), tirx.floormod(tap, kw)
        return image[n, channel, oy * sh + ry * dh, ox * sw + rx * dw]

    col = None
    if not _is_gemm(w):
        col = te.compute(
            (w.batch, w.in_channels, taps, pixels.rows, pixels.padded), pixel, name="col"
        )
    rk = te.reduce_axis((0, k_size), "rk")

    def product(n: Any, b: Any, m: Any, y: Any, x: Any) -> Any:
        first = tirx.floordiv(b * oc_tile, group_out) * group_in if w.groups > 1 else 0
        channel, tap = first + tirx.floordiv(rk, taps), tirx.floormod(rk, taps)
        value = pixel(n, channel, tap, y, x) if col is None else col[n, channel, tap, y, x]
        return te.sum(value * weight[b, rk, m], axis=rk)

    gemm = te.compute((w.batch, blocks, oc_tile, pixels.rows, pixels.padded), product, name="gemm")
    tile = te.compute(gemm.shape, lambda *i: gemm(*i), name="tile")
    out = te.compute(
        shape,
        lambda n, c, y, x: apply_epilogue(
            tile[n, tirx.floordiv(c, oc_tile), tirx.floormod(c, oc_tile), y, x],
            w.epilogue,
            bias=lambda: bias[tirx.floordiv(c, oc_tile), tirx.floormod(c, oc_tile)],
            residual=lambda: residual[n, c, y, x],
        ),
        name="out",
    )
    return te.create_prim_func(kernel_arguments(data, weight, bias, residual, w.epilogue, out))


def _copies_input(w: Conv2dWorkload, pixels: Pixels) -> bool:
    """Whether whole tiles read outside the image, so that a padded copy is needed."""
    return any(w.padding) or pixels.padded > pixels.width


def _padded_image(w: Conv2dWorkload, pixels: Pixels, data: Any) -> Any:
    """The image with its padding and whatever whole tiles read beyond it, or the image itself."""
    if not _copies_input(w, pixels):
        return data
    rows, width = pixels.rows, pixels.padded
    if pixels.flat:
        rows, width = ceil_div(pixels.padded, w.out_width), w.out_width
    need_h = (rows - 1) * w.strides[0] + (w.kernel[0] - 1) * w.dilation[0] + 1
    need_w = (width - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilation[1] + 1
    top, left = w.padding[:2]
    return te.compute(
        (w.batch, w.in_channels, need_h, need_w),
        lambda n, c, y, x: tirx.if_then_else(
            tirx.all(y >= top, y < top + w.height, x >= left, x < left + w.width),
            data[n, c, y - top, x - left],
            tirx.const(0, "float32"),
        ),
        name="pad",
    )


def _schedule(func: Any, w: Conv2dWorkload, pixels: Pixels, v: int, config: Config) -> Any:
    sch = s_tir.Schedule(func)
    gemm, tile, out = (sch.get_sblock(name) for name in ("gemm", "tile", "out"))
    n, b, m, y, x = sch.get_loops(tile)
    block, xo, xn, xv = sch.split(x, [None, config.int("chunk"), config.int("nv"), v])
    sch.reorder(n, y, block, b, xo, m, xn, xv)
    task = sch.fuse(n, y, block)
    sch.parallel(task)
    sch.compute_at(gemm, xo, preserve_unit_loops=True)
    sch.reverse_compute_at(out, xo, preserve_unit_loops=True)
    sch.set_scope(gemm, 0, "local")
    sch.set_scope(tile, 0, "local")
    if not _is_gemm(w):
        col = sch.get_sblock("col")
        sch.compute_at(col, task)
    *_, gm, _, gx, rk = sch.get_loops(gemm)
    gn, gv = sch.split(gx, [None, v])
    sch.reorder(rk, gm, gn, gv)
    for outer, lanes in (([gm, gn], gv), ([m, xn], xv)):
        for loop in outer:
            sch.unroll(loop)
        sch.vectorize(lanes)
    ov = sch.get_loops(out)[-1]
    sch.vectorize(sch.split(ov, [None, v])[1])
    if _copies_input(w, pixels):
        sch.parallel(sch.fuse(*sch.get_loops(sch.get_sblock("pad"))[:2]))
    sch.decompose_reduction(gemm, rk)
    if pixels.flat:
        _unflatten(sch, w)
    return sch.mod["main"]


def _unflatten(sch: Any, w: Conv2dWorkload) -> None:
    """Give the output its rows back: the one-row view was only for the loops."""

    def rows(n: Any, c: Any, _: Any, p: Any) -> list[Any]:
        return [n, c, tirx.floordiv(p, w.out_width), tirx.floormod(p, w.out_width)]

    sch.transform_layout(sch.get_sblock("out"), "out", rows)
    if w.epilogue.residual:
        sch.transform_layout(sch.get_sblock("out"), "residual", rows)
