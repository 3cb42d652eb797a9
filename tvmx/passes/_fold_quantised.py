"""Constants of quantised models: weights stay integers with their scales, the rest becomes float.

A weight is ``relax.dequantize`` of a constant: folded like other calls of constants it would lose
what the model says about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx._tvm import relax, tvm
from tvmx.passes._dataflow import (
    Array,
    Dataflow,
    Walk,
    array_of,
    const,
    dtype_of,
    op_name,
    shape_of,
    substitute,
    variables,
)
from tvmx.passes._groups import is_anchor
from tvmx.passes._qdq import along_axis, dequantised

_ROUNDED = ("int8", "uint8", "int16", "uint16")


def is_quantised_constant(value: Any) -> bool:
    """Whether a value is ``relax.dequantize`` of a constant to float32."""
    if op_name(value) != "relax.dequantize" or dtype_of(value) != "float32":
        return False
    return all(isinstance(arg, tvm.ir.GenericConst) for arg in value.args[:3])


def move_transpose(walk: Walk, value: Any, name: str) -> Any:
    """Rule: the transpose of a quantised constant is a quantised transposed constant."""
    if op_name(value) != "relax.permute_dims":
        return None
    call = walk.value(value.args[0], "relax.dequantize")
    if call is None or not is_quantised_constant(call):
        return None
    array = array_of(call.args[0])
    assert array is not None
    axes = value.attrs.axes
    order = list(range(array.ndim))[::-1] if axes is None else [int(a) % array.ndim for a in axes]
    scales = int(np.prod(shape_of(call.args[1]))) * int(np.prod(shape_of(call.args[2])))
    axis = order.index(int(call.attrs.axis) % array.ndim) if scales > 1 else 0
    moved = const(np.transpose(array, order))
    return relax.op.dequantize(moved, *call.args[1:3], axis=axis, out_dtype="float32")


def round_constant(walk: Walk, value: Any, name: str) -> Any:
    """Rule: a constant is quantised once, here, by ONNX's rounding (half to even)."""
    if op_name(value) != "relax.quantize" or dtype_of(value) not in _ROUNDED:
        return None
    data, scale, zero = (array_of(arg) for arg in value.args[:3])
    if data is None or scale is None or zero is None or data.dtype != np.float32:
        return None
    along = along_axis(value)
    limits = np.iinfo(dtype_of(value))
    rounded = np.rint(data / scale.reshape(along)) + zero.astype(np.float32).reshape(along)
    return const(np.clip(rounded, limits.min, limits.max).astype(dtype_of(value)))


def fold_dequantised(flow: Dataflow) -> Dataflow:
    """Quantised constants as float ones, except where a layer alone reads them as its weight.

    The flow itself where there are none of those others.
    """
    calls = {var: value for var, value in flow.bindings if is_quantised_constant(value)}
    if not calls:
        return flow
    weights = {
        value.args[1] for _, value in flow.bindings
        if is_anchor(value) and value.args[1] in calls
    }  # fmt: skip
    elsewhere = {v for out in flow.outputs for v in variables(out)}
    for _, value in flow.bindings:
        anchor = is_anchor(value)
        for at, arg in enumerate(getattr(value, "args", ())):
            if not (anchor and at == 1):
                elsewhere.update(variables(arg))
        if isinstance(value, relax.Tuple | relax.TupleGetItem | relax.Var):
            elsewhere.update(variables(value))
    keep = weights - elsewhere
    env = {var: const(dequantised(call)) for var, call in calls.items() if var not in keep}
    if not env:
        return flow
    return _rewritten(flow, env)


def hide_weights(flow: Dataflow) -> tuple[Dataflow, dict[Any, Array]]:
    """Quantised weights as parameters behind the others, and what they stand for by variable."""
    hidden: dict[Any, Array] = {}
    bindings = []
    for var, value in flow.bindings:
        if is_quantised_constant(value):
            array = array_of(value.args[0])
            assert array is not None
            stand_in = relax.Var(f"{var.name}_weight", value.args[0].ty)
            hidden[stand_in] = array
            value = relax.Call(value.op, [stand_in, *value.args[1:]], value.attrs)
        bindings.append((var, value))
    params = (*flow.params, *hidden)
    return Dataflow(
        params, tuple(bindings), flow.outputs, flow.is_tuple, flow.attrs, flow.functions
    ), hidden


def restore_weights(flow: Dataflow, hidden: dict[Any, Array]) -> Dataflow:
    """Undo :func:`hide_weights`, in a flow that may have been rewritten in between."""
    if not hidden:
        return flow
    count = len(flow.params) - len(hidden)
    stand_ins = flow.params[count:]
    env = {var: const(array) for var, array in zip(stand_ins, hidden.values(), strict=True)}
    visible = Dataflow(
        flow.params[:count], flow.bindings, flow.outputs, flow.is_tuple, flow.attrs, flow.functions
    )
    return _rewritten(visible, env)


def _rewritten(flow: Dataflow, env: dict[Any, Any]) -> Dataflow:
    """The flow with variables replaced by constants."""
    bindings = tuple(
        (var, substitute(value, env)) for var, value in flow.bindings if var not in env
    )
    outputs = tuple(substitute(out, env) for out in flow.outputs)
    return Dataflow(flow.params, bindings, outputs, flow.is_tuple, flow.attrs, flow.functions)
