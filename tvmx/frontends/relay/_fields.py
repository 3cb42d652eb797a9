"""Attributes of Relay operators, as the JSON files of TVM 0.8 to 0.19 hold them.

JSON has every attribute as a string, which is a number, a text or the index of a node: only the
attribute's declared type tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Kind = Literal["int", "float", "str", "node"]
"""``node``: a list, an expression or an optional; ``str``: in place, or (TVM >= 0.12) a node."""

_CONV: dict[str, Kind] = {
    "strides": "node", "padding": "node", "dilation": "node", "groups": "int", "channels": "node",
    "kernel_size": "node", "data_layout": "str", "kernel_layout": "str", "out_layout": "str",
    "out_dtype": "str",
}  # fmt: skip
_POOL: dict[str, Kind] = {
    "pool_size": "node", "strides": "node", "dilation": "node", "padding": "node",
    "layout": "str", "out_layout": "str", "ceil_mode": "int", "count_include_pad": "int",
}  # fmt: skip
_NORM: dict[str, Kind] = {"axis": "int", "epsilon": "float", "center": "int", "scale": "int"}
_REDUCE: dict[str, Kind] = {"axis": "node", "keepdims": "int", "exclude": "int"}
_AXIS: dict[str, Kind] = {"axis": "int"}
_PRODUCT: dict[str, Kind] = {
    "units": "node", "out_dtype": "str", "transpose_a": "int", "transpose_b": "int",
}  # fmt: skip

FIELDS: dict[str, dict[str, Kind]] = {
    "Conv2DAttrs": _CONV,
    "Conv2DTransposeAttrs": {**_CONV, "output_padding": "node"},
    "MaxPool2DAttrs": _POOL,
    "AvgPool2DAttrs": _POOL,
    "GlobalPool2DAttrs": {"layout": "str", "out_layout": "str"},
    "AdaptivePool2DAttrs": {"output_size": "node", "layout": "str", "out_layout": "str"},
    "DenseAttrs": _PRODUCT,
    "MatmulAttrs": _PRODUCT,
    "BatchMatmulAttrs": _PRODUCT,
    "BiasAddAttrs": _AXIS,
    "PReluAttrs": _AXIS,
    "SoftmaxAttrs": _AXIS,
    "ConcatenateAttrs": _AXIS,
    "LeakyReluAttrs": {"alpha": "float"},
    "DropoutAttrs": {"rate": "float"},
    "BatchNormAttrs": _NORM,
    "InstanceNormAttrs": _NORM,
    "LayerNormAttrs": _NORM,
    "GroupNormAttrs": {**_NORM, "num_groups": "int"},
    "LRNAttrs": {"size": "int", "axis": "int", "bias": "float", "alpha": "float", "beta": "float"},
    "L2NormalizeAttrs": {"eps": "float", "axis": "node"},
    "PadAttrs": {"pad_width": "node", "pad_mode": "str"},
    "UpSamplingAttrs": {
        "scale_h": "float", "scale_w": "float", "layout": "str", "method": "str",
        "align_corners": "int",
    },
    "Resize2DAttrs": {
        "size": "node", "roi": "node", "layout": "str", "method": "str",
        "coordinate_transformation_mode": "str", "rounding_method": "str", "cubic_alpha": "float",
        "cubic_exclude": "int", "extrapolation_value": "float", "out_dtype": "str",
    },
    "SubPixelAttrs": {"block_size": "int", "layout": "str", "mode": "str"},
    "ReshapeAttrs": {"newshape": "node", "allowzero": "int"},
    "ReshapeLikeAttrs": {
        "lhs_begin": "int", "lhs_end": "node", "rhs_begin": "int", "rhs_end": "node",
    },
    "TransposeAttrs": {"axes": "node"},
    "ExpandDimsAttrs": {"axis": "int", "num_newaxis": "int"},
    "SqueezeAttrs": {"axis": "node"},
    "SliceLikeAttrs": {"axes": "node"},
    "SplitAttrs": {"indices_or_sections": "node", "axis": "int"},
    "StridedSliceAttrs": {
        "begin": "node", "end": "node", "strides": "node", "slice_mode": "str", "axes": "node",
    },
    "StackAttrs": {"axis": "node"},
    "TileAttrs": {"reps": "node"},
    "RepeatAttrs": {"repeats": "node", "axis": "node"},
    "ReverseAttrs": {"axis": "node"},
    "TakeAttrs": {"batch_dims": "node", "axis": "node", "mode": "str"},
    "LayoutTransformAttrs": {"src_layout": "str", "dst_layout": "str"},
    "CastAttrs": {"dtype": "str"},
    "ClipAttrs": {"a_min": "float", "a_max": "float"},
    "InitOpAttrs": {"shape": "node", "dtype": "str"},
    "ReduceAttrs": _REDUCE,
    "ArgReduceAttrs": {**_REDUCE, "select_last_index": "int"},
    "VarianceAttrs": {**_REDUCE, "unbiased": "int"},
    "QuantizeAttrs": {"out_dtype": "str", "axis": "int"},
    "DequantizeAttrs": {"out_dtype": "str", "axis": "int"},
    "RequantizeAttrs": {
        "axis": "int", "rounding": "str", "compute_dtype": "str", "out_dtype": "str",
    },
    "BroadcastAttrs": {"lhs_axis": "int", "rhs_axis": "int"},
}  # fmt: skip
"""The part of a type key behind ``relay.attrs.`` -> attribute -> kind."""

ATTRS: dict[str, str] = {
    "nn.conv2d": "Conv2D", "qnn.conv2d": "Conv2D", "nn.conv2d_transpose": "Conv2DTranspose",
    "qnn.conv2d_transpose": "Conv2DTranspose", "nn.dense": "Dense", "qnn.dense": "Dense",
    "nn.matmul": "Matmul", "nn.batch_matmul": "BatchMatmul", "nn.bias_add": "BiasAdd",
    "nn.batch_norm": "BatchNorm", "nn.layer_norm": "LayerNorm", "nn.instance_norm": "InstanceNorm",
    "nn.group_norm": "GroupNorm", "nn.lrn": "LRN", "nn.l2_normalize": "L2Normalize",
    "nn.prelu": "PRelu", "nn.leaky_relu": "LeakyRelu", "nn.softmax": "Softmax",
    "nn.log_softmax": "Softmax", "nn.dropout": "Dropout", "clip": "Clip",
    "nn.max_pool2d": "MaxPool2D", "nn.avg_pool2d": "AvgPool2D",
    "nn.global_max_pool2d": "GlobalPool2D", "nn.global_avg_pool2d": "GlobalPool2D",
    "nn.adaptive_max_pool2d": "AdaptivePool2D", "nn.adaptive_avg_pool2d": "AdaptivePool2D",
    "nn.pad": "Pad", "nn.upsampling": "UpSampling", "image.resize2d": "Resize2D",
    "nn.depth_to_space": "SubPixel", "nn.space_to_depth": "SubPixel", "reshape": "Reshape",
    "reshape_like": "ReshapeLike", "transpose": "Transpose", "layout_transform": "LayoutTransform",
    "expand_dims": "ExpandDims", "squeeze": "Squeeze", "concatenate": "Concatenate",
    "qnn.concatenate": "Concatenate", "stack": "Stack", "split": "Split",
    "slice_like": "SliceLike", "strided_slice": "StridedSlice", "broadcast_to": "InitOp",
    "zeros": "InitOp", "ones": "InitOp", "full": "InitOp",
    "take": "Take", "tile": "Tile", "repeat": "Repeat", "reverse": "Reverse",
    "cast": "Cast", "argmax": "ArgReduce", "argmin": "ArgReduce", "variance": "Variance",
    "qnn.quantize": "Quantize", "qnn.dequantize": "Dequantize", "qnn.requantize": "Requantize",
    "qnn.add": "Broadcast", "qnn.subtract": "Broadcast", "qnn.mul": "Broadcast",
    **dict.fromkeys(("sum", "mean", "max", "min", "prod", "all", "any"), "Reduce"),
}  # fmt: skip
"""Operator -> its attributes' type, without ``Attrs``."""

_OTHERS = frozenset({"auto_scheduler_rewritten_layout", "meta_schedule_original_shape"})
"""What TVM's tuners leave behind; nothing that is computed depends on it."""

WITHOUT = frozenset({"qnn.add", "qnn.subtract", "qnn.mul"})
"""Operators that had no attributes in older versions."""


def unknown_attributes(kind: str, names: Iterable[str]) -> list[str]:
    """Those that attributes of a type (a key of :data:`FIELDS`) do not have in any version."""
    return sorted(set(names) - set(FIELDS[kind]) - _OTHERS)
