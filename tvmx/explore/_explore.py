"""explore: tune kernels, search plans, build and measure the best ones, keep the winner."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from tvmx.accuracy import Dataset, load_data
from tvmx.build import BuildPool
from tvmx.errors import MeasureError
from tvmx.explore._budget import Budget
from tvmx.explore._context import Context
from tvmx.explore._devices import check_device, device_key, open_runner
from tvmx.explore._evaluate import KernelEvaluator
from tvmx.explore._golden import save_golden
from tvmx.explore._outcome import Outcome
from tvmx.explore._reference import Reference, golden_inputs
from tvmx.explore._request import ExploreRequest, ExploreResult, Progress, Silent
from tvmx.explore._search import KEPT, search
from tvmx.explore._sizes import packed_sizes
from tvmx.explore._table import ConversionKey, TunedTable
from tvmx.explore._transitions import measure_transitions
from tvmx.explore._tuning import KernelTuning, Tuned
from tvmx.explore._whole import BuiltPlan, build_plan, network_job
from tvmx.ir import Plan
from tvmx.measure import Measurement, TimingPolicy
from tvmx.passes import baseline_plan, versions
from tvmx.store import Run, RunSettings
from tvmx.targets import load_target

_ROUNDS = 15
_DEFAULT_BUDGET_S = 600.0
_RETIME_S = 0.6  # what re-timing one workload takes, about


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


class _Exploration:
    def __init__(self, request: ExploreRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.notes: list[str] = []

    def run(self) -> ExploreResult:
        request = self.request
        self.progress.stage("import")
        check_device(load_target(request.target), request.tracker)
        self.context = Context.open(
            request.model, request.shapes, request.target, request.schedules
        )
        self.layers = self.context.covered
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
            device = open_runner(context.target.arch, request.tracker, request.threads)
            opening = beside.submit(stack.enter_context, device)
            self.progress.stage("baseline")
            self._prepare()
            self.runner = opening.result()
            self._reserve(self._check_baseline())
            # Locally one core measures; building on it would show in the figures.
            workers = max(1, (os.cpu_count() or 2) - (request.tracker is None))
            self.evaluator = self._evaluator(stack.enter_context(BuildPool(workers)))
            self.progress.stage("borders")
            costs = measure_transitions(context, self.evaluator)
            tuning = self._tune()
            plans = self._search(tuning.tuned, costs)
            return self._whole(plans, tuning)

    def _prepare(self) -> None:
        """Golden data and the baseline's library; the time it takes sets the reserve."""
        self.reference = Reference(self.context.model)
        self.inputs = self._golden_inputs()
        self.expected = self.reference(self.inputs)
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
        workloads = len({layer.workload.digest for layer in self.layers})
        measuring = (plans + 1) * (1.2 * _ROUNDS * latency_s + 1.0)
        self.budget.reserve(plans * self.build_s + measuring + _RETIME_S * workloads)

    def _check_baseline(self) -> Measurement:
        job = network_job(self.baseline, self.inputs, self.expected)
        (measurement,) = self.runner.measure([job], TimingPolicy.quick())
        if not measurement.ok:
            raise MeasureError(
                f"the baseline failed on the device ({measurement.status}): {measurement.message}",
                hint="`tvmx build` and `tvmx run` reproduce it alone",
            )
        return measurement

    def _evaluator(self, pool: BuildPool) -> KernelEvaluator:
        return KernelEvaluator(
            target=self.context.target, target_key=self.context.target_key,
            device=device_key(self.request.tracker), threads=self.request.threads,
            versions=versions(), journal=self.folder.journal, runner=self.runner, pool=pool,
            folder=self.folder.work / "kernels",
        )  # fmt: skip

    def _load_data(self) -> Dataset | None:
        if self.request.data is None:
            self.notes.append(
                "no --data: only float, dense implementations were legal, accuracy was not measured"
            )
            return None
        return load_data(self.request.data, self.context.model.inputs, self.request.seed)

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
            shapes=request.shapes, target=name, target_digest=digest,
            device=device_key(request.tracker), threads=request.threads, seed=request.seed,
            objective=request.objective, data=self.data.digest if self.data else None,
            data_path=str(request.data.resolve()) if request.data else "",
            max_accuracy_drop=request.max_accuracy_drop,
            schedules={e.name: e.fingerprint for e in entries if e.origin != "built-in"},
            schedule_paths=tuple(str(p.resolve()) for p in request.schedules),
            budget_s=request.budget_s, trials=request.trials,
        )  # fmt: skip

    def _tune(self) -> KernelTuning:
        self.progress.stage("tune")
        tuning = KernelTuning(
            tasks=self.context.tasks(),
            uses=dict(Counter(layer.workload.digest for layer in self.layers)),
            evaluator=self.evaluator, budget=self.budget, target=self.context.target,
            seed=self.request.seed, on_batch=self._tuned,
        )  # fmt: skip
        tuning.run()
        self.progress.stage("re-time")
        tuning.retime()
        return tuning

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
        self, tuned: Sequence[Tuned], costs: dict[ConversionKey, float]
    ) -> list[tuple[str, Plan]]:
        """The baseline and the plans worth building, by name."""
        self.progress.stage("search")
        context, seed = self.context, self.request.seed
        self.table = TunedTable(context, tuned, costs, packed_sizes(tuned, context.target))
        self.table.table.save(self.folder.work / "cost_table.json")
        found = search(context, self.table, costs, self.request.objective, seed)
        self.notes.append(found.describe())
        plans = [("baseline", self.baseline.plan)]
        seen = {self.baseline.plan.digest}
        for assignment in found.assignments:
            plan = self.table.plan(assignment, seed, f"explored by tvmx, seed {seed}")
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
        jobs = [network_job(b, self.inputs, self.expected) for b in built]
        measured = self.runner.compare(jobs, _ROUNDS, TimingPolicy.careful())
        if not measured[0].ok:
            self._check_baseline()
            raise MeasureError(f"the baseline failed beside the others: {measured[0].message}")
        outcome = Outcome(
            self.request, self.context, self.runner, self.reference, self.table, self.notes
        )
        candidates, best = outcome.candidates(built, measured, self.inputs, self.data)
        result = ExploreResult(
            run=str(self.request.out), model=str(self.request.model),
            target=self.context.target.name, device=self.runner.identity,
            threads=self.request.threads, objective=self.request.objective,
            candidates=candidates, baseline=0, best=best,
            layers=outcome.layers(built, candidates[best]),
            measurements=tuning.trials, failures=self.evaluator.failed,
            seconds=self.budget.elapsed_s, reference=self.reference.name, notes=self.notes,
        )  # fmt: skip
        self.evaluator.clear()
        self.folder.save_result(result.model_dump(mode="json"))
        return result
