"""The Pareto front of minimised objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tvmx.errors import UsageError

OBJECTIVES = ("latency", "weights", "arena", "drop")
"""Latency in us, weights and arena in bytes, accuracy drop in points."""


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """``a`` is nowhere worse (greater) than ``b`` and somewhere better."""
    return tuple(a) != tuple(b) and all(x <= y for x, y in zip(a, b, strict=True))


def pareto_front(
    points: Sequence[Mapping[str, float]], objectives: Sequence[str] = OBJECTIVES
) -> list[int]:
    """Indices of the points that no other dominates, in the order of the input.

    Of points that are equal in all ``objectives`` the first stays. Raises UsageError when a
    point lacks an objective or has NaN.
    """
    if not objectives:
        raise UsageError("a Pareto front needs at least one objective")
    rows = [_row(i, point, objectives) for i, point in enumerate(points)]
    # In lexicographic order only an earlier row can dominate a later one.
    front: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i], i)):
        if not any(rows[j] == rows[i] or dominates(rows[j], rows[i]) for j in front):
            front.append(i)
    return sorted(front)


def _row(index: int, point: Mapping[str, float], objectives: Sequence[str]) -> tuple[float, ...]:
    missing = [name for name in objectives if name not in point or math.isnan(point[name])]
    if missing:
        raise UsageError(f"point {index} of the Pareto front has no value for {missing[0]!r}")
    return tuple(float(point[name]) for name in objectives)
