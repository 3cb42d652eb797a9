"""Deadlines: how long each step of a job on a device may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvmx.errors import UsageError

PHASES = ("queue", "connect", "upload", "load", "run")
_LONGEST = 86400.0
_UPLOAD_BYTES_PER_S = 4e6
_LOAD_BYTES_PER_S = 2e7
_GRACE = 15.0
_RUN_FLOOR = 5.0
_SLOWEST = 3.0  # a kernel that takes this many times the baseline network cannot be chosen
_CALLS = 4  # of a candidate in one step, the measuring itself not counted


@dataclass(frozen=True)
class Deadlines:
    """Seconds each phase of a job may take; the measuring side enforces all of them itself.

    ``queue``: until the tracker hands out a device; ``connect``: until the device's server has
    answered; ``upload``: library and arrays, plus one second for each 4 MB of them; ``load``:
    opening the library, plus one second for each 20 MB; ``run``: each remote call that executes
    the candidate (check, then timing). ``pinned`` are the phases :meth:`derive` must not touch,
    because the user chose them.
    """

    queue: float = 30.0
    connect: float = 15.0
    upload: float = 30.0
    load: float = 20.0
    run: float = 300.0
    pinned: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in PHASES:
            value = getattr(self, name)
            if not 0 < value < _LONGEST:
                raise UsageError(
                    f"deadline {name}={value:g} must lie between 0 and {_LONGEST:g} seconds"
                )

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Deadlines:
        """From ``PHASE=SECONDS`` texts, such as ``run=20``. Raises :class:`UsageError`."""
        values: dict[str, float] = {}
        for text in texts:
            name, _, seconds = text.partition("=")
            name = name.strip()
            try:
                value = float(seconds)
            except ValueError:
                value = math.nan
            if name not in PHASES or math.isnan(value):
                raise UsageError(
                    f"{text!r} is no deadline",
                    hint=f"give PHASE=SECONDS, such as run=20; phases: {', '.join(PHASES)}",
                )
            if values.setdefault(name, value) != value:
                raise UsageError(f"two deadlines for {name}: {values[name]:g} s and {value:g} s")
        return replace(cls(), **values, pinned=frozenset(values))

    def derive(self, baseline_us: float, measuring_s: float) -> Deadlines:
        """For candidates of a network whose baseline takes ``baseline_us`` on the device.

        A kernel that takes three times the baseline network is of no use, so ``run`` need not
        wait for it: 5 s, plus four calls of that length, plus ``measuring_s``, the longest that
        the timing of a fast candidate takes. What counts is time on the wall, also where the
        device's own clock shows simulated time.
        """
        if "run" in self.pinned:
            return self
        run = _RUN_FLOOR + measuring_s + _CALLS * _SLOWEST * baseline_us / 1e6
        return replace(self, run=min(run, _LONGEST / 2))

    def describe(self) -> str:
        """Such as ``queue 30 s, connect 15 s, upload 30 s + size, load 20 s + size, run 6.2 s``."""
        parts = []
        for name in PHASES:
            size = " + size" if name in ("upload", "load") else ""
            parts.append(f"{name} {_seconds(self.of(name))} s{size}")
        return ", ".join(parts)

    def of(self, phase: str) -> float:
        """Seconds of a phase by name."""
        return float(getattr(self, phase))

    def transfer(self, nbytes: int) -> float:
        """Seconds an upload of this size may take on the slowest boards."""
        return self.upload + nbytes / _UPLOAD_BYTES_PER_S

    def loading(self, nbytes: int) -> float:
        """Seconds that opening a library of this size may take."""
        return self.load + nbytes / _LOAD_BYTES_PER_S

    def job(self, nbytes: int = 0) -> float:
        """The longest time a connected job of this size may hold the device, seconds."""
        return self.transfer(nbytes) + self.loading(nbytes) + self.run

    def session(self, nbytes: int = 0) -> float:
        """After this many seconds the server ends a session by itself.

        It is what frees a board from a candidate that hangs, so it is no longer than needed.
        """
        return self.job(nbytes) + _GRACE


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
