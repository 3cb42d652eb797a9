"""Fold explicit padding into the convolution or pool that reads it."""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import relax
from tvmx.passes._dataflow import Walk, op_name, shape_of

_CONVS = {"relax.nn.conv1d": relax.op.nn.conv1d, "relax.nn.conv2d": relax.op.nn.conv2d}
_POSITIVE = {"relax.nn.relu", "relax.nn.relu6", "relax.sigmoid", "relax.abs"}
_KEEPS_SIGN = {"relax.nn.max_pool2d", "relax.nn.avg_pool2d", "relax.reshape", "relax.concat"}


def fold_padding(walk: Walk, value: Any, name: str) -> Any:
    """Rule: constant padding of the spatial axes becomes the reader's ``padding``."""
    op = op_name(value)
    if op not in _CONVS and op not in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d"):
        return None
    pad = walk.value(value.args[0], "relax.nn.pad")
    if pad is None or str(pad.attrs.pad_mode) != "constant":
        return None
    width = [int(w) for w in pad.attrs.pad_width]
    layout = str(value.attrs.data_layout if op in _CONVS else value.attrs.layout)
    if any(width[:4]) or not layout.startswith("NC"):
        return None
    extra = [*width[4::2], *width[5::2]]
    fill, data = float(pad.attrs.pad_value), pad.args[0]
    if op in _CONVS:
        return _conv(value, data, extra) if fill == 0 else None
    return _pool(walk, value, data, extra, fill)


def _conv(call: Any, data: Any, extra: list[int]) -> Any:
    attrs = call.attrs
    padding = [int(p) + e for p, e in zip(attrs.padding, extra, strict=True)]
    return _CONVS[op_name(call)](
        data,
        call.args[1],
        strides=[int(s) for s in attrs.strides],
        padding=padding,
        dilation=[int(d) for d in attrs.dilation],
        groups=int(attrs.groups),
        data_layout=str(attrs.data_layout),
        kernel_layout=str(attrs.kernel_layout),
        out_layout=str(attrs.out_layout),
        out_dtype=attrs.out_dtype,
    )


def _pool(walk: Walk, call: Any, data: Any, extra: list[int], fill: float) -> Any:
    attrs = call.attrs
    if bool(attrs.ceil_mode):
        return None
    own = [int(p) for p in attrs.padding]
    padding = [a + b for a, b in zip(own, extra, strict=True)]
    size = [int(k) for k in attrs.pool_size]
    dilation = [int(d) for d in attrs.dilation]
    if op_name(call) == "relax.nn.avg_pool2d":
        if fill != 0 or any(own) or any(d != 1 for d in dilation):
            return None
        pool, count = relax.op.nn.avg_pool2d, True
    else:
        # A pool pads with -inf: the same only where the padding can never be the maximum,
        # and every window holds at least one element that is not padding.
        harmless = fill == -math.inf or (fill == 0 and _not_negative(walk, data))
        reach = [p < s for p, s in zip(padding, [*size, *size], strict=True)]
        if not harmless or not all(reach):
            return None
        pool, count = relax.op.nn.max_pool2d, False
    return pool(
        data,
        pool_size=size,
        strides=[int(s) for s in attrs.strides],
        padding=padding,
        dilation=dilation,
        ceil_mode=False,
        count_include_pad=count,
        layout=str(attrs.layout),
    )


def _not_negative(walk: Walk, expr: Any, depth: int = 4) -> bool:
    call = walk.value(expr)
    op = op_name(call)
    if op in _POSITIVE:
        return True
    if op == "relax.clip":
        return float(call.args[1].value) >= 0
    if op in _KEEPS_SIGN and depth:
        first = call.args[0]
        parts = first.fields if isinstance(first, relax.Tuple) else [first]
        return all(_not_negative(walk, part, depth - 1) for part in parts)
    return False


def drop_empty_padding(walk: Walk, value: Any, name: str) -> Any:
    """Rule: padding by nothing is its input."""
    if op_name(value) == "relax.nn.pad" and shape_of(value) == shape_of(value.args[0]):
        return value.args[0]
    return None
