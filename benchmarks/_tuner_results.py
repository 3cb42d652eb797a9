"""What the methods measured, in measuring order, and what is made of it: records as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property

from benchmarks._records import Record
from tvmx.measure import Paired, compare_paired

SCHEMA = 1
COLD, WARM, RANDOM, GRID, METASCHEDULE = "cold", "warm", "random", "grid", "metaschedule"
METHODS = (COLD, WARM, RANDOM, GRID, METASCHEDULE)
WITHIN = 0.05
"""How far behind the best known config a config may be to count as found."""

TOP = 3
"""The fastest configs of a run that are timed again, side by side, before its winner is called."""

Candidate = tuple[str, str]
"""Template and config as JSON; or ``metaschedule`` and ``SEED/NUMBER``."""


class Point(Record):
    """One measurement: median us, or None where the candidate failed."""

    template: str
    config: str
    us: float | None

    @property
    def candidate(self) -> Candidate:
        """What was measured."""
        return self.template, self.config


class Curve(Record):
    """One method on one workload with one seed: every measurement in its order.

    ``space`` is the digest of workload, templates and their spaces, ``taught_by`` names the
    workloads whose measurements a warm run was given. ``trials`` is what it might measure;
    it may have ended earlier. Of its points ``recalled`` were in the journal already, from
    another method or seed; ``seconds`` is the wall time all others took, thinking included.
    """

    schema_version: int = SCHEMA
    workload: str
    method: str
    seed: int
    trials: int
    space: str
    taught_by: tuple[str, ...] = ()
    points: tuple[Point, ...]
    recalled: int
    seconds: float

    def fastest(self, count: int, trials: int | None = None) -> list[Point]:
        """The ``count`` fastest of the first ``trials`` measurements, best first."""
        found = {p.candidate: p for p in self.points[:trials] if p.us is not None}
        return sorted(found.values(), key=lambda p: p.us or 0.0)[:count]

    def held(self, trials: int) -> list[Point | None]:
        """The fastest of the first 1, 2, ... ``trials`` measurements; None before a success.

        After a run's own end it holds what it had.
        """
        best: Point | None = None
        held: list[Point | None] = []
        for point in self.points[:trials]:
            if point.us is not None and (best is None or point.us < (best.us or 0.0)):
                best = point
            held.append(best)
        return held + [best] * (trials - len(held))


class Retimed(Record):
    """One candidate, timed again in the same rounds as all others of its workload."""

    template: str
    config: str
    us: tuple[float, ...]

    @property
    def candidate(self) -> Candidate:
        """What was measured."""
        return self.template, self.config

    @property
    def median_us(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.us)


class Comparison(Record):
    """The fastest candidates of a workload, side by side. ``asked`` are those that were to be."""

    schema_version: int = SCHEMA
    space: str
    asked: tuple[Candidate, ...]
    retimed: tuple[Retimed, ...]
    load_before: float
    load_after: float

    @property
    def best(self) -> Retimed:
        """The best config known."""
        return min(self.retimed, key=lambda r: r.median_us)

    @cached_property
    def medians(self) -> dict[Candidate, float]:
        """Median us of every candidate that was timed again."""
        return {r.candidate: r.median_us for r in self.retimed}

    def winner(self, curve: Curve, trials: int) -> Retimed | None:
        """What a run would deploy: the fastest of its ``TOP``, as timed again."""
        top = {p.candidate for p in curve.fastest(TOP, trials)}
        return min(
            (r for r in self.retimed if r.candidate in top),
            key=lambda r: r.median_us, default=None,
        )  # fmt: skip

    def paired(self, first: Retimed, second: Retimed) -> Paired:
        """Time ratio of two of them over the rounds they were timed in."""
        return compare_paired(first.us, second.us)


def measured_us(curves: Sequence[Curve]) -> dict[Candidate, float]:
    """Every candidate's figure from the searches; the same for all methods but MetaSchedule's."""
    return {p.candidate: p.us for c in curves for p in c.points if p.us is not None}


def behind(
    candidate: Candidate, comparison: Comparison, searched: Mapping[Candidate, float]
) -> float:
    """How much slower than the best known config a candidate is; 0.05 is 5 %.

    Both timed side by side, where it was timed again; else both as the searches saw them.
    """
    medians, best = comparison.medians, comparison.best
    if candidate in medians:
        return medians[candidate] / best.median_us - 1
    return searched[candidate] / searched[best.candidate] - 1


def needed(
    curve: Curve, trials: int, comparison: Comparison, searched: Mapping[Candidate, float]
) -> int | None:
    """After how many measurements a run first held a config within ``WITHIN`` of the best known."""
    for count, point in enumerate(curve.held(trials), 1):
        if point and behind(point.candidate, comparison, searched) <= WITHIN:
            return count
    return None


def median_needed(counts: Sequence[int | None]) -> float | None:
    """The median over seeds; None where the median run never got there."""
    median = statistics.median(float("inf") if c is None else c for c in counts)
    return None if median == float("inf") else median


def to_compare(curves: Sequence[Curve], trials: int, near: float, most: int) -> list[Candidate]:
    """What to time again: all that looks nearly best, and the ``TOP`` of every tuned run.

    Of the former at the most ``most``, the fastest, within ``near`` (0.1: 10 %) of the fastest;
    of MetaSchedule's candidates only the ``TOP`` are kept at all.
    """
    searched = measured_us([c for c in curves if c.method != METASCHEDULE])
    ranked = sorted(searched, key=lambda candidate: searched[candidate])
    limit = (1 + near) * searched[ranked[0]] if ranked else 0.0
    wanted = [c for c in ranked if searched[c] <= limit][:most]
    for curve in curves:
        if curve.method in (COLD, WARM, METASCHEDULE):
            wanted += [p.candidate for p in curve.fastest(TOP, trials)]
    return list(dict.fromkeys(wanted))


def config_text(config: Mapping[str, object]) -> str:
    """A config as JSON, knobs in their own order."""
    return json.dumps(dict(config), separators=(",", ":"))
