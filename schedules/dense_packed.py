"""Dense layer on packed weights: a register tile of m_tile rows x n_tile vectors of outputs.

With v lanes to a vector register, weights packed [ceil(N / v)][K][v]::

    for m, n, k: out[m, n] += x[m, k] * w[n, k]                  # before

    parallel for task in (n outer, m outer):                     # after
        part[m_tile][n_tile][k_split][v] = 0                     # registers
        for k outer:
            unrolled for m_tile, n_tile, k_split: part += x (broadcast) * w (vector)
        unrolled: sum = part summed over k_split
        out = clip(sum + bias + residual)                        # guarded where N is ragged

k_split gives one row (batch 1, bound by memory) enough independent sums in a single
contiguous stream of weights.
"""

from __future__ import annotations

from typing import Any

from tvmx._tvm import s_tir, te, tirx
from tvmx.ir import MATRIX, Config, DenseWorkload, Space, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Kernel,
    ScheduleTemplate,
    apply_epilogue,
    fits_registers,
    kernel_arguments,
    pack_matrix,
    tile_cycles,
)

K_SPLITS = (1, 2, 4, 8)
N_TILES = (1, 2, 3, 4, 6, 8)
MAX_ROWS = 8
"""Rows of x lie K elements apart: more of them than the ways of L1 evict each other."""
STREAM_SUMS = 8
"""Independent sums that hide the latency of multiply-add."""


class DensePacked(ScheduleTemplate):
    """Matrix-vector and matrix-matrix products, NC in and out; f32."""

    name = "dense_packed"
    op = "dense"
    priority = 10

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes dense, not {workload.op}"
        if workload.dtype != "float32":
            return f"computes float32, not {workload.dtype}"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (MATRIX, MATRIX)

    def space(self, workload: Any, target: Target) -> Space:
        tiles = _ranked_tiles(workload, target)
        m_tile, n_tile = tiles[0]
        splits = [s for s in K_SPLITS if workload.in_features % s == 0]

        def fits(m_tile: int, n_tile: int, split: int) -> bool:
            return fits_registers(target, n_tile, m_tile * split)

        k_split = max(s for s in splits if s * m_tile * n_tile <= STREAM_SUMS or s == 1)
        return Space(
            {
                "m_tile": sorted({m for m, _ in tiles}),
                "n_tile": sorted({n for _, n in tiles}),
                "k_split": splits,
            },
            default={"m_tile": m_tile, "n_tile": n_tile, "k_split": k_split},
            constraint=lambda c: fits(c["m_tile"], c["n_tile"], c["k_split"]),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        v = target.lanes("float32")
        n_tile = config.int("n_tile")
        blocks = ceil_div(workload.out_features, v * n_tile) * n_tile
        func = _schedule(_compute(workload, v, blocks, config), workload, v, config)
        return Kernel(
            func=func.with_attr("tirx.is_scheduled", True),
            pack_weight=lambda w: pack_matrix(w, v, blocks),
            pack_bias=lambda b: b,
        )


def _ranked_tiles(w: DenseWorkload, target: Target) -> list[tuple[int, int]]:
    """(m_tile, n_tile) that do not spill, best first by the analytical model."""
    n_blocks = ceil_div(w.out_features, target.lanes("float32"))

    def cycles(tile: tuple[int, int]) -> float:
        count = ceil_div(w.batch, tile[0]) * ceil_div(n_blocks, tile[1])
        return count * tile_cycles(target, tile[1], tile[0], w.in_features)

    tiles = [
        (m, n)
        for m in range(1, min(w.batch, MAX_ROWS) + 1)
        for n in N_TILES
        if n <= n_blocks and n * m <= 16 and fits_registers(target, n, m)
    ]
    if w.batch == 1:  # bound by memory: four streams of weights, whatever the arithmetic says
        return sorted(tiles, key=lambda t: abs(t[1] - min(4, n_blocks)))
    return sorted(tiles, key=lambda t: (cycles(t), t))[:12]


def _compute(w: DenseWorkload, v: int, blocks: int, config: Config) -> Any:
    """Partial sums, their sum over whole tiles, and the output cut out of it, as a PrimFunc."""
    split, m_tile = config.int("k_split"), config.int("m_tile")
    rows = ceil_div(w.batch, m_tile) * m_tile
    data = te.placeholder((w.batch, w.in_features), name="data")
    source = data
    if rows > w.batch:
        source = te.compute(
            (rows, w.in_features),
            lambda m, k: tirx.if_then_else(m < w.batch, data[m, k], tirx.const(0, "float32")),
            name="pad",
        )
    weight = te.placeholder((blocks, w.in_features, v), name="weight")
    bias = te.placeholder((w.out_features,), name="bias")
    residual = te.placeholder((w.batch, w.out_features), name="residual")
    ko = te.reduce_axis((0, w.in_features // split), "ko")
    ks = te.reduce_axis((0, split), "ks")
    part = te.compute(
        (rows, blocks, split, v),
        lambda m, n, s, i: te.sum(
            source[m, ko * split + s] * weight[n, ko * split + s, i], axis=ko
        ),
        name="part",
    )
    total = te.compute(
        (rows, blocks, v), lambda m, n, i: te.sum(part[m, n, ks, i], axis=ks), name="total"
    )
    out = te.compute(
        (w.batch, w.out_features),
        lambda m, n: apply_epilogue(
            total[m, tirx.floordiv(n, v), tirx.floormod(n, v)],
            w.epilogue,
            bias=lambda: bias[n],
            residual=lambda: residual[m, n],
        ),
        name="out",
    )
    return te.create_prim_func(kernel_arguments(data, weight, bias, residual, w.epilogue, out))


def _schedule(func: Any, w: DenseWorkload, v: int, config: Config) -> Any:
    sch = s_tir.Schedule(func)
    part, total, out = (sch.get_sblock(b) for b in ("part", "total", "out"))
    m, n, i, ks = sch.get_loops(total)
    mo, mi = sch.split(m, [None, config.int("m_tile")])
    no, ni = sch.split(n, [None, config.int("n_tile")])
    sch.reorder(no, mo, ks, mi, ni, i)
    task = sch.fuse(no, mo)
    sch.parallel(task)
    sch.compute_at(part, task, preserve_unit_loops=True)
    sch.reverse_compute_at(out, task, preserve_unit_loops=True)
    for block in (part, total):
        sch.set_scope(block, 0, "local")
    pm, pn, ps, pi, ko = sch.get_loops(part)[1:]
    sch.reorder(ko, pm, pn, ps, pi)
    _unroll(sch, [pm, pn, ps], pi)
    _unroll(sch, [ks, mi, ni], i)
    om, on = sch.get_loops(out)[1:]
    on, oi = sch.split(on, [None, v])
    _unroll(sch, [om, on], oi)
    if w.batch % config.int("m_tile"):
        sch.parallel(sch.get_loops(sch.get_sblock("pad"))[0])
    sch.decompose_reduction(part, ko)
    sch.decompose_reduction(total, ks)
    return sch.mod["main"]


def _unroll(sch: Any, outer: list[Any], lanes: Any) -> None:
    for loop in outer:
        sch.unroll(loop)
    sch.vectorize(lanes)
