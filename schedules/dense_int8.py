"""int8 dense layer: dot products of bytes in a register tile of m_tile rows x n_tile vectors.

With v outputs to a vector of int32 sums; a *word* is the 32 bits of a row that one dot product
reads (``step`` neighbouring inputs, see ``tvmx.templates.DotForm``)::

    for m, n: out[m, n] = requantise(sum over k of x[m, k] * w[n, k])        # before

    words[m][K / step] = the data, zeros behind its end                      # after
    parallel for task in (n outer, m outer):
        part[k_split][m_tile][n_tile][v] = 0             # int32, registers
        for k outer:
            unrolled for k_split, m_tile, n_tile: part += dot(word (broadcast), w (vector))
        unrolled: out = requantise(sum of part over k_split + bias, residual)

Weights are packed [blocks][K / step][v * step]. Where N is no multiple of v the last block holds
the last v outputs, some of them a second time, so that every store is a whole vector. k_split
gives one row (bound by memory) enough independent sums.
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
    PARAMS,
    Constant,
    DotForm,
    Kernel,
    ScheduleTemplate,
    concat,
    dot_form,
    epilogue_constants,
    factor,
    factor_buffer,
    finished,
    flat,
    is_x86,
    load,
    pack_dot_weight,
    spread,
    store,
)

K_SPLITS = (1, 2, 4)
N_TILES = (1, 2, 3, 4, 6, 8)
MAX_ROWS = 8
STREAM_SUMS = 8
"""Independent sums that hide the latency of a dot product while weights stream."""


class DenseInt8(ScheduleTemplate):
    """Matrix-vector and matrix-matrix products, NC in and out; int8."""

    name = "dense_int8"
    op = "dense"
    precision = "int8"
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 10

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes dense, not {workload.op}"
        if workload.dtype != "int8":
            return f"computes int8, not {workload.dtype}"
        return None

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (MATRIX, MATRIX)

    def space(self, workload: Any, target: Target) -> Space:
        form = dot_form(target)
        tiles = _ranked_tiles(workload, target, form)
        m_tile, n_tile = tiles[0]

        def fits(m_tile: int, n_tile: int, split: int) -> bool:
            return _fits(target, m_tile * split, n_tile, form)

        splits = [s for s in K_SPLITS if s <= _steps(workload, form)]
        k_split = max(
            s for s in splits
            if s == 1 or (s * m_tile * n_tile <= STREAM_SUMS and fits(m_tile, n_tile, s))
        )  # fmt: skip
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
        form = dot_form(target)

        def pack(layer: LayerConstants) -> tuple[Constant, ...]:
            correction = form.weight_correction(layer.weight)
            bias, multiplier, params = epilogue_constants(
                layer, workload.epilogue, form.lanes, weight_correction=correction
            )
            return (_pack(layer.weight, form), bias, multiplier, params)

        return Kernel(func=_Emitter(workload, form, config, target).function(), pack=pack)


def _words(w: DenseWorkload, form: DotForm) -> int:
    """Words of a row, padded to what one dot takes."""
    taken = 2 if form.pairs else 1
    return ceil_div(w.in_features, form.step * taken) * taken


def _steps(w: DenseWorkload, form: DotForm) -> int:
    """Dots behind one sum."""
    return _words(w, form) // (2 if form.pairs else 1)


def _fits(target: Target, rows: int, n_tile: int, form: DotForm) -> bool:
    """Whether a tile's sums leave registers for its operands."""
    sums = rows * n_tile * form.parts
    if is_x86(target):
        return sums + n_tile + 2 <= target.vector_registers
    return sums <= target.vector_registers // 2


def _ranked_tiles(w: DenseWorkload, target: Target, form: DotForm) -> list[tuple[int, int]]:
    """(m_tile, n_tile) that do not spill, best first by the analytical model."""
    blocks = ceil_div(w.out_features, form.lanes)

    def cycles(tile: tuple[int, int]) -> float:
        rows, vectors = tile
        count = ceil_div(w.batch, rows) * ceil_div(blocks, vectors)
        step = max(rows * vectors * form.parts, 2.0 * (rows + vectors), STREAM_SUMS)
        return count * (_steps(w, form) * (step + 1) + 12 * rows * vectors)

    tiles = [
        (m, n)
        for m in range(1, min(w.batch, MAX_ROWS) + 1)
        for n in N_TILES
        if n <= blocks and _fits(target, m, n, form)
    ]
    if w.batch == 1:  # bound by memory: four streams of weights, whatever the arithmetic says
        return sorted(tiles, key=lambda t: abs(t[1] - min(4, blocks)))
    return sorted(tiles, key=lambda t: (cycles(t), t))[:12]


def _pack(weight: npt.NDArray[Any], form: DotForm) -> npt.NDArray[np.int8]:
    """s8 (N, K) -> ``(blocks, words, lanes * step)``; the last block ends with the last output."""
    n, k = weight.shape
    v = form.lanes
    rows = np.minimum(np.arange(ceil_div(n, v) * v), n - 1)
    if n > v:
        rows[-v:] = np.arange(n - v, n)
    taken = form.step * (2 if form.pairs else 1)
    padded = np.zeros((len(rows), ceil_div(k, taken) * taken), np.int8)
    padded[:, :k] = weight[rows]
    packed = pack_dot_weight(padded[:, :, None, None], form, padded.shape[1])
    return packed.reshape(packed.shape[0], -1, v * form.step)


class _Emitter:
    """Writes the kernel statement by statement."""

    def __init__(self, w: DenseWorkload, form: DotForm, config: Config, target: Target) -> None:
        self.w, self.form, self.v, self.target = w, form, form.lanes, target
        self.m, self.n, self.split = (config.int(k) for k in ("m_tile", "n_tile", "k_split"))
        self.words = _words(w, form)
        self.blocks = ceil_div(w.out_features, form.lanes)

    def function(self) -> Any:
        w = self.w
        down, across = ceil_div(w.batch, self.m), ceil_div(self.blocks, self.n)
        with IRBuilder() as ir, builder.prim_func(s_tir=True):
            builder.func_name("main")
            builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            self._arguments()
            self.image = builder.alloc_buffer((w.batch * self.words,), "int32")
            with builder.serial(0, w.batch) as row:
                self._copy_row(row)
            with builder.parallel(0, across * down) as task:
                block = builder.Bind(tirx.min(task // down * self.n, self.blocks - self.n))
                row = builder.Bind(tirx.min(task % down * self.m, w.batch - self.m))
                self._write(self._reduce(block, row), block, row)
        return ir.get()

    def _arguments(self) -> None:
        w, v = self.w, self.v
        out_shape = (w.batch, w.out_features)

        def argument(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            return builder.arg(name, builder.buffer(shape, dtype))

        data = argument("data", (w.batch, w.in_features), "int8")
        weight = argument("weight", (self.blocks, self.words, v * self.form.step), "int8")
        bias = argument("bias", (self.blocks, v), "int32")
        multiplier = argument("multiplier", *factor_buffer(w.epilogue, self.blocks, v))
        self.params = argument("params", (PARAMS,), "float32")
        residual = argument("residual", out_shape, w.out_dtype) if w.epilogue.residual else None
        out = argument("out", out_shape, w.out_dtype)
        self.data, self.weight, self.out = flat(data), flat(weight), flat(out)
        self.bias, self.multiplier = flat(bias), flat(multiplier)
        self.residual = None if residual is None else flat(residual)

    def _copy_row(self, row: Any) -> None:
        """The words of a row; weights behind its end are zero, so any value will do there."""
        k, step = self.w.in_features, self.form.step
        whole = k // step
        done = whole // 16 * 16

        def copy(first: Any, count: int) -> None:
            raw = load(self.data, row * k + first * step, lanes=count * step)
            store(self.image, self.form.words(raw, count), row * self.words + first, lanes=count)

        if done:
            with builder.serial(0, done // 16) as i:
                copy(i * 16, 16)
        with builder.serial(0, whole - done) as i:
            copy(done + i, 1)
        if k % step:
            rest = [load(self.data, row * k + whole * step + i) for i in range(k % step)]
            store(self.image, self.form.planes(rest, 1), row * self.words + whole)
        for word in range(ceil_div(k, step), self.words):
            store(self.image, tirx.const(0, "int32"), row * self.words + word)

    def _reduce(self, block: Any, row: Any) -> Any:
        """Emit the sums of a tile, [split][row][vector][part] vectors."""
        v, parts = self.v, self.form.parts
        count = self.split * self.m * self.n * parts
        sums = builder.alloc_buffer((count * v,), "int32", scope="local")
        for slot in range(count):
            store(sums, spread(tirx.const(0, "int32"), v), slot * v, lanes=v)
        steps = _steps(self.w, self.form)
        whole = steps // self.split
        with builder.serial(0, whole) as k:
            for s in range(self.split):
                self._step(sums, s, block, row, k * self.split + s)
        for s in range(steps - whole * self.split):
            self._step(sums, s, block, row, tirx.const(whole * self.split + s, "int32"))
        return sums

    def _step(self, sums: Any, split: int, block: Any, row: Any, k: Any) -> None:
        """Emit the dots of one step of the reduction into one of the ``k_split`` sums."""
        v, parts = self.v, self.form.parts
        taken, wide = (2 if self.form.pairs else 1), v * self.form.step
        weights = [
            [
                builder.Bind(
                    load(self.weight, ((block + n) * self.words + k * taken + t) * wide, lanes=wide)
                )
                for t in range(taken)
            ]
            for n in range(self.n)
        ]
        for m in range(self.m):
            words = [
                builder.Bind(spread(load(self.image, (row + m) * self.words + k * taken + t), v))
                for t in range(taken)
            ]
            for n in range(self.n):
                slots = [self._slot(split, m, n) + p for p in range(parts)]
                old = [load(sums, s * v, lanes=v) for s in slots]
                for s, new in zip(slots, self.form.dot(old, words, weights[n]), strict=True):
                    store(sums, new, s * v, lanes=v)

    def _slot(self, split: int, m: int, n: int) -> int:
        return ((split * self.m + m) * self.n + n) * self.form.parts

    def _write(self, sums: Any, block: Any, row: Any) -> None:
        """Emit the requantisation of the tile's sums and their stores."""
        w, v = self.w, self.v
        for n in range(self.n):
            channel = builder.Bind(tirx.max(tirx.min((block + n) * v, w.out_features - v), 0))
            for m in range(self.m):
                total = None
                for s in range(self.split):
                    first = self._slot(s, m, n)
                    parts = [load(sums, (first + p) * v, lanes=v) for p in range(self.form.parts)]
                    value = self.form.total(parts)
                    total = value if total is None else total + value
                self._write_vector(total, channel, row + m)

    def _write_vector(self, total: Any, channel: Any, row: Any) -> None:
        w, v = self.w, self.v
        at = row * w.out_features + channel
        short = w.out_features < v
        residual = None
        if self.residual is not None:
            count = 1 if short else v
            every = [
                load(self.residual, at + i, lanes=count)
                for i in range(w.out_features if short else 1)
            ]
            every += every[-1:] * (v - len(every)) if short else []
            residual = concat(every, 1) if short else every[0]
        bias = load(self.bias, channel, lanes=v)
        scales = factor(w.epilogue, lambda part=0: load(
            self.multiplier, part * self.blocks * v + channel, lanes=v
        ))  # fmt: skip
        result = finished(total + bias, scales, self.params, self.target, residual, v, w.epilogue)
        if not short:
            store(self.out, result, at, lanes=v)
            return
        whole = builder.Bind(result)
        for i in range(w.out_features):
            lane = tirx.Shuffle([whole], [tirx.const(i, "int32")])
            store(self.out, lane, at + i)
