"""From a layer's float constants and its tensors' parameters to int8 constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import Conv2dWorkload, DenseWorkload
from tvmx.numerics._constants import LayerConstants, Requantise
from tvmx.numerics._quantise import QMAX, QMIN, QuantParams, fixed_factor, quantise_weight

_BIAS_LIMIT = 2**30


@dataclass(frozen=True)
class LayerParams:
    """Quantisation parameters of the tensors an int8 layer touches."""

    data: QuantParams
    out: QuantParams
    residual: QuantParams | None = None


def layer_constants(
    workload: Conv2dWorkload | DenseWorkload, weight: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None, params: LayerParams,
) -> LayerConstants:  # fmt: skip
    """int8 constants of a layer whose float constants are ``weight`` and ``bias``.

    The bias is rounded to the accumulators' scale (data scale * weight scale) and bounded to
    +-2**30, so that no sum overflows.
    """
    quantised, scales = quantise_weight(weight)
    accumulator = np.float64(params.data.scale) * scales.astype(np.float64)
    real = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    offset = np.clip(np.rint(real / accumulator), -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int64)
    sums = quantised.reshape(len(weight), -1).sum(axis=1, dtype=np.int64)
    folded = np.clip(offset - params.data.zero_point * sums, -_BIAS_LIMIT, _BIAS_LIMIT)
    low, high = clip_bounds(workload, params.out)
    residual = params.residual
    how = Requantise(
        multiplier=(accumulator / params.out.scale).astype(np.float32),
        data_zero_point=params.data.zero_point,
        out_zero_point=params.out.zero_point,
        low=low,
        high=high,
        residual_zero_point=residual.zero_point if residual else 0,
        residual_factor=float(fixed_factor(residual, params.out)) if residual else 0.0,
    )
    return LayerConstants(quantised, folded.astype(np.int32), how)


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
