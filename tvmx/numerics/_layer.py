"""From a layer's float constants and its tensors' parameters to int8 constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import Conv2dWorkload, DenseWorkload
from tvmx.numerics._constants import LayerConstants, Requantise
from tvmx.numerics._fixed_point import fixed_points
from tvmx.numerics._quantise import QMAX, QMIN, QuantParams, quantise_weight, rescale_factor

_BIAS_LIMIT = 2**30


@dataclass(frozen=True)
class LayerParams:
    """Quantisation parameters of the tensors an int8 layer touches."""

    data: QuantParams
    out: QuantParams
    residual: QuantParams | None = None


@dataclass(frozen=True)
class StatedWeight:
    """A quantised model's own weight: ``values`` s8, ``scales`` float32 (out,).

    The values lie in [-127, 127]; one of each output channel may be -128.
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


def layer_constants(
    workload: Conv2dWorkload | DenseWorkload, weight: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None, params: LayerParams, stated: StatedWeight | None = None,
) -> LayerConstants:  # fmt: skip
    """int8 constants of a layer whose float constants are ``weight`` and ``bias``.

    The bias is rounded to the accumulators' scale (data scale * weight scale) and bounded to
    +-2**30, so that no sum overflows. Where the model states the weight in int8, the ``stated``
    one is used, and scales are multiplied in float32 as ONNX Runtime's QLinearConv does
    (``quant_utils``, ``ComputeOutputScale``), so that ties fall alike. In a workload's fixed-point
    rounding the multipliers are the nearest 31-bit ones.
    """
    rounding, shift = workload.epilogue.rounding, None
    multiplier: npt.NDArray[Any]
    if stated is None:
        quantised, scales = quantise_weight(weight)
        accumulator = np.float64(params.data.scale) * scales.astype(np.float64)
        multiplier = (accumulator / params.out.scale).astype(np.float32)
    else:
        quantised = stated.values
        product = np.float32(params.data.scale) * stated.scales
        multiplier = product / np.float32(params.out.scale)
        accumulator = product.astype(np.float64)
    real = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    offset = np.clip(np.rint(real / accumulator), -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int64)
    sums = quantised.reshape(len(weight), -1).sum(axis=1, dtype=np.int64)
    folded = np.clip(offset - params.data.zero_point * sums, -_BIAS_LIMIT, _BIAS_LIMIT)
    low, high = clip_bounds(workload, params.out)
    if rounding != "even":
        multiplier, shift = fixed_points(multiplier)
    factor, moved = _residual(params)
    how = Requantise(
        multiplier=multiplier,
        data_zero_point=params.data.zero_point,
        out_zero_point=params.out.zero_point,
        low=low,
        high=high,
        residual_factor=float(factor),
        residual_offset=float(moved),
        rounding=rounding,
        shift=shift,
    )
    return LayerConstants(quantised, folded.astype(np.int32), how)


def _residual(params: LayerParams) -> tuple[np.float32, np.float32]:
    """Factor and offset that bring a residual to the output's scale and zero point."""
    residual, zero = params.residual, np.float32(params.out.zero_point)
    if residual is None:
        return np.float32(0), np.float32(0)
    factor = rescale_factor(residual, params.out)
    return factor, zero - factor * np.float32(residual.zero_point)


def corrected(
    bias: npt.NDArray[Any] | None, correction: npt.NDArray[Any] | None
) -> npt.NDArray[Any] | None:
    """The bias of an int8 layer with what bias correction adds to it (None: nothing)."""
    if correction is None:
        return bias
    return correction if bias is None else bias + correction


def clip_bounds(workload: Conv2dWorkload | DenseWorkload, out: QuantParams) -> tuple[int, int]:
    """The epilogue's clip on the s8 output."""
    epilogue = workload.epilogue
    return clip_to(epilogue.clip_min, epilogue.clip_max, out)


def clip_to(low: float | None, high: float | None, out: QuantParams) -> tuple[int, int]:
    """Real clip bounds as s8 bounds (the whole of s8 where there are none)."""

    def bound(value: float | None, default: int) -> int:
        if value is None:
            return default
        scaled = np.rint(np.clip(np.float64(value) / out.scale, -512, 512))
        return int(np.clip(scaled + out.zero_point, QMIN, QMAX))

    return bound(low, QMIN), bound(high, QMAX)
