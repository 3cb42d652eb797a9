"""Building whole plans and measuring them end to end; every figure is in the journal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tvmx.errors import BuildError, TemplateError
from tvmx.explore._budget import Budget
from tvmx.explore._evaluate import KernelEvaluator
from tvmx.explore._lessons import PREDICTED, WHOLE
from tvmx.explore._whole import BuiltPlan
from tvmx.ir import Plan
from tvmx.measure import Measurement, NetworkJob, Runner, TimingPolicy, compare_measured
from tvmx.search import Measured

ROUNDS = 15
"""Of the comparison of all finalists."""
FEWEST_ROUNDS = 6
"""With fewer a difference cannot be told from noise at all."""
_PAIRED = 7  # rounds of one plan against the baseline
_LEAST_ROUND_S = 0.02  # what one network is timed for in a round, at least


@dataclass
class Wholes:
    """Whole plans next to the baseline. ``timed`` counts how often a network was timed so far.

    ``build`` compiles a plan under a name, ``job`` makes what was built measurable. ``failed``
    tells why plans have no figure.
    """

    baseline: BuiltPlan
    first: Measurement
    runner: Runner
    evaluator: KernelEvaluator
    budget: Budget
    build: Callable[[str, Plan], BuiltPlan]
    job: Callable[[BuiltPlan], NetworkJob]
    build_s: float
    built: list[BuiltPlan] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    timed: int = 0
    _paired_s: float = 0.0

    @property
    def baseline_s(self) -> float:
        """Seconds that the network takes, or keeps a simulator busy."""
        return self.runner.slowest_s if self.runner.simulated else (self.first.median_us or 0) / 1e6

    @property
    def another_s(self) -> float:
        """Seconds that one more plan will take: building, pairing, its part of the comparison."""
        if self.runner.simulated:
            return self.build_s + self.baseline_s
        paired = self._paired_s or 2 * _PAIRED * self._round_s + 1.0
        return self.build_s + paired + ROUNDS * self._round_s

    @property
    def _round_s(self) -> float:
        return max(_LEAST_ROUND_S, 1.2 * self.baseline_s)

    def comparison_s(self, plans: int, rounds: int = ROUNDS) -> float:
        """Seconds that comparing so many plans and the baseline will take."""
        return 0.0 if self.runner.simulated else 1.0 + (plans + 1) * rounds * self._round_s

    def measure(
        self, name: str, plan: Plan, predicted_us: float, terms: Mapping[str, float]
    ) -> Measured:
        """Build a plan and time it in turns with the baseline. What is wrong with it is told.

        ``predicted_us`` and ``terms`` go to the journal with the figure, for later runs.
        """
        before = self.budget.elapsed_s
        try:
            built = self.build(name, plan)
        except (BuildError, TemplateError) as err:
            return self._failure(name, "build", err.message)
        self.build_s = max(self.build_s / 2, self.budget.elapsed_s - before)
        before = self.budget.elapsed_s
        mine, baseline = self._paired(built, {**terms, PREDICTED: predicted_us})
        self._paired_s = self.budget.elapsed_s - before
        if not baseline.ok:
            told = f"the baseline beside it: {baseline.message}"
            return self._failure(name, baseline.status, told)
        if not mine.ok or mine.median_us is None:
            return self._failure(name, mine.status, mine.message)
        self.built.append(built)
        ratio = compare_measured(mine, baseline).ratio
        reference = baseline.median_us or 1.0
        return Measured(ratio * reference, reference)

    def compare(self, rounds: int) -> list[Measurement]:
        """The baseline and everything built, interleaved; from the journal where it is known.

        A simulated figure is the same again, so simulated boards are not asked twice.
        """
        plans = [self.baseline, *self.built]
        if self.runner.simulated:
            return [self.first, *(self._known(WHOLE + p.plan.digest) for p in self.built)]
        text = "|".join(plan.plan.digest for plan in plans)
        group = hashlib.sha256(text.encode()).hexdigest()[:12]
        keys = [self.evaluator.named_key(f"{WHOLE}{p.plan.digest}:{group}") for p in plans]
        known = [m for key in keys if (m := self.evaluator.recall(key)) is not None]
        if len(known) == len(keys):
            return known
        jobs = [self.job(plan) for plan in plans]
        measured = self.runner.compare(jobs, rounds, TimingPolicy.careful())
        self.timed += len(jobs)
        if not any(m.device_fault for m in measured):
            for key, measurement in zip(keys, measured, strict=True):
                self.evaluator.keep(key, measurement, {})
        return measured

    def rounds(self, others_s: float) -> int:
        """As many rounds of the comparison as the budget has time for, besides ``others_s``."""
        left = self.budget.left_s
        if left is None:
            return ROUNDS
        per_round = (len(self.built) + 1) * self._round_s
        return max(FEWEST_ROUNDS, min(ROUNDS, int((left - others_s - 1.0) / per_round)))

    def _paired(
        self, built: BuiltPlan, features: Mapping[str, float]
    ) -> tuple[Measurement, Measurement]:
        name = WHOLE + built.plan.digest
        keys = [self.evaluator.named_key(name), self.evaluator.named_key(f"{name}:baseline")]
        known = [m for key in keys if (m := self.evaluator.recall(key)) is not None]
        if len(known) == len(keys):
            return known[0], known[1]
        if self.runner.simulated:
            (mine,), baseline = self.runner.measure([self.job(built)]), self.first
            self.timed += 1
        else:
            jobs = [self.job(self.baseline), self.job(built)]
            baseline, mine = self.runner.compare(jobs, _PAIRED, TimingPolicy.careful())
            self.timed += 2
        if not mine.device_fault and baseline.ok:
            self.evaluator.keep(keys[0], mine, features)
            self.evaluator.keep(keys[1], baseline, {})
        return mine, baseline

    def _known(self, name: str) -> Measurement:
        found = self.evaluator.recall(self.evaluator.named_key(name))
        assert found is not None  # what is built was measured and kept
        return found

    def _failure(self, name: str, outcome: str, message: str) -> Measured:
        self.failed.append(f"{name} was dropped: {outcome}: {message}")
        return Measured(None, self.first.median_us or 1.0, outcome, message)
