"""A clock that goes on when a test says so."""

from __future__ import annotations


class Clock:
    """Stands for the module ``time``; sleeping is how its seconds pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
