"""What converters of ONNX operators read from a node."""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import tvm
from tvmx.frontends._reason import RuleError


def array(expr: Any) -> Any:
    """The value of a constant as a NumPy array; None for anything else."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def ints(shape: Any) -> tuple[int, ...]:
    """A static shape as numbers."""
    return tuple(int(v) for v in shape)


def text(attrs: dict[str, Any], name: str, default: str) -> str:
    """An attribute that is a word."""
    value = attrs.get(name, default.encode())
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def axis_of(attrs: dict[str, Any], rank: int, default: int) -> int:
    """The attribute ``axis`` from 0 on. Raises RuleError outside the rank."""
    axis = int(attrs.get("axis", default))
    if not -rank <= axis < rank:
        raise RuleError(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank


def reduced_axes(
    inputs: list[Any], attrs: dict[str, Any], rank: int, from_input: bool
) -> list[int] | None:
    """Axes of a reduction, from 0 on; None where it reduces nothing (``noop_with_empty_axes``)."""
    if from_input and inputs[1] is not None:
        value = array(inputs[1])
        if value is None:
            raise RuleError("its axes are computed from the network's inputs")
        given = [int(axis) for axis in value.reshape(-1)]
    else:
        given = list(attrs.get("axes", ())) if not from_input else []
    if not given:
        return None if attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    if not all(-rank <= axis < rank for axis in given):
        raise RuleError(f"axes {given} of a tensor with {rank} axes")
    return sorted({axis % rank for axis in given})


def elements(shape: Any) -> int:
    """Number of elements of a static shape."""
    return math.prod(ints(shape))
