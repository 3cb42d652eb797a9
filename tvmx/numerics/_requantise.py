"""int32 accumulators -> s8: the end of every int8 kernel, here in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.numerics._constants import Requantise
from tvmx.numerics._fixed_point import multiply_fixed
from tvmx.numerics._fma import fma
from tvmx.numerics._quantise import Int8, _moved


def requantise(
    accumulators: npt.NDArray[Any], how: Requantise, residual: npt.NDArray[Any] | None = None
) -> Int8:
    """s8 output of int32 accumulators (bias included), channels on axis 1.

    In rounding ``even``: ``rint(clip(float(acc) * multiplier, low - zp, high - zp)) + zp``.
    With a residual:
    ``rint(clip(fma(float(acc), multiplier, fma(residual, factor, offset)), low, high))``.
    In the others: ``clip(multiply_fixed(acc, multiplier, shift) + zp, low, high)``.
    """
    shape = (1, -1) + (1,) * (accumulators.ndim - 2)
    zero = how.out_zero_point
    if how.shift is not None:
        factor = how.multiplier.reshape(shape), how.shift.reshape(shape)
        scaled = multiply_fixed(accumulators.astype(np.int32), *factor, how.rounding)
        return np.clip(scaled + zero, how.low, how.high).astype(np.int8)
    values = accumulators.astype(np.int32).astype(np.float32)
    if residual is None:
        scaled = values * how.multiplier.reshape(shape)
        bounded = np.clip(scaled, np.float32(how.low - zero), np.float32(how.high - zero))
        return _moved(bounded, zero)
    other = fma(residual.astype(np.float32), np.float32(how.residual_factor), how.residual_offset)
    total = fma(values, how.multiplier.reshape(shape), other)
    return np.rint(np.clip(total, np.float32(how.low), np.float32(how.high))).astype(np.int8)
