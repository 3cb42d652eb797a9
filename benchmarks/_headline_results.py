"""What the headline says: one row a network and device, ratios, and their geometric means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks._headline_plans import EXPLORED, FLOAT, INT8, Sizes
from benchmarks._records import Record

PLANS = (FLOAT, INT8, EXPLORED)
_MB = 1e6


class PlanFigures(Record):
    """One plan of tvmx. ``time`` is in the row's unit, ``speed`` is BLAS's time over it.

    ``accuracy`` and ``drop`` are in percent and points, for trained networks that were explored.
    """

    plan: str
    time: float
    speed: float
    sizes: Sizes
    accuracy: float | None = None
    drop: float | None = None


class Row(Record):
    """A network on a device, batch 1, one thread.

    ``blas`` is the time of im2col and OpenBLAS in ``unit`` with the kernels named, ``ceiling`` the
    same over the time that all multiply-adds take at the core's int8 peak; ``float_ceiling`` at its
    float peak. ``blas_bytes`` are float weights, the float plan's arena and the column matrix.
    """

    network: str
    device: str
    unit: str
    blas: float
    kernels: str
    ceiling: float
    float_ceiling: float
    blas_bytes: int
    plans: tuple[PlanFigures, ...]

    @property
    def best(self) -> PlanFigures:
        """The fastest plan."""
        return max(self.plans, key=lambda plan: plan.speed)

    def get(self, plan: str) -> PlanFigures | None:
        """A plan's figures."""
        return next((p for p in self.plans if p.plan == plan), None)

    def memory(self, plan: PlanFigures) -> float:
        """Bytes of im2col and OpenBLAS over those of a plan."""
        return self.blas_bytes / plan.sizes.total


class Headline(Record):
    """All rows; ``machine`` and ``versions`` are of the host."""

    machine: str
    versions: dict[str, str]
    rows: tuple[Row, ...]


def geometric_mean(values: Sequence[float]) -> float:
    """Of at least one positive number."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def print_headline(headline: Headline) -> None:
    """A table for each device, as Markdown, with what it comes to."""
    for device in dict.fromkeys(row.device for row in headline.rows):
        rows = [row for row in headline.rows if row.device == device]
        print(f"\n**{device}**, {rows[0].unit}; in brackets times as fast as im2col + OpenBLAS\n")
        _line(["network", "im2col + OpenBLAS", *PLANS, "ceiling", "memory, MB", *PLANS])
        _line(["---"] * (4 + 2 * len(PLANS)))
        for row in rows:
            _line([row.network, f"{row.blas:.1f}", *(_time(row, plan) for plan in PLANS),
                   f"{row.ceiling:.1f}", f"{row.blas_bytes / _MB:.1f}",
                   *(_bytes(row, plan) for plan in PLANS)])  # fmt: skip
        print()
        for name, chosen in (("best plan", lambda r: r.best), ("int8", lambda r: r.get(INT8))):
            print(_summary(name, rows, chosen))


def _summary(name: str, rows: Sequence[Row], chosen: Callable[[Row], PlanFigures | None]) -> str:
    found = [(row, plan) for row in rows if (plan := chosen(row)) is not None]
    speed = _mean([plan.speed for _, plan in found])
    memory = _mean([row.memory(plan) for row, plan in found])
    return f"{name}, geometric mean (range) of {len(found)}: speed {speed}, memory {memory}  "


def _mean(values: Sequence[float]) -> str:
    return f"{geometric_mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _time(row: Row, plan: str) -> str:
    found = row.get(plan)
    if found is None:
        return "-"
    lost = "" if found.drop is None else f", {found.accuracy:.2f} % ({-found.drop:+.2f})"
    return f"{found.time:.1f} ({found.speed:.2f}{lost})"


def _bytes(row: Row, plan: str) -> str:
    found = row.get(plan)
    if found is None:
        return "-"
    return f"{found.sizes.total / _MB:.1f} ({row.memory(found):.2f})"


def _line(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |")
