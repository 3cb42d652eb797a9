"""From measured candidates to the result: accuracy, the winners, the per-layer table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tvmx.accuracy import Score, drop
from tvmx.errors import LimitError
from tvmx.explore._accuracy import Scorer
from tvmx.explore._context import Context
from tvmx.explore._reference import Reference
from tvmx.explore._request import CandidateSummary, ExploreRequest, ExploreResult, LayerSummary
from tvmx.explore._table import TunedTable
from tvmx.explore._tuning import Tuned
from tvmx.explore._whole import SIMULATION, BuiltPlan, as_reference, network_job
from tvmx.ir import DENSE, Layer, LayerChoice, Plan
from tvmx.measure import Measurement, NetworkJob, Paired, Runner, compare_measured


@dataclass
class Outcome:
    """What measured candidates amount to. ``notes`` collects what a reader must know.

    ``scorer`` scores whole plans on data that no choice has seen; None without data. ``scores`` are
    those known, by the plan's digest.
    """

    request: ExploreRequest
    context: Context
    runner: Runner
    reference: Reference
    table: TunedTable
    scorer: Scorer | None
    notes: list[str]
    scores: dict[str, Score] = field(default_factory=dict)
    pairs: list[Paired] = field(default_factory=list)

    def candidates(
        self, built: Sequence[BuiltPlan], measured: Sequence[Measurement],
        jobs: Sequence[NetworkJob],
    ) -> list[CandidateSummary]:  # fmt: skip
        """Summaries of what ran right, the baseline first."""
        summaries: list[CandidateSummary] = []
        for plan, measurement, job in zip(built, measured, jobs, strict=True):
            if not measurement.ok:
                self.notes.append(
                    f"{plan.name} was dropped: {measurement.status}: {measurement.message}"
                )
                continue
            pair = compare_measured(measurement, measured[0])
            self.pairs.append(pair)
            summaries.append(self._summary(plan, measurement, pair, job))
        return summaries

    def layers(
        self, built: Sequence[BuiltPlan], best: CandidateSummary, memory: CandidateSummary
    ) -> list[LayerSummary]:
        """One row per covered layer: the implementations of the baseline and both winners."""
        plans = {b.name: b.plan for b in built}
        return [
            self._row(layer, plans[best.name], plans[memory.name]) for layer in self.table.layers
        ]

    def best(self, candidates: Sequence[CandidateSummary]) -> int:
        """The baseline, unless another one within the limits beats it beyond the noise."""
        objective = self.request.objective

        def size(index: int) -> int:
            found = candidates[index]
            return found.weights_bytes if objective == "weights" else found.arena_bytes

        def beats(index: int) -> bool:
            if not candidates[index].meets:
                return False
            if not candidates[0].meets:
                return True
            if objective == "latency":
                return self.pairs[index].verdict == "faster"
            return size(index) < size(0)

        def rank(index: int) -> tuple[float, float]:
            return (0.0 if objective == "latency" else size(index), candidates[index].ratio)

        return min((i for i in range(1, len(candidates)) if beats(i)), key=rank, default=0)

    def best_memory(self, candidates: Sequence[CandidateSummary]) -> int:
        """Least weights plus arena among those within the limits; the faster one on ties."""

        def rank(index: int) -> tuple[bool, int, float]:
            found = candidates[index]
            return (not found.meets, found.weights_bytes + found.arena_bytes, found.ratio)

        return min(range(len(candidates)), key=rank)

    def check_limits(self, result: ExploreResult) -> None:
        """Raise LimitError when not even the best candidate stays within the limits."""
        if result.candidates[result.best].meets:
            return
        least = min(result.candidates, key=lambda c: c.weights_bytes + c.arena_bytes)
        raise LimitError(
            f"no plan meets {self._limits()}; the smallest one measured, {least.name}, has "
            f"{least.weights_bytes} bytes of weights, {least.arena_bytes} of arena"
            + ("" if least.accuracy_drop is None else f", drop {least.accuracy_drop:+.2f} points"),
            hint=f"looser limits; `tvmx export {result.run} --pick INDEX` exports one anyway",
        )

    def _limits(self) -> str:
        request = self.request
        asked = [f"--max-accuracy-drop {request.max_accuracy_drop:g}"]
        asked += [f"--max-weights {request.max_weights}"] if request.max_weights else []
        asked += [f"--max-arena {request.max_arena}"] if request.max_arena else []
        return ", ".join(asked)

    def _row(self, layer: Layer, best: Plan, memory: Plan) -> LayerSummary:
        options = self.table.options(layer)
        chosen, least = best.choice(layer.name), memory.choice(layer.name)
        assert chosen is not None and least is not None, layer.name
        return LayerSummary(
            layer=layer.name,
            workload=layer.workload.describe(),
            baseline=options[0].task.implementation.label(),
            baseline_us=options[0].default_us,
            best=chosen.implementation.label(),
            best_us=_latency(options, chosen),
            memory=least.implementation.label(),
            memory_us=_latency(options, least),
        )

    def _summary(
        self, built: BuiltPlan, m: Measurement, pair: Paired, job: NetworkJob
    ) -> CandidateSummary:
        assert m.median_us is not None and m.spread_us is not None
        scorer, build = self.scorer, built.build
        found = self.scores.get(built.plan.digest)
        if found is None and scorer is not None:
            found = scorer(self.runner, network_job(built, dict(job.inputs)))
        lost = drop(scorer.reference, found) if scorer and found else None
        return CandidateSummary(
            name=built.name, plan=built.plan.digest, latency_us=m.median_us,
            spread_us=m.spread_us, ratio=pair.ratio,
            weights_bytes=build.weights_bytes, arena_bytes=build.arena_bytes,
            scratch_bytes=build.scratch_bytes, library_bytes=build.bytes,
            accuracy=found.percent if found else None, accuracy_drop=lost,
            accuracy_kind=found.kind if found else "", max_error=m.max_error,
            checked_against=self.reference.name
            if as_reference(built.plan, self.context.network.graph)
            else SIMULATION,
            meets=self._meets(lost, build.weights_bytes, build.arena_bytes),
            layers=kinds(built.plan),
        )  # fmt: skip

    def _meets(self, lost: float | None, weights: int, arena: int) -> bool:
        request = self.request
        return (
            (lost is None or lost <= request.max_accuracy_drop)
            and (request.max_weights is None or weights <= request.max_weights)
            and (request.max_arena is None or arena <= request.max_arena)
        )


def kinds(plan: Plan) -> dict[str, int]:
    """How many layers have which precision and sparsity."""
    labels = []
    for choice in plan.choices:
        how = choice.implementation
        labels.append(how.precision + ("" if how.sparsity == DENSE else f" {how.sparsity}"))
    return dict(sorted(Counter(labels).items()))


def _latency(options: Sequence[Tuned], choice: LayerChoice) -> float | None:
    """What was measured for exactly this config."""
    implementation = choice.implementation
    tuned = next((t for t in options if t.task.implementation == implementation), None)
    if tuned is None:
        return None
    if choice.knobs == tuned.best:
        return tuned.best_us
    return tuned.default_us if choice.knobs == tuned.tuner.space.default else None
