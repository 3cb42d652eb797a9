"""Dense layer on packed weights: a register tile of m_tile rows x n_tile vectors of outputs.

With v lanes to a vector register, weights packed [tile][K][n_tile][v]::

    for m, n, k: out[m, n] += x[m, k] * w[n, k]                  # before

    rows = x as [ceil(K / v)][M][v]                              # after, with "copy"
    parallel for task in (chunk of tiles of m, n outer):
        for m outer in the chunk:
            sums[k_split][n_tile][m_tile][v] = 0                 # registers
            for k outer:
                unrolled for k_split, m_tile, n_tile: sums += x * w (vector)
            unrolled: out = clip(sum over k_split + bias + residual)

The weights of a tile are ``k_split`` contiguous streams, one for each part of K, with sums of their
own: one row (batch 1, bound by memory) needs them to hide the latency of multiply-add. x is
multiplied as ``tvmx.templates.FloatForm`` says, by lanes on Arm. ``copy`` makes neighbours of the
rows of a tile, which lie K elements apart and evict each other from a cache of few ways.

Tiles at a ragged border are moved back to end there, and where N is no multiple of v so is the
last vector: what two of them share is computed twice, to the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmx._tvm import IRBuilder, builder, tirx
from tvmx.ir import MATRIX, Config, DenseWorkload, Space, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    Accumulators,
    Array,
    FloatForm,
    Kernel,
    ScheduleTemplate,
    clipped,
    fits_registers,
    flat,
    float_form,
    line_cycles,
    load,
    multiply_block,
    store,
    tile_cycles,
)

K_SPLITS = (1, 2, 4, 8)
N_TILES = (1, 2, 3, 4, 6, 8)
CHUNKS = (1, 2, 4, 8, 16, 32)
FEW_ROWS = 8
"""Rows of x lie K elements apart: more of them than the ways of L1 evict each other."""
STREAM_SUMS = {True: 8, False: 16}
"""Sums, by lane or not, that hide the latency of multiply-add; k_split makes them up."""


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
        form = float_form(target)
        copy = workload.batch > 1 and form.by_lane
        tiles = _ranked_tiles(workload, target, copy)
        m_tile, n_tile = tiles[0]
        splits = [s for s in K_SPLITS if s == 1 or s <= workload.in_features // form.lanes]
        most = ceil_div(workload.batch, min(m for m, _ in tiles))
        return Space(
            {
                "m_tile": sorted({m for m, _ in tiles}),
                "n_tile": sorted({n for _, n in tiles}),
                "k_split": splits,
                "chunk": [c for c in CHUNKS if c == 1 or c <= most],
                "copy": [False, True] if workload.batch > 1 else [False],
            },
            default={
                "m_tile": m_tile,
                "n_tile": n_tile,
                "k_split": max(
                    s for s in splits
                    if s == 1 or (
                        s * m_tile * n_tile <= STREAM_SUMS[form.by_lane]
                        and fits_registers(target, n_tile, m_tile * s)
                    )
                ),
                "chunk": _default_chunk(workload, target, m_tile, n_tile),
                "copy": copy,
            },
            constraint=lambda c: (
                fits_registers(target, c["n_tile"], c["m_tile"] * c["k_split"])
                and (c["copy"] or c["m_tile"] <= FEW_ROWS)
                and (c["chunk"] == 1 or c["chunk"] <= ceil_div(workload.batch, c["m_tile"]))
            ),
        )  # fmt: skip

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        n_tile, v = config.int("n_tile"), target.lanes("float32")
        return Kernel(
            func=_Emitter(workload, float_form(target), config).function(),
            pack_weight=lambda w: _pack(w, n_tile, v),
            pack_bias=lambda b: b,
        )


def _ranked_tiles(w: DenseWorkload, target: Target, copy: bool) -> list[tuple[int, int]]:
    """(m_tile, n_tile) that do not spill, best first by the analytical model."""
    blocks = ceil_div(w.out_features, target.lanes("float32"))
    tiles = [
        (m, n)
        for m in range(1, min(w.batch, target.vector_registers if copy else FEW_ROWS) + 1)
        for n in N_TILES
        if n <= blocks and fits_registers(target, n, m)
    ]
    if w.batch == 1:  # bound by memory, whatever the arithmetic says
        return sorted(tiles, key=lambda t: abs(t[1] - min(4, blocks)))
    return sorted(tiles, key=lambda t: (_cycles(w, target, *t), t))[:12]


def _cycles(w: DenseWorkload, target: Target, m_tile: int, n_tile: int) -> float:
    """Modelled cycles of one core: arithmetic, and bringing rows and weights of each tile."""
    vector = 4 * target.lanes("float32")
    down = ceil_div(w.batch, m_tile)
    across = ceil_div(ceil_div(w.out_features, target.lanes("float32")), n_tile)
    weights, rows = (w.in_features * size for size in (n_tile * vector, 4 * m_tile))

    def line(working_set: float) -> float:
        """Per byte."""
        return line_cycles(target, working_set) / 64

    first, again = line(math.inf), line(weights + rows)
    moved = weights * (first + (down - 1) * again) + down * rows * line(down * rows + weights)
    return across * (down * tile_cycles(target, n_tile, m_tile, w.in_features) + moved)


def _default_chunk(w: DenseWorkload, target: Target, m_tile: int, n_tile: int) -> int:
    """As many tiles of rows as L2 holds of x, with work for all cores."""
    down = ceil_div(w.batch, m_tile)
    across = ceil_div(ceil_div(w.out_features, target.lanes("float32")), n_tile)
    rows_bytes = 4 * m_tile * w.in_features
    fitting = [
        c
        for c in CHUNKS
        if c <= down
        and c * rows_bytes <= target.big.l2_kib * 1024 // 2
        and ceil_div(down, c) * across >= 2 * target.cores
    ]
    return max(fitting, default=1)


def _first_outputs(outputs: int, n_tile: int, v: int) -> Array:
    """The first output of each vector, (tile, vector): none reaches behind the last output."""
    blocks = ceil_div(outputs, v)
    tiles = np.minimum(np.arange(ceil_div(blocks, n_tile)) * n_tile, blocks - n_tile)
    return np.minimum((tiles[:, None] + np.arange(n_tile)) * v, max(0, outputs - v))


def _pack(weight: Array, n_tile: int, v: int) -> Array:
    """(N, K) -> (tiles, K, n_tile, v); zeros only where N itself is below v."""
    outputs = _first_outputs(len(weight), n_tile, v)[:, :, None] + np.arange(v)
    padded = np.pad(weight, ((0, max(0, v - len(weight))), (0, 0)))
    return np.ascontiguousarray(padded[outputs].transpose(0, 3, 1, 2), dtype=np.float32)


class _Emitter:
    """Writes the kernel statement by statement."""

    def __init__(self, w: DenseWorkload, form: FloatForm, config: Config) -> None:
        self.w, self.form, self.v = w, form, form.lanes
        self.m, self.n, self.split = (config.int(k) for k in ("m_tile", "n_tile", "k_split"))
        self.chunk, self.copied = config.int("chunk"), bool(config["copy"])
        self.blocks = ceil_div(w.out_features, self.v)
        self.unit = self.v if form.by_lane or self.copied else 1
        """Inputs that one step of the loop over K takes."""

    def function(self) -> Any:
        w, across = self.w, ceil_div(self.blocks, self.n)
        down = ceil_div(w.batch, self.m)
        with IRBuilder() as ir, builder.prim_func(s_tir=True):
            builder.func_name("main")
            builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            self._arguments()
            if self.copied:
                self._copy_rows()
            with builder.parallel(0, ceil_div(down, self.chunk) * across) as task:
                tile = builder.Bind(task % across)
                first = builder.Bind(task // across * self.chunk)
                with builder.serial(0, tirx.min(down - first, self.chunk)) as i:
                    row = builder.Bind(tirx.min((first + i) * self.m, w.batch - self.m))
                    self._write(self._reduce(tile, row), tile, row)
        return ir.get()

    def _arguments(self) -> None:
        w, has = self.w, self.w.epilogue
        tiles = ceil_div(self.blocks, self.n)

        def argument(name: str, *shape: int) -> Any:
            return builder.arg(name, builder.buffer(shape, "float32"))

        data = argument("data", w.batch, w.in_features)
        weight = argument("weight", tiles, w.in_features, self.n, self.v)
        self.bias = argument("bias", w.out_features) if has.bias else None
        residual = argument("residual", w.batch, w.out_features) if has.residual else None
        out = argument("out", w.batch, w.out_features)
        self.data, self.weight, self.out = flat(data), flat(weight), flat(out)
        self.residual = None if residual is None else flat(residual)

    def _copy_rows(self) -> None:
        """Emit x as [ceil(K / v)][M][v]; what is behind the end of a row is not read."""
        w, v = self.w, self.v
        whole, rest = divmod(w.in_features, v)
        copy = builder.alloc_buffer((ceil_div(w.in_features, v) * w.batch * v,), "float32")
        with builder.parallel(0, w.batch) as m:
            if whole:
                with builder.serial(0, whole) as block:
                    vector = load(self.data, m * w.in_features + block * v, lanes=v)
                    store(copy, vector, (block * w.batch + m) * v, lanes=v)
            for i in range(rest):
                value = load(self.data, m * w.in_features + (whole * v + i))
                store(copy, value, (whole * w.batch + m) * v + i)
        self.data = copy

    def _reduce(self, tile: Any, row: Any) -> list[Accumulators]:
        """Emit the sums of a tile, one set for each part of K."""
        parts = [Accumulators(self.n * self.m, self.v) for _ in range(self.split)]
        units, rest = divmod(self.w.in_features, self.unit)
        each = units // self.split
        with builder.serial(0, each) as k:
            for s, sums in enumerate(parts):
                self._step(sums, tile, row, k + s * each, self.unit)
        if units % self.split:
            with builder.serial(0, units % self.split) as k:
                self._step(parts[0], tile, row, k + self.split * each, self.unit)
        if rest:
            self._step(parts[0], tile, row, tirx.const(units, "int32"), rest)
        return parts

    def _step(self, sums: Accumulators, tile: Any, row: Any, unit: Any, depth: int) -> None:
        """Emit ``depth`` steps of the reduction from a unit's first on."""
        w, v, wide = self.w, self.v, self.n * self.v
        at = builder.Bind((tile * w.in_features + unit * self.unit) * wide)
        first = (
            (unit * w.batch + row) * v if self.copied else row * w.in_features + unit * self.unit
        )
        start = builder.Bind(first)
        stride = v if self.copied else w.in_features

        def weights(r: Any) -> list[Any]:
            return [load(self.weight, at + (r * wide + o * v), lanes=v) for o in range(self.n)]

        pixels = [(self.data, start + m * stride) for m in range(self.m)]
        multiply_block(sums, self.form, depth, pixels, weights)

    def _write(self, parts: list[Accumulators], tile: Any, row: Any) -> None:
        """Emit the epilogue and the stores: vectors, or single lanes where N is below v."""
        w, v = self.w, self.v
        whole = w.out_features >= v
        for o in range(self.n):
            block = tirx.min(tile * self.n, self.blocks - self.n) + o
            first = tirx.max(tirx.min(block * v, w.out_features - v), 0)
            column = builder.Bind(first)
            for m in range(self.m):
                for lane in range(1 if whole else w.out_features):
                    sums = [s.total(o * self.m + m, lane, v if whole else 1) for s in parts]
                    at = (row + m) * w.out_features + column
                    self._write_lanes(sums, column + lane, at + lane, v if whole else 1)

    def _write_lanes(self, sums: list[Any], column: Any, at: Any, lanes: int) -> None:
        value = sums[0]
        for other in sums[1:]:
            value = value + other
        if self.bias is not None:
            value = value + load(self.bias, column, lanes=lanes)
        if self.residual is not None:
            value = value + load(self.residual, at, lanes=lanes)
        store(self.out, clipped(value, self.w.epilogue, lanes), at, lanes=lanes)
