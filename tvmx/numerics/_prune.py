"""Magnitude pruning to blocks, and the kept blocks as block-sparse rows (BSR)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tvmx.ir import BlockSparsity

Array = npt.NDArray[Any]


class BlockRows(NamedTuple):
    """Block-sparse rows: ``data`` is (kept, rows, columns), the index arrays are int32.

    ``indices`` (kept,) are block columns, ascending within a row; ``indptr`` (block rows + 1,).
    """

    data: Array
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int32]


def block_rows(weight: Array, sparsity: BlockSparsity) -> BlockRows:
    """The strongest blocks of a matrix (out, in) or kernel (out, in, height, width), as BSR.

    A kernel is the matrix (out, in * height * width): its columns are the taps of the first input
    channel, then those of the next. A block's strength is its sum of squares; on ties the earlier
    block stays. Exactly ``sparsity.kept`` blocks are kept, so that a kernel's shape depends on the
    level only. Of an already pruned weight the same blocks are kept.
    """
    blocks = _blocks(weight, sparsity)
    rows, columns = blocks.shape[:2]
    keep = sparsity.kept(*matrix_shape(weight))
    strength = np.square(blocks.astype(np.float64)).sum(axis=(2, 3)).reshape(-1)
    strongest = np.sort(np.argsort(-strength, kind="stable")[:keep])
    counts = np.bincount(strongest // columns, minlength=rows)
    return BlockRows(
        np.ascontiguousarray(blocks.reshape(rows * columns, *blocks.shape[2:])[strongest]),
        (strongest % columns).astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    )


def prune(weight: Array, sparsity: BlockSparsity) -> Array:
    """The weight with all blocks but the strongest set to zero; shape and dtype are kept."""
    kept = block_rows(weight, sparsity)
    rows, columns = sparsity.blocks(*matrix_shape(weight))
    blocks = np.zeros((rows, columns, sparsity.rows, sparsity.columns), weight.dtype)
    row_of = np.repeat(np.arange(rows), np.diff(kept.indptr))
    blocks[row_of, kept.indices] = kept.data
    matrix = blocks.transpose(0, 2, 1, 3).reshape(rows * sparsity.rows, columns * sparsity.columns)
    out, inner = matrix_shape(weight)
    return np.ascontiguousarray(matrix[:out, :inner].reshape(weight.shape))


def matrix_shape(weight: Array) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix: output channels, and all that one of them sums."""
    return len(weight), weight.size // len(weight)


def _blocks(weight: Array, sparsity: BlockSparsity) -> Array:
    """(block rows, block columns, rows, columns), zero-padded."""
    out, inner = matrix_shape(weight)
    rows, columns = sparsity.blocks(out, inner)
    padded = np.zeros((rows * sparsity.rows, columns * sparsity.columns), weight.dtype)
    padded[:out, :inner] = weight.reshape(out, inner)
    split = padded.reshape(rows, sparsity.rows, columns, sparsity.columns)
    return split.transpose(0, 2, 1, 3)
