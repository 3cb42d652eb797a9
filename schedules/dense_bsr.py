"""Block-sparse dense layer: blocks of v outputs x 1 input, v lanes to a vector register.

::

    for m, n, k: out[m, n] += x[m, k] * w[n, k]              # before; most w[v n, k] are zero

    parallel for task in (tile of m, group of block rows):   # after
        for row in the group:
            part[sums][m_tile][v] = 0                        # registers
            for k in indptr[row] .. indptr[row + 1]:         # the blocks that were kept
                unrolled: part += x[m, indices[k]] (broadcast) * w[k] (vector)
            out = clip(sum of part over sums + bias + residual)   # lane by lane where N is ragged

With one row of x the unrolled steps add to sums of their own, which hides the latency of
multiply-add. With several, ``copy`` first stores x as [ceil(K / v)][M][v]: the rows of a tile are
then neighbours, instead of K elements apart where they evict each other from L1. ``indices`` are
offsets in x as the kernel reads it. The last tile of rows is moved back to end at the border. The
``groups`` of block rows hold about as many blocks each, so that threads finish together. Of a
small layer the rows and their blocks may be unrolled, see ``conv1x1_bsr`` (structure = "code").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import builder, tirx
from tvmx.ir import MATRIX, BlockSparsity, Config, DenseWorkload, Space, ceil_div
from tvmx.numerics import BlockRows
from tvmx.targets import Target
from tvmx.templates import (
    IN_CODE,
    IN_DATA,
    Accumulators,
    CodeSums,
    IndexMap,
    Kernel,
    ScheduleTemplate,
    SparseBuffers,
    Views,
    apply_epilogue,
    bind,
    block_sparse_kernel,
    emit_kernel,
    fits_code,
    flat,
    for_group,
    index_dtype,
    is_x86,
    kernel_in_code,
    load,
    max_accumulators,
    refuse_sparsity,
    sparsity_levels,
    store,
    structures,
    sum_in_code,
    sum_pixels,
)

GROUPS = (1, 2, 4, 8, 16, 32, 64)
UNROLLS = (1, 2, 4, 8)
MAX_ROWS = 8
"""Rows of x lie K elements apart: more of them than the ways of L1 evict each other."""


class DenseBsr(ScheduleTemplate):
    """Block-sparse matrix-vector and matrix-matrix products, NC in and out; f32."""

    name = "dense_bsr"
    op = "dense"
    sparse = True
    priority = 20

    def supports(self, workload: Any, target: Target) -> str | None:
        if workload.op != self.op:
            return f"computes dense, not {workload.op}"
        return refuse_sparsity(workload, target.lanes("float32"))

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        lanes = target.lanes("float32")
        return sparsity_levels(lanes, workload.out_features, workload.in_features)

    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        return (MATRIX, MATRIX)

    def space(self, workload: Any, target: Target) -> Space:
        rows = ceil_div(workload.out_features, target.lanes("float32"))
        limit = max_accumulators(target)
        sizes = [limit, 3 * limit // 4, limit // 2, limit // 4, MAX_ROWS]
        tiles = sorted({_balanced(workload.batch, size) for size in sizes}, reverse=True)
        m_tile = _balanced(workload.batch, MAX_ROWS)
        groups = [g for g in GROUPS if g <= rows]
        enough = [g for g in groups if ceil_div(workload.batch, m_tile) * g >= 2 * target.cores]
        default = {
            "m_tile": m_tile,
            "groups": min(enough, default=groups[-1]),
            "unroll": 4,
            "copy": workload.batch >= MAX_ROWS and not is_x86(target),
            "structure": IN_DATA,
        }
        if workload.batch == 1 and not is_x86(target) and fits_code(workload, 1):
            # Row pointers, loops and sums that wait for each other are half of the time.
            default |= {"groups": 1, "unroll": max(UNROLLS), "structure": IN_CODE}
        return Space(
            {
                "m_tile": tiles,
                "groups": groups,
                "unroll": list(UNROLLS),
                "copy": [False, True] if workload.batch > 1 else [False],
                "structure": structures(workload),
            },
            default=default,
            constraint=lambda c: (
                c["structure"] == IN_DATA or (c["groups"] == 1 and fits_code(workload, c["m_tile"]))
            ),
        )

    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        self.space(workload, target).check(config, self.name)
        v = target.lanes("float32")
        sparsity = BlockSparsity.parse(workload.sparsity)
        assert sparsity is not None

        def encode(features: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            if not config["copy"]:
                return features
            at: npt.NDArray[np.int64] = features // v * (workload.batch * v) + features % v
            return at

        dtype = index_dtype(int(encode(np.array([workload.in_features - 1]))[0]))
        groups = config.int("groups")

        def emit(kept: BlockRows | None) -> Any:
            return emit_kernel(
                workload, workload.data_shape, workload.out_shape, dtype, groups,
                lambda buffers: _loops(buffers, workload, v, config, kept, encode),
                in_code=kept is not None,
            )  # fmt: skip

        if config["structure"] == IN_CODE:
            return kernel_in_code(workload, emit)
        return block_sparse_kernel(emit(None), sparsity, dtype, encode, groups)


def _balanced(extent: int, size: int) -> int:
    """The tile of at most ``size`` that cuts ``extent`` into as few, evenly."""
    return ceil_div(extent, ceil_div(extent, size))


def _loops(
    buffers: SparseBuffers, w: DenseWorkload, v: int, config: Config, kept: BlockRows | None,
    encode: IndexMap,
) -> None:  # fmt: skip
    m_tile, groups = config.int("m_tile"), config.int("groups")
    views = Views(buffers)
    source, stride = views.data, w.in_features
    if config["copy"]:
        source, stride = _copied(buffers, w, v), v
    with builder.parallel(0, ceil_div(w.batch, m_tile) * groups) as task:
        m = bind("m", tirx.min(task // groups * m_tile, w.batch - m_tile))
        if kept is not None:
            view = flat(source)
            for number in range(len(kept.indptr) - 1):
                in_code = sum_in_code(
                    buffers, kept, number, encode, view,
                    [m * stride + p * stride for p in range(m_tile)], config.int("unroll"),
                )  # fmt: skip
                _store(buffers, views, w, in_code, number, m)
            return
        with for_group(buffers.splits, bind("group", task % groups)) as row:
            sums = sum_pixels(
                buffers, row, source, [p * stride for p in range(m_tile)], v,
                config.int("unroll"), lambda index: index + m * stride,
            )  # fmt: skip
            _store(buffers, views, w, sums, row, m)


def _copied(buffers: SparseBuffers, w: DenseWorkload, v: int) -> Any:
    """Emit the copy of x to [ceil(K / v)][M][v]; returns it as one axis."""
    blocks = ceil_div(w.in_features, v)
    copy = builder.alloc_buffer((blocks * w.batch * v,), "float32")
    whole = w.in_features // v
    with builder.parallel(0, blocks) as block, builder.serial(0, w.batch) as m:
        at = bind("at", (block * w.batch + m) * v)

        def vector() -> None:
            store(copy, load(buffers.data, m, block * v, lanes=v), at, lanes=v)

        def tail() -> None:
            with builder.serial(0, w.in_features % v) as lane:
                store(copy, load(buffers.data, m, whole * v + lane), at + lane)

        _either(block, whole, blocks, vector, tail)
    return copy


def _store(
    buffers: SparseBuffers, views: Views, w: DenseWorkload, sums: Accumulators | CodeSums,
    row: Any, m: Any,
) -> None:  # fmt: skip
    """Emit the epilogue and the stores of one block row: vectors, or lanes in a ragged one."""
    v = sums.lanes
    first = bind("first", m * w.out_features + row * v)

    def lanes(start: int, count: int) -> None:
        for number in range(sums.count):
            at = first + number * w.out_features + start
            value = apply_epilogue(
                sums.total(number, start, count),
                w.epilogue,
                bias=lambda: load(buffers.bias, row, start, lanes=count),
                residual=partial(load, views.residual, at, lanes=count),
            )
            store(views.out, value, at, lanes=count)

    def tail() -> None:
        for lane in range(w.out_features % v):
            lanes(lane, 1)

    whole = w.out_features // v
    _either(row, whole, ceil_div(w.out_features, v), partial(lanes, 0, v), tail)


def _either(
    block: Any, whole: int, blocks: int, vector: Callable[[], None], tail: Callable[[], None]
) -> None:
    """Emit ``vector`` for the blocks below ``whole`` and ``tail`` for a last, ragged one."""
    if whole == blocks or (isinstance(block, int) and block < whole):
        vector()
    elif whole == 0 or isinstance(block, int):
        tail()
    else:
        with builder.If(block < whole):
            with builder.Then():
                vector()
            with builder.Else():
                tail()
