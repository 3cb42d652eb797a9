"""explore: tune kernels, search plans, build and measure the best ones, keep the winner."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tvmx.accuracy import DEFAULT_METRIC, Dataset, kind_of, load_data, load_metric
from tvmx.build import BuildPool
from tvmx.doctor import build_probe
from tvmx.errors import MeasureError
from tvmx.explore._accuracy import Scorer
from tvmx.explore._budget import Budget
from tvmx.explore._compress import Compression
from tvmx.explore._context import Context
from tvmx.explore._devices import (
    check_device,
    device_key,
    device_notes,
    device_summaries,
    recorded_key,
)
from tvmx.explore._dominance import Worth, undominated
from tvmx.explore._evaluate import KernelEvaluator, kernel_policy
from tvmx.explore._golden import save_golden
from tvmx.explore._lessons import lessons
from tvmx.explore._outcome import Outcome
from tvmx.explore._reference import Reference, golden_inputs
from tvmx.explore._request import ExploreRequest, ExploreResult, Progress, Silent
from tvmx.explore._search import KEPT, agent_name, search
from tvmx.explore._sizes import packed_sizes
from tvmx.explore._table import ConversionKey, TunedTable, no_drop
from tvmx.explore._transitions import measure_transitions
from tvmx.explore._tuning import KernelTuning, Tuned, noise
from tvmx.explore._whole import BuiltPlan, as_reference, build_plan, network_job, rtol_of
from tvmx.ir import Implementation, Layer, Plan
from tvmx.measure import (
    DRIFT,
    Measurement,
    NetworkJob,
    TimingPolicy,
    describe_simulation,
    open_runner,
    simulation_id,
)
from tvmx.passes import Simulator, baseline_plan, versions
from tvmx.store import Run, RunSettings
from tvmx.targets import load_target
from tvmx.tune import Prefilter

_ROUNDS = 15
_DEFAULT_BUDGET_S = 600.0
_RETIME_S = 0.6  # what re-timing one workload takes, about
_SENSITIVITY_SHARE = 0.2  # of the budget
_SENSITIVITY_S = 60.0  # where only trials bound it

Options = Mapping[int, Sequence[Implementation]]


def explore(request: ExploreRequest, progress: Progress | None = None) -> ExploreResult:
    """Run or resume one exploration; the outcome is also in the run folder.

    Raises:
        UsageError: the request makes no sense (target, device, folder).
        ModelError, DataError, TemplateError: what was handed in cannot be used.
        RunMismatchError: ``out`` holds another exploration.
        DeviceError: the device is gone for good; the journal keeps what was measured.
        MeasureError: the baseline itself cannot be measured, or computes something wrong.
    """
    return _Exploration(request, progress or Silent()).run()


def _told(data: Path | None) -> str:
    """``--data`` for people: whole paths of files and folders, functions as they were given."""
    if data is None:
        return ""
    return str(data if kind_of(data) == "callable" else data.resolve())


class _Exploration:
    def __init__(self, request: ExploreRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.notes: list[str] = []

    def run(self) -> ExploreResult:
        request = self.request
        self.progress.stage("import")
        agent_name(request)
        check_device(load_target(request.target), request.tracker)
        self.context = Context.open(
            request.model, request.shapes, request.target, request.schedules,
            exact=request.data is None, params=request.params, skip=request.skip,
        )  # fmt: skip
        self.layers = self.context.covered
        self.prefilter = Prefilter(self.context.target) if request.prefilter else None
        self.lessons = lessons(request.learn_from, self.context.target_key, request.manners)
        self.metric = load_metric(request.metric) if request.metric else DEFAULT_METRIC
        self.data = self._load_data()
        with Run.open(request.out, self._settings(), fresh=request.fresh) as self.folder:
            return self._explore()

    def _explore(self) -> ExploreResult:
        request, context = self.request, self.context
        curve = self.folder.curve()
        seconds = request.budget_s if request.budget_s or request.trials else _DEFAULT_BUDGET_S
        spent = float(curve[-1]["elapsed_s"]) if curve else 0.0
        self.budget = Budget(seconds, request.trials, spent_s=spent)
        with ExitStack() as stack, ThreadPoolExecutor(1) as beside:
            # The device's server takes seconds to start: build the baseline meanwhile.
            device = open_runner(
                request.tracker, request.manners, arch=context.target.arch,
                observer=self.progress, probe=build_probe(context.target, self.folder.work),
            )  # fmt: skip
            opening = beside.submit(stack.enter_context, device)
            self.progress.stage("baseline")
            self._prepare()
            self.runner = opening.result()
            self.budget.paused = lambda: self.runner.waited_s
            self.first = self._check_baseline()
            self.folder.bind(simulation_id(self.runner.simulated))
            self._tighten(self.first)
            self._reserve(self.first)
            # Locally one core measures; building on it would show in the figures.
            workers = max(1, (os.cpu_count() or 2) - (request.tracker is None))
            self.evaluator = self._evaluator(stack.enter_context(BuildPool(workers)))
            options = self._sensitivity()
            tuning = self._tuning(options)
            self.progress.stage("defaults")
            tuning.defaults()
            options = self._undominated(options, tuning)
            self.progress.stage("borders")
            costs = measure_transitions(context, self.evaluator, options)
            self._tune(tuning, options)
            plans = self._search(tuning.tuned, costs, options)
            return self._whole(plans, tuning)

    def _prepare(self) -> None:
        """Golden data and the baseline's library; the time it takes sets the reserve."""
        self.reference = Reference(self.context.model)
        self.simulator = Simulator(self.context.network, load_target("host"))
        self.inputs = self._golden_inputs()
        self.expected = self.reference(self.inputs)
        self.scorer = None
        if self.data is not None:
            self.scorer = Scorer(
                self.context.model, self.data.held_out, self.reference, self.metric
            )
            score = self.scorer.reference.percent
            if self.request.metric and 0 < score <= 1:
                self.notes.append(
                    f"metric {self.request.metric} is {score:g} for the float network: "
                    "a fraction? tvmx takes it for percent"
                )
        save_golden(self.folder, self.inputs, self.expected, self.reference.name)
        plan = baseline_plan(
            self.context.network, self.context.registry, self.context.target, self.request.seed
        )
        before = self.budget.elapsed_s
        self.baseline = self._build("baseline", plan)
        self.build_s = self.budget.elapsed_s - before

    def _reserve(self, baseline: Measurement) -> None:
        """Keep back what re-timing and whole networks will take, going by the baseline."""
        plans = KEPT + 1
        latency_s = max((baseline.median_us or 0.0) / 1e6, 0.02)
        rounds = _ROUNDS
        if self.runner.simulated:  # each runs once, and slowly
            latency_s, rounds = self.runner.slowest_s, 1
        workloads = len({layer.workload.digest for layer in self.layers})
        measuring = (plans + 1) * (1.2 * rounds * latency_s + 1.0)
        self.budget.reserve(plans * self.build_s + measuring + _RETIME_S * workloads)

    def _check_baseline(self) -> Measurement:
        job = self._job(self.baseline)
        (measurement,) = self.runner.measure([job], TimingPolicy.quick())
        if not measurement.ok:
            raise MeasureError(
                f"the baseline failed on the device ({measurement.status}): {measurement.message}",
                hint="`tvmx build` and `tvmx run` reproduce it alone",
            )
        return measurement

    def _tighten(self, baseline: Measurement) -> None:
        """No candidate need be waited for much longer than the baseline takes."""
        policy = kernel_policy(self.request.manners, self.context.target)
        wall_us = max(baseline.median_us or 0.0, self.runner.slowest_s * 1e6)
        self.runner.deadlines = self.runner.deadlines.derive(wall_us, policy.longest_s)
        self.progress.message(f"deadlines: {self.runner.deadlines.describe()}")

    def _repeat_baseline(self) -> None:
        """Time the baseline again, late in the run: has the device changed meanwhile?"""
        if self.runner.simulated:
            return
        again, first = self._check_baseline(), self.first
        if again.server != first.server or not (again.median_us and first.median_us):
            return
        drift = again.median_us / first.median_us - 1
        (low, high), (first_low, first_high) = noise(again), noise(first)
        if abs(drift) > DRIFT and (low > first_high or high < first_low):
            self.notes.append(
                f"the baseline takes {abs(drift):.1%} {'longer' if drift > 0 else 'less'} than at "
                "the start: the device drifted, kernels measured far apart compare badly"
            )

    def _evaluator(self, pool: BuildPool) -> KernelEvaluator:
        return KernelEvaluator(
            target=self.context.target, target_key=self.context.target_key,
            device=recorded_key(self.request.tracker, self.runner), manners=self.request.manners,
            versions=versions(), journal=self.folder.journal, runner=self.runner, pool=pool,
            folder=self.folder.work / "kernels", prefilter=self.prefilter,
        )  # fmt: skip

    def _load_data(self) -> Dataset | None:
        if self.request.data is None:
            self.notes.append(
                "no --data: no layer's numbers could be changed (int8, sparse), and accuracy was "
                "not measured"
            )
            return None
        request = self.request
        assert request.data is not None
        return load_data(request.data, self.context.model.inputs, request.seed, request.preprocess)

    def _golden_inputs(self) -> dict[str, Any]:
        """A sample the choices may see, or seeded noise."""
        if self.data is None:
            return golden_inputs(self.context.model, self.request.seed)
        specs = {spec.name: spec for spec in self.context.model.inputs}
        return next(iter(self.data.visible.feeds(specs))).arrays

    def _settings(self) -> RunSettings:
        request, context = self.request, self.context
        entries = context.registry.entries()
        name, digest = context.target_key.split(":")
        return RunSettings(
            model=context.model.digest, model_path=str(request.model.resolve()),
            params_path=str(request.params.resolve()) if request.params else "",
            shapes=request.shapes, target=name, target_digest=digest,
            device=device_key(request.tracker), threads=request.threads,
            cores=request.manners.cores.cluster, cache=request.manners.cache, seed=request.seed,
            objective=request.objective, data=self.data.digest if self.data else None,
            data_path=_told(request.data),
            data_source=self.data.source if self.data else None,
            metric=request.metric, metric_digest=self.metric.fingerprint,
            calibration=request.calibration, equalise=request.equalise,
            bias_correction=request.bias_correction, skip=tuple(sorted(set(request.skip))),
            max_accuracy_drop=request.max_accuracy_drop,
            max_weights=request.max_weights, max_arena=request.max_arena,
            schedules={e.name: e.fingerprint for e in entries if e.origin != "built-in"},
            schedule_paths=tuple(str(p.resolve()) for p in request.schedules),
            budget_s=request.budget_s, trials=request.trials,
        )  # fmt: skip

    def _sensitivity(self) -> Options:
        """The implementations each layer may get, less what loses too much accuracy alone."""
        options: Options = self.context.options()
        self.compression = None
        if self.data is None or self.scorer is None:
            return options
        self.progress.stage("calibrate")
        self.compression = Compression.prepare(
            self.context, self.data, self.metric, self.request, options
        )
        self.notes += self.compression.describe()
        self.progress.stage("sensitivity")
        seconds = self.budget.seconds
        share = _SENSITIVITY_S if seconds is None else _SENSITIVITY_SHARE * seconds

        def step(done: int, total: int) -> None:
            self.progress.update(
                done, total, best_us=None, baseline_us=None, seconds_left=self.budget.left_s
            )

        samples = self.compression.measure(options, self.folder, share, step)
        if samples:
            self.notes.append(
                f"sensitivity of layers simulated on {samples} of "
                f"{len(self.data.visible)} visible samples"
            )
        return self.compression.allowed(options, self.request.max_accuracy_drop)

    def _tuning(self, options: Options) -> KernelTuning:
        return KernelTuning(
            tasks=self.context.tasks(options),
            uses=dict(Counter(layer.workload.digest for layer in self.layers)),
            evaluator=self.evaluator, budget=self.budget, target=self.context.target,
            seed=self.request.seed, on_batch=self._tuned, taught=self.lessons,
        )  # fmt: skip

    def _undominated(self, options: Options, tuning: KernelTuning) -> Options:
        """Leave out what cannot be in a good plan, going by the default configs."""
        found = {(t.task.workload.digest, t.task.implementation): t for t in tuning.tuned}
        sizes = packed_sizes(tuning.tuned, self.context.target)

        def worth(layer: Layer, implementation: Implementation) -> Worth | None:
            tuned = found[layer.workload.digest, implementation]
            if tuned.default_us is None:
                return None
            drop = self.compression.drop(layer, implementation) if self.compression else 0.0
            return Worth(tuned.default_us, drop, sizes[tuned.task])

        return undominated(self.context.network.graph, options, worth)

    def _tune(self, tuning: KernelTuning, options: Options) -> None:
        self.progress.stage("tune")
        if self.lessons:
            self.progress.message(f"learned from {len(self.lessons)} kernels of earlier runs")
        wanted = {
            (layer.workload.digest, implementation)
            for layer in self.layers for implementation in options[layer.index]
        }  # fmt: skip
        tuning.run(
            [t.task for t in tuning.tuned
             if (t.task.workload.digest, t.task.implementation) in wanted]
        )  # fmt: skip
        if self.prefilter is not None:
            self.notes.append(
                f"{self.prefilter.dropped} kernels were not measured: llvm-mca found their inner "
                "loops slow"
            )
        if not self.runner.simulated:  # a simulated figure is the same again
            self.progress.stage("re-time")
            tuning.retime()

    def _tuned(self, tuning: KernelTuning) -> None:
        best, baseline = tuning.best_estimate_us(), tuning.default_estimate_us()
        done, total = self.budget.progress(tuning.trials)
        self.progress.update(
            done, total, best_us=best, baseline_us=baseline, seconds_left=self.budget.left_s
        )
        elapsed = round(self.budget.elapsed_s, 3)
        self.folder.append_curve(
            {
                "elapsed_s": elapsed,
                "trials": tuning.trials,
                "best_us": best,
                "baseline_us": baseline,
            }
        )

    def _search(
        self, tuned: Sequence[Tuned], costs: dict[ConversionKey, float], options: Options
    ) -> list[tuple[str, Plan]]:
        """The baseline and the plans worth building, by name."""
        self.progress.stage("search")
        context, seed, compression = self.context, self.request.seed, self.compression
        self.table = TunedTable(
            context, tuned, costs, packed_sizes(tuned, context.target), options,
            compression.drop if compression else no_drop,
        )  # fmt: skip
        self.table.table.save(self.folder.work / "cost_table.json")
        elsewhere = self.baseline.build.weights_bytes - self.table.table.weights_bytes(
            self.table.table.baseline
        )
        arena = self.baseline.build.arena_bytes
        found = search(context, self.table, costs, self.request, compression, elsewhere, arena)
        self.notes += found.describe()
        plans = [("baseline", self.baseline.plan)]
        seen = {self.baseline.plan.digest}
        for assignment in found.assignments:
            note = f"explored by tvmx, seed {seed}"
            plan = self.table.plan(assignment, seed, note)
            plan = compression.complete(plan) if compression else plan
            if plan.digest not in seen:
                seen.add(plan.digest)
                plans.append((f"plan{len(plans)}", plan))
        return plans

    def _build(self, name: str, plan: Plan) -> BuiltPlan:
        self.folder.save_plan(name, plan)
        c = self.context
        return build_plan(name, plan, c.network, c.registry, c.target, self.folder.work)

    def _whole(self, plans: list[tuple[str, Plan]], tuning: KernelTuning) -> ExploreResult:
        self.progress.stage("build")
        built = [self.baseline]
        for name, plan in plans[1:]:
            built.append(self._build(name, plan))
            self.progress.update(
                len(built), len(plans), best_us=None, baseline_us=None,
                seconds_left=self.budget.left_s,
            )  # fmt: skip
        self.progress.stage("measure")
        self._repeat_baseline()
        jobs = [self._job(b) for b in built]
        measured = self.runner.compare(jobs, _ROUNDS, TimingPolicy.careful())
        if not measured[0].ok:
            self._check_baseline()
            raise MeasureError(f"the baseline failed beside the others: {measured[0].message}")
        outcome = Outcome(
            self.request, self.context, self.runner, self.reference, self.table, self.scorer,
            self.notes,
        )  # fmt: skip
        self.notes += device_notes(self.runner)
        candidates = outcome.candidates(built, measured, jobs)
        best, memory = outcome.best(candidates), outcome.best_memory(candidates)
        result = ExploreResult(
            run=str(self.request.out), model=str(self.request.model),
            target=self.context.target.name, device=self.runner.identity,
            devices=device_summaries(self.runner),
            simulated=describe_simulation(self.runner.simulated), threads=self.request.threads,
            cores=self.request.manners.cores.cluster,
            deadlines=self.runner.deadlines.describe(), objective=self.request.objective,
            candidates=candidates, baseline=0, best=best, best_memory=memory,
            layers=outcome.layers(built, candidates[best], candidates[memory]),
            measurements=tuning.trials, failures=self.evaluator.failed,
            seconds=self.budget.elapsed_s, reference=self.reference.name, notes=self.notes,
        )  # fmt: skip
        self.evaluator.clear()
        self.folder.save_result(result.model_dump(mode="json"))
        outcome.check_limits(result)
        return result

    def _job(self, built: BuiltPlan) -> NetworkJob:
        """A candidate with the outputs it must have: the reference's, or the simulation's."""
        graph = self.context.network.graph
        if as_reference(built.plan, graph):
            return network_job(built, self.inputs, self.expected)
        ordered = [self.inputs[spec.name] for spec in self.context.model.inputs]
        expected = self.simulator.expected(built.plan, ordered)
        return network_job(built, self.inputs, expected, rtol_of(built.plan, graph))
