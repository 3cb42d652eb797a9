"""The last part of an exploration: plans are built, measured whole, compared and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean

from tvmx.errors import MeasureError
from tvmx.explore._accuracy import Scorer
from tvmx.explore._budget import Budget
from tvmx.explore._chooser import Chooser
from tvmx.explore._compress import Compression
from tvmx.explore._context import Context
from tvmx.explore._phases import Phases
from tvmx.explore._request import ExploreRequest
from tvmx.explore._search import KEPT, Assignment, Found
from tvmx.explore._so_far import SoFar
from tvmx.explore._table import TunedTable
from tvmx.explore._terms import l2_bytes, table_terms
from tvmx.explore._wholes import ROUNDS, Wholes
from tvmx.ir import Plan
from tvmx.measure import Measurement
from tvmx.search import DeployEnv, Measured, Sample, held_out
from tvmx.store import Run

MOST = 12
"""Plans that are built and measured at the most, where there is time."""
_SPARE_S = 1.0  # for what is not estimated


@dataclass
class Ending:
    """Plays plans in the measured environment while there is time, then compares what ran right.

    ``taught`` is what earlier runs measured of whole plans. ``score_s`` are the seconds that
    scoring one candidate takes.
    """

    request: ExploreRequest
    context: Context
    folder: Run
    budget: Budget
    phases: Phases
    table: TunedTable
    compression: Compression | None
    scorer: Scorer | None
    wholes: Wholes
    found: Found
    taught: tuple[Sample, ...]
    notes: list[str]
    score_s: float = 0.0
    _digests: set[str] = field(default_factory=set)
    _best_us: float | None = None

    def __post_init__(self) -> None:
        self.chooser = Chooser(self.found, self._terms, self.taught, cold=self._cold)

    def measure_plans(self) -> None:
        """Plans, the most promising first, each a whole episode with its measured latency."""
        self.phases.stage("plans")
        self._digests = {self.wholes.baseline.plan.digest}
        env = DeployEnv(self.table.table, measure=self._measured)
        asked = 0
        coming = iter(self.chooser)
        while not self._enough(asked) and (assignment := next(coming, None)) is not None:
            if self._plan(assignment).digest in self._digests:
                continue
            asked += 1
            env.reset()
            for action in assignment:
                info = env.step(action)[4]
            self.phases.update(
                asked, self._wanted, best_us=info["measured_us"],
                baseline_us=self.wholes.first.median_us, seconds_left=self.budget.left_s,
            )  # fmt: skip
        self.notes += self.wholes.failed
        self._tell_correction()

    def compare(self) -> list[Measurement]:
        """The baseline and all that ran right, interleaved.

        Raises MeasureError when the baseline fails beside the others.
        """
        self.phases.stage("measure")
        scoring = self.score_s * len(self.wholes.built) + _SPARE_S
        measured = self.wholes.compare(self.wholes.rounds(scoring))
        if not measured[0].ok:
            raise MeasureError(f"the baseline failed beside the others: {measured[0].message}")
        return measured

    @property
    def _wanted(self) -> int:
        return KEPT if self.budget.seconds is None or self.request.trials is not None else MOST

    def _enough(self, asked: int) -> bool:
        """One plan is always measured; more while the budget has time to build, time and score."""
        if asked >= self._wanted:
            return True
        count = len(self.wholes.built)
        another = self.wholes.another_s + self.score_s
        ending = self.wholes.comparison_s(count) + count * self.score_s + _SPARE_S
        return asked > 0 and not self.budget.affords(another + ending)

    def _measured(self, assignment: Assignment) -> Measured:
        plan = self._plan(assignment)
        self._digests.add(plan.digest)
        name = f"plan{len(self._digests) - 1}"
        sample = self.chooser.sample(assignment)
        found = self.wholes.measure(name, plan, sample.predicted_us, sample.terms)
        if found.latency_us is not None:
            self.chooser.samples.append(sample._replace(measured_us=found.latency_us))
            self._keep_best(plan, found, assignment)
        return found

    def _keep_best(self, plan: Plan, found: Measured, assignment: Assignment) -> None:
        """The fastest plan so far can be exported while the others are measured."""
        assert found.latency_us is not None
        request, build = self.request, self.wholes.built[-1].build
        fits = (request.max_weights is None or build.weights_bytes <= request.max_weights) and (
            request.max_arena is None or build.arena_bytes <= request.max_arena
        )
        if not fits or found.latency_us >= (self._best_us or found.baseline_us):
            return
        self._best_us = found.latency_us
        drop = self.found.drop(assignment)
        told = (
            f"the exploration was not over: the fastest plan so far, {found.latency_us:.0f} us "
            f"beside the baseline's {found.baseline_us:.0f} us"
        )
        if drop is not None:
            told += f"; {drop:+.2f} points by simulation on data that choices may see"
        SoFar(plan=plan, told=told, seconds=self.budget.elapsed_s, whole=True).save(self.folder)

    def _plan(self, assignment: Assignment) -> Plan:
        note = f"explored by tvmx, seed {self.request.seed}"
        plan = self.table.plan(assignment, self.request.seed, note)
        return plan if self.compression is None else self.compression.complete(plan)

    def _terms(self, assignment: Assignment) -> dict[str, float]:
        target, threads = self.context.target, self.request.threads
        return table_terms(self.table.table, target, threads, assignment)

    @property
    def _cold(self) -> bool:
        """Whether the tuned baseline's constants alone are larger than the L2."""
        table = self.table.table
        l2 = l2_bytes(self.context.target, self.request.threads)
        return table.weights_bytes(table.baseline) > l2

    def _tell_correction(self) -> None:
        samples = self.chooser.samples
        if len(samples) < 2:
            return
        taken = [s.measured_us for s in samples]
        groups = [*("earlier" for _ in self.taught), *range(len(samples))]
        guessed = held_out([*self.taught, *samples], groups)[len(self.taught) :]
        before = mean(abs(s.predicted_us / s.measured_us - 1) for s in samples)
        after = mean(abs(guess / us - 1) for guess, us in zip(guessed, taken, strict=True))
        self.notes.append(
            f"the cost table was {before:.1%} off for {len(taken)} plans measured whole, "
            f"{after:.1%} corrected by the others"
            + (f" and {len(self.taught)} of earlier runs" if self.taught else "")
        )


def reserved_s(wholes: Wholes, score_s: float) -> float:
    """What the ending will take, going by the baseline: as many plans as trials alone would get."""
    plans = KEPT * (wholes.another_s + score_s)
    return plans + wholes.comparison_s(0, ROUNDS) + score_s + _SPARE_S
