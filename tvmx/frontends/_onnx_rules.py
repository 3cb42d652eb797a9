"""Converters that replace TVM's where its result is slow, opaque or not what ONNX says.

Each takes the inputs, the attributes (bytes, ints, floats, as TVM's importer parses them) and
the opset, and returns a Relax expression, or None to leave the node to TVM:

* Clip becomes ``relax.clip`` (TVM emits TIR functions that no pass recognises),
* Pad with a constant becomes ``relax.nn.pad`` (likewise),
* Sum, Max, Min and Mean become pairwise operators (TVM stacks their inputs and reduces),
* ``auto_pad`` becomes explicit padding (TVM pads pools by zero and rounds SAME_LOWER down),
* Gemm scales its weights instead of its input by alpha,
* ConvInteger, which TVM has not, is computed in int32,
* DynamicQuantizeLinear of nothing but zeros has the scale 1 (TVM divides by 0),
* Dropout is nothing.

More are in :mod:`_onnx_resize`, :mod:`_onnx_rules_index` and :mod:`_onnx_rules_more`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmx._tvm import relax, tvm
from tvmx.frontends import _onnx_rules_index as index
from tvmx.frontends import _onnx_rules_more as more
from tvmx.frontends._onnx_attributes import array as _array
from tvmx.frontends._onnx_attributes import ints as _ints
from tvmx.frontends._onnx_resize import resize, upsample
from tvmx.frontends._reason import RuleError

Rule = Callable[[list[Any], dict[str, Any], int], Any]


def _clip(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    data = inputs[0]
    if not str(data.ty.dtype).startswith("float"):
        return None
    bounds = [attrs.get("min", -math.inf), attrs.get("max", math.inf)]
    if opset >= 11:
        bounds = [-math.inf, math.inf]
        for index in (0, 1):
            given = inputs[index + 1]
            if given is None:
                continue
            array = _array(given)
            if array is None or array.size != 1:
                return None
            value = float(array.reshape(()))
            bounds[index] = bounds[index] if math.isnan(value) else value
    low, high = bounds
    return relax.op.clip(data, relax.prim_value(min(low, high)), relax.prim_value(high))


def _pad(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    data = inputs[0]
    if isinstance(data, tvm.ir.GenericConst) or attrs.get("mode", b"constant") != b"constant":
        return None
    rank = len(data.ty.shape)
    value = float(attrs.get("value", 0.0))
    if opset < 11:
        pads: Any = np.array(attrs["pads"])
    else:
        pads = _array(inputs[1])
        fill = _array(inputs[2]) if inputs[2] is not None else np.zeros(1)
        if pads is None or fill is None:
            return None
        value = float(fill.reshape(()))
    axes = list(range(rank))
    if inputs[3] is not None:
        given = _array(inputs[3])
        if given is None:
            return None
        axes = [int(a) % rank for a in given]
    width = [0] * (2 * rank)
    for position, axis in enumerate(axes):
        width[2 * axis] = int(pads[position])
        width[2 * axis + 1] = int(pads[position + len(axes)])
    if min(width) < 0 or not str(data.ty.dtype).startswith("float"):
        return None
    return relax.op.nn.pad(data, width, "constant", value)


def _pairwise(op: Any, inputs: list[Any]) -> Any:
    return functools.reduce(op, inputs)


def _variadic(op: Any) -> Rule:
    def rule(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        return _pairwise(op, list(inputs))

    return rule


def _mean(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    values = list(inputs)
    scale = relax.const(1.0 / len(values), values[0].ty.dtype)
    return relax.op.multiply(_pairwise(relax.op.add, values), scale)


def _gemm(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    data, weight, bias = inputs[0], inputs[1], inputs[2]
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    dtype = data.ty.dtype
    if attrs.get("transA", 0):
        data = relax.op.permute_dims(data, [1, 0])
    if attrs.get("transB", 0):
        weight = relax.op.permute_dims(weight, [1, 0])
    if alpha != 1.0:
        weight = relax.op.multiply(weight, relax.const(alpha, dtype))
    result = relax.op.matmul(data, weight)
    if bias is None:
        return result
    if beta != 1.0:
        bias = relax.op.multiply(bias, relax.const(beta, dtype))
    return relax.op.add(result, bias)


def _dropout(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    if len(inputs) > 2 and inputs[2] is not None:
        training = _array(inputs[2])
        if training is None or bool(training):
            raise RuleError("dropout in training mode; export the network in evaluation mode")
    if attrs["tvm_custom"]["num_outputs"] > 1:
        mask = relax.op.ones(_ints(inputs[0].ty.shape), "bool")
        return relax.Tuple([inputs[0], mask])
    return inputs[0]


def _explicit_padding(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Turn ``auto_pad`` into ``pads`` in place; the node itself is left to TVM."""
    mode = attrs.pop("auto_pad", b"NOTSET")
    shape = _ints(inputs[0].ty.shape)[2:]
    rank = len(shape)
    if mode == b"VALID":
        attrs["pads"] = (0,) * (2 * rank)
    elif mode in (b"SAME_UPPER", b"SAME_LOWER"):
        kernel = attrs.get("kernel_shape") or _ints(inputs[1].ty.shape)[2:]
        strides = attrs.get("strides", (1,) * rank)
        dilations = attrs.get("dilations", (1,) * rank)
        before, after = [], []
        for size, k, stride, dilation in zip(shape, kernel, strides, dilations, strict=True):
            span = (k - 1) * dilation + 1
            total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if mode == b"SAME_UPPER" else large)
            after.append(large if mode == b"SAME_UPPER" else small)
        attrs["pads"] = (*before, *after)
    elif mode != b"NOTSET":
        raise RuleError(f"auto_pad {mode.decode(errors='replace')!r} is none of ONNX's modes")
    return None


def _max_pool(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    if attrs["tvm_custom"]["num_outputs"] > 1:
        raise RuleError("its second result, the places of the maxima, is not supported")
    return _explicit_padding(inputs, attrs, opset)


def _conv_integer(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    _explicit_padding(inputs, attrs, opset)
    rank = len(inputs[0].ty.shape) - 2
    if rank not in (1, 2, 3):
        raise RuleError(f"a convolution over {rank} dimensions")
    data, weight = (relax.op.astype(part, "int32") for part in inputs[:2])
    if inputs[2] is not None:
        zero = relax.op.reshape(inputs[2], ())
        data = relax.op.subtract(data, relax.op.astype(zero, "int32"))
    if inputs[3] is not None:
        zero = relax.op.reshape(inputs[3], (-1, *[1] * (rank + 1)))
        weight = relax.op.subtract(weight, relax.op.astype(zero, "int32"))
    conv = (relax.op.nn.conv1d, relax.op.nn.conv2d, relax.op.nn.conv3d)[rank - 1]
    return conv(
        data, weight, strides=attrs.get("strides", 1), padding=attrs.get("pads", 0),
        dilation=attrs.get("dilations", 1), groups=attrs.get("group", 1), out_dtype="int32",
    )  # fmt: skip


def _dynamic_quantize(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    data, zero = inputs[0], relax.const(0.0, "float32")
    high = relax.op.maximum(relax.op.max(data), zero)
    low = relax.op.minimum(relax.op.min(data), zero)
    width = relax.op.subtract(high, low)
    scale = relax.op.where(
        relax.op.equal(width, zero),
        relax.const(1.0, "float32"),
        relax.op.divide(width, relax.const(255.0, "float32")),
    )
    offset = relax.op.clip(relax.op.negative(relax.op.divide(low, scale)), 0, 255)
    point = relax.op.astype(relax.op.round(offset), "uint8")
    quantised = relax.op.quantize(data, scale, point, axis=0, out_dtype="uint8")
    return relax.Tuple([quantised, scale, point])


RULES: dict[str, Rule] = {
    "AffineGrid": more.affine_grid,
    "AveragePool": _explicit_padding,
    "Clip": _clip,
    "Conv": _explicit_padding,
    "ConvInteger": _conv_integer,
    "ConvTranspose": more.conv_transpose,
    "CumProd": more.cum_prod,
    "CumSum": more.cum_sum,
    "Dropout": _dropout,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Gather": index.gather,
    "GatherElements": index.gather_elements,
    "GatherND": index.gather_nd,
    "Gemm": _gemm,
    "IsInf": more.is_inf,
    "LpNormalization": more.lp_normalization,
    "Max": _variadic(relax.op.maximum),
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Min": _variadic(relax.op.minimum),
    "Mod": more.modulo,
    "OneHot": index.one_hot,
    "Pad": _pad,
    "Pow": more.power,
    "RMSNormalization": more.rms_normalization,
    "ReduceMax": more.reduce_max,
    "ReduceMin": more.reduce_min,
    "Resize": resize,
    "RoiAlign": more.roi_align,
    "Scatter": index.scatter_elements,
    "ScatterElements": index.scatter_elements,
    "ScatterND": index.scatter_nd,
    "Slice": index.slice_attributes,
    "SpaceToDepth": more.space_to_depth,
    "Squeeze": more.axes_list,
    "Sum": _variadic(relax.op.add),
    "TopK": index.top_k,
    "Unsqueeze": more.axes_list,
    "Upsample": upsample,
}
"""ONNX operator type -> converter."""
