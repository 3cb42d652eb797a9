"""What a network's benchmark found: records as JSON, one file per network, written atomically."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tvmx.store import write_atomic

SCHEMA = 1
OF_THE_RANGE = 1e-3
"""Largest absolute error of an output that still counts as right, over the reference's range."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Series(_Record):
    """One candidate's rounds, in ms per inference, 1 thread.

    ``wall_ms`` is what a clock saw; ``cpu_ms`` what the thread got of the core in the same
    time, and ``busy`` below 1 says that somebody else had the rest. ``max_error`` is over the
    range of the reference's output.
    """

    name: str
    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    max_error: float

    @property
    def median_ms(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall_ms)

    @property
    def spread_ms(self) -> float:
        """Interquartile range of the wall times; the whole range under four rounds."""
        if len(self.wall_ms) < 4:
            return max(self.wall_ms) - min(self.wall_ms)
        low, _, high = statistics.quantiles(self.wall_ms, n=4, method="inclusive")
        return high - low

    @property
    def busy(self) -> float:
        """Share of the wall time the thread was running."""
        return sum(self.cpu_ms) / sum(self.wall_ms)


class Rounds(_Record):
    """Candidates measured side by side in one process: round ``i`` of each follows the other."""

    series: tuple[Series, ...]
    load_before: float
    load_after: float

    def get(self, name: str) -> Series | None:
        """The series of that name."""
        return next((s for s in self.series if s.name == name), None)

    def ratio(self, first: str, second: str) -> float | None:
        """Median over rounds of first / second wall time, paired within a round."""
        return self._ratio(first, second, lambda series: series.wall_ms)

    def cpu_ratio(self, first: str, second: str) -> float | None:
        """The same of the CPU times, which other people's load disturbs less."""
        return self._ratio(first, second, lambda series: series.cpu_ms)

    def _ratio(
        self, first: str, second: str, times: Callable[[Series], tuple[float, ...]]
    ) -> float | None:
        a, b = self.get(first), self.get(second)
        if a is None or b is None:
            return None
        return statistics.median(x / y for x, y in zip(times(a), times(b), strict=True))


class Explored(_Record):
    """The exploration behind the explored column. ``best`` is a candidate's name."""

    best: str
    is_baseline: bool
    measurements: int
    seconds: float


class NetworkResult(_Record):
    """Everything known about one network; sections are filled one after the other."""

    schema_version: int = SCHEMA
    network: str
    machine: str
    versions: dict[str, str]
    layers: int = 0
    layers_hit: int = 0
    explored: Explored | None = None
    main: Rounds | None = None
    untuned: Rounds | None = None

    def save(self, path: Path) -> None:
        """Write as JSON. Raises UnwritableError."""
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> NetworkResult | None:
        """What an earlier run left; None when there is nothing this version can read."""
        try:
            result = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None
        return result if result.schema_version == SCHEMA else None
