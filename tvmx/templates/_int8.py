"""What int8 templates share: the requantising epilogue as TE, and its constants.

A template's kernel has, after data and packed weight, three constants: bias int32 and
multiplier float32, both packed like the output channels, and ``params`` float32
(:data:`PARAMS`,). They make one kernel serve every layer of the same shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx.ir import Epilogue, ceil_div
from tvmx.numerics import LayerConstants
from tvmx.templates._base import Constant
from tvmx.templates._packing import pad_axis

PARAMS = 8
"""Length of ``params``: low, high (relative to the zero point without a residual), output and
data zero point, residual offset and factor, and two zeros."""
_LOW, _HIGH, _OUT_ZERO, _DATA_ZERO, _RESIDUAL_OFFSET, _RESIDUAL_FACTOR = range(6)


def requantised(
    accumulator: Any, bias: Any, multiplier: Any, params: Any, residual: Any | None = None
) -> Any:
    """One s8 output element from one int32 accumulator, as :func:`tvmx.numerics.requantise`.

    ``params`` is the TE tensor of that constant; ``residual`` an s8 element or None.
    """
    return requantised_int32(accumulator + bias, multiplier, params, residual).astype("int8")


def requantised_int32(
    accumulator: Any, multiplier: Any, params: Any, residual: Any | None = None, lanes: int = 1
) -> Any:
    """The output still as int32: what :func:`requantised` narrows to s8.

    ``accumulator`` has its bias. With ``lanes`` it, ``multiplier`` (float32) and ``residual``
    (int32 then) are vectors of so many elements.
    """
    from tvmx._tvm import tirx

    def splat(value: Any) -> Any:
        return value if lanes == 1 else tirx.Broadcast(value, lanes)

    def cast(value: Any, dtype: str) -> Any:
        return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)

    def integer(index: int) -> Any:
        return splat(params[index].astype("int32"))

    scaled = cast(accumulator, "float32") * multiplier
    if residual is None:
        bounded = tirx.max(tirx.min(scaled, splat(params[_HIGH])), splat(params[_LOW]))
        return rounded_even(bounded, lanes) + integer(_OUT_ZERO)
    other = fused(cast(residual, "float32"), splat(params[_RESIDUAL_FACTOR]),
                  splat(params[_RESIDUAL_OFFSET]), lanes)  # fmt: skip
    total = fused(cast(accumulator, "float32"), multiplier, other, lanes)
    bounded = tirx.max(tirx.min(total, splat(params[_HIGH])), splat(params[_LOW]))
    return rounded_even(bounded, lanes)


def fused(a: Any, b: Any, c: Any, lanes: int = 1) -> Any:
    """float32 ``a * b + c``, rounded once: :func:`tvmx.numerics.fma`; vectors with ``lanes``."""
    from tvmx._tvm import tirx

    suffix = "" if lanes == 1 else f"x{lanes}"
    return tirx.call_llvm_pure_intrin(f"float32{suffix}", "llvm.fma", a, b, c)


def rounded_even(value: Any, lanes: int = 1) -> Any:
    """float32 -> int32, half to even, for values that fit; vectors with ``lanes``.

    TVM's vectoriser turns a loop with ``tirx.nearbyint`` into a scalar one; the LLVM intrinsic
    stays a vector, and with the cast is one instruction on x86.
    """
    from tvmx._tvm import tirx

    suffix = "" if lanes == 1 else f"x{lanes}"
    rounded = tirx.call_llvm_pure_intrin(f"float32{suffix}", "llvm.rint", value)
    return tirx.Cast(f"int32{suffix}", rounded)


def data_zero_point(params: Any) -> Any:
    """The s8 value that padding holds."""
    return params[_DATA_ZERO].astype("int32").astype("int8")


def epilogue_constants(
    layer: LayerConstants, epilogue: Epilogue, block: int, blocks: int | None = None,
    weight_correction: Constant | None = None,
) -> tuple[Constant, Constant, Constant]:  # fmt: skip
    """(bias, multiplier, params) of an int8 layer, channels in ``blocks`` of ``block``.

    ``weight_correction`` (out_channels,) is subtracted from the bias: kernels that shift data
    to u8 (q + 128) pass ``128 * sum(weight)``, summed in int64 per output channel.
    """
    how, bias = layer.requantise, layer.bias
    assert how is not None and bias is not None
    if weight_correction is not None:
        # Modulo 2**32 like the accumulators: only their sum has to fit.
        bias = (bias.astype(np.int64) - weight_correction).astype(np.int32)
    count = blocks or ceil_div(len(bias), block)
    multiplier = how.multiplier
    params = np.zeros(PARAMS, np.float32)
    zero = 0 if epilogue.residual else how.out_zero_point
    params[_LOW], params[_HIGH] = how.low - zero, how.high - zero
    params[_OUT_ZERO], params[_DATA_ZERO] = how.out_zero_point, how.data_zero_point
    if epilogue.residual:
        params[_RESIDUAL_OFFSET], params[_RESIDUAL_FACTOR] = (
            how.residual_offset,
            how.residual_factor,
        )
    return (
        pad_axis(bias, 0, count * block).reshape(count, block),
        pad_axis(multiplier, 0, count * block).reshape(count, block),
        params,
    )


def int8_arguments(
    data: Any, weight: Any, constants: tuple[Any, Any, Any], residual: Any, epilogue: Epilogue,
    out: Any,
) -> list[Any]:  # fmt: skip
    """The kernel's tensors in order; ``constants`` are bias, multiplier and params."""
    return [data, weight, *constants, *([residual] if epilogue.residual else []), out]
