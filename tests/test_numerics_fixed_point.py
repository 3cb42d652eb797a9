"""Fixed-point multiplication against Relay's and TFLite's own code, written out in integers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmx.ir import (
    ROUNDINGS,
    Conv2dWorkload,
    DenseWorkload,
    Epilogue,
    Rounding,
    workload_from_json,
)
from tvmx.numerics import (
    LayerParams,
    QuantParams,
    fixed_point,
    fixed_points,
    layer_constants,
    multiply_fixed,
    requantise,
)

FIXED = sorted(ROUNDINGS - {"even"})
INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIERS = st.integers(2**30, 2**31 - 1)
EDGES = [0, 1, -1, 2, -2, 3, -3, 2**30, -(2**30), 2**31 - 1, -(2**31), 2**31 - 2, 5, -5, 7, -7]


def relay(value: int, multiplier: int, shift: int, rounding: Rounding) -> int:
    """TVM 0.17: ``q_multiply_shift`` and ``FixedPointMultiplyToNearest`` of ``qnn/utils.cc``.

    ``shift`` is theirs: to the left where it is positive.
    """
    left, right = max(shift, 0), max(-shift, 0)
    product = (value << left) * multiplier
    total = right + 31
    rounder = 1 << (total - 1)
    if rounding == "tonearest" and product < 0:
        rounder -= 1
    return (product + rounder) >> total


def tflite(value: int, multiplier: int, shift: int) -> int:
    """``MultiplyByQuantizedMultiplier`` on gemmlowp's ``fixedpoint.h``; division truncates."""
    left, right = max(shift, 0), max(-shift, 0)
    product = (value << left) * multiplier
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    high = abs(nudged) // (1 << 31) * (1 if nudged >= 0 else -1)
    mask = (1 << right) - 1
    remainder, threshold = high & mask, (mask >> 1) + (1 if high < 0 else 0)
    return (high >> right) + (1 if remainder > threshold else 0)


def theirs(value: int, multiplier: int, shift: int, rounding: Rounding) -> int:
    if rounding == "gemmlowp":
        return tflite(value, multiplier, shift)
    return relay(value, multiplier, shift, rounding)


def ours(value: int, multiplier: int, shift: int, rounding: Rounding) -> int:
    result = multiply_fixed(np.array([value]), np.array([multiplier]), np.array([shift]), rounding)
    return int(result[0])


@pytest.mark.parametrize("rounding", FIXED)
@given(value=INT32, multiplier=MULTIPLIERS, shift=st.integers(0, 31))
def test_what_their_code_computes(
    rounding: Rounding, value: int, multiplier: int, shift: int
) -> None:
    assert ours(value, multiplier, 31 + shift, rounding) == theirs(
        value, multiplier, -shift, rounding
    )


@pytest.mark.parametrize("rounding", FIXED)
def test_at_the_ends_and_at_ties(rounding: Rounding) -> None:
    multipliers = [0, 2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1]
    shifts = [0, 1, 2, 3, 8, 29, 30, 31]
    for value, multiplier, shift in itertools.product(EDGES, multipliers, shifts):
        case = (value, multiplier, shift)
        want = theirs(value, multiplier, -shift, rounding)
        assert ours(value, multiplier, 31 + shift, rounding) == want, case


@pytest.mark.parametrize("rounding", FIXED)
@given(value=st.integers(-(2**20), 2**20), multiplier=MULTIPLIERS, shift=st.integers(1, 10))
def test_factors_above_one(rounding: Rounding, value: int, multiplier: int, shift: int) -> None:
    assert ours(value, multiplier, 31 - shift, rounding) == theirs(
        value, multiplier, shift, rounding
    )


def test_ties_go_where_the_roundings_say() -> None:
    """Of -2.5 .. 2.5 in halves; gemmlowp rounds twice, which shows at quarters."""
    values, half, quarter = np.arange(-5, 6), np.array([2**30]), np.array([32])
    up = multiply_fixed(values, half, quarter - 1, "upward")
    away = multiply_fixed(values, half, quarter - 1, "tonearest")
    assert up.tolist() == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3]
    assert away.tolist() == [-3, -2, -2, -1, -1, 0, 1, 1, 2, 2, 3]
    # A quarter: a half is 1 after the first rounding, and half of that 1 after the second.
    once = multiply_fixed(np.array([1, 3]), half, quarter, "upward")
    twice = multiply_fixed(np.array([1, 3]), half, quarter, "gemmlowp")
    assert (once.tolist(), twice.tolist()) == ([0, 1], [1, 1])


@given(st.floats(2.0**-31, 2.0**29, allow_nan=False))
def test_the_nearest_multiplier(factor: float) -> None:
    multiplier, shift = fixed_point(factor)
    assert 2**30 <= multiplier < 2**31 and 1 <= shift <= 62
    error = abs(Fraction(multiplier, 2**shift) - Fraction(factor))
    assert error <= Fraction(1, 2 ** (shift + 1))
    assert shift == 31 - math.frexp(factor)[1] or multiplier == 2**30


def test_factors_beyond_the_shifts() -> None:
    multipliers, shifts = fixed_points(np.array([0.0, 2.0**-31, 2.0**-32, 1.0]))
    assert multipliers.tolist() == [0, 2**30, 2**30, 2**30]
    assert shifts.tolist() == [31, 61, 62, 30]
    tiny, _ = fixed_points(np.array([2.0**-33]))
    assert tiny.tolist() == [0]
    with pytest.raises(ValueError, match=r"below 2\*\*30"):
        fixed_points(np.array([2.0**30]))
    with pytest.raises(ValueError, match="float"):
        multiply_fixed(np.array([1]), np.array([1]), np.array([31]), "even")


@pytest.mark.parametrize("rounding", FIXED)
def test_a_layer_in_fixed_point(rounding: Rounding) -> None:
    """Constants from scales, and every sum brought to the output by the code above."""
    epilogue = Epilogue(bias=True, clip_min=0.0, rounding=rounding)
    workload = DenseWorkload(batch=3, in_features=5, out_features=4, epilogue=epilogue)
    rng = np.random.default_rng(0)
    params = LayerParams(QuantParams(0.03, 5), QuantParams(0.05, -100))
    weight = rng.standard_normal((4, 5)).astype(np.float32)
    how = layer_constants(workload, weight, None, params).requantise
    assert how is not None and how.shift is not None and how.rounding == rounding
    assert (how.low, how.high) == (-100, 127)
    sums = rng.integers(-40000, 40000, (3, 4))
    got = requantise(sums, how)
    for n, c in np.ndindex(3, 4):
        scaled = theirs(int(sums[n, c]), int(how.multiplier[c]), 31 - int(how.shift[c]), rounding)
        assert got[n, c] == min(max(scaled - 100, -100), 127)
    factor = np.abs(weight).max(1) / 127 * np.float32(0.03) / 0.05
    np.testing.assert_allclose(how.multiplier * 2.0**-how.shift, factor, rtol=1e-6)


def test_digests_of_workloads_stay() -> None:
    """Journals and plans name workloads by these: half to even is not written down."""
    workload = Conv2dWorkload(
        batch=1, in_channels=8, height=9, width=9, out_channels=16, kernel=(3, 3), dtype="int8",
        epilogue=Epilogue(bias=True, clip_min=0.0),
    )  # fmt: skip
    assert workload.digest == "1eb9ed6384744cd1"
    assert "rounding" not in workload.canonical()
    other = workload.model_copy(update={"epilogue": Epilogue(bias=True, rounding="upward")})
    other = Conv2dWorkload.model_validate(other.model_dump())
    assert '"rounding":"upward"' in other.canonical() and other.digest != workload.digest
    assert workload_from_json(other.canonical()) == other
    assert other.describe().endswith("bias+upward int8")


def test_no_residual_in_fixed_point() -> None:
    with pytest.raises(ValueError, match="residual"):
        Epilogue(residual=True, rounding="upward")
