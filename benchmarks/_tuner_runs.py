"""The stages of the benchmark, each for one workload in a process of its own; all resumable."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks._stages import say
from benchmarks._tuner_methods import (
    Bench,
    builtin_registry,
    measure_grid,
    measure_random,
    open_bench,
    space_digest,
    tune,
)
from benchmarks._tuner_results import (
    COLD,
    GRID,
    METASCHEDULE,
    RANDOM,
    WARM,
    Candidate,
    Comparison,
    Curve,
    Retimed,
    to_compare,
)
from benchmarks._tuner_workloads import workload_of
from tvmx.errors import MeasureError, UsageError
from tvmx.explore._evaluate import Pending
from tvmx.ir import Config
from tvmx.measure import KernelJob, Manners, TimingPolicy, open_runner
from tvmx.store import make_folder
from tvmx.targets import load_target

NEAR, MOST = 0.1, 16
"""Configs that look at most 10 % slower than the fastest are timed again, 16 of them at most."""

ROUNDS = 15


@dataclass(frozen=True)
class Settings:
    """What one start of the benchmark is to have: every workload, method and seed (0, 1, ...)."""

    out: Path
    workloads: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    trials: int

    def path(self, workload: str, method: str, seed: int) -> Path:
        """Where a run's measurements are."""
        return self.out / workload / f"{method}.{seed}.json"

    def comparison(self, workload: str) -> Path:
        """Where the fastest candidates' figures are, timed side by side."""
        return self.out / workload / "comparison.json"


@cache
def space_of(workload: str) -> str:
    """Digest of what the methods may choose from on this machine."""
    return space_digest(workload_of(workload), builtin_registry(), load_target("host"))


def load_curve(settings: Settings, workload: str, method: str, seed: int) -> Curve | None:
    """An earlier run that is still good: of the same space and teachers, and as long.

    MetaSchedule does not use the templates: a change of theirs leaves its runs good.
    """
    curve = Curve.load(settings.path(workload, method, seed))
    if curve is None or curve.trials < settings.trials:
        return None
    if method != METASCHEDULE and curve.space != space_of(workload):
        return None
    if method == WARM:
        teachers = [t for t in _teachers(settings, workload, seed).values() if t is not None]
        if curve.taught_by != _taught_by(teachers):  # one that is gone shows, too
            return None
    return curve


def load_curves(settings: Settings, workload: str) -> list[Curve]:
    """All runs of a workload that are there, by method and seed."""
    found = [
        load_curve(settings, workload, method, seed)
        for method in settings.methods
        for seed in range(settings.seeds)
    ]
    return [curve for curve in found if curve is not None]


def load_comparison(settings: Settings, workload: str) -> Comparison | None:
    """An earlier comparison of just these candidates."""
    found = Comparison.load(settings.comparison(workload))
    asked = tuple(to_compare(load_curves(settings, workload), settings.trials, NEAR, MOST))
    same = found is not None and found.space == space_of(workload) and found.asked == asked
    return found if same else None


def missing(settings: Settings, workload: str, methods: Sequence[str]) -> list[tuple[str, int]]:
    """(method, seed) of the runs still to be made."""
    return [
        (method, seed)
        for seed in range(settings.seeds)
        for method in methods
        if method in settings.methods and load_curve(settings, workload, method, seed) is None
    ]


def search(settings: Settings, workload: str, methods: Sequence[str]) -> None:
    """Make the missing runs of tvmx's own, random and grid."""
    make_folder(settings.out / workload)
    with open_bench(settings.out) as bench:
        for method, seed in missing(settings, workload, methods):
            say(f"{workload}: {method}, seed {seed}")
            curve = run_method(bench, settings, workload, method, seed)
            curve.save(settings.path(workload, method, seed))


def run_method(bench: Bench, settings: Settings, name: str, method: str, seed: int) -> Curve:
    """One run, from the journal as far as it knows the candidates."""
    workload, trials, evaluator = workload_of(name), settings.trials, bench.evaluator
    teachers = _all_teachers(settings, name, seed) if method == WARM else []
    evaluator.points = []
    recalled, start = evaluator.recalled, time.monotonic()
    if method == RANDOM:
        measure_random(bench, workload, seed, trials)
    elif method == GRID:
        measure_grid(bench, workload, seed, trials)
    else:
        taught = [r for t in teachers for r in bench.records(workload_of(t.workload), t)]
        tune(bench, workload, seed, trials, taught)
    return Curve(
        workload=name, method=method, seed=seed, trials=trials, space=space_of(name),
        taught_by=_taught_by(teachers), points=tuple(evaluator.points),
        recalled=evaluator.recalled - recalled, seconds=round(time.monotonic() - start, 1),
    )  # fmt: skip


def search_metaschedule(settings: Settings, workload: str, methods: Sequence[str]) -> None:
    """Make MetaSchedule's missing runs: ``methods`` is that alone."""
    from benchmarks import _tuner_metaschedule as metaschedule

    folder = settings.out / workload / METASCHEDULE
    with open_runner(None, Manners(), arch=load_target("host").arch) as runner:
        for method, seed in missing(settings, workload, methods):
            say(f"{workload}: {method}, seed {seed}")
            start = time.monotonic()
            points = metaschedule.search(
                workload_of(workload), seed, settings.trials, folder / str(seed), runner,
                TimingPolicy.quick(),
            )  # fmt: skip
            Curve(
                workload=workload, method=method, seed=seed, trials=settings.trials,
                space=space_of(workload), points=tuple(points), recalled=0,
                seconds=round(time.monotonic() - start, 1),
            ).save(settings.path(workload, method, seed))  # fmt: skip


def compare(settings: Settings, workload: str) -> None:
    """Time the fastest candidates of all runs side by side.

    Raises:
        MeasureError: none of them can be timed again.
    """
    asked = to_compare(load_curves(settings, workload), settings.trials, NEAR, MOST)
    say(f"{workload}: {len(asked)} of the fastest side by side, {ROUNDS} rounds")
    before = os.getloadavg()[0]
    with open_bench(settings.out) as bench:
        jobs = _jobs(bench, settings, workload, asked)
        measured = bench.runner.compare(list(jobs.values()), ROUNDS, TimingPolicy.careful())
    retimed = []
    for (template, config), one in zip(jobs, measured, strict=True):
        if one.ok:
            retimed.append(Retimed(template=template, config=config, us=one.latencies_us))
        else:
            say(f"{workload}: {template} {config} was not timed again: {one.message}")
    if not retimed:
        raise MeasureError(f"{workload}: none of {len(asked)} candidates could be timed again")
    Comparison(
        space=space_of(workload), asked=tuple(asked), retimed=tuple(retimed), load_before=before,
        load_after=os.getloadavg()[0],
    ).save(settings.comparison(workload))  # fmt: skip


def _jobs(
    bench: Bench, settings: Settings, name: str, candidates: Sequence[Candidate]
) -> dict[Candidate, KernelJob]:
    """Libraries built again where they are gone; what does not build is left out, and said."""
    from benchmarks import _tuner_metaschedule as metaschedule
    from tvmx.templates import make_operands

    workload, evaluator = workload_of(name), bench.evaluator
    tasks = {task.entry.name: task for task in bench.tasks(workload)}
    folder = settings.out / name / METASCHEDULE
    pending: dict[Candidate, Any] = {}
    for template, text in candidates:
        if template != METASCHEDULE:
            build = evaluator._build_job(tasks[template], Config(json.loads(text)))
            pending[template, text] = bench.pool.submit(build)
    jobs: dict[Candidate, KernelJob] = {}
    operands = make_operands(workload)
    for template, text in candidates:
        if template == METASCHEDULE:
            jobs[template, text] = metaschedule.kept_job(workload, operands, folder, text)
            continue
        built = pending[template, text].result()
        if not built.ok:
            say(f"{name}: {template} {text} did not build again: {built.error.message}")
            continue
        task, config = tasks[template], Config(json.loads(text))
        one = Pending(task, config, evaluator.key(task, config))
        jobs[template, text] = evaluator._job(one, built.library)
    return jobs


def _teachers(settings: Settings, workload: str, seed: int) -> dict[str, Curve | None]:
    """The cold runs of the other workloads with this seed; None where there is none."""
    others = [name for name in settings.workloads if name != workload]
    return {name: load_curve(settings, name, COLD, seed) for name in others}


def _all_teachers(settings: Settings, workload: str, seed: int) -> list[Curve]:
    """The same, all there. Raises UsageError."""
    curves = []
    for name, curve in _teachers(settings, workload, seed).items():
        if curve is None:
            raise UsageError(
                f"a warm run on {workload} learns from the cold one on {name}, seed {seed},"
                " which is not there, or of other templates",
                hint="--methods cold,warm",
            )
        curves.append(curve)
    return curves


def _taught_by(teachers: Sequence[Curve]) -> tuple[str, ...]:
    """Names of the teachers with a digest of what each measured."""
    taught = []
    for teacher in teachers:
        points = teacher.model_dump_json(include={"points"})
        taught.append(f"{teacher.workload} {hashlib.sha256(points.encode()).hexdigest()[:8]}")
    return tuple(taught)
