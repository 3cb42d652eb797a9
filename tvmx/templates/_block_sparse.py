"""What block-sparse templates share: which levels they offer, packing, and loops over kept blocks.

The constants of such a kernel are, in order: ``weight`` (kept, R * C), the kept RxC blocks row by
row; ``indices`` (kept,), where each block's inputs are, as the template encodes it
(:func:`index_dtype`); ``indptr`` int32 (block rows + 1,); ``splits`` int32 (groups + 1,), where
each group of block rows begins (:func:`even_groups`); then what the epilogue needs: ``bias``
float32 (block rows, R), zero-padded, if it has one; three constants of int8 kernels. How many
blocks a row keeps is known at run time only, so schedules of dense loops do not describe these
kernels: they are written statement by statement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import DENSE, LEVELS, BlockSparsity, Conv2dWorkload, DenseWorkload
from tvmx.numerics import BlockRows, LayerConstants, block_rows
from tvmx.templates._base import Constant, Kernel
from tvmx.templates._packing import pack_vector

MIN_BLOCKS = 4
"""Layers of fewer blocks are not pruned: a level would be a fraction of a block."""
ROW_BLOCKS = 4
"""Blocks that the start, the epilogue and the stores of a row take as long as."""
LATENCY_SUMS = 8
"""Independent multiply-adds that hide their latency."""
IndexMap = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]


def sparsity_levels(rows: int, outputs: int, inputs: int, columns: int = 1) -> tuple[str, ...]:
    """The sparsities offered for a matrix in blocks of rows x columns; none for tiny ones."""
    offered = [BlockSparsity(rows, columns, level) for level in LEVELS]
    block_count = math.prod(offered[0].blocks(outputs, inputs))
    return tuple(map(str, offered)) if block_count >= MIN_BLOCKS else ()


def refuse_sparsity(
    workload: Conv2dWorkload | DenseWorkload, rows: int, columns: int = 1, dtype: str = "float32"
) -> str | None:
    """Why a template of such blocks cannot compute this variant of a layer, or None."""
    if workload.dtype != dtype:
        return f"computes {dtype}, not {workload.dtype}"
    if workload.sparsity == DENSE:
        return "computes block-sparse layers, this one is dense"
    sparsity = BlockSparsity.parse(workload.sparsity)
    if sparsity is None or (sparsity.rows, sparsity.columns) != (rows, columns):
        return f"computes blocks of {rows}x{columns}, not {workload.sparsity}"
    return None


def refuse_pointwise(workload: Any, op: str) -> str | None:
    """Why a layer is no 1x1 convolution without groups and padding, or None."""
    if workload.op != op:
        return f"computes {op}, not {workload.op}"
    if workload.kernel != (1, 1):
        return f"computes 1x1 kernels, not {workload.kernel[0]}x{workload.kernel[1]}"
    if workload.groups > 1:
        return f"computes one group, not {workload.groups}"
    if any(workload.padding):
        return "computes unpadded convolutions only"
    if max(workload.strides) > 2:
        return f"computes strides 1 and 2, not {workload.strides}"
    return None


def refuse_few_channels(workload: Any, lanes: int) -> str | None:
    """Why a layer's data does not come in blocks of ``lanes`` channels, or None."""
    if workload.in_channels < lanes:
        return f"reads blocks of {lanes} channels, not {workload.in_channels}"
    return None


def index_dtype(largest: int) -> str:
    """The smallest type TVM loads cheaply that holds indices up to ``largest``."""
    return "uint16" if largest < 1 << 16 else "int32"


def matrix_of(workload: Conv2dWorkload | DenseWorkload) -> tuple[int, int]:
    """Rows and columns of a layer's weight as a matrix: outputs, and what one of them sums."""
    outputs, *inner = workload.weight_shape
    return outputs, math.prod(inner)


def even_groups(indptr: npt.NDArray[np.int32], groups: int) -> npt.NDArray[np.int32]:
    """(groups + 1,) where groups of neighbouring block rows begin that take about as long.

    A row takes as long as its blocks and :data:`ROW_BLOCKS` more. A group may be empty.
    """
    rows = np.arange(len(indptr))
    work = indptr + ROW_BLOCKS * rows
    wanted = work[-1] * np.arange(groups + 1) / groups
    after = np.searchsorted(work, wanted)  # the first border at or behind
    before = np.maximum(after - 1, 0)
    nearer = wanted - work[before] < work[after] - wanted
    found: npt.NDArray[np.int32] = np.where(nearer, before, after).astype(np.int32)
    found[0], found[-1] = 0, len(indptr) - 1
    return found


def pack_rows(
    kept: BlockRows, dtype: str, encode: IndexMap, groups: int
) -> tuple[Constant, Constant, Constant]:
    """``indices``, ``indptr`` and ``splits``; ``encode`` maps block columns to indices."""
    indices = encode(kept.indices.astype(np.int64)).astype(dtype)
    return indices, kept.indptr, even_groups(kept.indptr, groups)


def block_sparse_kernel(
    func: Any, sparsity: BlockSparsity, dtype: str, encode: IndexMap, groups: int
) -> Kernel:
    """The float kernel of Rx1 blocks with its packing; see :func:`pack_rows`."""

    def pack(layer: LayerConstants) -> tuple[Constant, ...]:
        kept = block_rows(layer.weight, sparsity)
        structure = pack_rows(kept, dtype, encode, groups)
        return (pack_blocks(kept), *structure, *pack_bias(layer, sparsity.rows, kept))

    return Kernel(func=func, pack=pack)


def pack_blocks(kept: BlockRows) -> Constant:
    """float32 (kept, R * C)."""
    return kept.data.reshape(len(kept.data), -1).astype(np.float32, copy=False)


def pack_bias(layer: LayerConstants, rows: int, kept: BlockRows) -> tuple[Constant, ...]:
    """The bias in blocks of ``rows``, if the layer has one."""
    if layer.bias is None:
        return ()
    return (pack_vector(layer.bias, rows, len(kept.indptr) - 1),)


@dataclass(frozen=True)
class SparseBuffers:
    """The buffers of a kernel; ``bias`` and ``residual`` are None where the epilogue has none.

    So are ``indices``, ``indptr`` and ``splits`` where the code holds the structure.
    """

    data: Any
    weight: Any
    indices: Any | None
    indptr: Any | None
    splits: Any | None
    bias: Any | None
    residual: Any | None
    out: Any


def emit_kernel(
    workload: Conv2dWorkload | DenseWorkload, data_shape: Sequence[int], out_shape: Sequence[int],
    dtype: str, groups: int, body: Callable[[SparseBuffers], None], *, in_code: bool = False,
) -> Any:  # fmt: skip
    """The PrimFunc (float32) whose statements ``body`` emits through ``tvmx._tvm.builder``.

    ``dtype`` is the type of the indices; the shapes are the physical ones. ``in_code``: there are
    no indices, nor what else says which blocks are kept.
    """
    from tvmx._tvm import IRBuilder, builder

    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        builder.func_name("main")
        builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        body(sparse_arguments(workload, data_shape, out_shape, dtype, groups, in_code=in_code))
    return ir.get()


def sparse_arguments(
    workload: Conv2dWorkload | DenseWorkload, data_shape: Sequence[int], out_shape: Sequence[int],
    dtype: str, groups: int, *, in_code: bool = False,
) -> SparseBuffers:  # fmt: skip
    """Emit the arguments of a float kernel; see :func:`emit_kernel`."""
    from tvmx._tvm import builder

    sparsity = BlockSparsity.parse(workload.sparsity)
    assert sparsity is not None
    kept = sparsity.kept(*matrix_of(workload))
    rows = sparsity.blocks(*matrix_of(workload))[0]
    has = workload.epilogue

    def argument(name: str, shape: Sequence[int], dtype: str = "float32") -> Any:
        return builder.arg(name, builder.buffer(tuple(shape), dtype))

    return SparseBuffers(
        argument("data", data_shape),
        argument("weight", (kept, sparsity.rows)),
        None if in_code else argument("indices", (kept,), dtype),
        None if in_code else argument("indptr", (rows + 1,), "int32"),
        None if in_code else argument("splits", (groups + 1,), "int32"),
        argument("bias", (rows, sparsity.rows)) if has.bias else None,
        argument("residual", out_shape) if has.residual else None,
        argument("out", out_shape),
    )


class Views:
    """``data``, ``residual`` and ``out`` of a kernel, each as one axis over the same memory."""

    def __init__(self, buffers: SparseBuffers) -> None:
        self.data = flat(buffers.data)
        self.residual = None if buffers.residual is None else flat(buffers.residual)
        self.out = flat(buffers.out)


def flat(buffer: Any) -> Any:
    """Emit a view of a buffer as one axis."""
    from tvmx._tvm import builder

    size = math.prod(int(extent) for extent in buffer.shape)
    return builder.decl_buffer((size,), str(buffer.dtype), data=buffer.data)


def bind(name: str, value: Any) -> Any:
    """Emit a variable with that value."""
    from tvmx._tvm import IRBuilder, builder

    return IRBuilder.name(name, builder.Bind(value))


def load(buffer: Any, *index: Any, lanes: int = 1) -> Any:
    """``lanes`` neighbours of the last axis from ``index`` on, as a vector (or a scalar)."""
    from tvmx._tvm import tirx

    return tirx.BufferLoad(buffer, _vector(index, lanes))


def store(buffer: Any, value: Any, *index: Any, lanes: int = 1) -> None:
    """Emit the store of ``lanes`` neighbours of the last axis from ``index`` on."""
    from tvmx._tvm import builder

    builder.buffer_store(buffer, value, _vector(index, lanes))


def prefetch(buffer: Any, index: Any) -> None:
    """Emit a hint to bring the line of an element of a flat buffer into L2; it may lie outside."""
    from tvmx._tvm import builder, tirx

    where = tirx.address_of(tirx.BufferLoad(buffer, [index]))
    read, to_l2, data = (tirx.const(number, "int32") for number in (0, 2, 1))
    builder.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", where, read, to_l2, data))


def spread(value: Any, lanes: int) -> Any:
    """A vector of ``lanes`` times ``value``."""
    from tvmx._tvm import tirx

    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def _vector(index: tuple[Any, ...], lanes: int) -> list[Any]:
    from tvmx._tvm import tirx

    last = index[-1] if lanes == 1 else tirx.Ramp(index[-1], 1, lanes)
    return [*index[:-1], last]


class Accumulators:
    """``count`` vectors of ``lanes`` sums in registers, each split into ``parts`` partial sums."""

    def __init__(self, count: int, lanes: int, parts: int = 1) -> None:
        from tvmx._tvm import builder, tirx

        self.count, self.lanes, self.parts = count, lanes, parts
        # TVM takes buffers of scope "local", or of over a kilobyte, from its workspace pool, a call
        # each time; these are on the stack, and then in registers.
        self._buffers = [builder.alloc_buffer((lanes,), "float32") for _ in range(count * parts)]
        for buffer in self._buffers:
            store(buffer, spread(tirx.const(0, "float32"), lanes), 0, lanes=lanes)

    def add(self, number: int, value: Any, step: int = 0) -> None:
        """Emit the addition of ``value`` to sum ``number``; ``step`` picks the partial sum."""
        buffer = self._buffers[step % self.parts * self.count + number]
        store(buffer, load(buffer, 0, lanes=self.lanes) + value, 0, lanes=self.lanes)

    def save(self, buffer: Any, at: Any) -> None:
        """Emit the store of all totals to a flat float32 buffer, from ``at`` on."""
        for number in range(self.count):
            store(buffer, self.total(number), at + number * self.lanes, lanes=self.lanes)

    def restore(self, buffer: Any, at: Any) -> None:
        """Emit the addition of what :meth:`save` stored."""
        for number in range(self.count):
            self.add(number, load(buffer, at + number * self.lanes, lanes=self.lanes))

    def total(self, number: int, start: int = 0, lanes: int | None = None) -> Any:
        """Sum ``number``, all its parts; of its lanes only ``lanes`` from ``start`` on."""
        count = self.lanes if lanes is None else lanes
        values = [load(b, start, lanes=count) for b in self._buffers[number :: self.count]]
        while len(values) > 1:
            half = len(values) // 2
            values = [a + b for a, b in zip(values[:half], values[half:], strict=True)]
        return values[0]


def partial_sums(accumulators: int, unroll: int) -> int:
    """Parts that give few accumulators enough independent sums; a power of two."""
    parts = 1
    while 2 * parts <= unroll and 2 * parts * accumulators <= LATENCY_SUMS:
        parts *= 2
    return parts


def for_group(splits: Any, group: Any) -> Any:
    """A loop over the block rows of a group."""
    from tvmx._tvm import builder

    first = bind("first_row", load(splits, group))
    return builder.serial(first, load(splits, group + 1))


def for_kept_blocks(
    buffers: SparseBuffers, row: Any, unroll: int, step: Callable[[Any, Any, int], None]
) -> None:
    """Emit ``step(block, index, position)`` for the kept blocks of a row, ``unroll`` at a time.

    ``index`` is what ``indices`` holds for the block, int32; ``position`` is the block's place in
    its group of ``unroll``. A row may keep no block at all.
    """
    from tvmx._tvm import builder

    def at(first: Any, position: int) -> None:
        block = bind("block", first)
        step(block, bind("index", load(buffers.indices, block).astype("int32")), position)

    start = bind("start", load(buffers.indptr, row))
    count = bind("count", load(buffers.indptr, row + 1) - start)
    if unroll == 1:
        with builder.serial(0, count) as k:
            at(start + k, 0)
        return
    groups = bind("groups", count // unroll)
    with builder.serial(0, groups) as group:
        for position in range(unroll):
            at(start + group * unroll + position, position)
    with builder.serial(0, count - groups * unroll) as k:
        at(start + groups * unroll + k, 0)


def sum_pixels(
    buffers: SparseBuffers, row: Any, source: Any, offsets: Sequence[int], lanes: int,
    unroll: int, decode: Callable[[Any], Any],
) -> Accumulators:  # fmt: skip
    """Emit the sums of one block row over a tile of pixels: one vector of channels each.

    ``decode(index)`` is the element of the flat ``source`` that a block meets in the tile's first
    pixel; ``offsets`` are the elements from there to each pixel.
    """
    sums = Accumulators(len(offsets), lanes, partial_sums(len(offsets), unroll))

    def step(block: Any, index: Any, position: int) -> None:
        first = bind("first", decode(index))
        weights = bind("weights", load(buffers.weight, block, 0, lanes=lanes))
        for number, offset in enumerate(offsets):
            sums.add(number, spread(load(source, first + offset), lanes) * weights, position)

    for_kept_blocks(buffers, row, unroll, step)
    return sums
