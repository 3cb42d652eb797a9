"""Packing of constants by NumPy: what runs once, at compile time."""

from __future__ import annotations

import numpy as np

from tvmx.ir import ceil_div
from tvmx.templates._base import Array


def pad_axis(array: Array, axis: int, size: int) -> Array:
    """Zero-pad ``axis`` at its end up to ``size`` elements."""
    if array.shape[axis] == size:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return np.pad(array, widths)


def pack_conv_weight(weight: Array, out_block: int, out_blocks: int, in_block: int | None) -> Array:
    """OIHW -> ``(out_blocks, I / in_block, H, W, in_block, out_block)`` float32, zero-padded.

    ``in_block`` None keeps input channels plain: ``(out_blocks, I, H, W, 1, out_block)``.
    """
    inner = in_block or 1
    _, i, h, w = weight.shape
    blocks = ceil_div(i, inner)
    weight = pad_axis(pad_axis(weight, 0, out_blocks * out_block), 1, blocks * inner)
    split = weight.reshape(out_blocks, out_block, blocks, inner, h, w)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1), dtype=np.float32)


def pack_depthwise_weight(weight: Array, block: int) -> Array:
    """``(C, 1, H, W)`` -> ``(ceil(C / block), H, W, block)`` float32, zero-padded."""
    c, _, h, w = weight.shape
    blocks = ceil_div(c, block)
    split = pad_axis(weight, 0, blocks * block).reshape(blocks, block, h, w)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1), dtype=np.float32)


def pack_matrix(weight: Array, block: int, blocks: int | None = None) -> Array:
    """``(N, K)`` -> ``(blocks, K, block)`` float32, N zero-padded to ``blocks * block``."""
    n, k = weight.shape
    count = blocks or ceil_div(n, block)
    split = pad_axis(weight, 0, count * block).reshape(count, block, k)
    return np.ascontiguousarray(split.transpose(0, 2, 1), dtype=np.float32)


def pack_vector(bias: Array, block: int, blocks: int | None = None) -> Array:
    """``(N,)`` -> ``(blocks, block)`` float32, zero-padded."""
    count = blocks or ceil_div(bias.shape[0], block)
    split = pad_axis(bias, 0, count * block).reshape(count, block)
    return np.ascontiguousarray(split, dtype=np.float32)
