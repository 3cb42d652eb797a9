"""Dynamic quantisation: scale and zero point found from the values themselves, as ONNX does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.numerics._constants import LayerConstants, Requantise
from tvmx.numerics._layer import StatedWeight
from tvmx.numerics._quantise import QMIN

STEPS = 255
"""Steps between the least and the largest number of u8."""


def dynamic_params(values: npt.NDArray[Any]) -> tuple[np.float32, int]:
    """Scale and zero point (that of s8) by which ONNX's DynamicQuantizeLinear quantises.

    The range of the values, widened to hold 0; of nothing but zeros the scale is 1.
    """
    found = np.asarray(values, np.float32)
    low, high = np.minimum(found.min(), np.float32(0)), np.maximum(found.max(), np.float32(0))
    width = np.float32(high - low)
    scale = np.float32(width / np.float32(STEPS)) if width else np.float32(1)
    zero = np.rint(np.clip(-low / scale, np.float32(0), np.float32(STEPS)))
    return scale, int(zero) + QMIN


def dynamic_quantise(
    values: npt.NDArray[Any], scale: np.float32, zero_point: int
) -> npt.NDArray[np.int8]:
    """float32 -> s8: ``rint(clip(x / scale)) + zero_point``, saturating."""
    low = np.float32(QMIN - zero_point)
    bounded = np.clip(np.asarray(values, np.float32) / scale, low, low + np.float32(STEPS))
    result: npt.NDArray[np.int8] = (np.rint(bounded) + zero_point).astype(np.int8)
    return result


def dynamic_constants(
    weight: StatedWeight, bias: npt.NDArray[Any] | None, scale: np.float32, zero_point: int,
    low: float | None = None, high: float | None = None,
) -> LayerConstants:  # fmt: skip
    """Constants of a layer on data of that scale and zero point, whose output is float32.

    ``bias`` is float32; ``low`` and ``high`` clip the output (None: no bound).
    """
    sums = weight.values.reshape(len(weight.values), -1).sum(axis=1, dtype=np.int64)
    offset = np.zeros(len(sums)) if bias is None else np.asarray(bias)
    bounds = -np.inf if low is None else low, np.inf if high is None else high
    how = Requantise(
        multiplier=np.float32(scale) * weight.scales, data_zero_point=zero_point,
        out_zero_point=0, low=bounds[0], high=bounds[1], offset=offset.astype(np.float32),
        float_out=True,
    )  # fmt: skip
    return LayerConstants(weight.values, (-zero_point * sums).astype(np.int32), how)
