"""Converters that replace TVM's where its result is not what torch computes, or is missing.

Each takes the importer and the node of the decomposed graph and returns a Relax expression, or
None to leave the node to TVM. What cannot be said exactly is refused with RuleError:

* pools: an empty stride is the kernel's size; indices and divisors of one's own are refused
  (TVM makes the indices zero and overlooks the divisor),
* adaptive max pooling and amax (TVM has neither),
* nearest resizing takes the pixel before, as torch does (TVM rounds to the closest centre),
* negative indices count from the end (TVM's take reads before the tensor),
* elu has a scale, which is how selu arrives (TVM overlooks it),
* negative padding is refused,
* what PT2E quantises (:mod:`_torch_quantised_rules`; TVM knows none of it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmx._tvm import relax
from tvmx.frontends._reason import RuleError
from tvmx.frontends._torch_quantised_rules import dequantise, quantise

Rule = Callable[[Any, Any], Any]


def _arguments(node: Any) -> dict[str, Any]:
    """Arguments by the name they have in the operator's schema, defaults filled in."""
    found = {}
    for index, parameter in enumerate(node.target._schema.arguments):
        default = parameter.default_value if parameter.has_default_value() else None
        given = node.args[index] if index < len(node.args) else default
        found[parameter.name] = node.kwargs.get(parameter.name, given)
    return found


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in expr.ty.shape)


def _pair(values: Any) -> tuple[int, int]:
    pair = (values, values) if isinstance(values, int) else tuple(values)
    return (pair[0], pair[-1])


def _without_indices(node: Any) -> None:
    for user in node.users:
        if user.args[1] == 1 and user.users:
            raise RuleError("the positions of the maxima are used, and only the values are known")


def _avg_pool(importer: Any, node: Any) -> Any:
    if _arguments(node)["divisor_override"] is not None:
        raise RuleError("divisor_override is not supported")
    return None


def _max_pool(importer: Any, node: Any) -> Any:
    _without_indices(node)
    given, data = _arguments(node), importer.env[node.args[0]]
    if len(_shape(data)) != 4:
        return None
    kernel = _pair(given["kernel_size"])
    pad = _pair(given["padding"])
    return importer.block_builder.emit(
        relax.op.nn.max_pool2d(
            data,
            pool_size=kernel,
            strides=_pair(given["stride"] or kernel),
            padding=(*pad, *pad),
            dilation=_pair(given["dilation"]),
            ceil_mode=bool(given["ceil_mode"]),
        )
    )


def _adaptive_max_pool(importer: Any, node: Any) -> Any:
    _without_indices(node)
    data = importer.env[node.args[0]]
    shape, out = _shape(data), _pair(node.args[1])
    if len(shape) != 4 or any(size % n for size, n in zip(shape[2:], out, strict=True)):
        raise RuleError(f"{shape} cannot be pooled adaptively to {out} in windows of one size")
    window = [size // n for size, n in zip(shape[2:], out, strict=True)]
    return importer.block_builder.emit(
        relax.op.nn.max_pool2d(data, pool_size=window, strides=window)
    )


def _amax(importer: Any, node: Any) -> Any:
    given = _arguments(node)
    axes = list(given["dim"]) if given["dim"] else None
    return importer.block_builder.emit(
        relax.op.max(importer.env[node.args[0]], axis=axes, keepdims=bool(given["keepdim"]))
    )


def _resize(importer: Any, node: Any) -> Any:
    given, data = _arguments(node), importer.env[node.args[0]]
    size, shape = given["output_size"], _shape(data)[2:]
    if size is None:
        exact = [n * factor for n, factor in zip(shape, given["scale_factors"], strict=True)]
        size = [int(value) for value in exact]
        if size != exact:
            raise RuleError(f"scaling {shape} by {given['scale_factors']} gives no whole size")
    if "align_corners" in given:
        mode = "align_corners" if given["align_corners"] else "half_pixel"
        how = {"method": "linear", "coordinate_transformation_mode": mode}
    else:
        how = {
            "method": "nearest_neighbor",
            "coordinate_transformation_mode": "asymmetric",
            "rounding_method": "floor",
        }
    return importer.block_builder.emit(
        relax.op.image.resize2d(data, tuple(size), layout="NCHW", **how)
    )


def _select(importer: Any, node: Any) -> Any:
    data = importer.env[node.args[0]]
    axis, index = int(node.args[1]), int(node.args[2])
    at = index % _shape(data)[axis]
    one = importer.block_builder.emit(relax.op.strided_slice(data, [axis], [at], [at + 1]))
    return importer.block_builder.emit(relax.op.squeeze(one, [axis]))


def _elu(importer: Any, node: Any) -> Any:
    given, data = _arguments(node), importer.env[node.args[0]]
    if (given["scale"], given["input_scale"]) == (1, 1):
        return None

    def constant(value: float) -> Any:
        return relax.const(float(value), data.ty.dtype)

    below = relax.op.multiply(data, constant(given["input_scale"]))
    below = relax.op.exp(relax.op.minimum(below, constant(0)))
    below = relax.op.multiply(relax.op.subtract(below, constant(1)), constant(given["alpha"]))
    total = relax.op.add(relax.op.nn.relu(data), below)
    return importer.block_builder.emit(relax.op.multiply(total, constant(given["scale"])))


def _pad(importer: Any, node: Any) -> Any:
    if min(node.args[1], default=0) < 0:
        raise RuleError("negative padding; slice instead")
    return None


RULES: dict[str, Rule] = {
    "adaptive_max_pool2d.default": _adaptive_max_pool,
    "amax.default": _amax,
    "avg_pool2d.default": _avg_pool,
    "constant_pad_nd.default": _pad,
    "dequantize_per_channel.default": dequantise,
    "dequantize_per_tensor.default": dequantise,
    "dequantize_per_tensor.tensor": dequantise,
    "elu.default": _elu,
    "max_pool2d_with_indices.default": _max_pool,
    "quantize_per_channel.default": quantise,
    "quantize_per_tensor.default": quantise,
    "quantize_per_tensor.tensor": quantise,
    "select.int": _select,
    "upsample_bilinear2d.vec": _resize,
    "upsample_nearest2d.vec": _resize,
}
"""Operator of the decomposed graph -> converter."""
