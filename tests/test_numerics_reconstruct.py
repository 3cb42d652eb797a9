"""Pruning by output error against least squares and brute force, and zeros that arrive."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmx.ir import BlockSparsity
from tvmx.numerics import (
    Moments,
    compensate,
    own_level,
    prune,
    reconstruct,
    segment_starts,
    zero_pattern,
)
from tvmx.numerics import _reconstruct as algorithm

Array = np.ndarray[Any, Any]


def correlated(count: int, columns: int, seed: int = 0) -> Array:
    """Inputs as behind a ReLU: mixtures of few causes, with a mean."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((count, max(2, columns // 3)))
    mixed = causes @ rng.standard_normal((causes.shape[1], columns))
    return np.maximum(mixed + 0.3 * rng.standard_normal(mixed.shape) + 0.2, 0)


def any_weight(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(x: Array, weight: Array, pruned: Array, bias: Array | float = 0.0) -> float:
    out, inner = len(weight), weight[0].size
    difference = x @ (pruned - weight).reshape(out, inner).T + bias
    return float(np.square(difference).sum())


@pytest.mark.parametrize("bias", [True, False])
def test_compensation_is_least_squares(bias: bool) -> None:
    x, weight = correlated(60, 9), any_weight(5, 9)
    kept = np.random.default_rng(2).random((5, 9)) < 0.5
    kept[3] = False
    found = compensate(weight, kept, Moments.of(x), bias=bias, damping=0.0)
    assert not found.weight[~kept].any()
    for row in range(5):
        inputs = np.concatenate([x[:, kept[row]], np.ones((60, int(bias)))], axis=1)
        best = np.linalg.lstsq(inputs, x @ weight[row], rcond=None)[0]
        got = np.append(found.weight[row][kept[row]], [found.bias[row]] * bias)
        np.testing.assert_allclose(got, best, rtol=2e-4, atol=2e-5)
    assert bias or not found.bias.any()


def test_damping_is_a_penalty_on_every_change() -> None:
    """Augmented least squares: rows sqrt(d) (V - W) beside those of the outputs."""
    x, weight, damping = correlated(40, 6), any_weight(1, 6), 0.3
    kept = np.array([[True, False, True, True, False, True]])
    found = compensate(weight, kept, Moments.of(x), bias=False, damping=damping)
    d = damping * np.square(x).sum(0).mean()
    wide = np.concatenate([x, np.sqrt(d) * np.eye(6)])
    best = np.linalg.lstsq(wide[:, kept[0]], wide @ weight[0], rcond=None)[0]
    np.testing.assert_allclose(found.weight[0][kept[0]], best, rtol=1e-4)


@pytest.mark.parametrize("block", [(1, 1), (2, 1), (4, 1), (1, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("shape", [(8, 12), (7, 11), (6, 3, 2, 2)], ids=str)
def test_errs_less_than_magnitude_on_correlated_inputs(
    shape: tuple[int, ...], block: tuple[int, int]
) -> None:
    weight = any_weight(*shape)
    x = correlated(200, weight[0].size)
    levels = [BlockSparsity(*block, level) for level in (25, 50, 70)]
    found = reconstruct(weight, Moments.of(x), levels)
    errors = []
    for sparsity in levels:
        made = found[sparsity]
        assert made.weight.dtype == weight.dtype and made.weight.shape == shape
        np.testing.assert_array_equal(prune(made.weight, sparsity), made.weight)
        errors.append(error(x, weight, made.weight, made.bias))
        assert errors[-1] < error(x, weight, prune(weight, sparsity))
    assert errors == sorted(errors)


@pytest.mark.parametrize("width", [1, 2])
def test_the_first_block_is_the_best_one(width: int) -> None:
    """Against trying every block, all others compensated."""
    for seed in range(6):
        x, weight = correlated(50, 8, seed), any_weight(3, 8, seed=seed)
        sparsity = BlockSparsity(3, width, 13 * width)
        assert sparsity.kept(3, 8) == 8 // width - 1
        found = reconstruct(weight, Moments.of(x), [sparsity], damping=1e-9)[sparsity]
        tried = []
        for block in range(8 // width):
            kept = np.ones((3, 8), np.bool_)
            kept[:, block * width : (block + 1) * width] = False
            made = compensate(weight, kept, Moments.of(x), damping=1e-9)
            tried.append(error(x, weight, made.weight, made.bias))
        assert error(x, weight, found.weight, found.bias) == pytest.approx(min(tried), rel=1e-3)


def test_greedy_is_near_the_best_of_all_masks() -> None:
    sparsity, ratios = BlockSparsity(2, 1, 50), []
    for seed in range(5):
        x, weight = correlated(60, 8, seed), any_weight(2, 8, seed=seed)
        found = reconstruct(weight, Moments.of(x), [sparsity])[sparsity]
        best = np.inf
        for stays in combinations(range(8), 4):
            kept = np.zeros((2, 8), np.bool_)
            kept[:, stays] = True
            made = compensate(weight, kept, Moments.of(x))
            best = min(best, error(x, weight, made.weight, made.bias))
        ratios.append(error(x, weight, found.weight, found.bias) / best)
    assert min(ratios) > 0.99 and np.median(ratios) < 1.3


@given(
    out=st.integers(1, 12), inner=st.integers(1, 14), rows=st.integers(1, 5),
    columns=st.integers(1, 4), level=st.integers(1, 99), seed=st.integers(0, 50),
)  # fmt: skip
def test_exactly_so_many_blocks_stay(
    out: int, inner: int, rows: int, columns: int, level: int, seed: int
) -> None:
    weight, sparsity = any_weight(out, inner, seed=seed), BlockSparsity(rows, columns, level)
    moments = Moments.of(correlated(30, inner, seed))
    made = reconstruct(weight, moments, [sparsity])[sparsity].weight
    down, across = sparsity.blocks(out, inner)
    padded = np.zeros((down * rows, across * columns))
    padded[:out, :inner] = made
    used = (padded.reshape(down, rows, across, columns) != 0).any(axis=(1, 3))
    assert used.sum() <= sparsity.kept(out, inner)
    np.testing.assert_array_equal(prune(made, sparsity), made)


def test_blocks_that_are_zero_already_go_first() -> None:
    weight = any_weight(8, 12)
    weight[:4, ::2] = 0
    x = correlated(100, 12)
    sparsity = BlockSparsity(4, 1, 25)  # six of 24 blocks
    made = reconstruct(weight, Moments.of(x), [sparsity])[sparsity]
    np.testing.assert_allclose(made.weight, weight, atol=1e-4)
    np.testing.assert_allclose(made.bias, 0, atol=1e-4)


def test_dead_inputs_cost_nothing() -> None:
    x, weight = correlated(100, 10), any_weight(4, 10)
    x[:, 5:] = 0
    sparsity = BlockSparsity(4, 1, 50)
    made = reconstruct(weight, Moments.of(x), [sparsity])[sparsity]
    assert not made.weight[:, 5:].any() and np.isfinite(made.weight).all()
    assert error(x, weight, made.weight, made.bias) < 1e-6 * np.square(x @ weight.T).sum()
    nothing = reconstruct(weight, Moments.of(np.zeros((5, 10))), [sparsity])[sparsity]
    assert np.isfinite(nothing.weight).all() and np.isfinite(nothing.bias).all()


def test_many_columns_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments make up for themselves, traces run over parts, many blocks go at once."""
    x, weight, sparsity = correlated(300, 30), any_weight(6, 30), BlockSparsity(3, 2, 50)
    whole = reconstruct(weight, Moments.of(x), [sparsity])[sparsity]
    errors = [error(x, weight, whole.weight, whole.bias)]
    monkeypatch.setattr(algorithm, "MOST_COLUMNS", 13)
    assert segment_starts(30, 2) == (0, 12, 24) and segment_starts(30) == (0, 13, 26)
    moments = Moments.of(x, segment_starts(30, 2))
    assert [m.shape for m in moments.segments] == [(13, 13), (13, 13), (7, 7)]
    cut = reconstruct(weight, moments, [sparsity])[sparsity]
    errors.append(error(x, weight, cut.weight, cut.bias))
    monkeypatch.setattr(algorithm, "_TRACED", 8)
    monkeypatch.setattr(algorithm, "_FINE", 1)
    monkeypatch.setattr(algorithm, "_STEPS", 2)
    rough = reconstruct(weight, Moments.of(x), [sparsity])[sparsity]
    errors.append(error(x, weight, rough.weight, rough.bias))
    for made in (cut, rough):
        np.testing.assert_array_equal(prune(made.weight, sparsity), made.weight)
    assert errors[0] < min(errors[1:]) < max(errors[1:]) < error(x, weight, prune(weight, sparsity))


def test_moments_add_up() -> None:
    x = correlated(50, 7)
    parts = Moments.zeros(7, (0, 4)).plus(x[:20]).plus(x[20:])
    for got, wanted in zip(parts.segments, Moments.of(x, (0, 4)).segments, strict=True):
        np.testing.assert_allclose(got, wanted)
    ones = np.concatenate([x[:, :4], np.ones((50, 1))], axis=1)
    np.testing.assert_allclose(parts.segments[0], ones.T @ ones)
    assert parts.count == 50


def test_misfits_are_refused() -> None:
    weight, moments = any_weight(4, 6), Moments.of(correlated(20, 6), (0, 3))
    with pytest.raises(ValueError, match="one block shape"):
        reconstruct(weight, moments, [BlockSparsity(4, 1, 50), BlockSparsity(2, 1, 50)])
    with pytest.raises(ValueError, match="cut blocks of 2"):
        reconstruct(weight, moments, [BlockSparsity(4, 2, 50)])


@pytest.mark.parametrize("block", [(16, 1), (4, 1), (1, 4), (4, 4), (1, 1), (8, 2)])
@pytest.mark.parametrize("shape", [(64, 48), (32, 16, 3, 3), (50, 30)], ids=str)
def test_the_blocks_of_pruned_weights_are_found(
    shape: tuple[int, ...], block: tuple[int, int]
) -> None:
    weight = prune(any_weight(*shape), BlockSparsity(*block, 70))
    found = zero_pattern(weight)
    assert found.zeros == pytest.approx((weight == 0).mean())
    assert (found.rows, found.columns) == block
    assert found.blocks == pytest.approx(0.7, abs=0.02)
    assert own_level(weight, *block) == 70
    own = BlockSparsity(*block, own_level(weight, *block))
    np.testing.assert_array_equal(prune(weight, own), weight)


def test_weights_without_zeros_and_without_anything_else() -> None:
    weight = any_weight(8, 8)
    none = zero_pattern(weight)
    assert (none.zeros, none.rows, none.columns, none.blocks) == (0.0, 1, 1, 0.0)
    assert own_level(weight, 4, 1) == 0
    assert zero_pattern(np.zeros((8, 8))).zeros == 1.0
    assert own_level(np.zeros((8, 8)), 4, 1) == 99


def test_scattered_zeros_are_no_blocks() -> None:
    weight = any_weight(64, 64)
    weight[np.random.default_rng(0).random(weight.shape) < 0.5] = 0
    found = zero_pattern(weight)
    assert (found.rows, found.columns) == (1, 1) and found.blocks == found.zeros
    assert own_level(weight, 16, 1) == 0
