"""Data layouts of activations: ``NCHW``, ``NCHW<v>c`` (blocks of v channels), ``NC`` (matrices).

A blocked tensor has shape ``(N, ceil(C / v), H, W, v)``. When C is no multiple of v the last
block is padded: its lanes hold finite values that no consumer may let reach a result.

A *format* is a layout and an element type: ``NCHW16c`` is float32, ``NCHW16c/s8`` is int8.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

PLAIN = "NCHW"
MATRIX = "NC"
_BLOCKED = re.compile(r"^NCHW(\d+)c(?:/s8)?$")
_INT8 = "/s8"


def block_of(layout: str) -> int | None:
    """Channels per block of a blocked layout; None for a plain one."""
    match = _BLOCKED.match(layout)
    return int(match.group(1)) if match else None


def is_int8(form: str) -> bool:
    """Whether a format holds int8."""
    return form.endswith(_INT8)


def layout_of(form: str) -> str:
    """The layout of a format, its type left out."""
    return form.removesuffix(_INT8)


def stored_as(layout: str, dtype: str) -> str:
    """The format of ``layout`` with elements of ``dtype`` (float32 or int8)."""
    return layout_of(layout) + (_INT8 if dtype == "int8" else "")


def dtype_of(form: str) -> str:
    """NumPy name of a format's element type."""
    return "int8" if is_int8(form) else "float32"


def blocked(lanes: int) -> str:
    """The blocked layout with ``lanes`` channels per block, such as ``NCHW16c``."""
    return f"NCHW{lanes}c"


def ceil_div(a: int, b: int) -> int:
    """Integer division rounded up."""
    return -(-a // b)


def physical_shape(logical: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape in memory of a logical (NCHW or NC) shape under ``layout``."""
    v = block_of(layout)
    if v is None:
        return tuple(logical)
    n, c, h, w = logical
    return (n, ceil_div(c, v), h, w, v)


def to_physical(array: npt.NDArray[np.generic], layout: str) -> npt.NDArray[np.generic]:
    """Rearrange a logical NCHW (or NC) array into ``layout``; padding lanes are zero."""
    v = block_of(layout)
    if v is None:
        return np.ascontiguousarray(array)
    n, c, h, w = array.shape
    blocks = ceil_div(c, v)
    padded = np.zeros((n, blocks * v, h, w), array.dtype)
    padded[:, :c] = array
    return np.ascontiguousarray(padded.reshape(n, blocks, v, h, w).transpose(0, 1, 3, 4, 2))


def to_logical(
    array: npt.NDArray[np.generic], layout: str, channels: int
) -> npt.NDArray[np.generic]:
    """Inverse of :func:`to_physical`; drops the padding lanes."""
    v = block_of(layout)
    if v is None:
        return array
    n, blocks, h, w, _ = array.shape
    plain = array.transpose(0, 1, 4, 2, 3).reshape(n, blocks * v, h, w)
    return np.ascontiguousarray(plain[:, :channels])
