"""Indices as affine functions of loops, and loops whose variable is split by division."""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import tirx

Affine = dict[Any, float]
"""Elements the index moves per step of each loop (what has an ``extent``) and lane variable; the
constant under ``None``."""


def plus(a: Affine, b: Affine, sign: float) -> Affine:
    """``a + sign * b``."""
    total = dict(a)
    for key, value in b.items():
        total[key] = total.get(key, 0.0) + sign * value
    return total


def divided(a: Affine, divisor: float) -> Affine:
    """``a // divisor``: what is smaller than the divisor, and stays so, moves nothing."""
    return {
        key: value / (divisor or 1.0)
        for key, value in a.items()
        if abs(value) * getattr(key, "extent", math.inf) > divisor
    }


def remainder(a: Affine, divisor: float) -> Affine:
    """``a % divisor``: whole multiples of the divisor move nothing."""
    return {key: value for key, value in a.items() if not hasattr(key, "extent") or value % divisor}


def digits(extent: int, splits: set[int]) -> list[tuple[int, int]]:
    """(extent, step) of the loops that a loop stands for whose variable is split by division."""
    found, left = [], extent
    for divisor in sorted((d for d in splits if 1 < d < extent), reverse=True):
        if left % divisor == 0 and extent % left == 0:
            found.append((left // divisor, divisor))
            left = divisor
    return [*found, (left, 1)]


def divisors(stmt: Any, var: Any) -> set[int]:
    """The constants that ``var`` is divided by in a statement."""
    found: set[int] = set()
    pending = [stmt]
    while pending:
        node = pending.pop()
        name = type(node).__name__
        if name in ("FloorDiv", "FloorMod") and isinstance(node.b, tirx.IntImm):
            inner = node.a
            if inner.same_as(var):
                found.add(int(node.b))
            elif type(inner).__name__ == "FloorDiv" and inner.a.same_as(var):
                found.add(int(node.b) * int(inner.b))
        for field_name in _CHILDREN.get(name, ()):
            child = getattr(node, field_name)
            if child is not None:
                pending += list(child) if field_name in _LISTS else [child]
    return found


_LISTS = ("seq", "indices", "args", "vectors")
_CHILDREN = {
    "SeqStmt": ("seq",), "For": ("body",), "AttrStmt": ("body",), "Bind": ("value",),
    "BufferStore": ("value", "indices"), "TensorLoad": ("indices",), "Evaluate": ("value",),
    "IfThenElse": ("condition", "then_case", "else_case"), "Ramp": ("base",),
    "Broadcast": ("value",), "Cast": ("value",), "Call": ("args",), "Shuffle": ("vectors",),
    "Select": ("condition", "true_value", "false_value"),
    **dict.fromkeys(("Add", "Sub", "Mul", "Min", "Max", "FloorDiv", "FloorMod", "LT", "LE"),
                    ("a", "b")),
}  # fmt: skip
