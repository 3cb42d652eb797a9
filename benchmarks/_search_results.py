"""What agents found after how many plans, and what is made of it: records as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks._records import Record

WITHIN = 0.01
FEW = (2, 11, 101)
"""Episodes of the short runs: the baseline, and 1, 10 and 100 plans besides."""


class Step(Record):
    """From episode number ``episode`` on (the first is 1) the best plan takes ``us``.

    ``plans`` counts the distinct plans played by then: what would have to be measured.
    """

    episode: int
    plans: int
    us: float


class Curve(Record):
    """One agent on one case with one seed, told that it has ``episodes``.

    ``steps`` are its improvements; ``played`` and ``plans`` the episodes it took and the distinct
    plans among them. ``cpu_s`` is processor time, thinking and environment together; ``wall_s``
    what a clock saw (None: made before it was kept), which other work on the machine lengthens.
    """

    case: str
    digest: str
    agent: str
    seed: int
    episodes: int
    steps: tuple[Step, ...]
    played: int
    plans: int
    cpu_s: float
    wall_s: float | None = None

    def best_us(self, plans: int | None = None) -> float | None:
        """The best of so many distinct plans, of all by default; None where none is feasible."""
        found = [step.us for step in self.steps if plans is None or step.plans <= plans]
        return found[-1] if found else None

    def within(self, us: float) -> Step | None:
        """The improvement that first came down to ``us``."""
        return next((step for step in self.steps if step.us <= us), None)


class Line(Record):
    """An agent on a case at a number of episodes; figures are medians over the seeds.

    ``regret`` is how much longer its best plan takes than the optimum (0.01: 1 %), ``worst`` that
    of the worst seed; ``episodes_within`` and ``plans_within`` what it took to come within 1 %,
    None where the median seed did not. ``curve`` is the regret after 1, 2, 5, 10, 20, ... distinct
    plans: so many would have to be measured. ``wall_s`` is of the runs that have one.
    """

    agent: str
    regret: float
    worst: float
    episodes_within: float | None
    plans_within: float | None
    plans: float
    cpu_s: float
    wall_s: float | None
    curve: tuple[tuple[int, float], ...]


class Summary(Record):
    """A case: its baseline and optimum in us, and every agent after few and all episodes.

    ``few`` has a tuple for every length in ``FEW``. ``proven``: the optimum is certain.
    """

    case: str
    layers: int
    choices: float
    baseline_us: float
    exact_us: float
    proven: bool
    exact_cpu_s: float
    exact_wall_s: float
    few: tuple[tuple[Line, ...], ...]
    long: tuple[Line, ...]

    def line(self, agent: str, few: int | None = None) -> Line | None:
        """An agent's line, of the short runs with so many episodes or of the long ones."""
        lines = self.long if few is None else self.few[FEW.index(few)]
        return next((line for line in lines if line.agent == agent), None)


class Report(Record):
    """Everything the tables show."""

    machine: str
    versions: dict[str, str]
    seeds: int
    episodes: int
    cases: tuple[Summary, ...]


def line_of(agent: str, curves: Sequence[Curve], exact_us: float) -> Line:
    """What an agent's runs of one length came to."""
    limit = (1 + WITHIN) * exact_us

    def regret(curve: Curve, plans: int | None = None) -> float:
        us = curve.best_us(plans)
        return float("inf") if us is None else us / exact_us - 1

    last = [regret(c) for c in curves]
    reached = [c.within(limit) for c in curves]
    walls = [c.wall_s for c in curves if c.wall_s is not None]
    return Line(
        agent=agent, regret=statistics.median(last), worst=max(last),
        episodes_within=_median([s and s.episode for s in reached]),
        plans_within=_median([s and s.plans for s in reached]),
        plans=statistics.median(c.plans for c in curves),
        cpu_s=statistics.median(c.cpu_s for c in curves),
        wall_s=statistics.median(walls) if walls else None,
        curve=tuple(
            (n, statistics.median(regret(c, n) for c in curves))
            for n in _marks(max(c.plans for c in curves))
        ),
    )  # fmt: skip


def _median(counts: Sequence[int | None]) -> float | None:
    median = statistics.median(float("inf") if c is None else c for c in counts)
    return None if median == float("inf") else median


def _marks(most: int) -> list[int]:
    marks = [m * 10**k for k in range(6) for m in (1, 2, 5)]
    return sorted({*(m for m in marks if m < most), most})
