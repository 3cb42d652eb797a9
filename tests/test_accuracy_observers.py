"""The range methods against brute-force NumPy on small data, and on degenerate data."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from tvmx.accuracy._entropy import EMPTY, best_slice, divergence
from tvmx.accuracy._histogram import BINS, Histogram
from tvmx.accuracy._observers import METHODS, Average, Method, Observer, observer
from tvmx.accuracy._squared_error import span_error, squared_error_range
from tvmx.numerics import QuantParams, dequantise, quantise

Array = Any


def data_of(kind: str, seed: int = 0) -> Array:
    """(samples, elements) of float32."""
    rng = np.random.default_rng(seed)
    match kind:
        case "normal":
            found = rng.standard_normal((4, 500))
        case "relu":
            found = np.maximum(rng.standard_normal((4, 500)) * 3, 0)
        case "laplace":
            found = rng.laplace(0.3, 2.0, (4, 500))
        case "negative":
            found = -np.abs(rng.standard_normal((4, 500))) - 1
        case "outlier":
            found = rng.standard_normal((4, 500))
            found[2, 7] = 300.0
        case _:
            found = rng.standard_t(2, (4, 500)) * 1e-4
    return found.astype(np.float32)


KINDS = ["normal", "relu", "laplace", "negative", "outlier", "tails"]


def seen(method: Method, values: Array) -> Observer:
    found = observer(method)
    for part in np.array_split(values, 3):
        if len(part):
            found.add(part)
    return found


def squared_error(values: Array, low: float, high: float) -> float:
    """Of the int8 numbers themselves."""
    params = QuantParams.from_range(low, high)
    error = dequantise(quantise(values, params), params).astype(np.float64) - values
    return float(np.mean(error**2))


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_about_the_best_of_all_ranges(kind: str) -> None:
    values = data_of(kind)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    grid = np.linspace(0.02, 1.0, 50)
    best = min(
        squared_error(values, low * a, high * b)
        for a, b in itertools.product(grid if low else [1.0], grid if high else [1.0])
    )
    found = seen("mse", values).range()
    assert squared_error(values, *found) <= 1.05 * best
    assert low <= found[0] <= 0 <= found[1] <= high


def test_the_error_of_a_span_is_its_integral() -> None:
    """Against the int8 numbers of 200,000 points of each span, some of them clipped."""
    params = QuantParams(0.37, -90)
    starts = np.array([-30.0, -14.1, -3.0, 0.1, 60.0, 79.9, 300.0])
    stops = np.array([-20.0, -13.9, 7.0, 0.1, 60.01, 90.0, 300.5])
    wanted = 0.0
    for count, start, stop in zip(range(1, 8), starts, stops, strict=True):
        points = start + (stop - start) * (np.arange(200_000) + 0.5) / 200_000
        steps = np.clip(np.rint(points / params.scale), -128 + 90, 127 + 90)
        wanted += count * float(np.mean((steps * params.scale - points) ** 2))
    found = span_error(np.arange(1.0, 8.0), starts, stops, params)
    assert found == pytest.approx(wanted, rel=1e-6)


def naive_divergence(counts: list[float], begin: int, end: int, levels: int) -> float:
    """The published steps one element at a time."""
    p = [float(c) for c in counts[begin:end]]
    size = len(p)
    q = [0.0] * size
    for level in range(levels):
        group = range(level * size // levels, (level + 1) * size // levels)
        filled = [i for i in group if p[i] > 0]
        for i in filled:
            q[i] = sum(p[j] for j in group) / len(filled)
    p[0] += sum(counts[:begin])
    p[-1] += sum(counts[end:])
    for i in range(size):
        if p[i] > 0 and q[i] == 0:
            q[i] = EMPTY
    q = [b if a > 0 else 0.0 for a, b in zip(p, q, strict=True)]
    return sum(
        a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True) if a
    )


def small_counts(seed: int, bins: int, centre: float) -> Array:
    rng = np.random.default_rng(seed)
    at = np.exp(-(((np.arange(bins) - centre) / (bins / 7)) ** 2)) * 60
    counts = rng.poisson(at)
    counts[rng.integers(0, bins, 4)] += rng.integers(0, 3, 4)
    counts[0] = counts[-1] = 1
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_kl_divergence_is_the_published_one(seed: int) -> None:
    counts = small_counts(seed, 37, 15.0)
    before = np.concatenate([[0], np.cumsum(counts)]).astype(float)
    for begin, end in [(0, 37), (0, 20), (3, 30), (9, 17), (12, 37)]:
        wanted = naive_divergence(list(counts), begin, end, 8)
        found = divergence(counts.astype(float), before, begin, end, 8)
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_kl_finds_the_best_slice_of_one_side(seed: int) -> None:
    counts = small_counts(seed, 60, 0.0)
    wanted = min(
        range(8, 61), key=lambda end: (round(naive_divergence(list(counts), 0, end, 8), 9), -end)
    )
    assert best_slice(counts, 0, 8) == (0, wanted)
    mirrored = best_slice(counts[::-1], 60, 8)
    assert mirrored[1] == 60
    assert mirrored[0] > 0 or wanted == 60


@pytest.mark.parametrize("seed", range(6))
def test_kl_of_two_sides_is_near_the_best_of_all_slices(seed: int) -> None:
    counts = small_counts(seed, 50, 25.0)
    listed = list(counts)
    every = [naive_divergence(listed, a, b, 8) for a in range(26) for b in range(25, 51)
             if b - a >= 8]  # fmt: skip
    found = naive_divergence(listed, *best_slice(counts, 25, 8), 8)
    # Moving one end at a time may stop beside the best, but far better than most.
    assert found <= np.quantile(every, 0.02) + 1e-12
    assert found <= naive_divergence(listed, 0, 50, 8)


def test_kl_clips_long_tails_and_keeps_short_ones() -> None:
    rng = np.random.default_rng(0)
    tails = rng.standard_t(3, (20, 20_000)).astype(np.float32)
    low, high = seen("kl", tails).range()
    assert low > 0.7 * tails.min()
    assert high < 0.7 * tails.max()
    even = rng.uniform(-1, 2, (20, 20_000)).astype(np.float32)
    low, high = seen("kl", even).range()
    assert (low, high) == (pytest.approx(-1, rel=0.05), pytest.approx(2, rel=0.05))


def test_kl_does_not_count_exact_zeros() -> None:
    values = data_of("relu")
    more = np.concatenate([values, np.zeros((9, 500), np.float32)])
    assert seen("kl", more).range() == seen("kl", values).range()


def test_average_is_the_mean_of_the_samples_extremes() -> None:
    values = data_of("outlier")
    low, high = seen("average", values).range()
    assert low == pytest.approx(float(values.min(axis=1).mean(dtype=np.float64)))
    assert high == pytest.approx(float(values.max(axis=1).mean(dtype=np.float64)))
    assert high < values.max() / 2
    parts = Average()
    for sample in values[::-1]:
        parts.add(sample[None])
    assert parts.range() == pytest.approx((low, high))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_lie_within_the_extremes(method: Method, kind: str) -> None:
    values = data_of(kind)
    low, high = seen(method, values).range()
    assert min(values.min(), 0) <= low <= high <= max(values.max(), 0)
    assert high > low


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constant", [5.0, -0.3, 0.0, 1e-30, -3e-42, 1e30])
def test_constants(method: Method, constant: float) -> None:
    """A constant is represented to within half a step of the range up to it."""
    values = np.full((3, 40), constant, np.float32)
    params = QuantParams.from_range(*seen(method, values).range())
    error = np.abs(dequantise(quantise(values, params), params) - values)
    assert error.max() <= abs(constant) / 255 + 1e-24


@pytest.mark.parametrize("method", METHODS)
def test_one_element(method: Method) -> None:
    params = QuantParams.from_range(*seen(method, np.array([[2.5]], np.float32)).range())
    assert dequantise(quantise(np.float32([2.5]), params), params) == pytest.approx(2.5, rel=4e-3)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("method", METHODS)
def test_ranges_scale_with_the_data(method: Method, scale: float) -> None:
    values = data_of("laplace")
    factor = 2.0 ** round(math.log2(scale))
    one, other = seen(method, values).range(), seen(method, values * np.float32(factor)).range()
    assert other == pytest.approx([factor * end for end in one], rel=1e-6)


def test_one_outlier_among_many() -> None:
    """kl and percentile drop it; minmax keeps it; mse weighs it: never worse than minmax."""
    values = np.random.default_rng(0).standard_normal((10, 30_000)).astype(np.float32)
    values[3, 5] = 1000.0
    highs = {method: seen(method, values).range()[1] for method in METHODS}
    assert highs["minmax"] == 1000.0
    assert highs["kl"] < 100
    assert highs["percentile"] < 10
    assert highs["average"] < 110
    values[3, 5] = 100.0
    clipped = squared_error(values, *seen("mse", values).range())
    assert clipped < 0.9 * squared_error(values, float(values.min()), 100.0)


def test_memory_does_not_grow_with_the_data() -> None:
    found = Histogram()
    for exponent in range(-60, 60):
        found.add(np.full((1, 100), 2.0**exponent, np.float32))
    counts, origin = found.counts()
    assert len(counts) == BINS
    assert origin == BINS // 2
    assert counts.sum() == 120 * 100
    assert 2.0**56 < squared_error_range(found)[1] <= 2.0**59
