"""Offsets in one arena for tensors whose lifetimes are known.

The greedy heuristics of Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net
Inference" (2020), as TFLite has them, for bodies of several boxes instead of single tensors: what
shares memory on purpose (a concatenation and its parts) is one body, and only the bytes and steps
that it really takes are closed to others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes; what TVM's own allocations have, and kernels check."""


@dataclass(frozen=True)
class Box:
    """Bytes ``low`` up to ``high`` of a body, taken from step ``start`` up to before ``end``."""

    start: int
    end: int
    low: int
    high: int

    def meets(self, other: Box) -> bool:
        """Whether the two are alive together."""
        return self.start < other.end and other.start < self.end

    def overlaps(self, other: Box) -> bool:
        """Whether the two, in the same coordinates, share a byte while both are alive."""
        return self.meets(other) and self.low < other.high and other.low < self.high


Body = Sequence[Box]


def pack(bodies: Sequence[Body]) -> tuple[list[int], int]:
    """An offset for every body, and the bytes of the arena that holds them all.

    Multiples of :data:`ALIGNMENT`; no two boxes that are alive together overlap. The best of
    several greedy orders, each placed by first and by best fit. Bodies are not empty, and their
    lowest box starts at 0.
    """
    if not bodies:
        return [], 0
    bound = _aligned(least_bytes(bodies))
    best: tuple[list[int], int] | None = None
    for order in _orders(bodies):
        for tight in (True, False):
            found = _place(bodies, order, tight)
            if best is None or found[1] < best[1]:
                best = found
            if best[1] <= bound:
                return best
    assert best is not None
    return best


def least_bytes(bodies: Sequence[Body]) -> int:
    """Bytes alive together at the worst step: no arena is smaller."""
    changes: dict[int, int] = {}
    for body in bodies:
        for box in body:
            size = box.high - box.low
            changes[box.start] = changes.get(box.start, 0) + size
            changes[box.end] = changes.get(box.end, 0) - size
    alive = worst = 0
    for step in sorted(changes):
        alive += changes[step]
        worst = max(worst, alive)
    return worst


def _orders(bodies: Sequence[Body]) -> Iterator[list[int]]:
    """Orders of placing: by size, by bytes times steps, by the fullest step, by time."""
    every = range(len(bodies))
    size = [max(box.high for box in body) for body in bodies]
    start = [min(box.start for box in body) for body in bodies]
    area = [sum((b.high - b.low) * (b.end - b.start) for b in body) for body in bodies]
    yield sorted(every, key=lambda i: (-size[i], start[i]))
    yield sorted(every, key=lambda i: (-area[i], start[i]))
    load = {step: _alive(bodies, step) for step in {box.start for body in bodies for box in body}}
    fullest = [
        max(load[step] for step in load if any(b.start <= step < b.end for b in body))
        for body in bodies
    ]
    yield sorted(every, key=lambda i: (-fullest[i], -size[i], start[i]))
    yield sorted(every, key=lambda i: (start[i], -size[i]))
    yield sorted(every, key=lambda i: (-start[i], -size[i]))


def _alive(bodies: Sequence[Body], step: int) -> int:
    return sum(b.high - b.low for body in bodies for b in body if b.start <= step < b.end)


def _place(bodies: Sequence[Body], order: Sequence[int], tight: bool) -> tuple[list[int], int]:
    """Place the bodies in order; ``tight``: in the smallest gap that fits, else in the first."""
    offsets = [0] * len(bodies)
    placed: list[Box] = []
    for index in order:
        body = bodies[index]
        offset = offsets[index] = _gap(_closed(body, placed), tight)
        placed += [Box(b.start, b.end, b.low + offset, b.high + offset) for b in body]
    return offsets, max(_aligned(box.high) for box in placed)


def _closed(body: Body, placed: Sequence[Box]) -> list[tuple[int, int]]:
    """Open intervals, by their ends, in which the body's offset must not lie; sorted."""
    return sorted(
        (there.low - here.high, there.high - here.low)
        for here in body
        for there in placed
        if here.meets(there)
    )


def _gap(closed: Sequence[tuple[int, int]], tight: bool) -> int:
    """The first offset outside the closed intervals, or that with the least room behind it."""
    best, least = 0, None
    offset = 0
    for low, high in closed:
        room = low - offset
        if room >= 0 and (least is None or room < least):
            best, least = offset, room
            if not tight:
                return best
        offset = max(offset, _aligned(high))
    return best if least is not None else offset


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
