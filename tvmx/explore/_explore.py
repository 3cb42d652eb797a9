"""explore: tune kernels, search plans, build and measure the best ones, keep the winner."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmx.accuracy import Dataset, drop, load_data
from tvmx.build import BuildPool
from tvmx.errors import MeasureError
from tvmx.explore._accuracy import Scorer
from tvmx.explore._budget import Budget
from tvmx.explore._context import Context
from tvmx.explore._devices import LOCAL_KEY, check_device, open_runner
from tvmx.explore._evaluate import KernelEvaluator
from tvmx.explore._golden import save_golden
from tvmx.explore._reference import Reference, golden_inputs
from tvmx.explore._request import (
    CandidateSummary,
    ExploreRequest,
    ExploreResult,
    LayerSummary,
    Progress,
    Silent,
)
from tvmx.explore._search import search
from tvmx.explore._sizes import packed_sizes
from tvmx.explore._table import ConversionKey, TunedTable
from tvmx.explore._transitions import measure_transitions
from tvmx.explore._tuning import KernelTuning, Tuned
from tvmx.explore._whole import BuiltPlan, Paired, build_plan, measure_interleaved, paired
from tvmx.ir import Plan
from tvmx.measure import Measurement, NetworkJob, Runner
from tvmx.passes import baseline_plan, versions
from tvmx.store import Run, RunSettings
from tvmx.targets import load_target

_ROUNDS = 15
_DEFAULT_BUDGET_S = 600.0


def explore(request: ExploreRequest, progress: Progress | None = None) -> ExploreResult:
    """Run or resume one exploration; the outcome is also in the run folder.

    Raises:
        UsageError: the request makes no sense (target, device, folder).
        ModelError, DataError, TemplateError: what was handed in cannot be used.
        RunMismatchError: ``out`` holds another exploration.
        DeviceError: the device is gone for good; the journal keeps what was measured.
        MeasureError: the baseline itself cannot be built or measured.
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
        self.context.covered  # noqa: B018 - raises when no layer can be tuned
        self.data = self._load_data()
        with Run.open(request.out, self._settings(), fresh=request.fresh) as self.folder:
            return self._explore()

    def _explore(self) -> ExploreResult:
        request, context = self.request, self.context
        curve = self.folder.curve()
        self.budget = Budget(
            request.budget_s if request.budget_s or request.trials else _DEFAULT_BUDGET_S,
            request.trials, spent_s=float(curve[-1]["elapsed_s"]) if curve else 0.0,
        )  # fmt: skip
        workers = max(1, (os.cpu_count() or 2) - (request.tracker is None))
        self.reference = Reference(context.model)
        with (
            BuildPool(workers) as pool,
            open_runner(context.target.arch, request.tracker, request.threads) as runner,
        ):
            self.evaluator = KernelEvaluator(
                target=context.target, target_key=context.target_key, device=self._key(),
                threads=request.threads, versions=versions(), journal=self.folder.journal,
                runner=runner, pool=pool, folder=self.folder.work,
            )  # fmt: skip
            tuning = self._tune()
            self.progress.stage("borders")
            costs = measure_transitions(context, self.evaluator)
            plans = self._search(tuning.tuned, costs)
            return self._whole(runner, plans, tuning)

    def _key(self) -> str:
        return self.request.tracker.key if self.request.tracker else LOCAL_KEY

    def _load_data(self) -> Dataset | None:
        if self.request.data is None:
            self.notes.append(
                "no --data: only float, dense implementations were legal, accuracy was not measured"
            )
            return None
        return load_data(self.request.data, self.context.model.inputs, self.request.seed)

    def _settings(self) -> RunSettings:
        request, context = self.request, self.context
        own = {
            e.name: e.fingerprint for e in context.registry.entries() if e.origin != "built-in"
        }
        name, digest = context.target_key.split(":")
        return RunSettings(
            model=context.model.digest, model_path=str(request.model.resolve()),
            shapes=request.shapes, target=name, target_digest=digest, device=self._key(),
            threads=request.threads, seed=request.seed, objective=request.objective,
            data=self.data.digest if self.data else None,
            data_path=str(request.data.resolve()) if request.data else "",
            max_accuracy_drop=request.max_accuracy_drop, schedules=own,
            schedule_paths=tuple(str(p.resolve()) for p in request.schedules),
            budget_s=request.budget_s, trials=request.trials,
        )  # fmt: skip

    def _tune(self) -> KernelTuning:
        self.progress.stage("tune")
        uses = Counter(layer.workload.digest for layer in self.context.covered)
        tuning = KernelTuning(
            tasks=self.context.tasks(), uses=dict(uses), evaluator=self.evaluator,
            budget=self.budget, target=self.context.target, seed=self.request.seed,
            on_batch=self._tuned,
        )  # fmt: skip
        tuning.run()
        return tuning

    def _tuned(self, tuning: KernelTuning) -> None:
        best, baseline = tuning.best_estimate_us(), tuning.default_estimate_us()
        done, total = self.budget.progress(tuning.trials)
        self.progress.update(
            done, total, best_us=best, baseline_us=baseline, seconds_left=self.budget.left_s
        )
        self.folder.append_curve(
            {
                "elapsed_s": round(self.budget.elapsed_s, 3), "trials": tuning.trials,
                "best_us": best, "baseline_us": baseline,
            }  # fmt: skip
        )

    def _search(
        self, tuned: Sequence[Tuned], costs: dict[ConversionKey, float]
    ) -> list[tuple[str, Plan]]:
        self.progress.stage("search")
        context, seed = self.context, self.request.seed
        table = TunedTable(context, tuned, costs, packed_sizes(tuned, context.target))
        table.table.save(self.folder.path / "work" / "cost_table.json")
        self.tables = table
        found = search(context, table, costs, self.request.objective, seed)
        if self.request.objective == "latency":
            regret = found.best_us / found.exact_us - 1
            self.notes.append(
                f"on the cost table the agent's plan after {found.episodes} episodes is "
                f"{regret:.2%} from the optimum"
            )
        plans = [("baseline", baseline_plan(context.network, context.registry, context.target, seed))]
        seen = {plans[0][1].digest}
        for number, assignment in enumerate(found.assignments, 1):
            plan = table.plan(assignment, seed, f"explored, candidate {number}")
            if plan.digest not in seen:
                seen.add(plan.digest)
                plans.append((f"plan{len(plans)}", plan))
        return plans

    def _whole(
        self, runner: Runner, plans: list[tuple[str, Plan]], tuning: KernelTuning
    ) -> ExploreResult:
        self.progress.stage("measure")
        context, work = self.context, self.folder.work
        inputs = self.golden()
        expected = self.reference(inputs)
        save_golden(self.folder, inputs, expected, self.reference.name)
        built: list[BuiltPlan] = []
        for name, plan in plans:
            self.folder.save_plan(name, plan)
            built.append(
                build_plan(name, plan, context.network, context.registry, context.target, work)
            )
            self.progress.update(
                len(built), len(plans) + 1, best_us=None, baseline_us=None,
                seconds_left=self.budget.left_s,
            )  # fmt: skip
        measured = measure_interleaved(runner, built, inputs, expected, _ROUNDS)
        if not measured[0].ok:
            raise MeasureError(
                f"the baseline failed on the device ({measured[0].status}): {measured[0].message}",
                hint="`tvmx build` and `tvmx run` reproduce it alone",
            )
        return self._decide(runner, built, measured, inputs, tuning)

    def golden(self) -> dict[str, Any]:
        """The inputs everything is checked on: a sample the choices may see, or seeded noise."""
        if self.data is None:
            return golden_inputs(self.context.model, self.request.seed)
        specs = {spec.name: spec for spec in self.context.model.inputs}
        return next(iter(self.data.visible.feeds(specs))).arrays

    def _decide(
        self, runner: Runner, built: list[BuiltPlan], measured: list[Measurement],
        inputs: dict[str, Any], tuning: KernelTuning,
    ) -> ExploreResult:  # fmt: skip
        good: list[tuple[BuiltPlan, Measurement, Paired]] = []
        for plan, m in zip(built, measured, strict=True):
            if m.ok:
                good.append((plan, m, paired(m, measured[0], self.request.seed)))
            else:
                self.notes.append(f"{plan.name} was dropped: {m.status}: {m.message}")
        scorer = None
        if self.data is not None:
            scorer = Scorer(self.context.model, self.data.held_out, self.reference)
        candidates = [self._summary(runner, *item, inputs, scorer) for item in good]
        best = self._best(candidates, [item[2] for item in good])
        result = ExploreResult(
            run=str(self.request.out), model=str(self.request.model),
            target=self.context.target.name, device=runner.identity,
            threads=self.request.threads, objective=self.request.objective,
            candidates=candidates, baseline=0, best=best,
            layers=self._layers(good[best][0].plan), measurements=tuning.trials,
            failures=self.evaluator.failed, seconds=self.budget.elapsed_s,
            reference=self.reference.name, notes=self.notes,
        )  # fmt: skip
        self.folder.save_result(result.model_dump(mode="json"))
        return result

    def _summary(
        self, runner: Runner, built: BuiltPlan, m: Measurement, pair: Paired,
        inputs: dict[str, Any], scorer: Scorer | None,
    ) -> CandidateSummary:  # fmt: skip
        found, lost = None, None
        if scorer is not None:
            found = scorer(runner, NetworkJob(library=built.build.path, inputs=inputs))
            lost = drop(scorer.reference, found)
        return CandidateSummary(
            name=built.name, plan=built.plan.digest, latency_us=m.median_us or np.nan,
            spread_us=m.spread_us or 0.0, ratio=pair.ratio,
            weights_bytes=built.build.weights_bytes, arena_bytes=built.build.arena_bytes,
            scratch_bytes=built.build.scratch_bytes, library_bytes=built.build.bytes,
            accuracy=found.percent if found else None, accuracy_drop=lost,
            accuracy_kind=found.kind if found else "", max_error=m.max_error,
        )  # fmt: skip

    def _best(self, candidates: list[CandidateSummary], pairs: list[Paired]) -> int:
        """The baseline unless another candidate within the drop beats it beyond the noise."""
        objective, limit = self.request.objective, self.request.max_accuracy_drop

        def beats(index: int) -> bool:
            c, base = candidates[index], candidates[0]
            if c.accuracy_drop is not None and c.accuracy_drop > limit:
                return False
            if objective == "latency":
                return pairs[index].faster
            return _bytes(c, objective) < _bytes(base, objective)

        def rank(index: int) -> tuple[float, float]:
            c = candidates[index]
            return (0.0 if objective == "latency" else _bytes(c, objective), c.ratio)

        return min((i for i in range(len(candidates)) if beats(i)), key=rank, default=0)

    def _layers(self, best: Plan) -> list[LayerSummary]:
        rows = []
        for layer in self.tables.layers:
            options = self.tables.options(layer)
            choice = best.choice(layer.name)
            chosen = next(
                t for t in options
                if choice and t.task.implementation == choice.implementation
            )  # fmt: skip
            is_default = choice is not None and choice.knobs == chosen.tuner.space.default
            rows.append(
                LayerSummary(
                    layer=layer.name, workload=layer.workload.describe(),
                    baseline=options[0].task.implementation.label(),
                    baseline_us=options[0].default_us,
                    best=chosen.task.implementation.label(),
                    best_us=chosen.default_us if is_default else chosen.best_us,
                )  # fmt: skip
            )
        return rows


def _bytes(candidate: CandidateSummary, objective: str) -> float:
    return candidate.weights_bytes if objective == "weights" else candidate.arena_bytes
