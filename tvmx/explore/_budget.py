"""How much of an exploration is left, in seconds or in kernel measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_LEAST_TUNING = 0.4  # of the seconds, whatever the whole networks will cost


def now() -> float:
    """Seconds of the clock that budgets go by."""
    return time.monotonic()


class Budget:
    """Seconds and / or trials; whichever is used up first ends the tuning.

    The clock starts when the object is made. ``spent_s`` is what earlier, interrupted parts of the
    same run used. :meth:`reserve` keeps seconds back for what comes after the tuning. ``paused``
    tells the seconds that do not count, because no device was there.
    """

    def __init__(self, seconds: float | None, trials: int | None, *, spent_s: float = 0.0) -> None:
        self.seconds, self.trials = seconds, trials
        self.spent_s = spent_s
        self._start = now()
        self.paused: Callable[[], float] = _never
        self._tuning = self._retiming = math.inf if seconds is None else seconds

    def reserve(self, whole_s: float, retiming_s: float = 0.0) -> None:
        """Keep ``whole_s`` for whole networks and, before that, ``retiming_s`` for re-timing."""
        if self.seconds is not None:
            least = _LEAST_TUNING * self.seconds
            self._tuning = max(least, self.seconds - whole_s - retiming_s)
            self._retiming = max(least, self.seconds - whole_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds used so far, earlier parts of the run included."""
        return now() - self._start + self.spent_s - self.paused()

    @property
    def left_s(self) -> float | None:
        """Seconds until the whole budget is used up; None when only trials bound it."""
        return None if self.seconds is None else max(0.0, self.seconds - self.elapsed_s)

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds are left; always where only trials bound it."""
        return self.left_s is None or self.left_s >= seconds

    @property
    def time_over(self) -> bool:
        """Whether the seconds for tuning are used up."""
        return self.elapsed_s >= self._tuning

    @property
    def retiming_over(self) -> bool:
        """Whether the seconds for re-timing are used up."""
        return self.elapsed_s >= self._retiming

    def tuning_over(self, trials: int) -> bool:
        """Whether tuning must stop after ``trials`` kernel measurements."""
        return self.time_over or (self.trials is not None and trials >= self.trials)

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
