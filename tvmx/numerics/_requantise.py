"""int32 accumulators -> s8 or float32: the end of every int8 kernel, here in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.numerics._constants import Requantise
from tvmx.numerics._fixed_point import multiply_fixed
from tvmx.numerics._fma import fma
from tvmx.numerics._quantise import _moved


def requantise(
    accumulators: npt.NDArray[Any], how: Requantise, residual: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """s8 (or float32) output of int32 accumulators (bias included), channels on axis 1.

    In rounding ``even``: ``rint(clip(float(acc) * multiplier, low - zp, high - zp)) + zp``.
    With a residual:
    ``rint(clip(fma(float(acc), multiplier, fma(residual, factor, residual_offset)), low, high))``.
    An ``offset`` is added as ``fma(float(acc), multiplier, offset)``, with a residual as
    ``fma(float(acc), multiplier, fma(residual, factor, residual_offset) + offset)``.
    With ``float_out``: ``clip(fma(float(acc), multiplier, offset) + residual, low, high)``.
    In the others: ``clip(multiply_fixed(acc, multiplier, shift) + zp, low, high)``.
    """
    shape = (1, -1) + (1,) * (accumulators.ndim - 2)
    zero = how.out_zero_point
    if how.shift is not None:
        factor = how.multiplier.reshape(shape), how.shift.reshape(shape)
        scaled = multiply_fixed(accumulators.astype(np.int32), *factor, how.rounding)
        return np.clip(scaled + zero, how.low, how.high).astype(np.int8)
    values = accumulators.astype(np.int32).astype(np.float32)
    multiplier = how.multiplier.reshape(shape)
    offset = None if how.offset is None else how.offset.reshape(shape)
    if how.float_out:
        assert offset is not None
        real = fma(values, multiplier, offset)
        if residual is not None:
            real = np.add(real, residual, dtype=np.float32)
        return np.clip(real, np.float32(how.low), np.float32(how.high))
    if residual is None:
        total = values * multiplier if offset is None else fma(values, multiplier, offset)
        bounded = np.clip(total, np.float32(how.low - zero), np.float32(how.high - zero))
        return _moved(bounded, zero)
    other = fma(residual.astype(np.float32), np.float32(how.residual_factor), how.residual_offset)
    total = fma(values, multiplier, other if offset is None else other + offset)
    return np.rint(np.clip(total, np.float32(how.low), np.float32(how.high))).astype(np.int8)
