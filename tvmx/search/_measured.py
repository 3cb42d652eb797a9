"""Measured mode: what a whole plan really takes, asked once for each plan and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Measured(NamedTuple):
    """What came of building a whole plan and measuring it end to end.

    ``outcome`` is ``ok``, or why there is no figure: ``build``, or a status of
    ``tvmx.measure.Measurement``; ``message`` says more. ``latency_us`` and ``baseline_us`` are from
    the same rounds, so that a device that is slower now counts for neither.
    """

    latency_us: float | None
    baseline_us: float
    outcome: str = "ok"
    message: str = ""

    @property
    def saved(self) -> float | None:
        """Share of the baseline's latency that is saved; None where the plan has none."""
        return None if self.latency_us is None else 1 - self.latency_us / self.baseline_us


Measure = Callable[[tuple[int, ...]], Measured]
"""Builds and measures the plan of an assignment. What is wrong with it is in the result."""


class Measurer:
    """Asks ``measure`` once for each assignment. ``count`` is how often it was asked."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._known: dict[tuple[int, ...], Measured] = {}
        self.count = 0

    def __call__(self, assignment: tuple[int, ...]) -> Measured:
        """The plan's figure; one that is known costs nothing."""
        found = self._known.get(assignment)
        if found is None:
            self.count += 1
            found = self._known[assignment] = self._measure(assignment)
        return found
