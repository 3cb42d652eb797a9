"""Picking a candidate of a finished run: by name, by index, or by a rule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tvmx.errors import UsageError
from tvmx.explore._request import CandidateSummary, ExploreResult

HINT = '--pick best|memory|baseline|INDEX, or a rule such as "latency; drop<=0.5; weights<=2MB"'
_BYTES = {"B": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("KMG", start=1)
    for end, base in (("B", 1000), ("iB", 1024))
}
_TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6}
_CONSTRAINT = re.compile(r"([a-z]+)\s*<=\s*([0-9.]+)\s*([A-Za-z%]*)")
_SIZES = ("weights", "arena", "memory", "library")
_FIGURES: dict[str, Callable[[CandidateSummary], float | None]] = {
    "latency": lambda c: c.latency_us,
    "weights": lambda c: c.weights_bytes,
    "arena": lambda c: c.arena_bytes,
    "memory": lambda c: c.weights_bytes + c.arena_bytes,
    "library": lambda c: c.library_bytes,
    "drop": lambda c: c.accuracy_drop,
}


class Limit(NamedTuple):
    """``name`` at most ``most``, in us, bytes or points; ``text`` is as it was written."""

    name: str
    most: float
    text: str

    def excess(self, candidate: CandidateSummary) -> float:
        """By what share of the limit a candidate is over it; 0 where it is not."""
        found = _figure(candidate, self.name)
        return max(0.0, found - self.most) / self.most if self.most else max(0.0, found)


@dataclass(frozen=True)
class Rule:
    """The candidate of least ``objective`` among those that keep all ``limits``."""

    objective: str
    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Such as ``latency; drop<=0.5; weights<=2MB``. Raises UsageError.

        Names: latency (us, ms or s), weights, arena, memory (both), library (bytes, kB, MB, KiB,
        MiB ...), drop (points).
        """
        objective, *rest = (part.strip() for part in text.split(";"))
        _known(objective, text)
        return cls(objective, tuple(_limit(part, text) for part in rest if part))

    def choose(self, candidates: Sequence[CandidateSummary]) -> CandidateSummary:
        """The first of equals. Raises UsageError, telling which came nearest, where none fits."""
        fitting = [c for c in candidates if not any(limit.excess(c) for limit in self.limits)]
        if fitting:
            return min(fitting, key=lambda c: _figure(c, self.objective))
        nearest = min(candidates, key=lambda c: max(limit.excess(c) for limit in self.limits))
        over = [limit for limit in self.limits if limit.excess(nearest)]
        told = ", ".join(f"{li.name} {_told(li.name, _figure(nearest, li.name))}" for li in over)
        raise UsageError(
            f"no candidate keeps {' and '.join(limit.text for limit in self.limits)}; "
            f"{nearest.name} comes nearest: {told}",
            hint="loosen the rule, or explore again with --max-accuracy-drop, --max-weights or "
            "--max-arena",
        )


def check_pick(pick: str) -> None:
    """Raise UsageError for what can pick no candidate of any run."""
    if pick in ("best", "memory", "baseline") or pick.isdecimal():
        return
    if not pick or (";" not in pick and pick.strip() not in _FIGURES):
        raise UsageError(f"--pick {pick!r} is none of best, memory, baseline, an index from 0 or a "
                         f"rule (of {', '.join(_FIGURES)})", hint=HINT)  # fmt: skip
    Rule.parse(pick)


def pick_candidate(result: ExploreResult, pick: str) -> CandidateSummary:
    """The candidate asked for. Raises UsageError for one that is not there."""
    found = {"best": result.best, "memory": result.best_memory, "baseline": result.baseline}
    if pick in found:
        return result.candidates[found[pick]]
    if pick.isdecimal() and int(pick) < len(result.candidates):
        return result.candidates[int(pick)]
    if pick.isdecimal():
        names = ", ".join(f"{i} {c.name}" for i, c in enumerate(result.candidates))
        raise UsageError(f"no candidate {pick!r} in the run ({names})", hint=HINT)
    check_pick(pick)
    return Rule.parse(pick).choose(result.candidates)


def _figure(candidate: CandidateSummary, name: str) -> float:
    found = _FIGURES[name](candidate)
    if found is None:
        raise UsageError(
            f"the run has no {name} of {candidate.name}: it had no data to measure accuracy on",
            hint="explore with --data, or leave drop out of the rule",
        )
    return float(found)


def _known(name: str, rule: str) -> None:
    if name not in _FIGURES:
        raise UsageError(
            f"--pick {rule!r}: there is no figure {name!r}; figures: {', '.join(_FIGURES)}",
            hint=HINT,
        )


def _limit(part: str, rule: str) -> Limit:
    match = _CONSTRAINT.fullmatch(part)
    if match is None:
        raise UsageError(f"--pick {rule!r}: {part!r} is no limit such as drop<=0.5", hint=HINT)
    name, number, unit = match.groups()
    _known(name, rule)
    units = {n.upper(): u for n, u in _units(name).items()}
    try:
        most = float(number) * units[unit.upper()]
    except (ValueError, KeyError):
        most = math.nan
    if math.isnan(most):
        known = ", ".join(filter(None, _units(name))) or "percentage points, without a unit"
        raise UsageError(f"--pick {rule!r}: {number}{unit} is no {name}; units: {known}", hint=HINT)
    return Limit(name, most, part)


def _units(name: str) -> Mapping[str, float]:
    if name in _SIZES:
        return _BYTES
    return _TIMES if name == "latency" else {"": 1.0}


def _told(name: str, value: float) -> str:
    if name in _SIZES:
        return f"{value:.0f} bytes"
    return f"{value:.0f} us" if name == "latency" else f"{value:+.2f} points"
