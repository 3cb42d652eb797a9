"""Block-sparse float kernels whose code holds the structure: which blocks are kept are constants.

Each kept block is a few statements, so that no index, row pointer or loop counter is loaded or
counted; what is left are vectors of weights, data and multiply-adds. The code grows with the
blocks and is good for one set of weights only. A template is given a workload and no weights, so
that it builds the kernel for those of :func:`tvmx.templates.make_operands`: as many blocks at
random places, the same ones whenever the workload is measured. ``Kernel.of`` makes that of a
network's layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from tvmx.errors import TemplateError
from tvmx.ir import BlockSparsity, Conv2dWorkload, DenseWorkload
from tvmx.numerics import BlockRows, LayerConstants, block_rows
from tvmx.templates._base import Constant, Kernel
from tvmx.templates._block_sparse import (
    IndexMap,
    SparseBuffers,
    load,
    matrix_of,
    pack_bias,
    pack_blocks,
    partial_sums,
    spread,
)
from tvmx.templates._reference import random_weight

IN_DATA, IN_CODE = "data", "code"
"""Values of the knob ``structure``."""
MOST_BLOCKS = 512
MOST_PRODUCTS = 4096
"""Multiply-adds (blocks times pixels of a tile) of the largest code: 20 KiB, built in seconds."""


def structures(workload: Conv2dWorkload | DenseWorkload) -> list[str]:
    """Values of the knob ``structure`` for a layer."""
    return [IN_DATA, IN_CODE] if _kept(workload) <= MOST_BLOCKS else [IN_DATA]


def fits_code(workload: Conv2dWorkload | DenseWorkload, pixels: int) -> bool:
    """Whether tiles of so many pixels make code that is small enough."""
    kept = _kept(workload)
    return kept <= MOST_BLOCKS and kept * pixels <= MOST_PRODUCTS


def _kept(workload: Conv2dWorkload | DenseWorkload) -> int:
    sparsity = BlockSparsity.parse(workload.sparsity)
    assert sparsity is not None
    return sparsity.kept(*matrix_of(workload))


def kernel_in_code(
    workload: Conv2dWorkload | DenseWorkload, emit: Callable[[BlockRows], Any]
) -> Kernel:
    """The kernel of Rx1 blocks that ``emit`` makes for the blocks that are kept.

    Its constants are ``weight`` and, if there is one, ``bias``. Packing raises TemplateError for
    weights that keep other blocks.
    """
    sparsity = BlockSparsity.parse(workload.sparsity)
    assert sparsity is not None

    def kernel(kept: BlockRows) -> Kernel:
        structure = _digest(kept)

        def pack(layer: LayerConstants) -> tuple[Constant, ...]:
            found = block_rows(layer.weight, sparsity)
            if _digest(found) != structure:
                raise TemplateError(
                    f"{workload.describe()}: the kernel's code holds which blocks are kept, and "
                    "these weights keep others",
                    hint="take the kernel for a layer's weights: Kernel.of(constants)",
                )
            return (pack_blocks(found), *pack_bias(layer, sparsity.rows, found))

        return Kernel(
            func=emit(kept), pack=pack, structure=structure,
            specialise=lambda layer: kernel(block_rows(layer.weight, sparsity)),
        )  # fmt: skip

    return kernel(block_rows(random_weight(workload), sparsity))


def _digest(kept: BlockRows) -> str:
    return hashlib.sha256(kept.indptr.tobytes() + kept.indices.tobytes()).hexdigest()[:16]


class CodeSums:
    """As :class:`tvmx.templates.Accumulators`, but a new variable for every sum.

    Without loops there is nothing to keep over their turns, and what TVM does to buffers takes it
    a second for a hundred blocks.
    """

    def __init__(self, count: int, lanes: int, parts: int = 1) -> None:
        self.count, self.lanes, self.parts = count, lanes, parts
        self._sums: dict[int, Any] = {}

    def add(self, number: int, value: Any, step: int = 0) -> None:
        """Emit the addition of ``value`` to sum ``number``; ``step`` picks the partial sum."""
        from tvmx._tvm import builder

        at = step % self.parts * self.count + number
        old = self._sums.get(at)
        self._sums[at] = builder.Bind(value if old is None else old + value)

    def total(self, number: int, start: int = 0, lanes: int | None = None) -> Any:
        """Sum ``number``, all its parts; of its lanes only ``lanes`` from ``start`` on."""
        from tvmx._tvm import tirx

        found = [self._sums.get(number + part * self.count) for part in range(self.parts)]
        values = [value for value in found if value is not None]
        total = values[0] if values else spread(tirx.const(0, "float32"), self.lanes)
        for value in values[1:]:
            total = total + value
        if lanes is None or lanes == self.lanes:
            return total
        return tirx.Shuffle([total], [tirx.const(start + i, "int32") for i in range(lanes)])


def sum_in_code(
    buffers: SparseBuffers, kept: BlockRows, row: int, encode: IndexMap, source: Any,
    offsets: Sequence[Any], unroll: int,
) -> CodeSums:  # fmt: skip
    """:func:`tvmx.templates.sum_pixels` of a row whose blocks are known, one behind the other.

    ``encode`` maps block columns to elements of the flat ``source``; partial sums are as with
    ``unroll`` blocks at a time.
    """
    from tvmx._tvm import builder

    lanes = int(buffers.weight.shape[1])
    sums = CodeSums(len(offsets), lanes, partial_sums(len(offsets), unroll))
    first, last = int(kept.indptr[row]), int(kept.indptr[row + 1])
    at = encode(kept.indices[first:last].astype("int64"))
    for position, block in enumerate(range(first, last)):
        weights = builder.Bind(load(buffers.weight, block, 0, lanes=lanes))
        for number, offset in enumerate(offsets):
            value = spread(load(source, offset + int(at[position])), lanes)
            sums.add(number, value * weights, position)
    return sums
