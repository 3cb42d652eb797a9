"""What int8 block-sparse templates share: sums of dot products over the blocks that a row keeps.

A block is ``lanes`` outputs x ``step`` inputs: the vector of weights and the word of data that one
dot product takes (see :class:`tvmx.templates.DotForm`). In a convolution of several taps it has
all taps of ``step`` input channels, a dot for each: these are neighbours in the weight's matrix.
Where a dot takes two words at once they are those of any two dots of a row; a last one is
multiplied alone. The constants of a kernel are ``weight`` int8 (kept * taps, lanes * step),
``indices``, ``indptr``, ``splits`` as in float (``_block_sparse``), then ``bias``, ``multiplier``
and ``params`` (``_int8``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tvmx.ir import BlockSparsity, Conv2dWorkload, DenseWorkload
from tvmx.numerics import LayerConstants, block_rows
from tvmx.targets import Target
from tvmx.templates._base import Constant, Kernel
from tvmx.templates._block_sparse import (
    LATENCY_SUMS,
    IndexMap,
    bind,
    load,
    matrix_of,
    pack_rows,
    spread,
    store,
)
from tvmx.templates._int8 import PARAMS, epilogue_constants, factor, factor_buffer
from tvmx.templates._intrinsics import DotForm
from tvmx.templates._tiles import is_x86

Layer = Conv2dWorkload | DenseWorkload
Words = Callable[[Sequence[Any]], Iterable[tuple[int, list[Any]]]]
"""From the indices of some blocks: per pixel of a tile, its word for each, spread to a vector."""


def taps_of(w: Layer) -> int:
    """Dot products of a block."""
    return 1 if isinstance(w, DenseWorkload) else w.kernel[0] * w.kernel[1]


def int8_sparse_kernel(
    func: Any, w: Layer, form: DotForm, dtype: str, encode: IndexMap, groups: int
) -> Kernel:
    """The int8 kernel of blocks of dot products, with its packing; see :func:`pack_rows`."""
    sparsity = BlockSparsity.parse(w.sparsity)
    assert sparsity is not None

    def pack(layer: LayerConstants) -> tuple[Constant, ...]:
        kept = block_rows(layer.weight, sparsity)
        correction = form.weight_correction(layer.weight)
        constants = epilogue_constants(
            layer, w.epilogue, form.lanes, weight_correction=correction
        )  # fmt: skip
        # (kept, lanes, step, taps) -> (kept, taps, lanes, step)
        blocks = kept.data.reshape(-1, form.lanes, form.step, taps_of(w)).transpose(0, 3, 1, 2)
        weight = blocks.reshape(-1, form.lanes * form.step).astype(np.int8)
        return (weight, *pack_rows(kept, dtype, encode, groups), *constants)

    return Kernel(func=func, pack=pack)


def most_pixels(target: Target, form: DotForm) -> int:
    """Pixels of the largest tile whose sums leave registers for its operands.

    Where pairs of words are multiplied LLVM orders the code for in-order cores such that it holds
    more of them at once.
    """
    if is_x86(target):
        return target.vector_registers - 4
    crowded = form.pairs and target.big.in_order
    return target.vector_registers * (3 if crowded else 4) // 8 // form.parts


class Int8Arguments:
    """Emits the arguments of such a kernel, the data and the output in the given shapes."""

    def __init__(
        self, w: Layer, form: DotForm, data_shape: Sequence[int], out_shape: Sequence[int],
        dtype: str, groups: int,
    ) -> None:  # fmt: skip
        from tvmx._tvm import builder

        sparsity = BlockSparsity.parse(w.sparsity)
        assert sparsity is not None
        outputs, inputs = matrix_of(w)
        rows, kept = sparsity.blocks(outputs, inputs)[0], sparsity.kept(outputs, inputs)
        self.epilogue = w.epilogue

        def argument(name: str, shape: Sequence[int], kind: str) -> Any:
            return builder.arg(name, builder.buffer(tuple(shape), kind))

        self.data = argument("data", data_shape, "int8")
        self.weight = argument("weight", (kept * taps_of(w), form.lanes * form.step), "int8")
        self.indices = argument("indices", (kept,), dtype)
        self.indptr = argument("indptr", (rows + 1,), "int32")
        self.splits = argument("splits", (groups + 1,), "int32")
        self.bias = argument("bias", (rows, form.lanes), "int32")
        factors = factor_buffer(w.epilogue, rows, form.lanes)
        self.multiplier = argument("multiplier", *factors)
        self.params = argument("params", (PARAMS,), "float32")
        has_residual = w.epilogue.residual
        self.residual = argument("residual", out_shape, w.out_dtype) if has_residual else None
        self.out = argument("out", out_shape, w.out_dtype)

    def scales(self, row: Any, lanes: int) -> tuple[Any, ...]:
        """What :func:`tvmx.templates.finished` multiplies the sums of a block row by."""
        return factor(
            self.epilogue,
            lambda *at: bind("scale", load(self.multiplier, *at, row, 0, lanes=lanes)),
        )


class DotSums:
    """int32 sums of ``pixels`` words x a vector of outputs, in registers.

    Each is kept in ``splits`` sets that take turns, where there are too few to hide the latency.
    """

    def __init__(self, form: DotForm, pixels: int, splits: int) -> None:
        from tvmx._tvm import builder, tirx

        self.form, self.pixels, self.splits = form, pixels, splits
        v, count = form.lanes, splits * pixels * form.parts
        # One by one: TVM takes buffers of over a kilobyte from its workspace pool, a call each.
        self._sums = [builder.alloc_buffer((v,), "int32") for _ in range(count)]
        for buffer in self._sums:
            store(buffer, spread(tirx.const(0, "int32"), v), 0, lanes=v)

    def _parts(self, pixel: int, split: int) -> list[Any]:
        first = (split * self.pixels + pixel) * self.form.parts
        return self._sums[first : first + self.form.parts]

    def add(self, pixel: int, words: Sequence[Any], weights: Sequence[Any], step: int) -> None:
        """Emit one dot into the sums of a pixel; ``step`` picks the set."""
        v, parts = self.form.lanes, self._parts(pixel, step % self.splits)
        old = [load(buffer, 0, lanes=v) for buffer in parts]
        for buffer, new in zip(parts, self.form.dot(old, words, weights), strict=True):
            store(buffer, new, 0, lanes=v)

    def total(self, pixel: int) -> Any:
        """The sum of a pixel: a vector of outputs."""
        whole = None
        for split in range(self.splits):
            loaded = [load(b, 0, lanes=self.form.lanes) for b in self._parts(pixel, split)]
            value = self.form.total(loaded)
            whole = value if whole is None else whole + value
        return whole


def sum_dots(
    arguments: Int8Arguments, row: Any, form: DotForm, pixels: int, unroll: int, words: Words,
    taps: Sequence[int] = (0,),
) -> DotSums:  # fmt: skip
    """Emit the sums of one block row over the pixels of a tile.

    ``taps`` are the words from a block's index to that of each of its dots.
    """
    from tvmx._tvm import builder

    taken = 2 if form.pairs else 1
    group = taken if len(taps) == 1 else 1  # blocks: several taps are pairs by themselves
    splits = 1
    while 2 * splits <= unroll and 2 * splits * pixels * form.parts <= LATENCY_SUMS:
        splits *= 2
    sums = DotSums(form, pixels, splits)

    def steps(first: Any, count: int) -> None:
        """Emit the dots of ``count`` blocks from ``first`` on, ``taken`` at a time."""
        dots = [(number, tap) for number in range(count) for tap in range(len(taps))]
        bases: dict[int, tuple[Any, Any]] = {}
        for turn in range(0, len(dots), taken):
            now = dots[turn : turn + taken]
            for number, _ in now:
                if number not in bases:
                    block = bind("block", first + number)
                    index = bind("index", load(arguments.indices, block).astype("int32"))
                    bases[number] = (block, index)
            weights = [
                bind(
                    "weights",
                    load(
                        arguments.weight, bases[number][0] * len(taps) + tap, 0,
                        lanes=form.lanes * form.step,
                    ),
                )
                for number, tap in now
            ]  # fmt: skip
            for pixel, spreads in words([bases[number][1] + taps[tap] for number, tap in now]):
                sums.add(pixel, spreads, weights, turn // taken)

    first = bind("start", load(arguments.indptr, row))
    left = bind("count", load(arguments.indptr, row + 1) - first)
    for size in sorted({group * unroll, group, 1}, reverse=True):
        turns = left if size == 1 else bind("turns", left // size)
        with builder.serial(0, turns) as turn:
            steps(bind("first", first + turn * size), size)
        if size > 1:
            first, left = bind("start", first + turns * size), bind("left", left - turns * size)
    return sums
