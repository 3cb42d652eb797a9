"""prune: a network with fewer weights, without a device. Sensitivities, and the best levels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tvmx.accuracy import (
    DEFAULT_METRIC,
    Effect,
    Judge,
    PrunedLayer,
    Samples,
    layer_effects,
    load_data,
    load_metric,
    plan_effects,
    prune_layers,
    spread,
)
from tvmx.errors import UsageError
from tvmx.explore._context import Context
from tvmx.explore._cut import curve_length, find_cut
from tvmx.explore._prune_levels import Prunable, choices_of, moves, prunable_layer
from tvmx.explore._prune_method import network_with
from tvmx.explore._prune_own import layer_steps
from tvmx.explore._prune_report import PruneFindings, prune_report
from tvmx.explore._prune_request import PruneRequest, PruneResult
from tvmx.explore._prune_weights import save_weights
from tvmx.explore._request import Progress, Silent
from tvmx.explore._study import (
    HELD_OUT_S,
    PLAN,
    REPORT,
    VISIBLE_S,
    affordable,
    check_classes,
    counted,
    write_study,
)
from tvmx.ir import BlockSparsity, Implementation, Plan
from tvmx.passes import Simulator, choose, named, versions
from tvmx.store import make_folder
from tvmx.targets import load_target


def prune_network(request: PruneRequest, progress: Progress | None = None) -> PruneResult:
    """Study a network pruned; write the report, the plan and its weights if asked to.

    Weights are made on the calibration samples, choices on the visible half of the data; the
    held-out half is simulated once, at the end. Deterministic for a given ``samples``.

    Raises:
        UsageError: ``skip`` matches no layer, or no layer is left that can be pruned.
        ModelError, DataError, TemplateError: what was handed in cannot be used.
        UnwritableError: ``out`` cannot be written.
    """
    return _Study(request, progress or Silent()).run()


class _Study:
    def __init__(self, request: PruneRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.started = time.monotonic()
        self._last: Judge | None = None

    def run(self) -> PruneResult:
        request = self.request
        self.progress.stage("import")
        self.context = Context.open(
            request.model, request.shapes, request.target, request.schedules, exact=False,
            params=request.params, skip=request.skip,
        )  # fmt: skip
        self.layers = self._layers()
        self.data = load_data(
            request.data, self.context.model.inputs, request.seed, request.preprocess
        )
        self.metric = load_metric(request.metric) if request.metric else DEFAULT_METRIC
        if not request.metric:
            check_classes(self.context.model, self.data, self.metric)
        made = self._reconstruct()
        self.simulator = Simulator(self.context.network, load_target("host"))
        self.progress.stage("sensitivity")
        self.visible = self._visible()
        effects = self._alone()
        self.progress.stage("levels")
        ordered = moves(self.layers, effects)
        cut = find_cut(
            len(ordered), lambda out: self._effect(choices_of(ordered[out:]), self.visible),
            request.max_accuracy_drop,
        )  # fmt: skip
        chosen = choices_of(ordered[cut.kept :])
        self.progress.stage("held-out half")
        most, best = self._held_out(choices_of(ordered), chosen)
        found = PruneFindings(
            request, self.context, self.data, self.visible, self.layers, made, effects, cut,
            choices_of(ordered), chosen, most, best,
        )  # fmt: skip
        result = prune_report(found, time.monotonic() - self.started)
        return result if request.out is None else self._write(request.out, result, chosen)

    def _layers(self) -> dict[int, Prunable]:
        """Every covered layer; some can be pruned to no level."""
        steps, options = layer_steps(self.context.network), self.context.options()
        found = {
            index: prunable_layer(steps[index], legal, self.context, self.request)
            for index, legal in options.items()
        }
        if not any(layer.levels for layer in found.values()):
            raise UsageError(
                f"{self.request.model}: no layer is left to prune to these levels on "
                f"{self.context.target.name} ({len(found)} layers, "
                f"{len(self.context.skipped)} skipped)",
                hint="name the blocks to prune layers that no sparse kernel computes: "
                "--pattern 16x1",
            )
        return found

    def _reconstruct(self) -> dict[int, dict[str, PrunedLayer]]:
        """By layer index and sparsity; nothing where magnitude alone decides."""
        if self.request.method == "magnitude":
            return {}
        self.progress.stage("reconstruct")
        wanted = {
            index: [s for how in layer.levels if (s := BlockSparsity.parse(how.sparsity))]
            for index, layer in self.layers.items() if layer.levels
        }  # fmt: skip
        simulator = Simulator(self.context.network, load_target("host"))
        specs = {spec.name: spec for spec in self.context.model.inputs}
        made = prune_layers(
            simulator, self.data.calibration, specs, wanted,
            on_layer=counted(self.progress, len(wanted)),
        )  # fmt: skip
        network = network_with(self.context.network, made)
        self.context = replace(self.context, network=network)
        return made

    def _visible(self) -> Samples:
        """The samples that choices are made on."""
        layers = self.context.network.graph.layers
        total = sum(layer.workload.macs for layer in layers)
        behind = {la.index: sum(x.workload.macs for x in layers[la.index :]) for la in layers}
        count = sum(len(layer.levels) for layer in self.layers.values())
        alone = sum(len(layer.levels) * behind[at] for at, layer in self.layers.items())
        runs = alone / max(1, total) + curve_length(count)
        return self._some(self.data.visible, runs, VISIBLE_S)

    def _some(self, samples: Samples, runs: float, seconds: float) -> Samples:
        """As many as were asked for, or as there is time for."""
        if self.request.samples is not None:
            return spread(samples, self.request.samples)
        shape = self.context.model.inputs[0].shape
        return affordable(samples, shape[0] if shape else 1, self._run_s, runs, seconds)

    def _run_s(self, samples: Samples) -> float:
        """Seconds of all layers pruned, from the float network's values."""
        judge = self._judge(samples)
        judge.simulate([])
        before = time.monotonic()
        judge.simulate([{at: la.levels[-1] for at, la in self.layers.items() if la.levels}])
        return time.monotonic() - before

    def _alone(self) -> dict[tuple[int, str], Effect]:
        """Effects of each layer at each level, the others as they are."""
        total = sum(len(layer.levels) for layer in self.layers.values())
        step, found = counted(self.progress, total), {}
        for depth in range(max(len(layer.levels) for layer in self.layers.values())):
            choices = {
                at: layer.levels[depth] for at, layer in self.layers.items()
                if len(layer.levels) > depth
            }  # fmt: skip
            effects = layer_effects(self._judge(self.visible), choices, step)
            found.update({(at, choices[at].sparsity): e for at, e in effects.items()})
        return found

    def _effect(self, choices: Mapping[int, Implementation], samples: Samples) -> Effect:
        (found,) = plan_effects(self._judge(samples), [choices])
        return found

    def _judge(self, samples: Samples) -> Judge:
        """The last one again where it would be the same: it keeps the float network's values."""
        if self._last is None or self._last.samples is not samples:
            specs = {spec.name: spec for spec in self.context.model.inputs}
            self._last = Judge(self.simulator, samples, specs, self.metric, {})
        return self._last

    def _held_out(
        self, most: Mapping[int, Implementation], best: Mapping[int, Implementation]
    ) -> tuple[Effect, Effect]:
        samples = self._some(self.data.held_out, 3, HELD_OUT_S)
        whole = self._effect(most, samples)
        return whole, whole if most == best else self._effect(best, samples)

    def _plan(self, chosen: Mapping[int, Implementation]) -> Plan:
        """The levels chosen, at template defaults; other layers as they rest."""
        context, choices = self.context, []
        for layer in context.covered:
            how = chosen.get(layer.index, self.layers[layer.index].resting)
            entry = context.registry.get(how.template)
            choice = choose(entry, layer, context.target, implementation=how)
            choices.append(named(choice, context.network))
        return Plan(
            model=context.model.digest, target=context.target.name, choices=tuple(choices),
            seed=self.request.seed, versions=versions(),
            note=f"levels by tvmx prune: {len(chosen)} of {len(context.network.graph.layers)} "
            "layers pruned, template defaults",
        )  # fmt: skip

    def _write(
        self, out: Path, result: PruneResult, chosen: Mapping[int, Implementation]
    ) -> PruneResult:
        """The weights first: a plan names files that are there."""
        plan = self._plan(chosen)
        written = result.model_copy(update={"plan": str(out / PLAN), "report": str(out / REPORT)})
        make_folder(out)
        save_weights(out, plan, self.context.network)
        write_study(out, plan, written)
        return written
