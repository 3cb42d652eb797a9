"""quantise: a network in int8 without a device. Ranges, noise, sensitivities, the best cut."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tvmx.accuracy import (
    DEFAULT_METRIC,
    Effect,
    Samples,
    load_data,
    load_metric,
    spread,
)
from tvmx.errors import UsageError
from tvmx.explore._compress import Compression
from tvmx.explore._context import Context
from tvmx.explore._cut import curve_length, cut_plan, find_cut, int8_of
from tvmx.explore._quantise_report import Findings, report
from tvmx.explore._quantise_request import MethodFigures, QuantiseRequest, QuantiseResult
from tvmx.explore._request import Calibration, ExploreRequest, Progress, Silent
from tvmx.explore._study import (
    HELD_OUT_S,
    PLAN,
    REPORT,
    VISIBLE_S,
    check_classes,
    counted,
    write_study,
)
from tvmx.explore._subsets import Subsets
from tvmx.ir import Implementation

_METHODS: tuple[Calibration, ...] = get_args(Calibration)


def quantise(request: QuantiseRequest, progress: Progress | None = None) -> QuantiseResult:
    """Study a network in int8, and write the report and the plan of the best cut if asked to.

    Choices are made on the visible half of the data; the held-out half is simulated once, at the
    end. Deterministic for a given ``samples``.

    Raises:
        UsageError: ``skip`` matches no layer, or no layer is left that can be int8.
        ModelError, DataError, TemplateError: what was handed in cannot be used.
        UnwritableError: ``out`` cannot be written.
    """
    return _Study(request, progress or Silent()).run()


class _Study:
    def __init__(self, request: QuantiseRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.started = time.monotonic()

    def run(self) -> QuantiseResult:
        request = self.request
        self.progress.stage("import")
        self.context = Context.open(
            request.model, request.shapes, request.target, request.schedules, exact=False,
            params=request.params, skip=request.skip,
        )  # fmt: skip
        self.options = self.context.options()
        self.int8 = self._can_be_int8()
        self.data = load_data(
            request.data, self.context.model.inputs, request.seed, request.preprocess
        )
        self.metric = load_metric(request.metric) if request.metric else DEFAULT_METRIC
        if not request.metric:
            check_classes(self.context.model, self.data, self.metric)
        methods = self._calibrate()
        self.progress.stage("sensitivity")
        effects = self.subsets.alone(self.visible, counted(self.progress, len(self.int8)))
        ranked = sorted(effects, key=lambda at: (-effects[at].points, effects[at].output_db, at))
        self.progress.stage("cut")
        cut = find_cut(
            len(ranked), lambda kept: self.subsets.effect(ranked[kept:], self.visible),
            request.max_accuracy_drop,
        )  # fmt: skip
        int8 = ranked[cut.kept :]
        self.progress.stage("held-out half")
        whole, chosen = self._held_out(int8)
        found = Findings(
            request, self.context, self.data, self.subsets.compression(int8), self.visible,
            self.options, self.int8, methods, effects, ranked, cut, whole, chosen,
        )  # fmt: skip
        result = report(found, time.monotonic() - self.started)
        return result if request.out is None else self._write(result, found)

    def _can_be_int8(self) -> dict[int, Implementation]:
        """By layer index the int8 implementation that stands for all: they compute the same."""
        found = {at: int8_of(legal) for at, legal in self.options.items()}
        int8 = {at: how for at, how in found.items() if how is not None}
        if not int8:
            skipped, layers = len(self.context.skipped), len(self.context.network.graph.layers)
            raise UsageError(
                f"{self.request.model}: no layer is left that could become int8 on "
                f"{self.context.target.name} ({layers} layers, {skipped} skipped)",
                hint="skip fewer layers" if skipped else "`tvmx schedules` lists int8 templates",
            )
        return int8

    def _calibrate(self) -> list[MethodFigures]:
        """Ranges by the method asked for, or by every one to find the best; and the samples."""
        self.progress.stage("calibrate")
        asked = self.request.calibration
        if asked != "all":
            self.subsets = self._compress(asked)
            self.visible = self._visible(0)
            return []
        found: list[tuple[MethodFigures, Subsets]] = []
        count = counted(self.progress, len(_METHODS))
        for method in _METHODS:
            self.subsets = self._compress(method)
            if not found:
                self.visible = self._visible(len(_METHODS))
            effect = self.subsets.effect(self.int8, self.visible)
            figures = MethodFigures(
                calibration=method, drop=effect.drop, sensitivity=effect.points,
                output_sqnr_db=effect.output_db,
            )  # fmt: skip
            found.append((figures, self.subsets))
            count(len(found))
        _, self.subsets = min(found, key=lambda pair: pair[0].sensitivity)
        return [figures for figures, _ in found]

    def _compress(self, method: Calibration) -> Subsets:
        request = self.request
        how = ExploreRequest(
            model=request.model, target=request.target, out=Path(), data=request.data,
            calibration=method, equalise=request.equalise,
            bias_correction=request.bias_correction,
        )  # fmt: skip
        prepared = Compression.prepare(self.context, self.data, self.metric, how, self.options)
        return Subsets(prepared, self.int8)

    def _visible(self, methods: int) -> Samples:
        """The samples that choices are made on."""
        layers = self.context.network.graph.layers
        total = sum(layer.workload.macs for layer in layers)
        behind = {la.index: sum(x.workload.macs for x in layers[la.index :]) for la in layers}
        alone = sum(behind[at] for at in self.int8) / max(1, total)
        runs = alone + curve_length(len(self.int8)) + methods
        return self._some(self.data.visible, runs, VISIBLE_S)

    def _some(self, samples: Samples, runs: float, seconds: float) -> Samples:
        """As many as were asked for, or as there is time for."""
        if self.request.samples is not None:
            return spread(samples, self.request.samples)
        return self.subsets.affordable(samples, runs, seconds)

    def _held_out(self, cut: Sequence[int]) -> tuple[Effect, Effect]:
        """Effects of all layers int8 and of the cut's, on samples that no choice has seen."""
        samples = self._some(self.data.held_out, 3, HELD_OUT_S)
        whole = self.subsets.effect(self.int8, samples)
        same = len(cut) == len(self.int8)
        return whole, whole if same else self.subsets.effect(cut, samples)

    def _write(self, result: QuantiseResult, found: Findings) -> QuantiseResult:
        assert self.request.out is not None
        out = self.request.out
        plan = cut_plan(self.context, self.options, found.int8_layers, self.request.seed)
        written = result.model_copy(update={"plan": str(out / PLAN), "report": str(out / REPORT)})
        write_study(out, found.compression.complete(plan), written)
        return written
