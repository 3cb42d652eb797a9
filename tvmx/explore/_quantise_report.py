"""From what quantise found to what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tvmx.accuracy import Dataset, Effect, Samples
from tvmx.explore._compress import Compression
from tvmx.explore._context import Context
from tvmx.explore._cut import Cut
from tvmx.explore._quantise_request import (
    CutPoint,
    LayerFigures,
    MethodFigures,
    NetworkFigures,
    QuantiseRequest,
    QuantiseResult,
)
from tvmx.explore._ranges import value_ranges
from tvmx.ir import Implementation, Layer


@dataclass(frozen=True)
class Findings:
    """All that was simulated.

    ``compression`` has the biases corrected for the cut. ``visible`` are the samples choices
    were made on, ``int8`` the layers (by index) that could become int8, ``ranked`` the same, the
    most sensitive first, ``effects`` those of each alone. ``whole`` (every one int8) and
    ``chosen`` (the cut) are on the held-out half.
    """

    request: QuantiseRequest
    context: Context
    data: Dataset
    compression: Compression
    visible: Samples
    options: Mapping[int, Sequence[Implementation]]
    int8: Mapping[int, Implementation]
    methods: Sequence[MethodFigures]
    effects: Mapping[int, Effect]
    ranked: Sequence[int]
    cut: Cut
    whole: Effect
    chosen: Effect

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The network's."""
        return self.context.network.graph.layers

    @property
    def int8_layers(self) -> frozenset[int]:
        """Indices of the layers that are int8 in the cut."""
        return frozenset(self.ranked[self.cut.kept :])


def report(found: Findings, seconds: float) -> QuantiseResult:
    """The result; clipped shares are counted here, on the visible samples."""
    request, data, cut, ranked = found.request, found.data, found.cut, found.ranked
    names = [layer.name for layer in found.layers]
    return QuantiseResult(
        model=str(request.model), model_digest=found.context.model.digest,
        target=found.context.target.name, data=data.source, metric=found.whole.score.kind,
        calibration=found.compression.request.calibration,
        max_accuracy_drop=request.max_accuracy_drop,
        visible=len(found.visible), visible_total=len(data.visible),
        held_out=found.whole.score.samples, held_out_total=len(data.held_out),
        float_accuracy=found.whole.score.percent + found.whole.drop,
        methods=list(found.methods),
        values=value_ranges(found.compression, found.visible, found.options, found.int8),
        layers=[
            _layer(found, found.layers[node.layer], node.output)
            for node in found.context.network.graph.nodes if node.layer is not None
        ],
        curve=[
            CutPoint(
                kept_float=kept, layer=names[ranked[kept - 1]] if kept else "",
                drop=effect.drop, output_sqnr_db=effect.output_db,
            )
            for kept, effect in cut.curve.items()
        ],
        int8=_network(len(ranked), cut.curve[0], found.whole),
        cut=_network(len(found.int8_layers), cut.curve[cut.kept], found.chosen),
        kept_float=[names[at] for at in ranked[: cut.kept]],
        meets=found.chosen.drop <= request.max_accuracy_drop, seconds=seconds, notes=_notes(found),
    )  # fmt: skip


def _layer(found: Findings, layer: Layer, value: int) -> LayerFigures:
    name, workload = layer.name, layer.workload.describe()
    if layer.index not in found.effects:
        why = _why_not(found, layer)
        return LayerFigures(layer=name, value=value, workload=workload, cut=why)
    effect = found.effects[layer.index]
    return LayerFigures(
        layer=name, value=value, workload=workload, sqnr_db=effect.own_db,
        output_sqnr_db=effect.output_db, drop=effect.drop, sensitivity=effect.points,
        rank=found.ranked.index(layer.index) + 1,
        cut="int8" if layer.index in found.int8_layers else "float",
    )  # fmt: skip


def _why_not(found: Findings, layer: Layer) -> Literal["as stated", "skipped", "no int8 kernel"]:
    """Why a layer is not among those that can become int8."""
    if any(i.precision == "int8" for i in found.options.get(layer.index, ())):
        return "as stated"
    return "skipped" if layer.name in found.context.skipped else "no int8 kernel"


def _network(int8_layers: int, visible: Effect, held_out: Effect) -> NetworkFigures:
    return NetworkFigures(
        int8_layers=int8_layers, visible_drop=visible.drop, visible_sqnr_db=visible.output_db,
        accuracy=held_out.score.percent, drop=held_out.drop, sqnr_db=held_out.output_db,
    )  # fmt: skip


def _notes(found: Findings) -> list[str]:
    limit, notes = found.request.max_accuracy_drop, found.compression.describe()
    if found.cut.kept == len(found.ranked):
        notes.append(
            f"no cut keeps within {limit:g} points on the visible half: every layer stays float"
        )
    elif found.chosen.drop > limit:
        notes.append(
            f"the cut keeps within {limit:g} points on the visible half, but loses "
            f"{found.chosen.drop:.2f} on the held-out half: lower --max-accuracy-drop, or take "
            "more samples"
        )
    one = 100 / len(found.visible)
    if found.visible.labels is not None and found.request.metric is None and limit < one:
        notes.append(
            f"one of {len(found.visible)} samples is {one:.2f} points: a limit of {limit:g} means "
            "that none may be lost"
        )
    return notes
