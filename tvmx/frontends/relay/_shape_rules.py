"""Relay's rules for reshapes and slices, on static shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmx.frontends._reason import RuleError

Shape = tuple[int, ...]


def reshaped(shape: Shape, wanted: Sequence[int], zero_is_size: bool = False) -> Shape:
    """The shape ``reshape`` makes of ``shape``.

    0 keeps a dimension, -1 (once) takes what is left, -2 keeps all dimensions that follow, -3
    merges two, -4 splits one into the next two entries, one of which may be -1.

    Raises:
        RuleError: the rules do not fit, or the number of elements would change.
    """
    found, rest, source = [], -1, 0
    entries = list(wanted)
    position = 0

    def next_size() -> int:
        nonlocal source
        if source >= len(shape):
            raise RuleError(f"newshape {tuple(wanted)} for {shape}")
        source += 1
        return shape[source - 1]

    while position < len(entries):
        entry = entries[position]
        position += 1
        if entry > 0 or (entry == 0 and zero_is_size):
            found.append(entry)
            source += 1
        elif entry == 0:
            found.append(next_size())
        elif entry == -1:
            if rest >= 0:
                raise RuleError(f"newshape {tuple(wanted)} has -1 twice")
            rest = len(found)
            found.append(1)
            source += 1
        elif entry == -2:
            found += shape[source:]
            source = len(shape)
        elif entry == -3:
            found.append(next_size() * next_size())
        elif entry == -4 and position + 1 < len(entries):
            found += _split(next_size(), entries[position], entries[position + 1])
            position += 2
        else:
            raise RuleError(f"newshape {tuple(wanted)} for {shape}")
    elements, made = math.prod(shape), math.prod(found)
    if rest >= 0 and made and elements % made == 0:
        found[rest] = elements // made
    if math.prod(found) != elements:
        raise RuleError(f"newshape {tuple(wanted)} for {shape}")
    return tuple(found)


def _split(size: int, first: int, second: int) -> tuple[int, int]:
    if first == -1 and second > 0 and size % second == 0:
        return size // second, second
    if second == -1 and first > 0 and size % first == 0:
        return first, size // first
    if first < 1 or second < 1 or first * second != size:
        raise RuleError(f"newshape splits {size} into {first} and {second}")
    return first, second


def slice_bounds(
    shape: Shape,
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    axes: Sequence[int],
    mode: str,
) -> list[tuple[int, int, int, int]]:
    """(axis, begin, end, stride) of a ``strided_slice``, not negative where strides are positive.

    With ``mode`` size, ``end`` holds sizes (-1: all that follows) and strides do not count.

    Raises:
        RuleError: nothing would be left, or the lists do not fit each other.
    """
    if mode not in ("end", "size") or len(begin) > len(shape) or len(axes) != len(begin):
        raise RuleError(f"begin {tuple(begin)}, axes {tuple(axes)}, slice_mode {mode!r}")
    if len(set(axes)) != len(axes) or not begin:
        raise RuleError(f"axes {tuple(axes)}")
    steps = [1] * len(begin) if mode == "size" else list(strides)
    if len(steps) == 1:
        steps *= len(begin)
    if len(steps) != len(begin) or len(end) != len(begin) or 0 in steps:
        raise RuleError(f"begin {tuple(begin)}, end {tuple(end)}, strides {tuple(strides)}")
    bounds = []
    for axis, first, last, step in zip(axes, begin, end, steps, strict=True):
        size = shape[axis]
        if mode == "size":
            offset = first + size if first < 0 else first
            last = size if last == -1 else offset + last
        start, stop, _ = slice(first, last, step).indices(size)
        if not range(start, stop, step):
            raise RuleError(f"nothing is left of a dimension of {size}")
        # A slice backwards to the first element has no end that is not negative.
        bounds.append((axis, start, stop if stop >= 0 else -size - 1, step))
    return bounds
