"""explore: tune kernels, search plans, build and measure the best ones, keep the winner."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tvmx.accuracy import DEFAULT_METRIC, Dataset, Score, kind_of, load_data, load_metric
from tvmx.build import BuildPool, RayCluster, RayPool
from tvmx.doctor import build_probe
from tvmx.errors import MeasureError
from tvmx.explore._accuracy import Scorer, affordable
from tvmx.explore._budget import Budget
from tvmx.explore._choices import FILE as CHOICES
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
from tvmx.explore._ending import Ending, reserved_s
from tvmx.explore._evaluate import KernelEvaluator, kernel_policy
from tvmx.explore._front import dominated_share, front_of, reference_of
from tvmx.explore._golden import save_golden
from tvmx.explore._lessons import lessons, whole_lessons
from tvmx.explore._outcome import Outcome
from tvmx.explore._phases import Phases
from tvmx.explore._prune_method import reconstructed
from tvmx.explore._prune_weights import save_weights
from tvmx.explore._reference import Reference, golden_inputs
from tvmx.explore._request import ExploreRequest, ExploreResult, Progress, Silent
from tvmx.explore._search import KEPT, Found, agent_name, search
from tvmx.explore._sizes import packed_sizes
from tvmx.explore._so_far import SoFar
from tvmx.explore._table import ConversionKey, TunedTable, no_drop
from tvmx.explore._transitions import measure_transitions
from tvmx.explore._tuning import KernelTuning, Tuned, noise
from tvmx.explore._whole import BuiltPlan, as_reference, build_plan, network_job, rtol_of
from tvmx.explore._wholes import Wholes
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

_DEFAULT_BUDGET_S = 600.0
_RETIME_S = 0.6  # what re-timing one workload takes, about
_SENSITIVITY_SHARE = 0.2  # of the budget
_PRUNING_SHARE = 0.15  # of the budget: for reconstructing weights
_SENSITIVITY_S = 60.0  # where only trials bound it
_SCORING_SHARE = 0.15  # of the budget: for the accuracy of whole plans
_SEARCH_S = 2.0
_SEARCH_SHARE = 0.05  # of the budget, where plans are simulated on data; whichever is more
_SO_FAR_S = 15.0  # how often the best kernels so far are made a plan

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


def _local_workers(request: ExploreRequest) -> int:
    return max(1, (os.cpu_count() or 2) - (request.tracker is None))


class _Exploration:
    def __init__(self, request: ExploreRequest, progress: Progress) -> None:
        self.request = request
        seconds = request.budget_s if request.budget_s or request.trials else _DEFAULT_BUDGET_S
        self.budget = Budget(seconds, request.trials)
        self.progress = Phases(progress, self.budget)
        self.notes: list[str] = []
        self.scorer: Scorer | None = None
        self.score_s = 0.0
        self.scores: dict[str, Score] = {}
        self._kept_s = -math.inf

    def run(self) -> ExploreResult:
        request = self.request
        self.progress.stage("import")
        agent_name(request)
        if request.ray is not None:
            RayCluster.require()
        check_device(load_target(request.target), request.tracker)
        self.context = Context.open(
            request.model, request.shapes, request.target, request.schedules,
            exact=request.data is None, params=request.params, skip=request.skip,
        )  # fmt: skip
        self.layers = self.context.covered
        self.prefilter = Prefilter(self.context.target) if request.prefilter else None
        earlier = (request.learn_from, self.context.target_key, request.manners)
        self.lessons, self.whole_lessons = lessons(*earlier), whole_lessons(*earlier)
        self.metric = load_metric(request.metric) if request.metric else DEFAULT_METRIC
        self.data = self._load_data()
        with Run.open(request.out, self._settings(), fresh=request.fresh) as self.folder:
            return self._explore()

    def _explore(self) -> ExploreResult:
        request, context = self.request, self.context
        curve = self.folder.curve()
        self.progress.begin(float(curve[-1]["elapsed_s"]) if curve else 0.0)
        with ExitStack() as stack, ThreadPoolExecutor(1) as beside:
            self.cluster = None
            if request.ray is not None:
                most = _local_workers(request) if request.ray == RayCluster.LOCAL else None
                self.cluster = stack.enter_context(RayCluster(request.ray, most))
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
            self.evaluator = self._evaluator(self._pool(stack))
            self.wholes = Wholes(
                self.baseline, self.first, self.runner, self.evaluator, self.budget, self._build,
                self._job, self.build_s,
            )  # fmt: skip
            self._keep_so_far(self.baseline.plan, "its baseline, template defaults")
            self._score_baseline()
            self._reserve()
            options = self._sensitivity()
            tuning = self._tuning(options)
            self.progress.stage("defaults")
            tuning.defaults()
            options = self._undominated(options, tuning)
            self.progress.stage("borders")
            costs = measure_transitions(context, self.evaluator, options)
            self._tune(tuning, options)
            found = self._search(tuning.tuned, costs, options)
            return self._whole(found, tuning)

    def _prepare(self) -> None:
        """Golden data and the baseline's library; the time it takes sets the reserve."""
        self.reference = Reference(self.context.model)
        self.simulator = Simulator(self.context.network, load_target("host"))
        self.inputs = self._golden_inputs()
        self.expected = self.reference(self.inputs)
        save_golden(self.folder, self.inputs, self.expected, self.reference.name)
        plan = baseline_plan(
            self.context.network, self.context.registry, self.context.target, self.request.seed
        )
        before = self.budget.elapsed_s
        self.baseline = self._build("baseline", plan)
        self.build_s = self.budget.elapsed_s - before

    def _score_baseline(self) -> None:
        """Accuracy of the reference and the baseline, on as much data as there is time for."""
        if self.data is None:
            return
        self.progress.stage("accuracy")
        samples, seconds = self.data.held_out, self.budget.seconds
        if seconds is not None and self.request.trials is None:
            before = self.budget.elapsed_s
            self.reference(self.inputs)
            per_sample = (self.budget.elapsed_s - before) / (KEPT + 1) + self.wholes.baseline_s
            shape = self.context.model.inputs[0].shape
            per_sample /= shape[0] if shape else 1
            samples = affordable(samples, KEPT + 1, per_sample, _SCORING_SHARE * seconds)
            if len(samples) < len(self.data.held_out):
                self.notes.append(
                    f"accuracy is that of {len(samples)} of {len(self.data.held_out)} held-out "
                    "samples: the budget has no time for more"
                )
        self.scorer = Scorer(self.context.model, samples, self.reference, self.metric)
        score = self.scorer.reference.percent
        if self.request.metric and 0 < score <= 1:
            self.notes.append(
                f"metric {self.request.metric} is {score:g} for the float network: "
                "a fraction? tvmx takes it for percent"
            )
        before = self.budget.elapsed_s
        job = network_job(self.baseline, self.inputs)
        self.scores[self.baseline.plan.digest] = self.scorer(self.runner, job)
        self.score_s = self.budget.elapsed_s - before

    def _reserve(self) -> None:
        """Keep back what re-timing, the search and whole networks will take."""
        workloads = len({layer.workload.digest for layer in self.layers})
        searching = _SEARCH_S
        if self.data is not None:
            searching = max(_SEARCH_S, _SEARCH_SHARE * (self.budget.seconds or 0.0))
        retiming = 0.0 if self.runner.simulated else _RETIME_S * workloads
        self.budget.reserve(reserved_s(self.wholes, self.score_s) + searching, retiming)

    def _keep_so_far(self, plan: Plan, told: str) -> None:
        """What can be exported while the exploration goes on."""
        self._kept_s = self.budget.elapsed_s
        before = SoFar.load(self.folder)
        if before is None or not before.whole:  # of an earlier part that was interrupted
            told = f"the exploration was not over: {told}"
            SoFar(plan=plan, told=told, seconds=self._kept_s).save(self.folder)

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

    def _pool(self, stack: ExitStack) -> BuildPool | RayPool:
        """Who builds kernels: locally one core measures, building on it would show in figures."""
        if self.cluster is not None:
            return stack.enter_context(RayPool(self.cluster))
        return stack.enter_context(BuildPool(_local_workers(self.request)))

    def _evaluator(self, pool: BuildPool | RayPool) -> KernelEvaluator:
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
            bias_correction=request.bias_correction, prune_method=request.pruning,
            skip=tuple(sorted(set(request.skip))),
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
        if self.request.pruning == "reconstruction":
            self.progress.stage("prune")
            allowed = self.budget.seconds
            self.context, told = reconstructed(
                self.context, self.data.calibration, options, self.folder.work,
                None if allowed is None else _PRUNING_SHARE * allowed, self._stepped,
            )  # fmt: skip
            self.simulator = Simulator(self.context.network, load_target("host"))
            self.notes += told
        self.progress.stage("calibrate")
        self.compression = Compression.prepare(
            self.context, self.data, self.metric, self.request, options
        )
        self.notes += self.compression.describe()
        self.progress.stage("sensitivity")
        seconds = self.budget.seconds
        share = _SENSITIVITY_S if seconds is None else _SENSITIVITY_SHARE * seconds
        samples = self.compression.measure(options, self.folder, share, self._stepped)
        if samples:
            self.notes.append(
                f"sensitivity of layers simulated on {samples} of "
                f"{len(self.data.visible)} visible samples"
            )
        return self.compression.allowed(options, self.request.max_accuracy_drop)

    def _stepped(self, done: int, total: int) -> None:
        """So many steps of a stage before the tuning are done."""
        self.progress.update(
            done, total, best_us=None, baseline_us=None, seconds_left=self.budget.left_s
        )

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
        if best is not None and elapsed - self._kept_s > _SO_FAR_S:
            self._keep_so_far(tuning.plan(self.context, self.request.seed), tuning.told())
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
    ) -> Found:
        """The plans worth building."""
        self.progress.stage("search")
        context, compression = self.context, self.compression
        self.table = TunedTable(
            context, tuned, costs, packed_sizes(tuned, context.target), options,
            compression.drop if compression else no_drop,
        )  # fmt: skip
        self.table.table.save(self.folder.work / "cost_table.json")
        elsewhere = self.baseline.build.weights_bytes - self.table.table.weights_bytes(
            self.table.table.baseline
        )
        arena = self.baseline.build.arena_bytes
        found = search(
            context, self.table, costs, self.request, compression, elsewhere, arena, self.cluster
        )
        self.notes += found.describe()
        choices = self.table.choices(self.request.seed)
        if compression is not None:
            choices = choices.model_copy(update=compression.constants())
        choices.save(self.folder.work / CHOICES)
        return found

    def _build(self, name: str, plan: Plan) -> BuiltPlan:
        c = self.context
        save_weights(self.folder.save_plan(name, plan).parent, plan, c.network)
        return build_plan(name, plan, c.network, c.registry, c.target, self.folder.work)

    def _whole(self, found: Found, tuning: KernelTuning) -> ExploreResult:
        wholes = self.wholes
        ending = Ending(
            self.request, self.context, self.folder, self.budget, self.progress, self.table,
            self.compression, self.scorer, wholes, found, self.whole_lessons, self.notes,
            self.score_s,
        )  # fmt: skip
        ending.measure_plans()
        self._repeat_baseline()
        measured = ending.compare()
        built = [self.baseline, *wholes.built]
        self.progress.stage("score")
        outcome = Outcome(
            self.request, self.context, self.runner, self.reference, self.table, self.scorer,
            self.notes, self.scores,
        )  # fmt: skip
        self.notes += device_notes(self.runner)
        candidates = outcome.candidates(built, measured, [self._job(b) for b in built])
        best, memory = outcome.best(candidates), outcome.best_memory(candidates)
        reference = reference_of(candidates[0], self.request.max_accuracy_drop)
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
            front=front_of(candidates), hypervolume=dominated_share(candidates, reference),
            reference_point=reference, phases=self.progress.seconds,
            hardware=self.evaluator.counts() | {"whole plans": wholes.timed},
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
