"""A kernel that copies a tensor into a part of another."""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import IRBuilder, builder, tvm
from tvmx.templates import flat, load, store

_TASK_BYTES = 16 * 1024  # less is not worth a thread
_VECTOR_BYTES = 64


def copy_kernel(shape: tuple[int, ...], whole: tuple[int, ...], dtype: str, offset: int) -> Any:
    """A PrimFunc (part, whole) that writes ``part`` into ``whole`` from byte ``offset`` on."""
    item = -(-int(tvm.DataType(dtype).bits) // 8)
    first = offset // item
    size = math.prod(shape)
    lanes = math.gcd(size, _VECTOR_BYTES // item)
    steps = size // lanes
    inner = _divisor(steps, max(1, _TASK_BYTES // (item * lanes)))
    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        builder.func_name("copy_part")
        builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        part = builder.arg("part", builder.buffer(shape, dtype))
        result = builder.arg("whole", builder.buffer(whole, dtype))
        source, destination = flat(part), flat(result)
        with builder.parallel(0, steps // inner) as task, builder.serial(0, inner) as step:
            at = builder.Bind((task * inner + step) * lanes)
            store(destination, load(source, at, lanes=lanes), first + at, lanes=lanes)
    return ir.get()


def _divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` up to ``most``."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)
