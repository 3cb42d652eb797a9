"""What int8 templates share: the requantising epilogue as TE, and its constants.

A template's kernel has, after data and packed weight, three constants: bias int32 and the
multiplier, both packed like the output channels, and ``params`` float32 (:data:`PARAMS`,). They
make one kernel serve every layer of the same shape. The multiplier is float32; in fixed-point
roundings it is int32 with one more axis in front: multipliers, then shifts. So it is where the
bias is added in float: multipliers, then biases, all of them float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvmx.ir import Epilogue, Rounding, ceil_div
from tvmx.numerics import FIXED_BITS, LayerConstants, Requantise
from tvmx.targets import Target
from tvmx.templates._base import Constant
from tvmx.templates._epilogue import clipped
from tvmx.templates._packing import pad_axis
from tvmx.templates._tiles import is_x86

PARAMS = 8
"""Length of ``params``: low, high (relative to the zero point without a residual), output and
data zero point, residual offset and factor, and two zeros."""
_LOW, _HIGH, _OUT_ZERO, DATA_ZERO, _RESIDUAL_OFFSET, _RESIDUAL_FACTOR = range(6)
_ROUNDER = float(3 << 22)
"""Added to a float of less than 2**22: the low bits are that float, rounded half to even."""


def factor_buffer(epilogue: Epilogue, blocks: int, block: int) -> tuple[tuple[int, ...], str]:
    """Shape and type of the kernel's multiplier, channels in ``blocks`` of ``block``."""
    dtype = "float32" if epilogue.rounding == "even" else "int32"
    return ((2, blocks, block) if _two_factors(epilogue) else (blocks, block)), dtype


def factor(epilogue: Epilogue, read: Callable[..., Any]) -> tuple[Any, ...]:
    """What :func:`finished` multiplies by, as ``read()`` of the multiplier returns it.

    In fixed-point roundings, and where the bias is added in float, these are two: ``read(0)`` and
    ``read(1)``, the first axis's index.
    """
    return (read(0), read(1)) if _two_factors(epilogue) else (read(),)


def _two_factors(epilogue: Epilogue) -> bool:
    return epilogue.rounding != "even" or epilogue.in_float


def finished(
    accumulator: Any, factors: tuple[Any, ...], params: Any, target: Target, residual: Any | None,
    lanes: int, epilogue: Epilogue,
) -> Any:  # fmt: skip
    """One output element of an int8 kernel, s8 or float32, as :func:`tvmx.numerics.requantise`.

    ``accumulator`` is int32 and has its bias; ``factors`` is what :func:`factor` returns,
    ``params`` the buffer or TE tensor of that constant, ``residual`` of the output's type or None.
    With ``lanes`` all but ``params`` are vectors of so many elements.
    """
    from tvmx._tvm import tirx

    if not epilogue.float_out:
        return requantised(accumulator, factors, params, target, residual, lanes, epilogue.rounding)
    multiplier, bias = factors
    real = fused(tirx.Cast(f"float32{_suffix(lanes)}", accumulator), multiplier, bias, lanes)
    return clipped(real if residual is None else real + residual, epilogue, lanes)


def requantised(
    accumulator: Any, multiplier: Any, params: Any, target: Target, residual: Any | None = None,
    lanes: int = 1, rounding: Rounding = "even",
) -> Any:  # fmt: skip
    """One s8 output element from one int32 accumulator, as :func:`tvmx.numerics.requantise`.

    ``accumulator`` has its bias; ``params`` is the buffer or TE tensor of that constant. With
    ``lanes`` the accumulator, ``multiplier`` (what :func:`factor` returns, or a float32 alone),
    ``residual`` (s8) and the result are vectors of so many elements. x86 and Arm do the same in
    the instructions that suit each.
    """
    from tvmx._tvm import tirx

    if is_x86(target) or rounding != "even":
        whole = requantised_int32(accumulator, multiplier, params, residual, lanes, rounding)
        return tirx.Cast(f"int8{_suffix(lanes)}", whole)
    kind = f"float32{_suffix(lanes)}"
    bounded = _scaled(accumulator, multiplier, params, residual, lanes)
    # One instruction each; tirx.min is a comparison and a choice where the bound is a variable.
    for name, index in (("llvm.minnum", _HIGH), ("llvm.maxnum", _LOW)):
        bounded = tirx.call_llvm_pure_intrin(kind, name, bounded, _splat(params[index], lanes))
    byte = rounded_byte(bounded, lanes)
    if residual is not None:
        return byte
    return byte + _splat(params[_OUT_ZERO].astype("int32").astype("int8"), lanes)


def requantised_int32(
    accumulator: Any, multiplier: Any, params: Any, residual: Any | None = None, lanes: int = 1,
    rounding: Rounding = "even",
) -> Any:  # fmt: skip
    """:func:`requantised` still as int32, for x86: rounding and conversion are one instruction.

    So are its bounds, as ``tirx.min``: of two variables ``llvm.minnum`` would look for NaN.
    ``residual`` is s8 or int32.
    """
    from tvmx._tvm import tirx

    if rounding != "even":
        assert residual is None
        return _fixed_int32(accumulator, multiplier, params, lanes, rounding)
    scaled = _scaled(accumulator, multiplier, params, residual, lanes)
    low, high = (_splat(params[i], lanes) for i in (_LOW, _HIGH))
    bounded = tirx.max(tirx.min(scaled, high), low)
    # TVM's vectoriser turns a loop with tirx.nearbyint into a scalar one; this stays a vector.
    rounded = tirx.call_llvm_pure_intrin(f"float32{_suffix(lanes)}", "llvm.rint", bounded)
    whole = tirx.Cast(f"int32{_suffix(lanes)}", rounded)
    if residual is not None:
        return whole
    return whole + _splat(params[_OUT_ZERO].astype("int32"), lanes)


def _fixed_int32(
    accumulator: Any, factor: tuple[Any, Any], params: Any, lanes: int, rounding: Rounding
) -> Any:
    """The end of a kernel in fixed point: :func:`tvmx.numerics.multiply_fixed`, bounds, zero point.

    The rounded product fits int32 (multipliers below 1, or sums that are small enough).
    """
    from tvmx._tvm import tirx

    kind = f"int32{_suffix(lanes)}"
    whole = tirx.Cast(kind, multiplied_fixed(accumulator, *factor, rounding, lanes))
    low, high, zero = (_splat(params[i].astype("int32"), lanes) for i in (_LOW, _HIGH, _OUT_ZERO))
    return tirx.max(tirx.min(whole, high), low) + zero


def multiplied_fixed(
    value: Any, multiplier: Any, shift: Any, rounding: Rounding, lanes: int = 1
) -> Any:
    """:func:`tvmx.numerics.multiply_fixed` of int32 values in int64; vectors with ``lanes``."""
    from tvmx._tvm import tirx

    kind = f"int64{_suffix(lanes)}"

    def number(n: int) -> Any:
        return _splat(tirx.const(n, "int64"), lanes)

    def upward(x: Any, by: Any) -> Any:
        half = tirx.shift_right(tirx.shift_left(number(1), by), number(1))
        return tirx.shift_right(x + half, by)

    product = tirx.Cast(kind, value) * tirx.Cast(kind, multiplier)
    by = tirx.Cast(kind, shift)
    sign = number(63)  # shifted by so much a number is -1 or 0
    if rounding == "upward":
        return upward(product, by)
    if rounding == "tonearest":
        return upward(product + tirx.shift_right(product, sign), by)
    first = tirx.min(by, number(FIXED_BITS))
    high, rest = upward(product, first), by - first
    any_left = tirx.min(rest, number(1))
    return upward(high - tirx.bitwise_and(tirx.shift_right(high, sign), any_left), rest)


def _scaled(
    accumulator: Any, multiplier: Any, params: Any, residual: Any | None, lanes: int
) -> Any:
    """The output, residual added, as float32: to be bounded, rounded and moved."""
    from tvmx._tvm import tirx

    kind = f"float32{_suffix(lanes)}"
    scaled = tirx.Cast(kind, accumulator)
    scale, *bias = multiplier if isinstance(multiplier, tuple) else (multiplier,)
    if residual is None:
        return fused(scaled, scale, bias[0], lanes) if bias else scaled * scale
    wide = tirx.Cast(kind, residual.astype(f"int32{_suffix(lanes)}"))
    factor, offset = (_splat(params[i], lanes) for i in (_RESIDUAL_FACTOR, _RESIDUAL_OFFSET))
    other = fused(wide, factor, offset, lanes)
    return fused(scaled, scale, other + bias[0] if bias else other, lanes)


def rounded_byte(value: Any, lanes: int = 1) -> Any:
    """The low byte, as s8, of float32 ``value`` rounded half to even; vectors with ``lanes``.

    ``value`` is within +-2**22. Adding a zero point to the byte, modulo 256, gives the s8 element
    where their sum fits one. Additions run in any vector pipe; conversions of floats, after an
    instruction that rounds, occupy one pipe of two for two cycles on cores such as Cortex-A710.
    """
    from tvmx._tvm import tirx

    total = value + _splat(tirx.const(_ROUNDER, "float32"), lanes)
    bits = tirx.reinterpret(f"int32{_suffix(lanes)}", total)
    return tirx.Cast(f"int8{_suffix(lanes)}", bits)


def fused(a: Any, b: Any, c: Any, lanes: int = 1) -> Any:
    """float32 ``a * b + c``, rounded once: :func:`tvmx.numerics.fma`; vectors with ``lanes``."""
    from tvmx._tvm import tirx

    return tirx.call_llvm_pure_intrin(f"float32{_suffix(lanes)}", "llvm.fma", a, b, c)


def _splat(value: Any, lanes: int) -> Any:
    from tvmx._tvm import tirx

    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def _suffix(lanes: int) -> str:
    """What a vector's type has after its element's."""
    return "" if lanes == 1 else f"x{lanes}"


def data_zero_point(params: Any) -> Any:
    """The s8 value that padding holds."""
    return params[DATA_ZERO].astype("int32").astype("int8")


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
    params = np.zeros(PARAMS, np.float32)
    zero = 0 if epilogue.residual else how.out_zero_point
    if not how.float_out:  # else bounds are in the kernel
        params[_LOW], params[_HIGH] = how.low - zero, how.high - zero
    params[_OUT_ZERO], params[DATA_ZERO] = how.out_zero_point, how.data_zero_point
    if epilogue.residual:
        params[_RESIDUAL_OFFSET], params[_RESIDUAL_FACTOR] = (
            how.residual_offset,
            how.residual_factor,
        )
    return (
        pad_axis(bias, 0, count * block).reshape(count, block),
        _packed_factor(how, count, block),
        params,
    )


def _packed_factor(how: Requantise, count: int, block: int) -> Constant:
    """Multipliers, and shifts or biases where there are any, in blocks of channels."""
    whole = pad_axis(how.multiplier, 0, count * block).reshape(count, block)
    if how.offset is not None:
        return np.stack([whole, pad_axis(how.offset, 0, count * block).reshape(count, block)])
    if how.shift is None:
        return whole
    # Lanes without a channel get a shift, too: by nothing there would be no half of it.
    shifts = np.full(count * block, FIXED_BITS, np.int32)
    shifts[: len(how.shift)] = how.shift
    return np.stack([whole, shifts.reshape(count, block)])


def int8_arguments(
    data: Any, weight: Any, constants: tuple[Any, Any, Any], residual: Any, epilogue: Epilogue,
    out: Any,
) -> list[Any]:  # fmt: skip
    """The kernel's tensors in order; ``constants`` are bias, multiplier and params."""
    return [data, weight, *constants, *([residual] if epilogue.residual else []), out]
