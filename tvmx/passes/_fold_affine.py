"""Fold batch norms, scales and shifts by constants into the weights of the layer before.

``y = conv(x, W) + b`` followed by ``y * s + t`` (per output channel) is
``conv(x, W * s) + (b * s + t)``; constants are combined in float64 where a batch norm's
statistics enter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.passes._dataflow import Array, Walk, array_of, const, dtype_of, op_name, shape_of

_CONVS = {"relax.nn.conv1d": "OIW", "relax.nn.conv2d": "OIHW", "relax.nn.conv3d": "OIDHW"}


def is_anchor(call: Any) -> bool:
    """A float convolution (channels first) or 2-d matrix product with constant weights."""
    op = op_name(call)
    if op not in _CONVS and op != "relax.matmul":
        return False
    weight = array_of(call.args[1])
    if weight is None or dtype_of(call) != "float32":
        return False
    if op == "relax.matmul":
        return weight.ndim == 2 and len(shape_of(call)) == 2
    layout = str(call.attrs.kernel_layout)
    return layout == _CONVS[op] and str(call.attrs.out_layout or "NC").startswith("NC")


def along_channels(constant: Array | None, shape: tuple[int, ...]) -> Array | None:
    """A constant that varies along axis 1 only (or not at all), as ``(channels,)``."""
    if constant is None or len(shape) < 2 or constant.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    want = tuple(shape[1] if axis == 1 else 1 for axis in range(len(shape)))
    if constant.size != 1 and full != want:
        return None
    return np.broadcast_to(constant.reshape(-1), (shape[1],))


def channel_const(values: Array, rank: int) -> Any:
    """``(channels,)`` as the constant that is added behind a layer of that rank.

    (1, C, 1, 1) for rank 4, (N,) for rank 2.
    """
    shape = (-1,) if rank == 2 else (1, -1, *(1,) * (rank - 2))
    return const(np.asarray(values, np.float32).reshape(shape))


def split_batch_norm(walk: Walk, value: Any, name: str) -> Any:
    """Rule: an inference batch norm with constant statistics becomes multiply and add."""
    if not isinstance(value, relax.TupleGetItem) or value.index != 0:
        return None
    call = walk.value(value.tuple_value, "relax.nn.batch_norm")
    if call is None or bool(call.attrs.training) or int(call.attrs.axis) != 1:
        return None
    arrays = [array_of(arg) for arg in call.args[1:5]]
    if any(array is None for array in arrays) or dtype_of(call.args[0]) != "float32":
        return None
    gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
    scale = 1 / np.sqrt(variance + float(call.attrs.epsilon))
    if bool(call.attrs.scale):
        scale = scale * gamma
    shift = -mean * scale + (beta if bool(call.attrs.center) else 0)
    data, rank = call.args[0], len(shape_of(call.args[0]))
    scaled = relax.op.multiply(data, channel_const(scale, rank))
    return relax.op.add(walk.emit(scaled, value.tuple_value.name), channel_const(shift, rank))


def fold_scale(walk: Walk, value: Any, name: str) -> Any:
    """Rule: multiplication by a constant moves into the weights before it."""
    scale = _operand(value, "relax.multiply")
    if scale is None or not walk.once(value.args[0]):
        return None
    data, rank = value.args[0], len(shape_of(value))
    before = walk.value(data)
    if is_anchor(before):
        return walk.emit(_scaled(before, scale), data.name)
    inner = _operand(before, "relax.multiply")
    if inner is not None:
        return relax.op.multiply(before.args[0], channel_const(inner * scale, rank))
    shift = _operand(before, "relax.add")
    if shift is None or not walk.once(before.args[0]):
        return None
    # (x + b) * s as x * s + b * s, where that brings the scale next to what can take it in.
    source = walk.value(before.args[0])
    if is_anchor(source):
        scaled = walk.emit(_scaled(source, scale), before.args[0].name)
    elif _operand(source, "relax.multiply") is not None:
        product = relax.op.multiply(before.args[0], channel_const(scale, rank))
        scaled = walk.emit(product, name)
    else:
        return None
    return walk.emit(relax.op.add(scaled, channel_const(shift * scale, rank)), data.name)


def fold_shift(walk: Walk, value: Any, name: str) -> Any:
    """Rule: two additions of constants become one; a layer's bias gets its canonical shape."""
    shift = _operand(value, "relax.add")
    if shift is None:
        return None
    data, rank = value.args[0], len(shape_of(value))
    before = walk.value(data)
    inner = _operand(before, "relax.add")
    if inner is not None and walk.once(data):
        merged = relax.op.add(before.args[0], channel_const(inner + shift, rank))
        return walk.emit(merged, data.name)
    if is_anchor(before):
        canonical = channel_const(shift, rank)
        if shape_of(canonical) != shape_of(value.args[1]):
            return relax.op.add(data, canonical)
    return None


def fold_input_scale(walk: Walk, value: Any, name: str) -> Any:
    """Rule: multiplication by a constant before a layer moves into its weights.

    Zero padding stays zero under it; a shift would not, and is left.
    """
    if not is_anchor(value) or not walk.once(value.args[0]):
        return None
    before = walk.value(value.args[0])
    scale = _operand(before, "relax.multiply")
    if scale is None:
        return None
    weight = array_of(value.args[1])
    assert weight is not None
    if op_name(value) == "relax.matmul":
        scaled = weight * scale[:, None]
    elif int(value.attrs.groups) == 1:
        scaled = weight * scale.reshape(1, -1, *(1,) * (weight.ndim - 2))
    elif (scale == scale[0]).all():
        scaled = weight * scale[0]
    else:
        return None
    return relax.Call(value.op, [before.args[0], const(scaled)], value.attrs, value.ty_args)


def _operand(call: Any, op: str) -> Array | None:
    """The per-channel constant of ``op(x, constant)`` that does not broadcast x."""
    if op_name(call) != op or dtype_of(call) != "float32":
        return None
    if shape_of(call.args[0]) != shape_of(call):
        return None
    return along_channels(array_of(call.args[1]), shape_of(call))


def _scaled(call: Any, scale: Array) -> Any:
    weight = array_of(call.args[1])
    assert weight is not None
    if op_name(call) == "relax.matmul":
        scaled = weight * scale
    else:
        scaled = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return relax.Call(call.op, [call.args[0], const(scaled)], call.attrs, call.ty_args)
