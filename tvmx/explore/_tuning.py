"""Tuning kernels: every default first, then knobs where the network gains most."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tvmx.build import BuildResult
from tvmx.explore._budget import Budget
from tvmx.explore._evaluate import KernelEvaluator, Pending, Task
from tvmx.ir import DENSE, Config, Plan
from tvmx.measure import Measurement, compare_measured
from tvmx.passes import choose, versions
from tvmx.store import MeasurementRecord
from tvmx.targets import Target
from tvmx.tune import BudgetAllocator, KnobTuner, Ranker, TuningState

if TYPE_CHECKING:
    from tvmx.explore._context import Context

_BATCH = 8
_BATCHES_AHEAD = 2
_RETIMED = 3  # fastest configs timed again against the default
_RETIME_ROUNDS = 7
_RETIMED_WITHIN = 1.3  # templates slower than this times the workload's best are not timed again
_PATIENCE = 3  # batches without improvement that end the tuning of a task


def noise(measurement: Measurement) -> tuple[float, float]:
    """What encloses the true median, in us: its interval, or all repeats where they are few."""
    latencies = measurement.latencies_us
    return measurement.interval_us or (min(latencies), max(latencies))


@dataclass(eq=False)
class Tuned:
    """A task with its tuner and what was found. Latencies in us; None where it failed.

    ``noise_us`` encloses the true ``best_us``; ``coming`` are descriptions asked for.
    """

    task: Task
    tuner: KnobTuner
    default_us: float | None = None
    best_us: float | None = None
    best: Config | None = None
    trials: int = 0
    idle: bool = False  # nothing left to propose
    observed: dict[Config, float] = field(default_factory=dict)
    noise_us: tuple[float, float] | None = None  # encloses best_us
    coming: list[tuple[Config, Future[BuildResult]]] = field(default_factory=list)

    def observe(
        self, config: Config, measurement: Measurement, features: Mapping[str, float] | None
    ) -> None:
        """Learn one measurement; ``features`` describe the kernel."""
        us = measurement.median_us if measurement.ok else None
        if features is not None:
            self.tuner.describe(config, features)
        self.tuner.observe(config, us)
        if self.trials == 0:
            self.default_us = us
        self.trials += 1
        if us is not None:
            self.observed[config] = us
        if us is not None and (self.best_us is None or us < self.best_us):
            self.best_us, self.best, self.noise_us = us, config, noise(measurement)

    def fastest(self, count: int) -> list[Config]:
        """The fastest configs observed, best first."""
        ranked = sorted(self.observed.items(), key=lambda item: item[1])
        return [config for config, _ in ranked[:count]]

    def settle(self, configs: list[Config], measured: list[Measurement]) -> None:
        """Take the re-timed figures; ``configs[0]`` is the default."""
        medians = [m.median_us or math.inf for m in measured]
        index = medians.index(min(medians))
        if index and compare_measured(measured[index], measured[0]).verdict != "faster":
            index = 0
        self.default_us = medians[0]
        self.best, self.best_us = configs[index], medians[index]
        self.noise_us = noise(measured[index])


@dataclass
class KernelTuning:
    """Runs the tuning of all tasks of a network.

    ``uses`` counts the layers of each workload digest. ``on_batch`` is called after each
    batch. ``taught`` are records of other runs that the ranker starts from. The order of
    measurements depends only on the seed, on these, and on what was measured.
    """

    tasks: Sequence[Task]
    uses: dict[str, int]
    evaluator: KernelEvaluator
    budget: Budget
    target: Target
    seed: int
    on_batch: Callable[[KernelTuning], None]
    taught: Sequence[MeasurementRecord] = ()

    def __post_init__(self) -> None:
        ranker = Ranker(self.seed)
        for record in self.taught:
            if record.features is not None:
                measurement = Measurement.model_validate(record.measurement)
                us = measurement.median_us if measurement.ok else None
                ranker.learn(record.key.workload, record.features, us)
        self.tuned = [
            Tuned(t, KnobTuner(t.entry.template.space(t.variant, self.target), t.variant,
                               t.entry.name, self.target, seed=self.seed, ranker=ranker))
            for t in self.tasks
        ]  # fmt: skip
        self.trials = 0
        self._started = 0
        self._ahead: Tuned | None = None
        self._allocator = BudgetAllocator()

    def defaults(self) -> None:
        """Measure the default config of every task, the baseline's first.

        Those are measured whatever the budget, the others while it lasts: dense kernels of all
        layers before any sparse one, of which a layer has many.
        """
        firsts = self._firsts()
        self._measure_defaults([t for t in self.tuned if t in firsts], bounded=False)
        others = [t for t in self.tuned if t not in firsts]
        others.sort(key=lambda t: t.task.variant.sparsity != DENSE)
        self._measure_defaults(others, bounded=True)

    def run(self, tasks: Container[Task]) -> None:
        """Tune the knobs of ``tasks`` until the budget is used up or nothing is left."""
        for tuned in self.tuned:
            tuned.idle = tuned.task not in tasks
        self._ahead = None
        self._pipeline(self._next_batch, bounded=True)

    def retime(self) -> None:
        """Decide each task between its default and its fastest configs, side by side.

        A config that does not beat the default beyond the spread gives way to it. Ends early where
        the budget's seconds do.
        """
        for tuned in self.tuned:
            if self.budget.retiming_over:
                return
            variant = tuned.task.variant
            rivals = [t.best_us for t in self.tuned if t.best_us and t.task.variant == variant]
            if tuned.best_us is None or tuned.best_us > _RETIMED_WITHIN * min(rivals):
                continue
            default = tuned.tuner.space.default
            configs = [default, *(c for c in tuned.fastest(_RETIMED) if c != default)]
            if len(configs) == 1 or tuned.default_us is None:
                continue
            measured = self.evaluator.retime(tuned.task, configs, _RETIME_ROUNDS)
            if measured:
                tuned.settle(configs, measured)
            self.on_batch(self)

    def best_estimate_us(self) -> float | None:
        """Sum over layers of the fastest implementation so far, borders not counted."""
        return self._sum(lambda t: t.best_us)

    def default_estimate_us(self) -> float | None:
        """The same for the baseline: each workload's first template at its default."""
        firsts = self._firsts()
        if any(t.default_us is None for t in firsts):
            return None
        return sum((t.default_us or 0.0) * self.uses[t.task.workload.digest] for t in firsts)

    def plan(self, context: Context, seed: int) -> Plan:
        """The baseline's templates at the fastest configs so far: nothing that changes numbers."""
        firsts = {t.task.workload.digest: t for t in self._firsts()}
        choices = []
        for layer in context.covered:
            tuned = firsts[layer.workload.digest]
            task = tuned.task
            choices.append(
                choose(task.entry, layer, context.target, tuned.best, task.implementation)
            )
        return Plan(
            model=context.model.digest, target=context.target.name, choices=tuple(choices),
            seed=seed, versions=versions(), note=f"the fastest kernels of {self.trials} so far",
        )  # fmt: skip

    def told(self) -> str:
        """What :meth:`plan` is, for a bundle's notes."""
        best, default = self.best_estimate_us(), self.default_estimate_us()
        told = f"the baseline's templates, tuned on {self.trials} kernels, not measured whole"
        if best is None or default is None:
            return told
        return f"{told} (kernels alone: at best {best:.0f} us of {default:.0f} us)"

    def _sum(self, value: Callable[[Tuned], float | None]) -> float | None:
        total = 0.0
        for digest, count in self.uses.items():
            found = [v for t in self._of(digest) if (v := value(t)) is not None]
            if not found:
                return None
            total += min(found) * count
        return total

    def _of(self, digest: str) -> list[Tuned]:
        return [t for t in self.tuned if t.task.workload.digest == digest]

    def _firsts(self) -> list[Tuned]:
        """The baseline's tasks: without their figures there is no exploration."""
        return list({t.task.workload.digest: t for t in reversed(self.tuned)}.values())

    def _measure_defaults(self, tasks: Sequence[Tuned], *, bounded: bool) -> None:
        queue = deque(tasks)

        def batch() -> list[tuple[Tuned, Config]]:
            if bounded and self.budget.tuning_over(self._started):
                return []
            room = self.budget.room(self._started, _BATCH) if bounded else _BATCH
            chosen = [queue.popleft() for _ in range(min(room, len(queue)))]
            return [(t, config) for t in chosen for config in t.tuner.propose(1)]

        self._pipeline(batch, bounded=bounded)

    def _next_batch(self) -> list[tuple[Tuned, Config]]:
        """The next batch, and the descriptions for the one behind it on their way.

        They are asked for a batch early, so that nobody waits for them.
        """
        while not self.budget.tuning_over(self._started):
            if self._ahead is None:
                self._ahead = self._pick()
                self._describe(self._ahead)
            tuned = self._ahead
            if tuned is None:
                return []
            for config, description in tuned.coming:
                tuned.tuner.describe(config, description.result().features or None)
            tuned.coming.clear()
            configs = tuned.tuner.propose(self.budget.room(self._started, _BATCH))
            if not configs:
                tuned.idle = True
            self._ahead = self._pick()
            self._describe(self._ahead)
            if configs:
                return [(tuned, config) for config in configs]
        return []

    def _describe(self, tuned: Tuned | None) -> None:
        """Start describing what the next proposals of a task are chosen from."""
        if tuned is not None:
            tuned.coming = [
                (config, self.evaluator.describe(tuned.task, config))
                for config in tuned.tuner.shortlist(_BATCH)
            ]

    def _pick(self) -> Tuned | None:
        """The task whose tuning promises most for the network's latency."""
        index = self._allocator.next_workload([self._state(t) for t in self.tuned])
        return None if index is None else self.tuned[index]

    def _state(self, tuned: Tuned) -> TuningState:
        digest = tuned.task.workload.digest
        rivals = [t.best_us for t in self._of(digest) if t is not tuned and t.best_us is not None]
        finished = tuned.idle or tuned.best_us is None or tuned.tuner.finished(_PATIENCE)
        return TuningState(
            layers=self.uses[digest],
            history=tuned.tuner.history(),
            rival_us=min(rivals, default=None),
            finished=finished,
        )

    def _pipeline(
        self, next_batch: Callable[[], list[tuple[Tuned, Config]]], *, bounded: bool
    ) -> None:
        """Keep builds of the next batches running while one batch is measured.

        ``bounded``: what is not measured when the time is over is given up.
        """
        flying: deque[list[tuple[Tuned, Pending]]] = deque()
        exhausted = False
        while True:
            while len(flying) < _BATCHES_AHEAD and not exhausted:
                batch = next_batch()
                self._started += len(batch)
                exhausted = not batch
                if batch:
                    flying.append([(t, self.evaluator.submit(t.task, c)) for t, c in batch])
            if not flying:
                return
            if bounded and self.budget.time_over:
                self._started -= sum(map(len, flying))
                return
            done = flying.popleft()
            results = self.evaluator.finish([pending for _, pending in done])
            for (tuned, pending), measurement in zip(done, results, strict=True):
                if measurement is None:
                    self._started -= 1
                    continue
                tuned.observe(pending.config, measurement, pending.features())
                self.trials += 1
            self.on_batch(self)
