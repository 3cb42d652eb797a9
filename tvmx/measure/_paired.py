"""Is one bundle faster than another? Answered from paired rounds, without a distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
TIE = 0.20
"""Differences between simulated latencies under this are ties: the model is no better."""


@dataclass(frozen=True)
class Paired:
    """The ratio first / second over rounds that measured both, one after the other.

    ``ratio`` is the median of the rounds' ratios; ``low`` and ``high`` enclose the true median
    with at least ``CONFIDENCE`` (None with too few rounds for that). ``verdict`` is ``faster``
    or ``slower`` (the first) when that interval excludes 1, else ``tie``. For ``simulated``
    latencies the interval is what the model is good for.
    """

    ratio: float
    low: float | None
    high: float | None
    rounds: int
    verdict: Literal["faster", "slower", "tie"]
    simulated: bool = False

    def describe(self, first: str, second: str) -> str:
        """One sentence."""
        if self.simulated:
            what = "a tie" if self.verdict == "tie" else f"{first} is {self.verdict}"
            return (
                f"simulated: {first} / {second} = {self.ratio:.3f}, {what}; differences under "
                f"{TIE:.0%} are ties"
            )
        if self.low is None or self.high is None:
            return (
                f"{first} / {second} = {self.ratio:.3f}, a tie: {self.rounds} rounds are too few "
                f"to tell a difference at {CONFIDENCE:.0%} confidence"
            )
        interval = f"{self.ratio:.3f} ({CONFIDENCE:.0%} interval {self.low:.3f} to {self.high:.3f})"
        if self.verdict == "tie":
            return f"{first} / {second} = {interval}: a tie, the difference is inside the noise"
        return f"{first} is {self.verdict} than {second}: time ratio {interval}"


def compare_paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare latencies of the same rounds (any unit, all positive).

    The interval is the one that inverts the sign test: order statistics of the ratios, with
    exact binomial coverage (Conover, Practical Nonparametric Statistics, section 3.2). It
    assumes independent rounds and nothing about their distribution.

    Raises:
        ValueError: the sequences are empty or of different lengths.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} rounds cannot be paired")
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    rank = interval_rank(len(ratios))
    ratio = statistics.median(ratios)
    if rank is None:
        return Paired(ratio, None, None, len(ratios), "tie")
    low, high = ratios[rank], ratios[-1 - rank]
    verdict: Literal["faster", "slower", "tie"] = (
        "faster" if high < 1 else "slower" if low > 1 else "tie"
    )
    return Paired(ratio, low, high, len(ratios), verdict)


def compare_simulated(first: float, second: float) -> Paired:
    """Compare two simulated latencies (any unit, positive): deterministic, but of a model."""
    ratio = first / second
    low, high = ratio / (1 + TIE), ratio * (1 + TIE)
    verdict: Literal["faster", "slower", "tie"] = (
        "faster" if high < 1 else "slower" if low > 1 else "tie"
    )
    return Paired(ratio, low, high, 1, verdict, simulated=True)


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """What encloses the true median with at least ``CONFIDENCE``; None with too few values."""
    rank = interval_rank(len(values))
    ordered = sorted(values)
    return None if rank is None else (float(ordered[rank]), float(ordered[-1 - rank]))


def interval_rank(rounds: int, confidence: float = CONFIDENCE) -> int | None:
    """How many values to leave out at either end of the sorted rounds; None: too few rounds."""
    tail, rank = 0.0, None
    for left_out in range(rounds // 2):
        tail += math.comb(rounds, left_out) / 2**rounds
        if 2 * tail > 1 - confidence:
            break
        rank = left_out
    return rank
