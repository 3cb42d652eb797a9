"""TimingPolicy: how often a candidate is run for one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvmx.measure._paired import median_interval


@dataclass(frozen=True)
class TimingPolicy:
    """Repeats of a measurement, scaled by a first estimate of the latency.

    One repeat is the mean over ``number`` calls, with ``number`` chosen so that it lasts at
    least ``min_repeat_ms`` (unless fixed). Repeats are made until the 95 % interval of their
    median is within ``tolerance`` of it to either side, at least ``min_repeats``, and then only
    while there are fewer than ``repeats`` and they last less than ``max_total_ms`` together.
    ``warmup`` calls are made before the timed ones, on top of the check run. With
    ``flush_bytes`` so much memory is written before each repeat, which is then a single call:
    a cold cache's latency.
    """

    min_repeat_ms: float = 2.5
    repeats: int = 15
    min_repeats: int = 2
    max_total_ms: float = 300.0
    warmup: int = 1
    number: int | None = None
    tolerance: float = 0.02
    flush_bytes: int = 0

    @classmethod
    def quick(cls) -> TimingPolicy:
        """For tuning: 15 to 40 ms for short kernels, two runs of long ones."""
        return cls()

    @classmethod
    def careful(cls) -> TimingPolicy:
        """For final figures: repeats of at least 20 ms, at least three of long networks."""
        return cls(
            min_repeat_ms=20.0,
            repeats=15,
            min_repeats=3,
            max_total_ms=5000.0,
            warmup=2,
            tolerance=0.005,
        )

    def cold(self, flush_bytes: int) -> TimingPolicy:
        """The same with the cache flushed before each repeat."""
        return replace(self, flush_bytes=flush_bytes)

    @property
    def longest_s(self) -> float:
        """The longest the timing of a short candidate takes, seconds."""
        return self.max_total_ms / 1e3

    def calls(self, estimate_us: float) -> int:
        """Calls per repeat for a kernel of about this latency."""
        if self.flush_bytes:
            return 1
        if self.number is not None:
            return self.number
        return max(1, math.ceil(self.min_repeat_ms * 1e3 / max(estimate_us, 0.1)))

    def most_repeats(self, estimate_us: float) -> int:
        """The cap on the repeats for a kernel of about this latency."""
        one_ms = max(self.calls(estimate_us) * estimate_us / 1e3, 1e-3)
        return min(self.repeats, max(self.min_repeats, int(self.max_total_ms / one_ms)))

    def settled(self, latencies_us: Sequence[float]) -> bool:
        """Whether the median of these repeats is known well enough."""
        interval = median_interval(latencies_us)
        if interval is None or len(latencies_us) < self.min_repeats:
            return False
        low, high = interval
        middle = sorted(latencies_us)[len(latencies_us) // 2]
        return max(high - middle, middle - low) <= self.tolerance * middle
