"""A user's schedule template: Winograd F(2x2, 3x3), 2.25 times fewer multiplications.

Copy this file as a start for your own. Try it with::

    tvmx schedules check examples/schedules/winograd_f2.py
    tvmx explore digits.onnx --target host --schedules examples/schedules

The algorithm (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015)
computes 2x2 output pixels from a 4x4 patch d of the image and a 3x3 filter g::

    U = G g G'      16 numbers per filter, once, at compile time (pack_weight)
    V = B' d B      16 numbers per patch and input channel
    M = sum over input channels of U * V, for each of the 16 positions: 16 matrix products
    Y = A' M A      the 2x2 output pixels

In loops, v lanes to a vector register::

    parallel for task in blocks of tile rows:
        V = transform of the patches of this block              # stays in L2
        for oc outer:
            for 16 positions, tiles of p_tile patches:
                acc[oc_tile][p_tile][v] = 0                     # registers
                for ic: acc += V (broadcast) * U (vector)
                M = acc                                         # stays in L1
            out = clip(transform of M + bias + residual)        # guarded at odd borders
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx._tvm import s_tir, te, tirx
from tvmx.ir import Config, Conv2dWorkload, Epilogue, Space, blocked, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Array,
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

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)

# Row e of B' has two entries: +1 at FIRST[e], and SIGN[e] at SECOND[e].
FIRST, SECOND, SIGN = (0, 1, 2, 1), (2, 2, 1, 3), (-1, 1, -1, -1)


class WinogradF2(ScheduleTemplate):
    """3x3 stride-1 convolutions, NCHW<v>c in and out; f32."""

    name = "winograd_f2"
    op = "conv2d"
    # Above the built-in templates' 10 and 50: chosen where it measures faster, never by default.
    priority = 60
    examples = (
        Conv2dWorkload(
            batch=1, in_channels=48, height=16, width=16, out_channels=48, kernel=(3, 3),
            padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True, clip_min=0.0),
        ),
    )  # fmt: skip

    def supports(self, workload: Any, target: Target) -> str | None:
        """Give the reason why not: it is shown to whoever wonders about a missing template."""
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

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        """Read and write blocks of one vector of channels, as conv2d_direct does."""
        layout = blocked(target.lanes("float32"))
        return (layout, layout)

    def space(self, workload: Any, target: Target) -> Space:
        """Three knobs; the default comes from the built-in templates' model of a register tile."""
        tile_rows, tile_columns = _tiles(workload)
        out_blocks = ceil_div(workload.out_channels, target.lanes("float32"))
        rows = [r for r in divisors(tile_rows) if r <= 8]
        oc_tiles = range(1, min(out_blocks, 4) + 1)
        p_tiles = sorted({p for r in rows for p in divisors(r * tile_columns)})

        def cycles(config: tuple[int, int, int]) -> float:
            row, oc_tile, p_tile = config
            count = ceil_div(out_blocks, oc_tile) * (tile_rows * tile_columns // p_tile)
            weights_again = 0.02 * workload.in_channels * out_blocks * (tile_rows // row)
            one_tile = tile_cycles(target, oc_tile, p_tile, int(workload.in_channels))
            return float(count * one_tile + weights_again)

        legal = [
            (r, o, p)
            for r in rows
            for o in oc_tiles
            for p in p_tiles
            if (r * tile_columns) % p == 0
            # A tile that starts and ends in the middle of rows would be no rectangle.
            and (p % tile_columns == 0 or tile_columns % p == 0)
            and fits_registers(target, o, p)
        ]
        parallel = [c for c in legal if workload.batch * tile_rows // c[0] >= 2 * target.cores]
        best = min(parallel or legal, key=lambda c: (cycles(c), c))
        return Space(
            {
                "rows": sorted({r for r, _, _ in legal}),
                "oc_tile": sorted({o for _, o, _ in legal}),
                "p_tile": sorted({p for _, _, p in legal})[-8:],
            },
            default=dict(zip(("rows", "oc_tile", "p_tile"), best, strict=True)),
            constraint=lambda c: (c["rows"], c["oc_tile"], c["p_tile"]) in legal,
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        """Check the config first: an illegal one must raise IllegalConfigError."""
        self.space(workload, target).check(config, self.name)
        v, oc_tile = target.lanes("float32"), config.int("oc_tile")
        blocks = ceil_div(ceil_div(workload.out_channels, v), oc_tile) * oc_tile
        func = _schedule(_compute(workload, v, blocks), workload, config)
        return Kernel(
            func=func.with_attr("tirx.is_scheduled", True),
            pack_weight=lambda w: pack_conv_weight(_transform(w), v, blocks, v),
            pack_bias=lambda b: pack_vector(b, v, blocks),
        )


def _transform(weight: Array) -> Array:
    """OIHW filters (O, I, 3, 3) to (O, I, 4, 4)."""
    return (G @ weight @ G.T).astype(np.float32)


def _tiles(w: Conv2dWorkload) -> tuple[int, int]:
    """Rows and columns of 2x2 output tiles."""
    return ceil_div(w.out_height, 2), ceil_div(w.out_width, 2)


def _pick(index: Any, values: tuple[int, ...]) -> Any:
    """``values[index]``; folds to a number once the loop over ``index`` is unrolled."""
    result: Any = values[-1]
    for i, value in reversed(list(enumerate(values[:-1]))):
        result = tirx.Select(index == i, value, result)
    return result


def _compute(w: Conv2dWorkload, v: int, blocks: int) -> Any:
    """Padded image, V, M, Y over whole tiles, and the output cut out of it, as a PrimFunc."""
    rows, columns = _tiles(w)
    in_blocks, out_blocks = ceil_div(w.in_channels, v), ceil_div(w.out_channels, v)
    top, left = w.padding[:2]
    data = te.placeholder((w.batch, in_blocks, w.height, w.width, v), name="data")
    weight = te.placeholder((blocks, in_blocks, 4, 4, v, v), name="weight")
    bias = te.placeholder((blocks, v), name="bias")
    shape = (w.batch, out_blocks, w.out_height, w.out_width, v)
    residual = te.placeholder(shape, name="residual")
    image = te.compute(
        (w.batch, in_blocks, 2 * rows + 2, 2 * columns + 2, v),
        lambda n, c, y, x, i: tirx.if_then_else(
            tirx.all(y >= top, y < top + w.height, x >= left, x < left + w.width),
            data[n, c, y - top, x - left, i],
            tirx.const(0, "float32"),
        ),
        name="pad",
    )

    def forward(n: Any, c: Any, e: Any, f: Any, ty: Any, tx: Any, i: Any) -> Any:
        def row(y: Any) -> Any:
            near = image[n, c, 2 * ty + y, 2 * tx + _pick(f, FIRST), i]
            far = image[n, c, 2 * ty + y, 2 * tx + _pick(f, SECOND), i]
            return near + tirx.Select(_pick(f, SIGN) > 0, far, -far)

        above, below = row(_pick(e, FIRST)), row(_pick(e, SECOND))
        return above + tirx.Select(_pick(e, SIGN) > 0, below, -below)

    patches = te.compute((w.batch, in_blocks, 4, 4, rows, columns, v), forward, name="forward")
    rc, ri = te.reduce_axis((0, in_blocks), "rc"), te.reduce_axis((0, v), "ri")
    products = te.compute(
        (w.batch, blocks, 4, 4, rows, columns, v),
        lambda n, c, e, f, ty, tx, i: te.sum(
            patches[n, rc, e, f, ty, tx, ri] * weight[c, rc, e, f, ri, i], axis=[rc, ri]
        ),
        name="gemm",
    )

    def inverse(n: Any, c: Any, y: Any, x: Any, i: Any) -> Any:
        # Row r of A' is (1, 1, 1, 0) for r = 0 and (0, 1, -1, -1) for r = 1.
        ty, tx, r, s = y // 2, x // 2, y % 2, x % 2

        def row(e: Any) -> Any:
            one, two, three = (products[n, c, e, s + k, ty, tx, i] for k in range(3))
            return one + tirx.Select(s == 0, two + three, -two - three)

        one, two, three = row(r), row(r + 1), row(r + 2)
        return one + tirx.Select(r == 0, two + three, -two - three)

    whole = te.compute((w.batch, blocks, 2 * rows, 2 * columns, v), inverse, name="inverse")
    out = te.compute(
        shape,
        lambda n, c, y, x, i: apply_epilogue(
            whole[n, c, y, x, i],
            w.epilogue,
            bias=lambda: bias[c, i],
            residual=lambda: residual[n, c, y, x, i],
        ),
        name="out",
    )
    return te.create_prim_func(kernel_arguments(data, weight, bias, residual, w.epilogue, out))


def _schedule(func: Any, w: Conv2dWorkload, config: Config) -> Any:
    sch = s_tir.Schedule(func)
    pad, forward, gemm, inverse, out = (
        sch.get_sblock(name) for name in ("pad", "forward", "gemm", "inverse", "out")
    )
    # The last full-size stage gives the outer loops; everything else is attached to them.
    n, c, y, x, i = sch.get_loops(inverse)
    block, ty, r = sch.split(y, [None, config.int("rows"), 2])
    tx, s = sch.split(x, [None, 2])
    co, ci = sch.split(c, [None, config.int("oc_tile")])
    sch.reorder(n, block, co, ci, ty, tx, r, s, i)
    task = sch.fuse(n, block)
    sch.parallel(task)
    sch.compute_at(gemm, co, preserve_unit_loops=True)
    sch.compute_at(forward, task, preserve_unit_loops=True)
    sch.reverse_compute_at(out, tx, preserve_unit_loops=True)
    sch.set_scope(inverse, 0, "local")
    _unroll(sch, [r, s], i)
    *pixels, lanes = sch.get_loops(out)[5:]
    _unroll(sch, pixels, lanes)

    *_, e, f, fy, fx, lanes = sch.get_loops(forward)
    sch.reorder(fy, fx, e, f, lanes)
    _unroll(sch, [e, f], lanes)

    *_, gc, e, f, gy, gx, lanes, rc, ri = sch.get_loops(gemm)
    po, pi = sch.split(sch.fuse(gy, gx), [None, config.int("p_tile")])
    sch.reorder(e, f, po, rc, ri, pi, gc, lanes)
    registers = sch.cache_write(gemm, 0, "local")
    sch.reverse_compute_at(registers, po, preserve_unit_loops=True)
    *tile, store_lanes = sch.get_loops(registers)[5:]
    _unroll(sch, tile, store_lanes)
    _unroll(sch, [pi, gc], lanes)

    sch.parallel(sch.fuse(*sch.get_loops(pad)[:3]))
    sch.vectorize(sch.get_loops(pad)[-1])
    sch.decompose_reduction(gemm, rc)
    return sch.mod["main"]


def _unroll(sch: Any, outer: list[Any], lanes: Any) -> None:
    for loop in outer:
        sch.unroll(loop)
    sch.vectorize(lanes)
