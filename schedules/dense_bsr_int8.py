"""Block-sparse int8 dense layer: blocks of one dot product.

With v outputs to a vector of int32 sums; a *word* is the 32 bits of a row that one dot product
reads (``step`` neighbouring inputs, see ``tvmx.templates.DotForm``), a block v outputs x ``step``
inputs: 4x4 on Arm, 16x4 with AVX-512 VNNI::

    for m, n: out[m, n] = requantise(sum over k of x[m, k] * w[n, k])        # before

    words[K / step][M] = the data                                            # after
    parallel for task in (tile of m, group of block rows):
        for row in the group:
            part[sums][m_tile][v] = 0                        # int32, registers
            for k in indptr[row] .. indptr[row + 1]:         # the blocks that were kept
                unrolled: part += dot(words[indices[k], m] (broadcast), w[k] (vector))
            out = requantise(sum of part + bias, residual)   # lane by lane where N is ragged

With one row of x the unrolled steps add to sums of their own, which hides the latency of a dot.
The last tile of rows is moved back to end at the border. The ``groups`` of block rows hold about
as many blocks each, so that threads finish together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import IRBuilder, builder, tirx
from tvmx.ir import MATRIX, ROUNDINGS, Config, DenseWorkload, Space, ceil_div
from tvmx.targets import Target
from tvmx.templates import (
    DotForm,
    DotSums,
    Int8Arguments,
    Kernel,
    ScheduleTemplate,
    concat,
    dot_form,
    finished,
    flat,
    for_group,
    index_dtype,
    int8_sparse_kernel,
    load,
    most_pixels,
    refuse_sparsity,
    sparsity_levels,
    spread,
    spread_lane,
    store,
    sum_dots,
)

GROUPS = (1, 2, 4, 8, 16, 32, 64)
UNROLLS = (1, 2, 4, 8)


class DenseBsrInt8(ScheduleTemplate):
    """Block-sparse matrix-vector and matrix-matrix products, NC in and out; int8."""

    name = "dense_bsr_int8"
    op = "dense"
    precision = "int8"
    sparse = True
    roundings = ROUNDINGS
    float_epilogue = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes dense, not {workload.op}"
        form = dot_form(target)
        return refuse_sparsity(workload, form.lanes, form.step, "int8")

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        form = dot_form(target)
        return sparsity_levels(form.lanes, workload.out_features, workload.in_features, form.step)

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (MATRIX, MATRIX)

    def space(self, workload: Any, target: Target) -> Space:
        form = dot_form(target)
        limit = most_pixels(target, form)
        sizes = [max(1, limit * part // 4) for part in (4, 3, 2, 1)]
        tiles = sorted({_balanced(workload.batch, size) for size in sizes}, reverse=True)
        rows = ceil_div(workload.out_features, form.lanes)
        groups = [g for g in GROUPS if g <= rows]
        tasks = ceil_div(workload.batch, tiles[0])
        enough = [g for g in groups if tasks * g >= 2 * target.cores]
        return Space(
            {"m_tile": tiles, "groups": groups, "unroll": list(UNROLLS)},
            default={
                "m_tile": tiles[0], "groups": min(enough, default=groups[-1]),
                "unroll": 4 if tiles[0] < 4 else 1,
            },
        )  # fmt: skip

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        form, m = dot_form(target), workload.batch
        dtype = index_dtype(ceil_div(workload.in_features, form.step) * m - 1)

        def encode(words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            at: npt.NDArray[np.int64] = words * m
            return at

        func = _Emitter(workload, form, dtype, config, target).function()
        return int8_sparse_kernel(func, workload, form, dtype, encode, config.int("groups"))


def _balanced(extent: int, size: int) -> int:
    """The tile of at most ``size`` that cuts ``extent`` into as few, evenly."""
    return ceil_div(extent, ceil_div(extent, size))


class _Emitter:
    """Writes the kernel statement by statement."""

    def __init__(
        self, w: DenseWorkload, form: DotForm, dtype: str, config: Config, target: Target
    ) -> None:
        self.w, self.form, self.v, self.target = w, form, form.lanes, target
        self.m, self.groups, self.unroll = (
            config.int(k) for k in ("m_tile", "groups", "unroll")
        )  # fmt: skip
        self.dtype = dtype

    def function(self) -> Any:
        w, groups = self.w, self.groups
        with IRBuilder() as ir, builder.prim_func(s_tir=True):
            builder.func_name("main")
            builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            self.a = Int8Arguments(
                w, self.form, w.data_shape, w.out_shape, self.dtype, groups
            )  # fmt: skip
            self.out = flat(self.a.out)
            self.residual = None if self.a.residual is None else flat(self.a.residual)
            words = self._words()
            with builder.parallel(0, ceil_div(w.batch, self.m) * groups) as task:
                row = builder.Bind(tirx.min(task // groups * self.m, w.batch - self.m))
                with for_group(self.a.splits, builder.Bind(task % groups)) as block_row:
                    self._tile(words, block_row, row)
        return ir.get()

    def _words(self) -> Any:
        """Emit the data as words, those of all rows one behind the other."""
        w, step = self.w, self.form.step
        k, count = w.in_features, ceil_div(w.in_features, step)
        words, data = builder.alloc_buffer((count * w.batch,), "int32"), flat(self.a.data)
        whole = k // step

        def copy(first: Any, m: Any, size: int) -> None:
            raw = load(data, m * k + first * step, lanes=size * step)
            value = self.form.words(raw, size)
            if w.batch == 1 or size == 1:
                store(words, value, first * w.batch + m, lanes=size)
                return
            vector = builder.Bind(value)
            for i in range(size):
                lane = tirx.Shuffle([vector], [tirx.const(i, "int32")])
                store(words, lane, (first + i) * w.batch + m)

        with builder.serial(0, w.batch) as m:
            size = 16 if w.batch == 1 else 4
            with builder.serial(0, whole // size) as i:
                copy(i * size, m, size)
            with builder.serial(0, whole % size) as i:
                copy(whole // size * size + i, m, 1)
            if k % step:
                rest = [load(data, m * k + whole * step + i) for i in range(k % step)]
                store(words, self.form.planes(rest, 1), whole * w.batch + m)
        return words

    def _tile(self, words: Any, block_row: Any, row: Any) -> None:
        by_lane = self.form.reads_data and self.m >= 4

        def pixels(indices: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
            starts, done = [builder.Bind(row + index) for index in indices], 0
            while by_lane and done < self.m:
                first = min(done, self.m - 4)
                four = [builder.Bind(load(words, s + first, lanes=4)) for s in starts]
                for lane in range(done - first, 4):
                    yield first + lane, [spread_lane(vector, lane, self.v) for vector in four]
                done = first + 4
            for m in range(done, self.m):
                yield m, [builder.Bind(spread(load(words, s + m), self.v)) for s in starts]

        sums = sum_dots(self.a, block_row, self.form, self.m, self.unroll, pixels)
        bias = builder.Bind(load(self.a.bias, block_row, 0, lanes=self.v))
        scales = self.a.scales(block_row, self.v)
        for m in range(self.m):
            self._write(sums, m, bias, scales, block_row, row + m)

    def _write(
        self, sums: DotSums, number: int, bias: Any, scales: tuple[Any, ...], block_row: Any,
        m: Any,
    ) -> None:  # fmt: skip
        """Emit the requantisation and the stores of one row: a vector, or lanes in a ragged one."""
        w, v = self.w, self.v
        at = builder.Bind(m * w.out_features + block_row * v)
        total = builder.Bind(sums.total(number) + bias)
        blocks, ragged = ceil_div(w.out_features, v), w.out_features % v

        def store_lanes(count: int) -> None:
            residual = None
            if self.residual is not None:
                single = 1 if count < v else v
                every = [load(self.residual, at + i, lanes=single) for i in range(count // single)]
                every += every[-1:] * (v - count)
                residual = concat(every, 1) if count < v else every[0]
            result = finished(
                total, scales, self.a.params, self.target, residual, v, w.epilogue
            )  # fmt: skip
            if count == v:
                store(self.out, result, at, lanes=v)
                return
            whole = builder.Bind(result)
            for i in range(count):
                lane = tirx.Shuffle([whole], [tirx.const(i, "int32")])
                store(self.out, lane, at + i)

        if not ragged:
            store_lanes(v)
        elif blocks == 1:
            store_lanes(ragged)
        else:
            with builder.If(block_row < blocks - 1):
                with builder.Then():
                    store_lanes(v)
                with builder.Else():
                    store_lanes(ragged)
