"""The epilogue as a TE expression: bias, residual add, clip, in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmx.ir import Epilogue


def apply_epilogue(
    value: Any,
    epilogue: Epilogue,
    bias: Callable[[], Any],
    residual: Callable[[], Any],
) -> Any:
    """``clip(value + bias + residual)`` for one output element of type float32.

    ``bias`` and ``residual`` are called only when the epilogue has them.
    """
    from tvmx._tvm import tirx

    if epilogue.bias:
        value = value + bias()
    if epilogue.residual:
        value = value + residual()
    if epilogue.clip_min is not None:
        value = tirx.max(value, tirx.const(epilogue.clip_min, "float32"))
    if epilogue.clip_max is not None:
        value = tirx.min(value, tirx.const(epilogue.clip_max, "float32"))
    return value


def kernel_arguments(
    data: Any, weight: Any, bias: Any, residual: Any, epilogue: Epilogue, out: Any
) -> list[Any]:
    """The kernel's tensors in the order the contract asks for, absent ones left out."""
    arguments = [data, weight]
    if epilogue.bias:
        arguments.append(bias)
    if epilogue.residual:
        arguments.append(residual)
    return [*arguments, out]


def clipped(value: Any, epilogue: Epilogue, lanes: int) -> Any:
    """A vector of ``lanes`` float32 (one: a scalar), clipped as the epilogue says."""
    from tvmx._tvm import tirx
    from tvmx.templates._block_sparse import spread

    for limit, pick in ((epilogue.clip_min, tirx.max), (epilogue.clip_max, tirx.min)):
        if limit is not None:
            value = pick(value, spread(tirx.const(limit, "float32"), lanes))
    return value
