"""int8 dense layer of two rows or more by Arm's matrix product of bytes (i8mm), NC in and out.

``smmla`` multiplies 2 rows x 8 inputs by 8 inputs x 2 outputs: 32 multiply-adds, twice those of
``sdot``; with a single row half of them would be wasted::

    for m, n: out[m, n] = requantise(sum over k of x[m, k] * w[n, k])        # before

    image[pair of rows][K / 8][2 rows][8] = x                                # after
    parallel for task in (n outer, m outer):
        acc[p_tile][n_tile][2][2 rows][2 outputs] = bias # int32, registers
        for k in K / 8:
            unrolled for p_tile, n_tile, 2: acc += x (2 x 8) * w (8 x 2)       # smmla
        unrolled: out = requantise(two acc, unzipped to 4 outputs of a row, residual)

Tiles at a ragged border are moved back to end there. So is the last step where K is no multiple of
8: the inputs that it shares with the one before meet weights of zero. Where the number of rows is
odd the last one is its own partner. Weights are packed [n outer][n_tile][K / 8][2][2 outputs][8].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import IRBuilder, builder, tirx
from tvmx.ir import MATRIX, ROUNDINGS, Config, DenseWorkload, Space, ceil_div
from tvmx.numerics import LayerConstants
from tvmx.targets import Target
from tvmx.templates import (
    DEPTH,
    PARAMS,
    Constant,
    Kernel,
    ScheduleTemplate,
    concat,
    epilogue_constants,
    factor,
    factor_buffer,
    finished,
    flat,
    half_pairs,
    has_mmla,
    interleave,
    line_cycles,
    load,
    pack_mmla_weight,
    pixel_of,
    runs,
    smmla,
    store,
)

V = 4
"""Outputs of a block, two squares of sums."""
WIDE = 2 * DEPTH
"""Bytes of an operand."""
MOST_SUMS = 16
P_TILES = (1, 2, 3, 4, 6, 8)
N_TILES = (1, 2, 3, 4, 6, 8)
Tile = tuple[int, int]


class DenseSmmla(ScheduleTemplate):
    """Matrix-matrix products, NC in and out; int8 on cores with i8mm."""

    name = "dense_smmla"
    op = "dense"
    precision = "int8"
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 5

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes dense, not {workload.op}"
        if workload.dtype != "int8":
            return f"computes int8, not {workload.dtype}"
        if not has_mmla(target):
            return "needs a core with i8mm"
        if workload.batch < 2:
            return "one row would leave half of each product empty"
        if workload.in_features < DEPTH or workload.out_features < V:
            return f"needs {DEPTH} inputs and {V} outputs or more"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (MATRIX, MATRIX)

    def space(self, workload: Any, target: Target) -> Space:
        tiles = _ranked_tiles(workload, target)
        return Space(
            {"p_tile": sorted({p for p, _ in tiles}), "n_tile": sorted({n for _, n in tiles})},
            default={"p_tile": tiles[0][0], "n_tile": tiles[0][1]},
            constraint=lambda c: 2 * c["p_tile"] * c["n_tile"] <= MOST_SUMS,
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        n_tile = config.int("n_tile")

        def pack(layer: LayerConstants) -> tuple[Constant, ...]:
            bias, multiplier, params = epilogue_constants(layer, workload.epilogue, V)
            return (_pack(layer.weight, n_tile), bias, multiplier, params)

        return Kernel(func=_Emitter(workload, config, target).function(), pack=pack)


def _ranked_tiles(w: DenseWorkload, target: Target) -> list[Tile]:
    """(p_tile, n_tile) that do not spill, best first by the analytical model."""
    pairs, steps = ceil_div(w.batch, 2), ceil_div(w.in_features, DEPTH)

    def cycles(tile: Tile) -> float:
        p, n = tile
        count = ceil_div(pairs, p) * ceil_div(w.out_features, n * V)
        step = max(p * n, (p + 2 * n) / 3, 4) + (p + 2 * n) / 16 + 0.5
        weights = 4 * DEPTH * n * steps
        lines = weights / 64 * line_cycles(target, weights)
        return count * (steps * step + lines + 8.0 * p * n + 20)

    tiles = [
        (p, n)
        for p in P_TILES
        for n in N_TILES
        if p <= pairs and n * V <= w.out_features and 2 * p * n <= MOST_SUMS
    ]
    return sorted(tiles, key=lambda t: (cycles(t), t))[:12]


def _pack(weight: npt.NDArray[Any], n_tile: int) -> npt.NDArray[np.int8]:
    """s8 (N, K) -> ``(tiles, n_tile, K / 8, 2, 16)``; last tile and last step moved back."""
    n, k = weight.shape
    width, steps = n_tile * V, ceil_div(k, DEPTH)
    starts = np.minimum(np.arange(ceil_div(n, width)) * width, n - width)
    rows = (starts[:, None] + np.arange(width)).reshape(-1)
    padded = np.zeros((len(rows), steps * DEPTH), np.int8)
    whole = k // DEPTH * DEPTH
    padded[:, :whole] = weight[rows, :whole]
    if k > whole:
        padded[:, whole - k :] = weight[rows, whole:]
    return pack_mmla_weight(padded[:, :, None, None]).reshape(-1, n_tile, steps, 2, WIDE)


class _Emitter:
    """Writes the kernel statement by statement."""

    def __init__(self, w: DenseWorkload, config: Config, target: Target) -> None:
        self.w, self.target = w, target
        self.p, self.n = (config.int(k) for k in ("p_tile", "n_tile"))
        self.pairs, self.steps = ceil_div(w.batch, 2), ceil_div(w.in_features, DEPTH)
        self.tiles = ceil_div(w.out_features, self.n * V)

    def function(self) -> Any:
        w, down = self.w, ceil_div(self.pairs, self.p)
        with IRBuilder() as ir, builder.prim_func(s_tir=True):
            builder.func_name("main")
            builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            self._arguments()
            self.image = builder.alloc_buffer((self.pairs * self.steps * WIDE,), "int8")
            with builder.parallel(0, self.pairs) as pair:
                self._copy_pair(pair)
            with builder.parallel(0, self.tiles * down) as task:
                tile = builder.Bind(task // down)
                pair = builder.Bind(tirx.min(task % down * self.p, self.pairs - self.p))
                channel = builder.Bind(tirx.min(tile * (self.n * V), w.out_features - self.n * V))
                self._write(self._reduce(tile, channel, pair), channel, pair)
        return ir.get()

    def _arguments(self) -> None:
        w = self.w
        blocks = ceil_div(w.out_features, V)
        out_shape = (w.batch, w.out_features)

        def argument(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            return builder.arg(name, builder.buffer(shape, dtype))

        data = argument("data", (w.batch, w.in_features), "int8")
        weight = argument("weight", (self.tiles, self.n, self.steps, 2, WIDE), "int8")
        bias = argument("bias", (blocks, V), "int32")
        multiplier = argument("multiplier", *factor_buffer(w.epilogue, blocks, V))
        self.params = argument("params", (PARAMS,), "float32")
        residual = argument("residual", out_shape, w.out_dtype) if w.epilogue.residual else None
        out = argument("out", out_shape, w.out_dtype)
        self.data, self.weight, self.out = flat(data), flat(weight), flat(out)
        self.bias, self.multiplier = flat(bias), flat(multiplier)
        self.residual = None if residual is None else flat(residual)

    def _rows(self, pair: Any) -> list[Any]:
        """The two rows of a pair; the last of an odd number has itself beside it."""
        last = self.w.batch - 1
        return [builder.Bind(pair * 2), builder.Bind(tirx.min(pair * 2 + 1, last))]

    def _copy_pair(self, pair: Any) -> None:
        """Emit the image of two rows."""
        k = self.w.in_features
        starts = [builder.Bind(row * k) for row in self._rows(pair)]

        def copy(step: Any, first: Any, steps: int) -> None:
            kind = "int64" if steps == 1 else f"int64x{steps}"
            rows = [
                tirx.reinterpret(kind, load(self.data, s + first, lanes=steps * DEPTH))
                for s in starts
            ]
            both = tirx.reinterpret(f"int8x{steps * WIDE}", interleave(rows[0], rows[1], steps))
            at = (pair * self.steps + step) * WIDE
            store(self.image, both, at, lanes=steps * WIDE)

        whole = k // DEPTH
        with builder.serial(0, whole // 2) as i:
            copy(i * 2, i * (2 * DEPTH), 2)
        if whole % 2:
            copy(whole - 1, (whole - 1) * DEPTH, 1)
        if k % DEPTH:
            copy(whole, k - DEPTH, 1)

    def _reduce(self, tile: Any, channel: Any, pair: Any) -> Any:
        """Emit the sums of a tile: squares, [output block][half][pair]."""
        count = 2 * self.n * self.p
        sums = builder.alloc_buffer((count * V,), "int32", scope="local")
        for n in range(self.n):
            bias = builder.Bind(load(self.bias, channel + n * V, lanes=V))
            for half in range(2):
                for p in range(self.p):
                    store(sums, half_pairs(bias, half), self._square(n, half, p), lanes=V)
        columns = [(n, half) for n in range(self.n) for half in range(2)]
        with builder.serial(0, self.steps) as k:
            weights = [
                builder.Bind(
                    load(
                        self.weight,
                        (((tile * self.n + n) * self.steps + k) * 2 + half) * WIDE,
                        lanes=WIDE,
                    )
                )
                for n, half in columns
            ]
            for p in range(self.p):
                at = ((pair + p) * self.steps + k) * WIDE
                rows = builder.Bind(load(self.image, at, lanes=WIDE))
                for (n, half), other in zip(columns, weights, strict=True):
                    slot = self._square(n, half, p)
                    store(sums, smmla(load(sums, slot, lanes=V), rows, other), slot, lanes=V)
        return sums

    def _square(self, n: int, half: int, p: int) -> int:
        """Where the sums of two outputs and two rows are."""
        return ((2 * n + half) * self.p + p) * V

    def _write(self, sums: Any, channel: Any, pair: Any) -> None:
        """Emit the requantisation of the tile's sums and their stores, 16 bytes at once."""
        for p in range(self.p):
            for half, row in enumerate(self._rows(pair + p)):
                for count, n in runs(self.n, 4):
                    at = builder.Bind(row * self.w.out_features + (channel + n * V))
                    totals = [self._total(sums, n + i, p, half) for i in range(count)]
                    lanes = count * V
                    result = finished(
                        concat(totals, V),
                        self._scales(channel + n * V, lanes),
                        self.params,
                        self.target,
                        None if self.residual is None else load(self.residual, at, lanes=lanes),
                        lanes,
                        self.w.epilogue,
                    )
                    store(self.out, result, at, lanes=lanes)

    def _scales(self, channel: Any, lanes: int) -> tuple[Any, ...]:
        size = ceil_div(self.w.out_features, V) * V
        return factor(
            self.w.epilogue,
            lambda part=0: load(self.multiplier, part * size + channel, lanes=lanes),
        )

    def _total(self, sums: Any, n: int, p: int, row: int) -> Any:
        """The 4 sums of block ``n`` and of one of the rows of pair ``p``."""
        squares = [load(sums, self._square(n, half, p), lanes=V) for half in range(2)]
        return pixel_of(squares, row)
