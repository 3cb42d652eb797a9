"""The methods compared: each spends ``trials`` measurements on a workload, seeded.

All but MetaSchedule choose among the configs of all float, dense built-in templates that support
the workload, and measure through one evaluator with one journal: a config has the same figure
whoever measures it, and it is measured once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._tuner_results import Curve, Point, config_text
from benchmarks._tuner_workloads import Workload
from tvmx.build import BuildPool
from tvmx.explore._budget import Budget
from tvmx.explore._evaluate import KernelEvaluator, Pending, Task
from tvmx.explore._tuning import KernelTuning
from tvmx.ir import Config
from tvmx.measure import Manners, Measurement, Runner, open_runner
from tvmx.passes import versions
from tvmx.store import Journal, MeasurementRecord
from tvmx.targets import Target, load_target
from tvmx.templates import Registry

_BATCH = 8


class Recorder(KernelEvaluator):
    """An evaluator that notes every measurement it is asked for, recalled ones too, in order."""

    points: list[Point]

    def finish(self, batch: list[Pending]) -> list[Measurement]:
        """See :meth:`KernelEvaluator.finish`."""
        results = super().finish(batch)
        for pending, measured in zip(batch, results, strict=True):
            us = measured.median_us if measured.ok else None
            name = pending.task.entry.name
            self.points.append(Point(template=name, config=config_text(pending.config), us=us))
        return results


@dataclass(frozen=True, eq=False)
class Bench:
    """This machine as a device, 1 thread, and what is measured on it."""

    target: Target
    registry: Registry
    journal: Journal
    runner: Runner
    pool: BuildPool
    evaluator: Recorder

    def tasks(self, workload: Workload) -> list[Task]:
        """One task for each float, dense template that supports the workload."""
        found = self.registry.implementations(workload, self.target, exact=True)
        return [Task(workload, entry, implementation) for entry, implementation in found]

    def records(self, workload: Workload, curve: Curve) -> list[MeasurementRecord]:
        """The journal's records of a run's measurements, in measuring order."""
        tasks = {task.entry.name: task for task in self.tasks(workload)}
        keys = [
            self.evaluator.key(tasks[p.template], Config(json.loads(p.config)))
            for p in curve.points
        ]
        return [record for key in keys if (record := self.journal.lookup(key)) is not None]


@contextmanager
def open_bench(out: Path) -> Iterator[Bench]:
    """A device server and build workers on this machine; the journal is in ``out``."""
    manners = Manners()
    target, registry = load_target("host"), builtin_registry()
    journal = Journal(out / "journal.jsonl")
    workers = max(1, (os.cpu_count() or 2) - 1)  # one core measures
    with (
        open_runner(None, manners, arch=target.arch) as runner,
        BuildPool(workers) as pool,
    ):
        evaluator = Recorder(
            target=target, target_key=f"{target.name}:{target.cpu}", device=runner.key,
            manners=manners, versions=versions(), journal=journal, runner=runner, pool=pool,
            folder=out / "kernels",
        )  # fmt: skip
        evaluator.points = []
        try:
            yield Bench(target, registry, journal, runner, pool, evaluator)
        finally:
            evaluator.clear()


def builtin_registry() -> Registry:
    """The templates that ship with tvmx, none of the user's."""
    registry = Registry()
    registry.load_builtin()
    return registry


def space_digest(workload: Workload, registry: Registry, target: Target) -> str:
    """What the methods choose from, in short: other templates, other figures."""
    legal = registry.legal(workload, target)
    sizes = [(e.name, e.fingerprint, len(e.template.space(workload, target))) for e in legal]
    text = json.dumps([workload.canonical(), sizes, versions()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tune(
    bench: Bench, workload: Workload, seed: int, trials: int, taught: Sequence[MeasurementRecord]
) -> None:
    """The tuner of tvmx; ``taught`` are measurements of other workloads it learns from first."""
    tuning = KernelTuning(
        tasks=bench.tasks(workload), uses={workload.digest: 1}, evaluator=bench.evaluator,
        budget=Budget(None, trials), target=bench.target, seed=seed, on_batch=lambda _: None,
        taught=taught,
    )  # fmt: skip
    tuning.defaults()
    tuning.run(tuning.tasks)


def measure_random(bench: Bench, workload: Workload, seed: int, trials: int) -> None:
    """Any configs, all equally likely, none twice."""
    _measure(bench, workload, trials, lambda total: random_order(total, seed))


def measure_grid(bench: Bench, workload: Workload, seed: int, trials: int) -> None:
    """Configs at even distances in the order the spaces list them."""
    _measure(bench, workload, trials, lambda total: grid_order(total, seed))


def random_order(total: int, seed: int) -> list[int]:
    """All numbers below ``total``, shuffled."""
    return [int(i) for i in np.random.default_rng(seed).permutation(total)]


def grid_order(total: int, seed: int) -> list[int]:
    """All numbers below ``total``; the first n of them, for any n, at about even distances.

    The van der Corput sequence (bits reversed), which the seed shifts cyclically.
    """
    bits = max(1, (total - 1).bit_length())
    shift = float(np.random.default_rng(seed).random())
    fractions = (int(f"{i:0{bits}b}"[::-1], 2) / 2**bits for i in range(2**bits))
    order = (int((fraction + shift) % 1.0 * total) for fraction in fractions)
    return list(dict.fromkeys(order))


def _measure(
    bench: Bench, workload: Workload, trials: int, order: Callable[[int], list[int]]
) -> None:
    """Measure the first of an order of all points, the next batch being built meanwhile."""
    points = [
        (task, config)
        for task in bench.tasks(workload)
        for config in task.entry.template.space(task.variant, bench.target).points()
    ]
    chosen = order(len(points))[:trials]
    batches = [chosen[i : i + _BATCH] for i in range(0, len(chosen), _BATCH)]
    flying: list[list[Pending]] = []
    for batch in batches:
        flying.append([bench.evaluator.submit(*points[i]) for i in batch])
        if len(flying) > 1:
            bench.evaluator.finish(flying.pop(0))
    for pending in flying:
        bench.evaluator.finish(pending)
