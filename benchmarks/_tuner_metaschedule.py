"""MetaSchedule on a workload: its own search, tvmx's builds in killable workers and measuring.

Importing this module imports TVM. What MetaSchedule was given, and why not just its defaults:

- its default rules, post-processors and evolutionary search for the ``llvm`` target of this
  machine, one core;
- channels-last data and weights in any layout it likes (see ``_tuner_ms_build``);
- ``ROUND`` trials a round instead of 64, and a cost model that ranks from the second round on
  instead of after 100 measurements: by default 64 trials would all be random samples;
- builders that time out after a minute, and the runner, the timing policy and the check of the
  output that tvmx's candidates get. Its own runner fills arrays with noise and checks nothing.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import shutil
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pebble import ProcessPool
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule

from benchmarks._tuner_ms_build import (
    CandidateBuild,
    build_candidate,
    channels_last,
    packed_for,
    plain_weight,
    te_workload,
)
from benchmarks._tuner_results import METASCHEDULE, TOP, Point
from benchmarks._tuner_workloads import Workload
from tvmx._tvm import tvm
from tvmx.build import SYMBOL
from tvmx.measure import KernelJob, Runner, TimingPolicy
from tvmx.targets import load_target
from tvmx.templates import make_operands

ROUND = 32
STRATEGY = "evolutionary"
"""MetaSchedule's own default, with a population of 512."""

_BUILD_S = 60.0
_THREADS = 2
_RTOL = 1e-3


def search(
    workload: Workload, seed: int, trials: int, folder: Path, runner: Runner,
    policy: TimingPolicy, strategy: str = STRATEGY,
) -> list[Point]:  # fmt: skip
    """Every measurement in order; libraries of the ``TOP`` fastest stay in ``folder``.

    ``strategy`` is MetaSchedule's name of how it goes through its space.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {**load_target("host").tvm_config(), "num-cores": 1}
    measuring = _Runner(workload, runner, policy)
    np.save(folder / "weight.npy", plain_weight(workload, measuring.operands.constants.weight))
    _load_cpu_intrinsics()
    logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.WARNING)
    with (
        tempfile.TemporaryDirectory(prefix="tvmx-metaschedule-") as logs,
        _process_pool() as pool,
    ):
        meta_schedule.tir_integration.tune_tir(
            te_workload(workload), tvm.target.Target(config), logs, trials,
            num_trials_per_iter=min(ROUND, trials),
            strategy=strategy,
            builder=_Builder(pool, folder, config, measuring.points),
            runner=measuring, database="memory",
            cost_model=meta_schedule.cost_model.XGBModel(
                num_warmup_samples=ROUND, num_tuning_cores=_THREADS
            ),
            measure_callbacks=[
                meta_schedule.measure_callback.AddToDatabase(),
                meta_schedule.measure_callback.UpdateCostModel(),
            ],
            num_tuning_cores=_THREADS, seed=seed + 1,
        )  # fmt: skip
    _keep_top(folder, measuring.points)
    return [p.model_copy(update={"config": f"{seed}/{p.config}"}) for p in measuring.points]


def kernel_job(workload: Workload, operands: Any, library: Path) -> KernelJob:
    """A candidate with its packed weights, ready to be checked and timed."""
    expected = channels_last(operands.expected)
    bias = operands.constants.bias
    return KernelJob(
        library=library, symbol=SYMBOL,
        inputs=(channels_last(operands.data), np.load(packed_for(library)), bias),
        out_shape=expected.shape, expected=expected, rtol=_RTOL,
        label=f"{workload.describe()} by MetaSchedule, {library.name}",
    )  # fmt: skip


def kept_job(workload: Workload, operands: Any, folder: Path, config: str) -> KernelJob:
    """The job of a candidate kept by an earlier search; ``config`` is ``SEED/NUMBER``."""
    return kernel_job(workload, operands, folder / f"{config}.so")


def _keep_top(folder: Path, points: Sequence[Point]) -> None:
    ranked = sorted((p for p in points if p.us is not None), key=lambda p: p.us or 0.0)
    kept = {p.config for p in ranked[:TOP]}
    for path in folder.iterdir():
        if path.stem not in kept:
            path.unlink()


def _load_cpu_intrinsics() -> None:
    """Import TVM's tensor intrinsics without those of other devices.

    MetaSchedule imports them all when a search starts. The several hundred of CUDA are scripts,
    and parsing each one walks the stack and all modules: half a minute to several, in every
    process (in the stock builder's workers it is what uses up their 30 s).
    """
    others = [f"tvm.s_tir.tensor_intrin.{name}" for name in ("cuda", "rocm", "hexagon")]
    missing = [name for name in others if name not in sys.modules]
    sys.modules.update({name: types.ModuleType(name) for name in missing})
    try:
        importlib.import_module("tvm.s_tir.tensor_intrin")
    finally:
        for name in missing:
            del sys.modules[name]


def _process_pool() -> ProcessPool:
    """Workers forked from a process that has imported TVM and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tvmx._tvm"])
    return ProcessPool(max_workers=_THREADS, context=context)


@derived_object
class _Builder(meta_schedule.builder.PyBuilder):  # type: ignore[misc]
    """Builds in killable processes (the stock one's candidates all time out).

    What fails never gets to the runner and is noted in ``points`` here.
    """

    def __init__(
        self, pool: ProcessPool, folder: Path, config: dict[str, Any], points: list[Point]
    ) -> None:
        super().__init__()
        self._pool, self._folder, self._target = pool, folder, json.dumps(config)
        self._points, self._number = points, 0

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        jobs = []
        for one in build_inputs:
            module = tvm.ir.save_json(one.mod)
            weight = str(self._folder / "weight.npy")
            jobs.append(
                CandidateBuild(module, self._target, weight, str(self._folder), self._number)
            )
            self._number += 1
        futures = [
            self._pool.schedule(build_candidate, args=(job,), timeout=_BUILD_S) for job in jobs
        ]
        results = []
        for job, future in zip(jobs, futures, strict=True):
            problem = future.exception()
            if problem:
                name = job.library.stem
                self._points.append(Point(template=METASCHEDULE, config=name, us=None))
            path = None if problem else str(job.library)
            message = f"{type(problem).__name__}: {problem}" if problem else None
            results.append(meta_schedule.builder.BuilderResult(path, message))
        return results


@derived_object
class _Done(meta_schedule.runner.PyRunnerFuture):  # type: ignore[misc]
    """A measurement that is there already."""

    def __init__(self, us: float | None, message: str) -> None:
        super().__init__()
        self._us, self._message = us, message

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        if self._us is None:
            return meta_schedule.runner.RunnerResult(None, self._message)
        return meta_schedule.runner.RunnerResult([self._us * 1e-6], None)


@derived_object
class _Runner(meta_schedule.runner.PyRunner):  # type: ignore[misc]
    """Checks and times as tvmx does its own candidates."""

    def __init__(self, workload: Workload, runner: Runner, policy: TimingPolicy) -> None:
        super().__init__()
        self.workload, self.operands = workload, make_operands(workload)
        self.points: list[Point] = []
        self._runner, self._policy = runner, policy

    def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
        libraries = [Path(str(one.artifact_path)) for one in runner_inputs]
        jobs = [kernel_job(self.workload, self.operands, library) for library in libraries]
        measured = self._runner.measure(jobs, self._policy)
        for library, one in zip(libraries, measured, strict=True):
            us = one.median_us if one.ok else None
            self.points.append(Point(template=METASCHEDULE, config=library.stem, us=us))
        return [_Done(m.median_us if m.ok else None, m.message) for m in measured]
