"""Which Relay operators can be imported, known without importing TVM."""

from __future__ import annotations

_BY_ARGUMENTS: dict[int, tuple[str, ...]] = {
    0: ("zeros", "ones"),
    1: (
        "nn.relu", "nn.leaky_relu", "nn.softmax", "nn.log_softmax", "nn.dropout", "nn.lrn",
        "nn.l2_normalize", "nn.batch_flatten", "clip",
        "nn.max_pool2d", "nn.avg_pool2d", "nn.global_max_pool2d", "nn.global_avg_pool2d",
        "nn.adaptive_max_pool2d", "nn.adaptive_avg_pool2d", "nn.pad", "nn.upsampling",
        "image.resize2d", "nn.depth_to_space", "nn.space_to_depth",
        "reshape", "transpose", "layout_transform", "expand_dims", "squeeze", "concatenate",
        "stack", "split", "strided_slice", "broadcast_to", "full", "zeros_like", "ones_like",
        "tile", "repeat", "reverse", "cast", "copy",
        "sum", "mean", "max", "min", "prod", "all", "any", "argmax", "argmin", "variance",
        "exp", "log", "sqrt", "rsqrt", "abs", "negative", "floor", "ceil", "trunc", "round", "sign",
        "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
        "atanh", "sigmoid", "erf", "logical_not", "bitwise_not", "isnan", "isinf", "isfinite",
        "annotation.stop_fusion", "annotation.checkpoint", "annotation.cast_hint", "device_copy",
        "on_device", "stop_gradient",
    ),
    2: (
        "nn.conv2d", "nn.conv2d_transpose", "nn.dense", "nn.matmul", "nn.batch_matmul",
        "nn.bias_add", "nn.prelu", "take", "reshape_like", "broadcast_to_like", "slice_like",
        "full_like", "cast_like", "add", "subtract", "multiply", "divide", "floor_divide", "mod",
        "floor_mod", "power", "maximum", "minimum", "equal", "not_equal", "less", "less_equal",
        "greater", "greater_equal", "logical_and", "logical_or", "logical_xor", "bitwise_and",
        "bitwise_or", "bitwise_xor", "left_shift", "right_shift",
    ),
    3: (
        "nn.layer_norm", "nn.instance_norm", "nn.group_norm", "where", "qnn.quantize",
        "qnn.dequantize",
    ),
    5: ("nn.batch_norm", "qnn.requantize", "qnn.concatenate"),
    6: ("qnn.conv2d", "qnn.conv2d_transpose", "qnn.dense"),
    8: ("qnn.add", "qnn.subtract", "qnn.mul"),
}  # fmt: skip

ARGUMENTS = {op: count for count, ops in _BY_ARGUMENTS.items() for op in ops}
"""Operator -> the least number of arguments it takes."""

TAKES_TUPLES = frozenset({"concatenate", "stack", "qnn.concatenate"})

NEEDS_WEIGHTS = frozenset({"nn.conv2d", "nn.conv2d_transpose", "nn.dense", "nn.batch_norm",
                           "qnn.conv2d", "qnn.conv2d_transpose", "qnn.dense"})  # fmt: skip
"""Operators whose second argument is a weight in every network that was trained."""

MOST_ELEMENTS = 1 << 28
"""Of one tensor: 1 GiB of float32."""


def refusal(ops: dict[str, list[str]]) -> str:
    """What to do about operators that cannot be imported."""
    if any(op.startswith("relay.") for op in ops):
        return "run the passes that remove control flow and references in the TVM that wrote it"
    return "docs/relay.md has the table of operators; rewrite or fold these with the old TVM"
