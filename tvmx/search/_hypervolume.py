"""The exact hypervolume of a few points: how much of the space a Pareto front dominates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmx.errors import UsageError

Point = tuple[float, ...]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume of what lies between the ``reference`` and some point, all objectives minimised.

    Points that are not below the reference in every objective dominate nothing. Exact, by slicing
    along one objective after the other: for fronts of tens of points in a few objectives. Raises
    UsageError for points of other dimensions, and for NaN.
    """
    for number, point in enumerate(points):
        if len(point) != len(reference) or any(map(math.isnan, point)):
            raise UsageError(f"point {number} does not have {len(reference)} objectives")
    corner = tuple(map(float, reference))
    rows = {tuple(map(float, point)) for point in points}
    inside = [row for row in rows if all(a < b for a, b in zip(row, corner, strict=True))]
    return _volume(inside, corner)


def _volume(points: list[Point], corner: Point) -> float:
    """Between two successive values of the first objective the slice below has one volume."""
    if not points:
        return 0.0
    if len(corner) == 1:
        return corner[0] - min(point[0] for point in points)
    ordered = sorted(points)
    edges = [*(point[0] for point in ordered), corner[0]]
    total = 0.0
    below: list[Point] = []
    for point, start, end in zip(ordered, edges, edges[1:], strict=False):
        below = _without_dominated(below, point[1:])
        if end > start:
            total += (end - start) * _volume(below, corner[1:])
    return total


def _without_dominated(points: list[Point], new: Point) -> list[Point]:
    """The points that nothing among them and ``new`` covers."""
    if any(all(a <= b for a, b in zip(p, new, strict=True)) for p in points):
        return points
    return [p for p in points if any(a < b for a, b in zip(p, new, strict=True))] + [new]
