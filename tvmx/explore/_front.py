"""The Pareto front of measured candidates, and how much of the space it dominates."""

from __future__ import annotations

from collections.abc import Sequence

from tvmx.explore._request import CandidateSummary
from tvmx.search import hypervolume, pareto_front

_BEYOND = 1.1  # of the baseline: where latency, weights and arena stop counting
_LEAST_POINTS = 1.0


def figures(candidate: CandidateSummary) -> dict[str, float]:
    """What is minimised; an accuracy that was not measured is no objective."""
    found = {
        "latency": candidate.latency_us,
        "weights": float(candidate.weights_bytes),
        "arena": float(candidate.arena_bytes),
    }
    if candidate.accuracy_drop is not None:
        found["drop"] = candidate.accuracy_drop
    return found


def front_of(candidates: Sequence[CandidateSummary]) -> list[int]:
    """Indices of the candidates that no other one dominates, in order."""
    points = [figures(candidate) for candidate in candidates]
    return pareto_front(points, list(points[0]))


def reference_of(baseline: CandidateSummary, limit: float) -> dict[str, float]:
    """What a candidate must be below to count: 1.1 times the baseline, and the accuracy's limit.

    ``limit`` is in points; where nothing may be lost, one point.
    """
    found = {name: _BEYOND * value for name, value in figures(baseline).items()}
    if "drop" in found:
        found["drop"] = limit or _LEAST_POINTS
    return found


def dominated_share(candidates: Sequence[CandidateSummary], reference: dict[str, float]) -> float:
    """Hypervolume of the candidates as a share of the box from 0 to ``reference``.

    A drop below 0 counts as 0.
    """
    rows = []
    for candidate in candidates:
        found = figures(candidate)
        rows.append([max(0.0, found[name]) / most for name, most in reference.items()])
    return hypervolume(rows, [1.0] * len(reference))
