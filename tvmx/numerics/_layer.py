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
    """Quantisation parameters of the int8 tensors a layer touches. ``out`` is None for a float one.

    So is ``residual`` then, as where there is no residual.
    """

    data: QuantParams
    out: QuantParams | None
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
    rounding the multipliers are the nearest 31-bit ones. A bias that the workload adds in float is
    rounded to float32 alone.
    """
    epilogue, shift = workload.epilogue, None
    quantised, accumulator = _weights(weight, params.data, stated)
    multiplier = _multiplier(accumulator, params.out, exact=stated is not None)
    real = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    steps = np.zeros(len(weight)) if epilogue.in_float else real / accumulator.astype(np.float64)
    offset = np.clip(np.rint(steps), -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int64)
    sums = quantised.reshape(len(weight), -1).sum(axis=1, dtype=np.int64)
    folded = np.clip(offset - params.data.zero_point * sums, -_BIAS_LIMIT, _BIAS_LIMIT)
    if epilogue.rounding != "even":
        multiplier, shift = fixed_points(multiplier)
    step = 1.0 if params.out is None else params.out.scale
    with np.errstate(over="ignore"):  # an infinity saturates like any large number
        added = (real / step).astype(np.float32) if epilogue.in_float else None
    how = Requantise(
        multiplier=multiplier,
        data_zero_point=params.data.zero_point,
        rounding=epilogue.rounding,
        shift=shift,
        offset=added,
        **_output(workload, params),
    )
    return LayerConstants(quantised, folded.astype(np.int32), how)


def _weights(
    weight: npt.NDArray[Any], data: QuantParams, stated: StatedWeight | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """The weight in s8, and the real value of one step of the sums by channel.

    Steps are float64, of a stated weight float32.
    """
    if stated is not None:
        return stated.values, np.float32(data.scale) * stated.scales
    quantised, scales = quantise_weight(weight)
    return quantised, np.float64(data.scale) * scales.astype(np.float64)


def _multiplier(
    accumulator: npt.NDArray[Any], out: QuantParams | None, exact: bool
) -> npt.NDArray[Any]:
    """From steps of the sums to those of the output; ``exact``: divided in float32."""
    if out is None:
        return accumulator.astype(np.float32)
    step = np.float32(out.scale) if exact else out.scale
    return (accumulator / step).astype(np.float32)


def _output(workload: Conv2dWorkload | DenseWorkload, params: LayerParams) -> dict[str, Any]:
    """What a layer's :class:`Requantise` says of its output and residual."""
    if params.out is None:
        low, high = workload.epilogue.clip_min, workload.epilogue.clip_max
        return {
            "out_zero_point": 0, "float_out": True,
            "low": -np.inf if low is None else low, "high": np.inf if high is None else high,
        }  # fmt: skip
    bounds = clip_bounds(workload, params.out)
    factor, moved = _residual(params.residual, params.out)
    return {
        "out_zero_point": params.out.zero_point, "low": bounds[0], "high": bounds[1],
        "residual_factor": float(factor), "residual_offset": float(moved),
    }  # fmt: skip


def _residual(residual: QuantParams | None, out: QuantParams) -> tuple[np.float32, np.float32]:
    """Factor and offset that bring a residual to the output's scale and zero point."""
    if residual is None:
        return np.float32(0), np.float32(0)
    factor = rescale_factor(residual, out)
    return factor, np.float32(out.zero_point) - factor * np.float32(residual.zero_point)


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
