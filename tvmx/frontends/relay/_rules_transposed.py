"""qnn.conv2d_transpose as a convolution of bytes, which int8 kernels compute.

The pixels are spread with zero points between them, and the kernel is turned around:

    [a b]  stride 2    [a z b z]    * turned kernel, padded by its size less one
    [c d]  ------->    [z z z z]
                       [c z d z]
                       [z z z z]

Every sum is the one that Relay computes: a zero point counts as nothing.
"""

from __future__ import annotations

from typing import Any

from tvmx._tvm import relax
from tvmx.frontends._reason import RuleError
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import Emitter
from tvmx.passes._dataflow import shape_of

Pair = tuple[int, int]


def spread(e: Emitter, data: Any, zero: int, attrs: Attrs, kernel: Pair) -> tuple[Any, list[int]]:
    """Bytes (n, c, h, w) with zero points between the pixels, and the padding it is to have.

    The padding is (top, left, bottom, right) of a convolution with strides of 1.
    """
    strides, dilation = attrs.pair("strides", 1), attrs.pair("dilation", 1)
    more, cut = attrs.pair("output_padding", 0, least=0), attrs.padding()
    edges = [(size - 1) * far for size, far in zip(kernel, dilation, strict=True)]
    before = [edge - c for edge, c in zip(edges, cut[:2], strict=True)]
    after = [
        edge - c + m - (stride - 1)  # the last pixel has zero points behind it
        for edge, c, m, stride in zip(edges, cut[2:], more, strides, strict=True)
    ]
    data = _between(e, data, zero, strides)
    if min(*before, *after) < 0:
        sizes = shape_of(data)[2:]
        begin = [max(-width, 0) for width in before]
        end = [size - max(-width, 0) for size, width in zip(sizes, after, strict=True)]
        data = e.emit(relax.op.strided_slice(data, [2, 3], begin, end))
    return data, [max(width, 0) for width in (*before, *after)]


def _between(e: Emitter, data: Any, zero: int, strides: Pair) -> Any:
    if strides == (1, 1):
        return data
    n, c, height, width = shape_of(data)
    pixels = e.emit(relax.op.reshape(data, (n, c, height, 1, width, 1)))
    widths = [0, 0, 0, 0, 0, 0, 0, strides[0] - 1, 0, 0, 0, strides[1] - 1]
    padded = e.emit(relax.op.nn.pad(pixels, widths, "constant", zero))
    return e.emit(relax.op.reshape(padded, (n, c, height * strides[0], width * strides[1])))


def turned(e: Emitter, weight: Any, groups: int) -> Any:
    """Weights (in, out a group, height, width) for the convolution: (out, in a group, ...)."""
    inner, outer, height, width = shape_of(weight)
    if inner % groups:
        raise RuleError(f"{groups} groups of {inner} channels")
    split = e.emit(relax.op.reshape(weight, (groups, inner // groups, outer, height, width)))
    swapped = e.emit(relax.op.permute_dims(split, [0, 2, 1, 3, 4]))
    whole = e.emit(relax.op.reshape(swapped, (groups * outer, inner // groups, height, width)))
    return e.emit(relax.op.flip(e.emit(relax.op.flip(whole, 2)), 3))
