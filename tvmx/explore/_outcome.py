"""From measured candidates to the result: accuracy, the winner, the per-layer table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmx.accuracy import Dataset, drop
from tvmx.explore._accuracy import Scorer
from tvmx.explore._context import Context
from tvmx.explore._reference import Reference
from tvmx.explore._request import CandidateSummary, ExploreRequest, LayerSummary
from tvmx.explore._table import TunedTable
from tvmx.explore._tuning import Tuned
from tvmx.explore._whole import BuiltPlan, network_job
from tvmx.ir import Layer, LayerChoice
from tvmx.measure import Measurement, Paired, Runner, compare_paired


@dataclass(frozen=True)
class Outcome:
    """What measured candidates amount to. ``notes`` collects what a reader must know."""

    request: ExploreRequest
    context: Context
    runner: Runner
    reference: Reference
    table: TunedTable
    notes: list[str]

    def candidates(
        self, built: Sequence[BuiltPlan], measured: Sequence[Measurement],
        inputs: dict[str, Any], data: Dataset | None,
    ) -> tuple[list[CandidateSummary], int]:  # fmt: skip
        """Summaries of what ran right, the baseline first, and the index of the winner."""
        scorer = None
        if data is not None:
            scorer = Scorer(self.context.model, data.held_out, self.reference)
        summaries: list[CandidateSummary] = []
        pairs: list[Paired] = []
        for plan, measurement in zip(built, measured, strict=True):
            if not measurement.ok:
                self.notes.append(
                    f"{plan.name} was dropped: {measurement.status}: {measurement.message}"
                )
                continue
            pair = compare_paired(measurement.latencies_us, measured[0].latencies_us)
            pairs.append(pair)
            summaries.append(self._summary(plan, measurement, pair, inputs, scorer))
        return summaries, self._best(summaries, pairs)

    def layers(self, built: Sequence[BuiltPlan], best: CandidateSummary) -> list[LayerSummary]:
        """One row per covered layer: the baseline's and the winner's implementation."""
        plan = next(b.plan for b in built if b.name == best.name)
        rows = []
        for layer in self.table.layers:
            choice = plan.choice(layer.name)
            assert choice is not None, layer.name
            rows.append(self._row(layer, choice))
        return rows

    def _row(self, layer: Layer, choice: LayerChoice) -> LayerSummary:
        options = self.table.options(layer)
        chosen = next(t for t in options if t.task.implementation == choice.implementation)
        return LayerSummary(
            layer=layer.name,
            workload=layer.workload.describe(),
            baseline=options[0].task.implementation.label(),
            baseline_us=options[0].default_us,
            best=chosen.task.implementation.label(),
            best_us=_latency(chosen, choice),
        )

    def _summary(
        self, built: BuiltPlan, m: Measurement, pair: Paired, inputs: dict[str, Any],
        scorer: Scorer | None,
    ) -> CandidateSummary:  # fmt: skip
        assert m.median_us is not None and m.spread_us is not None
        found = scorer(self.runner, network_job(built, inputs)) if scorer else None
        return CandidateSummary(
            name=built.name, plan=built.plan.digest, latency_us=m.median_us,
            spread_us=m.spread_us, ratio=pair.ratio,
            weights_bytes=built.build.weights_bytes, arena_bytes=built.build.arena_bytes,
            scratch_bytes=built.build.scratch_bytes, library_bytes=built.build.bytes,
            accuracy=found.percent if found else None,
            accuracy_drop=drop(scorer.reference, found) if scorer and found else None,
            accuracy_kind=found.kind if found else "", max_error=m.max_error,
        )  # fmt: skip

    def _best(self, candidates: list[CandidateSummary], pairs: list[Paired]) -> int:
        """The baseline, unless another one within the drop beats it beyond the noise."""
        objective, limit = self.request.objective, self.request.max_accuracy_drop

        def size(candidate: CandidateSummary) -> int:
            weights = objective == "weights"
            return candidate.weights_bytes if weights else candidate.arena_bytes

        def beats(index: int) -> bool:
            lost = candidates[index].accuracy_drop
            if lost is not None and lost > limit:
                return False
            if objective == "latency":
                return pairs[index].verdict == "faster"
            return size(candidates[index]) < size(candidates[0])

        def rank(index: int) -> tuple[float, float]:
            candidate = candidates[index]
            return (0.0 if objective == "latency" else size(candidate), candidate.ratio)

        return min((i for i in range(1, len(candidates)) if beats(i)), key=rank, default=0)


def _latency(tuned: Tuned, choice: LayerChoice) -> float | None:
    """What was measured for exactly this config."""
    if choice.knobs == tuned.best:
        return tuned.best_us
    return tuned.default_us if choice.knobs == tuned.tuner.space.default else None
