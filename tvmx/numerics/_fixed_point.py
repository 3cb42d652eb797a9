"""Scales as 31-bit integers and shifts: how Relay's QNN dialect and TFLite bring sums to a scale.

After ``relay/qnn/utils.cc`` (``GetFixedPointMultiplierShift``, ``FixedPointMultiplyToNearest``,
``q_multiply_shift``) of TVM 0.8 to 0.19, and gemmlowp's ``fixedpoint.h`` as TFLite's
``MultiplyByQuantizedMultiplier`` uses it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import Rounding

FIXED_BITS = 31
"""A multiplier in [0.5, 1) is an integer in [2**30, 2**31), and a shift by so many bits."""
LONGEST_SHIFT = 2 * FIXED_BITS


def fixed_point(factor: float) -> tuple[int, int]:
    """``factor`` as (multiplier, shift): ``multiplier * 2**-shift``, the multiplier below 2**31.

    ``factor`` is not negative. The shift is 31 for factors in [0.5, 1), one more for each halving.
    """
    if factor == 0:
        return 0, FIXED_BITS
    part, exponent = math.frexp(factor)
    # Positive, and halves go away from zero: round() would take the even one.
    whole = math.floor(part * (1 << FIXED_BITS) + 0.5)
    if whole == 1 << FIXED_BITS:
        whole, exponent = whole // 2, exponent + 1
    return whole, FIXED_BITS - exponent


def fixed_points(factors: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """:func:`fixed_point` of each factor, as int32 multipliers and shifts in [1, 62].

    Factors too small for a shift become 0, as in TFLite. Raises ValueError for 2**30 and more.
    """
    pairs = [fixed_point(float(f)) for f in factors]
    pairs = [(0, FIXED_BITS) if shift > LONGEST_SHIFT else (m, shift) for m, shift in pairs]
    if any(shift < 1 for _, shift in pairs):
        raise ValueError(f"a factor of {max(map(float, factors))} is not below 2**30")
    whole, shifts = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    return whole, shifts


def multiply_fixed(
    values: npt.NDArray[Any], multiplier: npt.NDArray[Any], shift: npt.NDArray[Any],
    rounding: Rounding,
) -> npt.NDArray[np.int64]:  # fmt: skip
    """``values * multiplier * 2**-shift`` rounded to whole numbers, in int64.

    ``values`` lie in int32, ``multiplier`` in [0, 2**31), ``shift`` in [1, 62]; they broadcast.
    ``upward`` rounds halves up, ``tonearest`` away from zero. ``gemmlowp`` rounds to 31 bits
    upward (the high half of the doubled product), then what is left of the shift away from zero.
    """
    product = np.asarray(values, np.int64) * np.asarray(multiplier, np.int64)
    shift = np.asarray(shift, np.int64)
    if rounding == "gemmlowp":
        first = np.minimum(shift, FIXED_BITS)
        return _away(_upward(product, first), shift - first)
    if rounding == "tonearest":
        return _away(product, shift)
    if rounding == "upward":
        return _upward(product, shift)
    raise ValueError(f"rounding {rounding!r} multiplies by a float")


def _upward(values: npt.NDArray[np.int64], shift: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    result: npt.NDArray[np.int64] = (values + (np.int64(1) << shift >> 1)) >> shift
    return result


def _away(values: npt.NDArray[np.int64], shift: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Nothing happens where the shift is 0."""
    return _upward(values - ((values < 0) & (shift > 0)), shift)
