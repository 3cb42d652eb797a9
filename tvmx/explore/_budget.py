"""How much of an exploration is left, in seconds or in kernel measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_LEAST_TUNING = 0.4  # of the seconds, whatever the whole networks will cost


class Budget:
    """Seconds and / or trials; whichever is used up first ends the tuning.

    ``spent_s`` is what earlier, interrupted parts of the same run used. :meth:`reserve`
    keeps seconds back for what comes after the tuning. ``paused`` tells the seconds that do not
    count, because no device was there.
    """

    def __init__(self, seconds: float | None, trials: int | None, *, spent_s: float = 0.0) -> None:
        self.seconds, self.trials = seconds, trials
        self._start = time.monotonic() - spent_s
        self.paused: Callable[[], float] = _never
        self._tuning = math.inf if seconds is None else seconds

    def reserve(self, seconds: float) -> None:
        """Keep ``seconds`` for re-timing, building and measuring whole networks."""
        if self.seconds is not None:
            self._tuning = max(_LEAST_TUNING * self.seconds, self.seconds - seconds)

    @property
    def elapsed_s(self) -> float:
        """Seconds used so far, earlier parts of the run included."""
        return time.monotonic() - self._start - self.paused()

    @property
    def left_s(self) -> float | None:
        """Seconds until the whole budget is used up; None when only trials bound it."""
        return None if self.seconds is None else max(0.0, self.seconds - self.elapsed_s)

    def tuning_over(self, trials: int) -> bool:
        """Whether tuning must stop after ``trials`` kernel measurements."""
        return self.elapsed_s >= self._tuning or (self.trials is not None and trials >= self.trials)

    def room(self, trials: int, want: int) -> int:
        """How many more measurements may start, at most ``want``."""
        return want if self.trials is None else max(0, min(want, self.trials - trials))

    def progress(self, trials: int) -> tuple[float, float]:
        """(done, total) of the tuning, for a progress bar."""
        if self.trials is not None and math.isinf(self._tuning):
            return float(min(trials, self.trials)), float(self.trials)
        return min(self.elapsed_s, self._tuning), self._tuning


def _never() -> float:
    return 0.0
