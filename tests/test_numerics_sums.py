"""Fused multiply-adds, products and tables of int8 values, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tvmx.numerics import QuantParams, fma, lookup_int8, multiply_int8

EVERY = np.arange(-128, 128, dtype=np.int8)
zero_points = st.integers(-128, 127)


@given(
    a=st.floats(-1e6, 1e6, width=32), b=st.floats(-4, 4, width=32), c=st.floats(-1e6, 1e6, width=32)
)
def test_fused_multiply_add_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = Fraction(float(fma(np.float32(a), np.float32(b), np.float32(c))))
    below, above = (
        Fraction(float(np.nextafter(np.float32(float(got)), np.float32(to))))
        for to in (-np.inf, np.inf)
    )
    assert abs(got - exact) <= min(abs(below - exact), abs(above - exact))


def test_fused_multiply_add_where_rounding_twice_would_differ() -> None:
    """1 + 2**-23 + 2**-24 - 2**-70 is below a tie of float32, which float64 would make of it."""
    a, b = np.float32(2.0**-24 * (1 + 2.0**-23)), np.float32(1 - 2.0**-23)
    c = np.float32(1 + 2.0**-23)
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) != c
    assert fma(a, b, c) == c
    assert fma(-a, b, -c) == -c


@given(a=zero_points, b=zero_points, out=zero_points, shifts=st.tuples(*[st.integers(-6, 6)] * 3))
def test_products_at_powers_of_two_round_half_to_even(
    a: int, b: int, out: int, shifts: tuple[int, int, int]
) -> None:
    pa, pb, po = (QuantParams(2.0**s, z) for s, z in zip(shifts, (a, b, out), strict=True))
    x, y = np.repeat(EVERY[::5], 52), np.tile(EVERY[::5], 52)
    ratio = Fraction(2) ** (shifts[0] + shifts[1] - shifts[2])
    exact = [round((int(p) - a) * (int(q) - b) * ratio) + out for p, q in zip(x, y, strict=True)]
    got = multiply_int8(x, pa, y, pb, po)
    np.testing.assert_array_equal(got, np.clip(exact, -128, 127))


def test_tables_are_indexed_from_the_smallest_value() -> None:
    table = np.roll(EVERY, 3)
    np.testing.assert_array_equal(lookup_int8(EVERY, table), table)
    assert lookup_int8(np.int8([[-128], [0]]), table).tolist() == [[table[0]], [table[128]]]
