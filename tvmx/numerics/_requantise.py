"""int32 accumulators -> s8: the end of every int8 kernel, here in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.numerics._constants import Requantise
from tvmx.numerics._quantise import FIXED_LIMIT, FRACTION_BITS, Int8, _moved


def requantise(
    accumulators: npt.NDArray[Any], how: Requantise, residual: npt.NDArray[Any] | None = None
) -> Int8:
    """s8 output of int32 accumulators (bias included), channels on axis 1.

    Without a residual: ``rint(clip(float(acc) * multiplier, low - zp, high - zp)) + zp``.
    With one both addends are rounded to ``FRACTION_BITS`` binary places first (the factors are
    pre-multiplied by that power of two), summed as integers and shifted back, rounding half up:
    a float sum could be contracted into a fused multiply-add and round differently.
    """
    shape = (1, -1) + (1,) * (accumulators.ndim - 2)
    zero = how.out_zero_point
    values = accumulators.astype(np.int32).astype(np.float32)
    if residual is None:
        scaled = values * how.multiplier.reshape(shape)
        bounded = np.clip(scaled, np.float32(how.low - zero), np.float32(how.high - zero))
        return _moved(bounded, zero)
    limit = np.float32(FIXED_LIMIT)
    factor = how.multiplier * np.float32(1 << FRACTION_BITS)
    main = np.rint(np.clip(values * factor.reshape(shape), -limit, limit)).astype(np.int32)
    other = residual.astype(np.int32) - how.residual_zero_point
    scaled = np.clip(other.astype(np.float32) * np.float32(how.residual_factor), -limit, limit)
    total = main + np.rint(scaled).astype(np.int32)
    rounded = (total + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
    result: Int8 = np.clip(rounded + zero, how.low, how.high).astype(np.int8)
    return result
