"""TimingPolicy: how often a candidate is run for one figure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TimingPolicy:
    """Repeats of a measurement, scaled by a first estimate of the latency.

    One repeat is the mean over ``number`` calls, with ``number`` chosen so that it lasts at
    least ``min_repeat_ms`` (unless fixed). ``repeats`` are made, fewer (never under
    ``min_repeats``) when they would last longer than ``max_total_ms`` together. ``warmup``
    calls are made before the timed ones, on top of the check run.
    """

    min_repeat_ms: float = 3.0
    repeats: int = 5
    min_repeats: int = 2
    max_total_ms: float = 300.0
    warmup: int = 1
    number: int | None = None

    @classmethod
    def quick(cls) -> TimingPolicy:
        """For tuning: about 15 ms for short kernels, two runs of long ones."""
        return cls()

    @classmethod
    def careful(cls) -> TimingPolicy:
        """For final figures: 15 repeats of at least 20 ms, at least three of long networks."""
        return cls(min_repeat_ms=20.0, repeats=15, min_repeats=3, max_total_ms=5000.0, warmup=2)

    def calls(self, estimate_us: float) -> int:
        """Calls per repeat for a kernel of about this latency."""
        if self.number is not None:
            return self.number
        return max(1, math.ceil(self.min_repeat_ms * 1e3 / max(estimate_us, 0.1)))

    def rounds(self, estimate_us: float) -> int:
        """Repeats for a kernel of about this latency."""
        one_ms = max(self.calls(estimate_us) * estimate_us / 1e3, 1e-3)
        return min(self.repeats, max(self.min_repeats, int(self.max_total_ms / one_ms)))
