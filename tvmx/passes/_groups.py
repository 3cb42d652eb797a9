"""Anchor operators with the epilogues that are fused behind them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax, tvm
from tvmx.ir import Conv2dWorkload, DataType, DenseWorkload, Epilogue, Rounding
from tvmx.numerics import LayerConstants, StatedWeight
from tvmx.passes._dataflow import op_name
from tvmx.passes._dynamic import DynamicLayer, Dynamics
from tvmx.passes._operator import clip_bounds
from tvmx.passes._qdq import Qdq

Array = npt.NDArray[np.float32]


def static_shape(expr: Any) -> tuple[int, ...] | None:
    """Static shape of a tensor-typed expression, None for tuples and shapes."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        return None
    values = getattr(ty.shape, "values", None)
    return None if values is None else tuple(int(v) for v in values)


def const_array(expr: Any) -> npt.NDArray[Any] | None:
    """The array of a Relax constant, None for anything else."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def free_vars(expr: Any) -> list[Any]:
    """Variables an expression reads, in order, without repeats."""
    return list(dict.fromkeys(relax.analysis.free_vars(expr)))


@dataclass
class Group:
    """A layer in the making: indices of its bindings, and its logical constants.

    ``stated`` is the int8 weight where the model states the layer in int8; then ``quantising``
    is the binding that makes its output int8, None where the output is float. ``float_bias``: the
    bias is no whole number of the sums' steps. ``stated`` is all constants where the model states
    the layer in whole numbers throughout, in its ``rounding``. ``padding`` (top, left, bottom,
    right) is added to the anchor's own. ``dynamic``: its data is quantised at run time.
    """

    anchor: int
    members: list[int]
    weight: Array
    bias: Array | None = None
    residual: Any = None
    clip: tuple[float | None, float | None] | None = None
    stated: StatedWeight | LayerConstants | None = None
    quantising: int | None = None
    float_bias: bool = False
    rounding: Rounding = "even"
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dynamic: DynamicLayer | None = None

    @property
    def float_out(self) -> bool:
        """Whether it is a layer stated in int8 whose output is float."""
        return isinstance(self.stated, StatedWeight) and self.quantising is None

    @property
    def last(self) -> int:
        """The binding that makes its output."""
        return self.members[-1] if self.quantising is None else self.quantising


def single_readers(bindings: list[Any], uses: Counter[Any]) -> dict[Any, int]:
    """Variable -> index of the one binding that reads it, once."""
    readers: dict[Any, int] = {}
    for index, binding in enumerate(bindings):
        for var in free_vars(binding.value):
            if uses[var] == 1:
                readers[var] = index
    return readers


def find_groups(
    bindings: list[Any], readers: dict[Any, int], qdq: Qdq, dynamics: Dynamics
) -> list[Group]:
    """Every anchor with what it absorbs, in network order.

    An anchor takes in the per-channel bias, residual add and clip that alone read its result, in
    that order. ``readers`` is what :func:`single_readers` found.
    """
    groups: list[Group] = []
    taken: set[int] = set()
    # Backwards, so that of two convolutions joined by an add the later one absorbs it: the
    # other operand exists by then, and no live range grows.
    for index in reversed(range(len(bindings))):
        group = _anchored(index, bindings[index].value, qdq, dynamics.layers.get(index))
        if group is None:
            continue
        current = group.members[-1]
        while True:
            reader = readers.get(bindings[current].var)
            if reader is None or reader in taken:
                break
            if not _absorb(group, bindings[current].var, bindings[reader].value):
                break
            group.members.append(reader)
            current = reader
        if group.dynamic is None:
            _state(group, bindings, readers, qdq)
        taken.update((*group.members, group.last))
        groups.append(group)
    return sorted(groups, key=lambda g: g.anchor)


def _anchored(index: int, call: Any, qdq: Qdq, dynamic: DynamicLayer | None) -> Group | None:
    """The group of an anchor alone; None if the call is none."""
    if dynamic is not None:
        return Group(
            index, list(dynamic.members), dynamic.real_weight, stated=dynamic.weight,
            dynamic=dynamic,
        )  # fmt: skip
    weight = _anchor_weight(call, qdq)
    return None if weight is None else Group(index, [index], weight)


def _state(group: Group, bindings: list[Any], readers: dict[Any, int], qdq: Qdq) -> None:
    """Make it a stated layer where the model says how its data and weight are int8.

    Its output is int8 where that is stated, too, and a residual as well; else it is float.
    """
    anchor = bindings[group.anchor].value
    if not qdq.stated(anchor.args[0]):
        return
    axis = 1 if op_name(anchor) == "relax.matmul" else 0
    group.stated = qdq.stated_weight(anchor.args[1], axis)
    if group.stated is None:
        return
    reader = readers.get(bindings[group.members[-1]].var)
    if reader is None or bindings[reader].var not in qdq.params:
        return
    if group.residual is None or qdq.stated(group.residual):
        group.quantising = reader
        step = np.float64(qdq.scale(anchor.args[0])) * group.stated.scales.astype(np.float64)
        group.float_bias = group.bias is not None and not _whole(group.bias, step)


def _whole(values: npt.NDArray[Any], steps: npt.NDArray[Any]) -> bool:
    """Whether float32 numbers may be whole multiples of steps that are products of two such."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = values / steps
        rest = np.abs(found - np.rint(found))
        return bool((rest <= 1e-3 + 2.0**-21 * np.abs(found)).all())


def is_anchor(call: Any) -> bool:
    """Whether the call is a convolution or product that a layer is made of, given its weight."""
    name = op_name(call)
    if name not in ("relax.nn.conv2d", "relax.matmul") or str(call.ty.dtype) != "float32":
        return False
    data, weight = static_shape(call.args[0]), static_shape(call.args[1])
    if data is None or weight is None or isinstance(call.args[0], tvm.ir.GenericConst):
        return False
    if name == "relax.matmul":
        return len(data) == len(weight) == 2
    return len(weight) == 4 and (call.attrs.data_layout, call.attrs.kernel_layout) == (
        "NCHW", "OIHW",
    )  # fmt: skip


def _anchor_weight(call: Any, qdq: Qdq) -> Array | None:
    """Logical weights if the call is an anchor, else None."""
    if not is_anchor(call):
        return None
    weight = const_array(call.args[1])
    if weight is None:
        weight = qdq.weight(call.args[1])
    if weight is None or op_name(call) == "relax.nn.conv2d":
        return weight
    return np.ascontiguousarray(weight.T)


def _absorb(group: Group, var: Any, call: Any) -> bool:
    """Try to take ``call``, the only reader of ``var``, into the epilogue."""
    name = op_name(call)
    if group.clip is not None:
        return False
    bounds = clip_bounds(call)
    if bounds is not None:
        group.clip = bounds
        return True
    if name != "relax.add":
        return False
    if not (call.args[0].same_as(var) or call.args[1].same_as(var)):
        return False
    other = call.args[1] if call.args[0].same_as(var) else call.args[0]
    constant = const_array(other)
    if constant is not None:
        if group.residual is not None:
            return False
        bias = per_channel(constant, static_shape(var) or ())
        if bias is None:
            return False
        group.bias = bias if group.bias is None else group.bias + bias
        return True
    if group.residual is not None or static_shape(other) != static_shape(var):
        return False
    if other.same_as(var):
        return False
    group.residual = other
    return True


def per_channel(constant: npt.NDArray[Any], shape: tuple[int, ...]) -> Array | None:
    """A constant broadcast along the channel axis (1) only, as ``(channels,)``; else None."""
    if len(shape) not in (2, 4) or constant.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    want = tuple(shape[1] if axis == 1 else 1 for axis in range(len(shape)))
    if full != want and constant.size != 1:
        return None
    return np.ascontiguousarray(np.broadcast_to(constant.reshape(-1), (shape[1],)), np.float32)


def workload_of(call: Any, group: Group) -> Conv2dWorkload | DenseWorkload:
    """The workload of a group with the anchor ``call``."""
    low, high = group.clip if group.clip else (None, None)
    epilogue = Epilogue(
        bias=group.bias is not None,
        residual=group.residual is not None,
        clip_min=low,
        clip_max=high,
        rounding=group.rounding,
        float_out=group.float_out,
        float_bias=group.float_bias,
    )
    shape = static_shape(call.args[0]) or ()
    dtype: DataType = "float32" if group.stated is None else "int8"
    if op_name(call) == "relax.matmul":
        return DenseWorkload(
            dtype=dtype, batch=shape[0], in_features=shape[1],
            out_features=group.weight.shape[0], epilogue=epilogue,
        )  # fmt: skip
    attrs = call.attrs
    top, left, bottom, right = (
        int(own) + more for own, more in zip(attrs.padding, group.padding, strict=True)
    )
    return Conv2dWorkload(
        dtype=dtype, batch=shape[0], in_channels=shape[1],
        height=shape[2] - group.padding[0] - group.padding[2],
        width=shape[3] - group.padding[1] - group.padding[3],
        out_channels=group.weight.shape[0],
        kernel=(group.weight.shape[2], group.weight.shape[3]),
        strides=(int(attrs.strides[0]), int(attrs.strides[1])),
        padding=(top, left, bottom, right),
        dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
        groups=int(attrs.groups), epilogue=epilogue,
    )  # fmt: skip
