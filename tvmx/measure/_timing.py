"""TimingPolicy: how often a candidate is run for one figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tvmx.errors import UsageError
from tvmx.measure._paired import median_interval

_FIRST = 6  # repeats before the median has a 95 % interval
_NEXT = 3
_FLUSH_BYTES_PER_S = 0.5e9  # fresh memory written on the slowest boards


@dataclass(frozen=True)
class TimingPolicy:
    """Repeats of a measurement, scaled by a first estimate of the latency.

    One repeat is the mean over ``number`` calls; where it is None, over as many as last about
    ``min_repeat_ms``. Repeats are made until the 95 % interval of their median is within
    ``tolerance`` of it to either side (looked at after 6, 9, 12, ... repeats), and at the most
    ``repeats`` or as many as last ``max_total_ms``, whichever is less; ``min_repeats`` are made
    however long they last. ``warmup`` calls go before the first of them, on top of those of
    the check. With ``flush_bytes`` as much memory is written before each repeat, which is then
    a single call: the latency with cold caches.

    What the interval is worth: it has its coverage for a number of repeats fixed beforehand.
    Here they end when they happen to agree, which makes it a little too narrow: in simulations
    of independent noise with one peak it held the true median in 94 % of the samples, with two
    equal peaks in 91 %. Repeats of one measurement are not independent either: they share the
    clock, the temperature and the memory layout of one moment. Whether one candidate is faster
    than another is for :meth:`tvmx.measure.Runner.compare`, whose rounds are fixed and paired.

    Raises:
        UsageError: a figure that makes no sense.
    """

    min_repeat_ms: float = 2.5
    repeats: int = 15
    min_repeats: int = 2
    max_total_ms: float = 300.0
    warmup: int = 1
    number: int | None = None
    tolerance: float = 0.02
    flush_bytes: int = 0

    def __post_init__(self) -> None:
        counts = (self.repeats, self.min_repeats, 1 if self.number is None else self.number)
        if min(counts) < 1 or self.warmup < 0 or self.flush_bytes < 0:
            raise UsageError(f"{self}: repeats and calls are counted from 1, bytes from 0")
        if not all(v > 0 for v in (self.min_repeat_ms, self.max_total_ms, self.tolerance)):
            raise UsageError(f"{self}: times and the tolerance must be positive")
        if self.flush_bytes and self.number not in (None, 1):
            raise UsageError(f"{self}: only the first call after a flush finds cold caches")

    @classmethod
    def quick(cls) -> TimingPolicy:
        """For tuning: 15 to 40 ms for short kernels, two runs of long ones."""
        return cls()

    @classmethod
    def careful(cls) -> TimingPolicy:
        """For final figures: 6 to 15 repeats of 20 ms; of networks as many as take 5 s.

        Three of those that take more than 1.25 s.
        """
        return cls(min_repeat_ms=20.0, min_repeats=3, max_total_ms=5000.0, tolerance=0.005)

    def cold(self, flush_bytes: int) -> TimingPolicy:
        """The same with the cache flushed before each repeat."""
        return replace(self, flush_bytes=flush_bytes)

    @property
    def longest_s(self) -> float:
        """The longest the timing of a short candidate takes, seconds, flushing included."""
        flushing = self.repeats * self.flush_bytes / _FLUSH_BYTES_PER_S
        return self.max_total_ms / 1e3 + flushing

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
        middle = statistics.median(latencies_us)
        return max(high - middle, middle - low) <= self.tolerance * middle

    def collect(
        self, estimate_us: float, time: Callable[[int], Sequence[float]]
    ) -> tuple[float, ...]:
        """The latencies of as many repeats as are needed; ``time(n)`` makes ``n`` more of them."""
        most = self.most_repeats(estimate_us)
        latencies: list[float] = []
        while len(latencies) < most and not self.settled(latencies):
            step = _NEXT if latencies else _FIRST
            latencies += time(min(step, most - len(latencies)))
        return tuple(latencies)
