"""Kernels of dynamic quantisation: a tensor's range, its bytes, a layer's constants at run time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmx._tvm import IRBuilder, builder, relax, te, tirx
from tvmx.errors import BuildError
from tvmx.ir import block_of, ceil_div, physical_shape
from tvmx.numerics import QMIN, LayerConstants, StatedWeight, dynamic_constants
from tvmx.passes._layers import LayerStep
from tvmx.targets import Target
from tvmx.templates import DATA_ZERO, PARAMS, Kernel, flat, load, store

STEPS = 255
_TASK = 1 << 14  # elements: less is not worth a thread


def range_kernel(shape: tuple[int, ...], form: str, target: Target) -> Any:
    """PrimFunc (data in ``form``, params): scale and s8 zero point of data of logical ``shape``.

    Both are float32, to the bit :func:`tvmx.numerics.dynamic_params`. Lanes without a channel do
    not count.
    """
    v, physical = block_of(form), physical_shape(shape, form)
    size = math.prod(physical)
    lanes = v or min(target.lanes(), 1 << (size.bit_length() - 1))
    plane = math.prod(physical[2:4]) if v else 1
    partly = v is not None and shape[1] % v != 0
    vectors = ceil_div(size, lanes)
    tasks = max(1, min(2 * target.cores, size // _TASK))
    each = ceil_div(vectors, tasks)
    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        builder.func_name("main")
        builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        data = builder.arg("data", builder.buffer(physical, "float32"))
        params = builder.arg("params", builder.buffer((2,), "float32"))
        # Relax looks whether a kernel of two tensors only reshapes, and insists on a block.
        with builder.sblock("root"):
            builder.reads()
            builder.writes()
            source = flat(data)
            found = builder.alloc_buffer((2 * tasks * lanes,), "float32")
            with builder.parallel(0, tasks) as task:
                ends = builder.alloc_buffer((2 * lanes,), "float32", scope="local")
                for end in range(2):
                    store(ends, _splat(0.0, lanes), end * lanes, lanes=lanes)
                with builder.serial(0, each) as step:
                    # Vectors that are seen twice change no range.
                    vector = builder.Bind(tirx.min(task * each + step, vectors - 1))
                    first = tirx.min(vector * lanes, size - lanes)
                    x = load(source, first, lanes=lanes)
                    if partly:
                        x = _inside(x, vector // plane % physical[1] * lanes, shape[1], lanes)
                    x = builder.Bind(x)
                    for end, better in enumerate((tirx.min, tirx.max)):
                        old = load(ends, end * lanes, lanes=lanes)
                        store(ends, better(old, x), end * lanes, lanes=lanes)
                for end in range(2):
                    at = (task * 2 + end) * lanes
                    store(found, load(ends, end * lanes, lanes=lanes), at, lanes=lanes)
            _params(found, params, tasks, lanes)
    return ir.get()


def _params(found: Any, params: Any, tasks: int, lanes: int) -> None:
    """Emit scale and zero point from the extremes of all tasks and lanes."""
    both = builder.alloc_buffer((2,), "float32", scope="local")
    for end, better in enumerate((tirx.min, tirx.max)):
        store(both, tirx.const(0.0, "float32"), end)
        with builder.serial(0, tasks) as task, builder.serial(0, lanes) as lane:
            x = load(found, (task * 2 + end) * lanes + lane)
            store(both, better(load(both, end), x), end)
    low = builder.Bind(load(both, 0))
    width = builder.Bind(load(both, 1) - low)
    steps, zero = tirx.const(float(STEPS), "float32"), tirx.const(0.0, "float32")
    scale = builder.Bind(tirx.Select(width == zero, tirx.const(1.0, "float32"), width / steps))
    point = tirx.max(tirx.min((zero - low) / scale, steps), zero)
    rounded = tirx.call_llvm_pure_intrin("float32", "llvm.rint", point)
    store(params, scale, 0)
    store(params, rounded + tirx.const(float(QMIN), "float32"), 1)


def _inside(x: Any, first: Any, channels: int, lanes: int) -> Any:
    """Zero, which every range holds, where a lane has no channel."""
    channel = tirx.Ramp(first, tirx.const(1, "int32"), lanes)
    limit = tirx.Broadcast(tirx.const(channels, "int32"), lanes)
    return tirx.Select(channel < limit, x, _splat(0.0, lanes))


def _splat(value: float, lanes: int) -> Any:
    scalar = tirx.const(value, "float32")
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def dynamic_quantise_te(x: Any, params: Any) -> Any:
    """float32 -> s8 by run-time ``params``: :func:`tvmx.numerics.dynamic_quantise`."""
    least, steps = tirx.const(float(QMIN), "float32"), tirx.const(float(STEPS), "float32")

    def element(*i: Any) -> Any:
        low = least - params[1]
        bounded = tirx.max(tirx.min(x[i] / params[0], low + steps), low)
        whole = tirx.call_llvm_pure_intrin("float32", "llvm.rint", bounded) + params[1]
        return whole.astype("int32").astype("int8")

    return te.compute(x.shape, element, name="dynamic_quantise")


def dynamic_dequantise_te(q: Any, params: Any) -> Any:
    """s8 -> float32 by run-time ``params``."""
    return te.compute(
        q.shape, lambda *i: (q[i].astype("float32") - params[1]) * params[0], name="dequantise"
    )


def constants_of(step: LayerStep, scale: np.float32, zero_point: int) -> LayerConstants:
    """A dynamic layer's constants for data of that scale and zero point."""
    assert isinstance(step.stated, StatedWeight)
    clip = step.layer.workload.epilogue
    return dynamic_constants(
        step.stated, step.bias, scale, zero_point, clip.clip_min, clip.clip_max
    )


def run_time_constants(
    bb: Any, kernel: Kernel, step: LayerStep, params: Any, template: str
) -> tuple[list[Any], int]:
    """Emit a dynamic layer's constants for data of run-time ``params``; how many bytes are stored.

    Every int8 kernel has packed weights, then bias, multiplier and ``params``
    (:mod:`tvmx.templates._int8`). Packing moves and pads, so that the bias is linear in the zero
    point: two packings, for 0 and for 1, tell it for all.

    Raises BuildError where the kernel's constants are others.
    """
    first, second = (kernel.constants(constants_of(step, np.float32(1), zero)) for zero in (0, 1))
    *packed, base, multiplier, fixed = first
    kinds = [(str(c.dtype), c.ndim) for c in (base, multiplier, fixed)]
    fits = kinds == [("int32", 2), ("float32", 3), ("float32", 1)] and fixed.shape == (PARAMS,)
    if not fits:
        raise BuildError(
            f"layer {step.layer.name!r} is quantised at run time, but the constants of its "
            f"template {template!r} do not end in bias, multiplier and params",
            hint="int8 templates of your own make them by tvmx.templates.epilogue_constants",
        )
    slope = (second[-3].astype(np.int64) - base).astype(np.int32)

    def compute(base: Any, slope: Any, multiplier: Any, fixed: Any, p: Any) -> list[Any]:
        return [
            te.compute(base.shape, lambda *i: base[i] + slope[i] * p[1].astype("int32"), "bias"),
            te.compute(
                multiplier.shape,
                lambda a, *i: tirx.Select(a == 0, multiplier[(a, *i)] * p[0], multiplier[(a, *i)]),
                "multiplier",
            ),
            te.compute(
                fixed.shape, lambda i: tirx.Select(i == DATA_ZERO, p[1], fixed[i]), "params"
            ),
        ]

    arrays = [base, slope, multiplier, fixed]
    made = bb.emit(bb.call_te(
        compute, *map(relax.const, arrays), params, primfunc_name_hint="dynamic_constants"
    ))  # fmt: skip
    results = [bb.emit(relax.TupleGetItem(made, i)) for i in range(3)]
    return [*map(relax.const, packed), *results], sum(c.nbytes for c in (*packed, *arrays))
