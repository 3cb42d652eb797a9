"""Block pruning against loops over the blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmx.errors import UsageError
from tvmx.ir import BlockSparsity
from tvmx.ir._sparsity import LEVELS
from tvmx.numerics import block_rows, prune

Array = np.ndarray[Any, Any]
SHAPES = [(64, 32), (33, 17), (16, 1), (1, 50), (5, 7, 1, 1), (40, 24, 1, 1), (20, 5, 3, 3)]
BLOCKS = [(16, 1), (4, 1), (1, 1), (8, 4), (3, 5)]


def any_weight(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def slow(weight: Array, sparsity: BlockSparsity) -> tuple[Array, list[list[tuple[int, Array]]]]:
    """The pruned weight and, by block row, the kept (block column, zero-padded block)."""
    out, inner = len(weight), weight[0].size
    matrix = weight.reshape(out, inner)
    blocks = []
    for top in range(0, out, sparsity.rows):
        for left in range(0, inner, sparsity.columns):
            part = matrix[top : top + sparsity.rows, left : left + sparsity.columns]
            strength = sum(float(w) ** 2 for w in part.ravel())
            blocks.append((-strength, len(blocks), top, left, part))
    total = len(blocks)
    keep = max(1, total - total * sparsity.level // 100)
    pruned = np.zeros_like(matrix)
    rows: list[list[tuple[int, Array]]] = [[] for _ in range(-(-out // sparsity.rows))]
    for _, _, top, left, part in sorted(
        sorted(blocks, key=lambda b: b[:2])[:keep], key=lambda b: b[1]
    ):
        pruned[top : top + sparsity.rows, left : left + sparsity.columns] = part
        padded = np.zeros((sparsity.rows, sparsity.columns), weight.dtype)
        padded[: part.shape[0], : part.shape[1]] = part
        rows[top // sparsity.rows].append((left // sparsity.columns, padded))
    return pruned.reshape(weight.shape), rows


@pytest.mark.parametrize("level", [*LEVELS, 1, 99])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pruning_equals_loops(shape: tuple[int, ...], block: tuple[int, int], level: int) -> None:
    weight, sparsity = any_weight(shape), BlockSparsity(*block, level)
    expected, rows = slow(weight, sparsity)
    got = prune(weight, sparsity)
    assert got.dtype == weight.dtype and got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected)
    kept = block_rows(weight, sparsity)
    assert kept.indices.dtype == kept.indptr.dtype == np.int32
    assert kept.indptr.tolist() == np.cumsum([0, *map(len, rows)]).tolist()
    flat = [entry for row in rows for entry in row]
    assert kept.indices.tolist() == [column for column, _ in flat]
    np.testing.assert_array_equal(kept.data, np.stack([part for _, part in flat]))


@given(
    out=st.integers(1, 40), inner=st.integers(1, 40), rows=st.integers(1, 17),
    columns=st.integers(1, 6), level=st.integers(1, 99), seed=st.integers(0, 99),
)  # fmt: skip
def test_kept_blocks(out: int, inner: int, rows: int, columns: int, level: int, seed: int) -> None:
    weight, sparsity = any_weight((out, inner), seed), BlockSparsity(rows, columns, level)
    kept = block_rows(weight, sparsity)
    count = sparsity.kept(out, inner)
    assert kept.data.shape == (count, rows, columns) and kept.indices.shape == (count,)
    total = -(-out // rows) * -(-inner // columns)
    assert 1 <= count <= total and count - 1 <= total * (100 - level) / 100 <= count
    for start, stop in zip(kept.indptr[:-1], kept.indptr[1:], strict=True):
        assert (np.diff(kept.indices[start:stop]) > 0).all()
    pruned = prune(weight, sparsity)
    np.testing.assert_array_equal(prune(pruned, sparsity), pruned)
    again = block_rows(pruned, sparsity)
    np.testing.assert_array_equal(again.indices, kept.indices)
    np.testing.assert_array_equal(again.indptr, kept.indptr)
    assert ((pruned == weight) | (pruned == 0)).all()


@given(
    out=st.integers(1, 30), inner=st.integers(1, 30), rows=st.integers(1, 9),
    columns=st.integers(1, 4), level=st.integers(1, 99),
)  # fmt: skip
def test_rows_multiply_as_the_pruned_matrix(
    out: int, inner: int, rows: int, columns: int, level: int
) -> None:
    rng = np.random.default_rng(out * inner)
    weight = rng.integers(-9, 10, (out, inner)).astype(np.float32)
    sparsity = BlockSparsity(rows, columns, level)
    kept = block_rows(weight, sparsity)
    x = rng.integers(-9, 10, inner).astype(np.float32)
    padded = np.zeros(-(-inner // columns) * columns, np.float32)
    padded[:inner] = x
    product = np.zeros((len(kept.indptr) - 1, rows), np.float32)
    for row in range(len(product)):
        for i in range(kept.indptr[row], kept.indptr[row + 1]):
            at = kept.indices[i] * columns
            product[row] += kept.data[i] @ padded[at : at + columns]
    np.testing.assert_array_equal(product.ravel()[:out], prune(weight, sparsity) @ x)


def test_of_equal_blocks_the_earlier_stay() -> None:
    kept = block_rows(np.ones((8, 4), np.float32), BlockSparsity(4, 1, 50))
    assert kept.indptr.tolist() == [0, 4, 4] and kept.indices.tolist() == [0, 1, 2, 3]


def test_pruned_blocks_of_zeros_stay_where_a_weight_has_too_few() -> None:
    weight = np.zeros((8, 4), np.float32)
    weight[5, 3] = 2
    kept = block_rows(weight, BlockSparsity(4, 1, 50))
    assert len(kept.indices) == 4 and np.abs(kept.data).sum() == 2
    np.testing.assert_array_equal(prune(weight, BlockSparsity(4, 1, 50)), weight)


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_strength_neither_under_nor_overflows(magnitude: float) -> None:
    weight = any_weight((32, 16))
    sparsity = BlockSparsity(16, 1, 70)
    expected = prune(weight, sparsity) != 0
    scaled = weight * np.float32(magnitude)
    np.testing.assert_array_equal(prune(scaled, sparsity) != 0, expected)


@pytest.mark.parametrize("text", ["16x1", "16x1@0", "16x1@100", "0x1@50", "x@", "16x1@50 "])
def test_malformed_sparsity_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither"):
        BlockSparsity.parse(text)


def test_sparsity_as_text() -> None:
    sparsity = BlockSparsity.parse("16x1@80")
    assert sparsity == BlockSparsity(16, 1, 80) and str(sparsity) == "16x1@80"
    assert BlockSparsity.parse("dense") is None
