"""How each operator on int8 tensors is written with float ones; see :mod:`_onnx_qoperator`.

The order of the inputs is ONNX's, or for the domain ``com.microsoft`` that of ONNX Runtime's
operator schemas. A zero point that is left out is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmx.frontends._onnx_movers import note_params
from tvmx.frontends._onnx_qdq_params import check_type, read_params
from tvmx.frontends._onnx_qdq_writer import Params, QdqWriter

if TYPE_CHECKING:
    import onnx

Rule = Callable[[QdqWriter, "onnx.NodeProto"], None]

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def _copied(node: onnx.NodeProto, *names: str) -> list[onnx.AttributeProto]:
    return [a for a in node.attribute if a.name in names]


def _value(writer: QdqWriter, node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of the type of ``default``: a number, or a tuple of whole ones."""
    from onnx import AttributeProto, helper

    found = next((a for a in node.attribute if a.name == name), None)
    if found is None:
        return default
    kinds = {int: AttributeProto.INT, float: AttributeProto.FLOAT, tuple: AttributeProto.INTS}
    if found.type != kinds[type(default)]:
        raise writer.corrupt(node, f"has an attribute {name!r} of another type than {default!r}")
    return type(default)(helper.get_attribute_value(found))


def _require(writer: QdqWriter, node: onnx.NodeProto, *names: str) -> None:
    for name in names:
        if not _copied(node, name):
            raise writer.corrupt(node, f"has no attribute {name!r}")


def _channels_first(writer: QdqWriter, node: onnx.NodeProto) -> None:
    if _value(writer, node, "channels_last", 0):
        what = "is in channels-last layout (channels_last=1); that cannot be imported"
        raise writer.refused(node, what, "export it with channels first (NCHW)")


def _float_name(writer: QdqWriter, node: onnx.NodeProto) -> str:
    return writer.fresh(f"{node.output[0]}_float")


def _conv(writer: QdqWriter, node: onnx.NodeProto) -> None:
    _channels_first(writer, node)
    x, xs, xz, w, ws, wz, ys, yz, bias = writer.check_inputs(node, range(8), 8, 9)
    channels = check_conv_weight(writer, node, w)
    of_x = read_params(writer, node, x, xs, xz)
    of_w = read_params(writer, node, w, ws, wz, axis=0, channels=channels)
    of_y = read_params(writer, node, "", ys, yz)
    inputs = [writer.dequantise(x, of_x), writer.dequantise(w, of_w)]
    if bias:
        shape = writer.shape(bias)
        if shape is not None and shape != (channels or shape[0],):
            raise writer.corrupt(node, f"has a bias, {bias!r}, of shape {shape}")
        inputs.append(_bias(writer, node, bias, of_x, of_w))
    value = writer.emit("Conv", inputs, _float_name(writer, node), node.name, _copied(node, *_CONV))
    writer.quantise(node, value, of_y, like=x)


def check_conv_weight(writer: QdqWriter, node: onnx.NodeProto, weight: str) -> int | None:
    """Output channels of a constant weight, None for one that the network computes."""
    shape = writer.shape(weight)
    if shape is not None and (len(shape) < 3 or 0 in shape):
        raise writer.corrupt(node, f"has a weight, {weight!r}, of shape {shape}")
    return None if shape is None else shape[0]


def check_conv_integer(writer: QdqWriter, node: onnx.NodeProto) -> None:
    """Refuse a ConvInteger that the converter would stumble over."""
    x, w, xz, wz = writer.check_inputs(node, range(2), 2, 4)
    channels = check_conv_weight(writer, node, w)
    for data, zero, allowed in ((x, xz, (1,)), (w, wz, (1, channels))):
        shape = writer.shape(zero) if zero else ()
        if shape is not None and (len(shape) > 1 or int(np.prod(shape)) not in allowed):
            raise writer.corrupt(node, f"has a zero point, {zero!r}, of shape {shape}")
        if zero:
            check_type(writer, node, data, zero)


def _bias(
    writer: QdqWriter, node: onnx.NodeProto, bias: str, of_x: Params, of_w: Params,
    alpha: float = 1.0,
) -> str:  # fmt: skip
    """The float value of an int32 bias, which is in units of the product's scale."""
    from onnx import TensorProto

    if writer.types.get(bias, TensorProto.INT32) != TensorProto.INT32:
        raise writer.corrupt(node, f"has a bias, {bias!r}, that is not int32")
    assert of_x.values is not None
    assert of_w.values is not None
    with np.errstate(over="ignore", under="ignore"):
        scale = np.asarray(np.float32(alpha) * of_x.values * of_w.values, np.float32)
    if not np.isfinite(scale).all():
        raise writer.corrupt(node, "has scales whose product is beyond float32")
    shape = writer.shape(bias)
    axis = None if scale.ndim == 0 else (0 if shape is None else len(shape) - 1)
    name = writer.constant(f"{bias}_scale", scale)
    return writer.dequantise(bias, Params(name, "", axis, scale))


def _columns(
    writer: QdqWriter, node: onnx.NodeProto, b: str, scale: str, zero: str, transposed: bool = False
) -> Params:
    """Parameters of the right factor of a product: per tensor, or per column of a constant."""
    shape = writer.shape(b)
    if shape is not None and len(shape) >= 2:
        axis = 0 if transposed else len(shape) - 1
        return read_params(writer, node, b, scale, zero, axis=axis, channels=shape[axis])
    return read_params(writer, node, b, scale, zero)


def _matmul(writer: QdqWriter, node: onnx.NodeProto) -> None:
    a, as_, az, b, bs, bz, ys, yz = writer.check_inputs(node, range(8), 8, 8)
    of_a = read_params(writer, node, a, as_, az)
    of_b = _columns(writer, node, b, bs, bz)
    of_y = read_params(writer, node, "", ys, yz)
    inputs = [writer.dequantise(a, of_a), writer.dequantise(b, of_b)]
    value = writer.emit("MatMul", inputs, _float_name(writer, node), node.name)
    writer.quantise(node, value, of_y, like=a)


def _gemm(writer: QdqWriter, node: onnx.NodeProto) -> None:
    a, as_, az, b, bs, bz, c, ys, yz = writer.check_inputs(node, (0, 1, 3, 4), 6, 9)
    given = _copied(node, "alpha", "transA", "transB")
    shape = writer.shape(b)
    if shape is not None and len(shape) != 2:
        raise writer.corrupt(node, f"has a weight, {b!r}, of shape {shape}")
    of_a = read_params(writer, node, a, as_, az)
    of_b = _columns(writer, node, b, bs, bz, bool(_value(writer, node, "transB", 0)))
    inputs = [writer.dequantise(a, of_a), writer.dequantise(b, of_b)]
    if c:
        c = _whole_columns(writer, node, c, of_b)
        inputs.append(_bias(writer, node, c, of_a, of_b, _value(writer, node, "alpha", 1.0)))
    if bool(ys) != bool(yz):
        raise writer.corrupt(node, "has an output scale or zero point without the other")
    if not ys:
        writer.emit("Gemm", inputs, node.output[0], node.name, given)
        return
    of_y = read_params(writer, node, "", ys, yz)
    value = writer.emit("Gemm", inputs, _float_name(writer, node), node.name, given)
    writer.quantise(node, value, of_y, like=a)


def _whole_columns(writer: QdqWriter, node: onnx.NodeProto, c: str, of_b: Params) -> str:
    """A bias that can be dequantised per column: one without columns is repeated over them."""
    shape = writer.shape(c)
    if of_b.axis is None or of_b.values is None or (shape and shape[-1] == of_b.values.size):
        return c
    array = writer.array(node, c)
    if array is None or len(array.shape) > 2 or (array.shape and array.shape[-1] != 1):
        raise writer.corrupt(node, f"has a bias, {c!r}, of shape {shape}")
    full = np.broadcast_to(array, (*array.shape[:-1], of_b.values.size))
    return writer.constant(f"{c}_columns", full)


def _dynamic_matmul(writer: QdqWriter, node: onnx.NodeProto) -> None:
    a, b, bs, bz, bias = writer.check_inputs(node, range(3), 3, 5)
    of_b = _columns(writer, node, b, bs, bz)
    _float_matmul(writer, node, writer.quantise_dynamically(a), (b, of_b), bias)


def _matmul_to_float(writer: QdqWriter, node: onnx.NodeProto) -> None:
    a, b, as_, bs, az, bz, bias = writer.check_inputs(node, range(4), 4, 7)
    dynamic = writer.shape(as_) is None
    of_a = Params(as_, az) if dynamic else read_params(writer, node, a, as_, az)
    of_b = _columns(writer, node, b, bs, bz)
    _float_matmul(writer, node, (a, of_a), (b, of_b), bias)


def _float_matmul(
    writer: QdqWriter, node: onnx.NodeProto, a: tuple[str, Params], b: tuple[str, Params], bias: str
) -> None:
    inputs = [writer.dequantise(*a), writer.dequantise(*b)]
    if not bias:
        writer.emit("MatMul", inputs, node.output[0], node.name)
        return
    value = writer.emit("MatMul", inputs, _float_name(writer, node), node.name)
    writer.emit("Add", [value, bias], node.output[0], writer.derived(f"{node.name}_bias"))


def _binary(op: str) -> Rule:
    def rule(writer: QdqWriter, node: onnx.NodeProto) -> None:
        a, as_, az, b, bs, bz, ys, yz = writer.check_inputs(node, (0, 1, 3, 4, 6), 7, 8)
        inputs = [
            writer.dequantise(a, read_params(writer, node, a, as_, az)),
            writer.dequantise(b, read_params(writer, node, b, bs, bz)),
        ]
        of_y = read_params(writer, node, "", ys, yz)
        value = writer.emit(op, inputs, _float_name(writer, node), node.name)
        writer.quantise(node, value, of_y, like=a)

    return rule


def _unary(op: str, *names: str) -> Rule:
    def rule(writer: QdqWriter, node: onnx.NodeProto) -> None:
        x, data, of_y = _data(writer, node)
        value = writer.emit(op, [data], _float_name(writer, node), node.name, _copied(node, *names))
        writer.quantise(node, value, of_y, like=x)

    return rule


def _data(writer: QdqWriter, node: onnx.NodeProto) -> tuple[str, str, Params]:
    """Of (x, scale, zero, y scale, y zero): x, its float value, what y is quantised with."""
    _channels_first(writer, node)
    x, xs, xz, ys, yz = writer.check_inputs(node, (0, 1, 3), 4, 5)
    data = writer.dequantise(x, read_params(writer, node, x, xs, xz))
    return x, data, read_params(writer, node, "", ys, yz)


def _average_pool(writer: QdqWriter, node: onnx.NodeProto) -> None:
    _require(writer, node, "kernel_shape")
    _unary("AveragePool", *_POOL)(writer, node)


def _softmax(writer: QdqWriter, node: onnx.NodeProto) -> None:
    x, data, of_y = _data(writer, node)
    _require(writer, node, "opset")
    axis, value = _value(writer, node, "axis", -1), _float_name(writer, node)
    if _value(writer, node, "opset", 13) >= 13 or axis == -1:
        writer.emit("Softmax", [data], value, node.name, axis=axis)
    else:  # before opset 13 over everything from the axis on
        names = [writer.derived(f"{node.name}_{part}") for part in ("Flatten", "Shape", "Reshape")]
        flat = writer.emit("Flatten", [data], writer.fresh(f"{x}_flat"), names[0], axis=axis)
        rows = writer.emit("Softmax", [flat], writer.fresh(f"{x}_rows"), node.name, axis=-1)
        shape = writer.emit("Shape", [data], writer.fresh(f"{x}_shape"), names[1])
        writer.emit("Reshape", [rows, shape], value, names[2])
    writer.quantise(node, value, of_y, like=x)


def _reduce_mean(writer: QdqWriter, node: onnx.NodeProto) -> None:
    x, data, of_y = _data(writer, node)
    _require(writer, node, "axes", "keepdims")
    value = _float_name(writer, node)
    if writer.opset < 18:
        writer.emit("ReduceMean", [data], value, node.name, _copied(node, "axes", "keepdims"))
    else:
        axes = np.array(_value(writer, node, "axes", ()), np.int64)
        given = writer.constant(f"{node.name}_axes", axes)
        writer.emit("ReduceMean", [data, given], value, node.name, _copied(node, "keepdims"))
    writer.quantise(node, value, of_y, like=x)


def _concat(writer: QdqWriter, node: onnx.NodeProto) -> None:
    ys, yz, *parts = writer.check_inputs(node, (0,), 4, None)
    if len(parts) % 3 == 2:  # the last zero point is left out
        parts.append("")
    if len(parts) % 3:
        raise writer.corrupt(node, f"has {len(node.input)} inputs, not 2 and 3 for each tensor")
    _require(writer, node, "axis")
    of_y = read_params(writer, node, "", ys, yz)
    inputs = []
    for tensor, scale, zero in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if not tensor or not scale:
            raise writer.corrupt(node, "has a tensor or scale without a name")
        of_x = read_params(writer, node, tensor, scale, zero)
        inputs.append(writer.dequantise(tensor, of_x))
    axis = _copied(node, "axis")
    value = writer.emit("Concat", inputs, _float_name(writer, node), node.name, axis)
    writer.quantise(node, value, of_y, like=parts[0])


def _where(writer: QdqWriter, node: onnx.NodeProto) -> None:
    names = writer.check_inputs(node, (0, 1, 2, 4, 5, 7), 9, 9)
    condition, x, xs, xz, y, ys, yz, zs, zz = names
    inputs = [
        condition,
        writer.dequantise(x, read_params(writer, node, x, xs, xz)),
        writer.dequantise(y, read_params(writer, node, y, ys, yz)),
    ]
    of_z = read_params(writer, node, "", zs, zz)
    value = writer.emit("Where", inputs, _float_name(writer, node), node.name)
    writer.quantise(node, value, of_z, like=x)


def _standard(writer: QdqWriter, node: onnx.NodeProto) -> None:
    """ONNX Runtime's QuantizeLinear and DequantizeLinear: without ``axis`` per tensor."""
    x, scale, zero = writer.check_inputs(node, range(2), 2, 3)
    axis, shape = _copied(node, "axis"), writer.shape(scale)
    if not axis and shape not in (None, (), (1,)):
        raise writer.corrupt(node, f"has a scale, {scale!r}, of shape {shape}, but no axis")
    inputs = [x, scale, *filter(None, [zero])]
    writer.emit(node.op_type, inputs, node.output[0], node.name, axis)
    note_params(writer, node)


RULES: dict[str, Rule] = {
    "DequantizeLinear": _standard,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _average_pool,
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QLinearMatMul": _matmul,
    "QLinearMul": _binary("Mul"),
    "QLinearReduceMean": _reduce_mean,
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _where,
    "QuantizeLinear": _standard,
}
"""Operator type, of either domain -> what writes it anew."""
