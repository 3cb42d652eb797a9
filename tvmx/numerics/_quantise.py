"""Affine int8: real = scale * (q - zero_point), q in [-128, 127].

Every operation is written so that two implementations cannot differ in a bit: float32
multiplications stand alone (no sum follows that a compiler could contract into a fused
multiply-add) or are fused by name, rounding is half to even, other sums are integer. The scheme
of activations s8 per tensor and weights s8 symmetric per channel is that of Jacob et al.,
"Quantization and training of neural networks for efficient integer-arithmetic-only inference"
(CVPR 2018), and of TVM's QNN dialect; requantisation multiplies by a float32 as ONNX's QDQ does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tvmx.numerics._fma import fma

QMIN, QMAX = -128, 127
WEIGHT_MAX = 127
"""Weights lie in [-127, 127]: two products with them still fit the int16 sums of smlal chains.

A weight that a model states may hold one -128 in each output channel: that fits as well.
"""
_SMALLEST_SCALE = 2.0**-96

Float = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of an s8 tensor. ``scale`` is positive and a float32 value.

    ``unsigned`` is set where a model states the tensor as u8: the numbers are the same (128 is
    taken off value and zero point), but sums are rounded as they are in u8.
    """

    scale: float
    zero_point: int
    unsigned: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", float(np.float32(self.scale)))
        if not (np.isfinite(self.scale) and self.scale >= _SMALLEST_SCALE):
            raise ValueError(f"scale {self.scale} is not a positive number")
        if not QMIN <= self.zero_point <= QMAX:
            raise ValueError(f"zero point {self.zero_point} is outside [{QMIN}, {QMAX}]")

    @classmethod
    def from_range(cls, low: float, high: float) -> QuantParams:
        """Parameters that represent [low, high], widened to hold 0 exactly."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = max((high - low) / (QMAX - QMIN), 2.0**-80)
        zero_point = round(QMIN - low / scale)
        return cls(scale, max(QMIN, min(QMAX, zero_point)))

    @property
    def inverse(self) -> np.float32:
        """The float32 factor that :func:`quantise` multiplies by."""
        return np.float32(1.0 / self.scale)


def quantise(values: npt.NDArray[Any], params: QuantParams) -> Int8:
    """float32 -> s8: ``rint(clip(x * inverse)) + zero_point``, saturating."""
    zero = params.zero_point
    with np.errstate(over="ignore"):  # an infinity saturates like any large number
        scaled = np.asarray(values, np.float32) * params.inverse
    bounded = np.clip(scaled, np.float32(QMIN - zero), np.float32(QMAX - zero))
    return _moved(bounded, zero)


def dequantise(values: npt.NDArray[Any], params: QuantParams) -> Float:
    """s8 -> float32: ``float(q - zero_point) * scale``."""
    shifted = np.asarray(values, np.int32) - params.zero_point
    result: Float = shifted.astype(np.float32) * np.float32(params.scale)
    return result


def quantise_weight(weight: npt.NDArray[Any]) -> tuple[Int8, Float]:
    """Per output channel (axis 0), symmetric: s8 weight in [-127, 127] and float32 scales.

    A channel of zeros gets scale 1.
    """
    flat = np.abs(np.asarray(weight, np.float32)).reshape(len(weight), -1)
    largest = flat.max(axis=1)
    scale = np.where(largest > 0, largest / WEIGHT_MAX, 1.0).astype(np.float32)
    scale = np.maximum(scale, np.float32(2.0**-80))
    shape = (-1,) + (1,) * (np.ndim(weight) - 1)
    rounded = np.rint(np.asarray(weight, np.float32) / scale.reshape(shape))
    return np.clip(rounded, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8), scale


def fits_int8(weight: npt.NDArray[Any]) -> Int8 | None:
    """Whole numbers (int32 or wider, output channels first) as a weight in s8; None if too large.

    They lie in [-127, 127], but for one -128 in each output channel (torch's symmetric observers
    give the largest weight 127.5 steps): 128 * 128 + 128 * 127 fits the int16 sums of two products
    as well.
    """
    lowest = weight.reshape(len(weight), -1) == -WEIGHT_MAX - 1
    if (np.abs(weight) > WEIGHT_MAX).sum() != lowest.sum() or lowest.sum(axis=1).max() > 1:
        return None
    return np.ascontiguousarray(weight.astype(np.int8))


def rescale_factor(source: QuantParams, destination: QuantParams) -> np.float32:
    """The float32 factor from one scale to another."""
    return np.float32(source.scale / destination.scale)


def rescale(values: npt.NDArray[Any], source: QuantParams, destination: QuantParams) -> Int8:
    """s8 -> s8 of other parameters: what a concatenation does to each of its parts."""
    if source == destination:
        return np.asarray(values, np.int8)
    zero = destination.zero_point
    shifted = np.asarray(values, np.int32) - source.zero_point
    scaled = shifted.astype(np.float32) * rescale_factor(source, destination)
    bounded = np.clip(scaled, np.float32(QMIN - zero), np.float32(QMAX - zero))
    return _moved(bounded, zero)


def rescale_add(
    a: npt.NDArray[Any], a_params: QuantParams, b: npt.NDArray[Any], b_params: QuantParams,
    out: QuantParams,
) -> Int8:  # fmt: skip
    """s8 + s8 -> s8: ``rint(fma(a, fa, fma(b, fb, offset)))``, saturating.

    Factors and offset are those of :func:`sum_factors`. To the bit what ONNX Runtime's QLinearAdd
    does where there is a fused multiply-add (MLAS, ``qladd_avx2.cpp``).
    """
    how = sum_factors(a_params, b_params, out)
    first, second = (np.asarray(x, np.int32) + how.shift for x in (a, b))
    total = fma(first, how.first, fma(second, how.second, how.offset))
    low, high = np.float32(QMIN + how.shift), np.float32(QMAX + how.shift)
    return (np.rint(np.clip(total, low, high)).astype(np.int32) - how.shift).astype(np.int8)


class SumFactors(NamedTuple):
    """Factors of both addends of a sum, and the zero points as one offset.

    ``shift`` is added to both addends, and taken off the sum.
    """

    first: np.float32
    second: np.float32
    offset: np.float32
    shift: int


def sum_factors(a: QuantParams, b: QuantParams, out: QuantParams) -> SumFactors:
    """What a sum is computed with: in u8 if all three tensors are stated so, else in s8."""
    shift = 128 if a.unsigned and b.unsigned and out.unsigned else 0
    first, second = rescale_factor(a, out), rescale_factor(b, out)
    zeros = [np.float32(p.zero_point + shift) for p in (a, b, out)]
    moved = fma(first, zeros[0], second * zeros[1])
    return SumFactors(first, second, np.float32(zeros[2] - moved), shift)


def _moved(bounded: npt.NDArray[Any], zero: int) -> Int8:
    """Round half to even, then move by the zero point."""
    result: Int8 = (np.rint(bounded).astype(np.int32) + zero).astype(np.int8)
    return result
