"""From what prune found to what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmx.accuracy import Dataset, Effect, PrunedLayer, Samples
from tvmx.explore._prune_levels import Prunable, dense_work, work_of
from tvmx.explore._prune_own import layer_steps
from tvmx.explore._prune_request import (
    LevelFigures,
    PruneCurvePoint,
    PrunedLayerFigures,
    PrunedNetwork,
    PruneRequest,
    PruneResult,
    Work,
)
from tvmx.ir import DENSE, Implementation

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.explore._cut import Cut
    from tvmx.passes import LayerStep

Choices = Mapping[int, Implementation]


@dataclass(frozen=True)
class PruneFindings:
    """All that was simulated.

    ``layers`` are by index, ``made`` (what was reconstructed) and ``effects`` of each alone by
    sparsity too. ``highest`` and ``chosen`` are whole choices, ``most`` and ``best`` their effects
    on the held-out half.
    """

    request: PruneRequest
    context: Context
    data: Dataset
    visible: Samples
    layers: Mapping[int, Prunable]
    made: Mapping[int, Mapping[str, PrunedLayer]]
    effects: Mapping[tuple[int, str], Effect]
    cut: Cut
    highest: Choices
    chosen: Choices
    most: Effect
    best: Effect


def prune_report(found: PruneFindings, seconds: float) -> PruneResult:
    """The result."""
    request, data, cut = found.request, found.data, found.cut
    steps = layer_steps(found.context.network)
    pattern = request.pattern
    return PruneResult(
        model=str(request.model), model_digest=found.context.model.digest,
        target=found.context.target.name, data=data.source, metric=found.most.score.kind,
        method=request.method,
        pattern="target" if pattern is None else f"{pattern[0]}x{pattern[1]}",
        max_accuracy_drop=request.max_accuracy_drop,
        visible=len(found.visible), visible_total=len(data.visible),
        held_out=found.most.score.samples, held_out_total=len(data.held_out),
        float_accuracy=found.most.score.percent + found.most.drop,
        layers=[_layer(found, step) for step in steps.values()],
        curve=[
            PruneCurvePoint(left_out=out, drop=effect.drop, output_sqnr_db=effect.output_db)
            for out, effect in cut.curve.items()
        ],
        dense=_sum([dense_work(step) for step in steps.values()]),
        most=_network(found, found.highest, cut.curve[0], found.most),
        best=_network(found, found.chosen, cut.curve[cut.kept], found.best),
        meets=found.best.drop <= request.max_accuracy_drop, seconds=seconds, notes=_notes(found),
    )  # fmt: skip


def _layer(found: PruneFindings, step: LayerStep) -> PrunedLayerFigures:
    index, layer = step.layer.index, found.layers.get(step.layer.index)
    levels = layer.levels if layer else ()
    zeros = layer.zeros if layer else None
    return PrunedLayerFigures(
        layer=step.layer.name, workload=step.layer.workload.describe(),
        zeros=zeros.zeros if zeros else 0.0,
        zero_pattern=f"{zeros.rows}x{zeros.columns}" if zeros and zeros.zeros else "",
        zero_blocks=zeros.blocks if zeros else 0.0,
        kernel=layer.kernel if layer else "",
        levels=[_level(found, index, how) for how in levels],
        chosen=_chosen(found, step), dense=dense_work(step),
        after=_after(found, step, found.chosen),
    )  # fmt: skip


def _level(found: PruneFindings, index: int, how: Implementation) -> LevelFigures:
    effect = found.effects[index, how.sparsity]
    made = found.made.get(index, {}).get(how.sparsity)
    return LevelFigures(
        sparsity=how.sparsity, method=made.method if made else "magnitude",
        sqnr_db=effect.own_db, output_sqnr_db=effect.output_db, drop=effect.drop,
        sensitivity=effect.points,
    )  # fmt: skip


def _chosen(found: PruneFindings, step: LayerStep) -> str:
    index = step.layer.index
    if index in found.chosen:
        return found.chosen[index].sparsity
    layer = found.layers.get(index)
    if layer is None:
        return "no template"
    if layer.resting.sparsity != DENSE:
        return f"{layer.resting.sparsity} as it arrived"
    if layer.levels:
        return DENSE
    if step.layer.name in found.context.skipped:
        return "skipped"
    return "no sparse kernel" if found.request.pattern is None else "cannot be pruned"


def _after(found: PruneFindings, step: LayerStep, chosen: Choices) -> Work:
    layer = found.layers.get(step.layer.index)
    if layer is None:
        return dense_work(step)
    how = chosen.get(step.layer.index)
    if how is None:
        return work_of(step, layer.resting, layer.resting.sparsity != DENSE)
    return work_of(step, how, bool(layer.kernel))


def _network(
    found: PruneFindings, chosen: Choices, visible: Effect, held_out: Effect
) -> PrunedNetwork:
    steps = layer_steps(found.context.network).values()
    return PrunedNetwork(
        pruned_layers=len(chosen), visible_drop=visible.drop, visible_sqnr_db=visible.output_db,
        accuracy=held_out.score.percent, drop=held_out.drop, sqnr_db=held_out.output_db,
        work=_sum([_after(found, step, chosen) for step in steps]),
    )  # fmt: skip


def _sum(parts: list[Work]) -> Work:
    return Work(flops=sum(p.flops for p in parts), bytes=sum(p.bytes for p in parts))


def _notes(found: PruneFindings) -> list[str]:
    limit = found.request.max_accuracy_drop
    notes = ["latency is not measured here: `tvmx explore` measures what sparse kernels gain"]
    idle = [at for at in found.chosen if not found.layers[at].kernel]
    if idle:
        notes.append(
            f"{len(idle)} of {len(found.chosen)} pruned layers have no sparse kernel for these "
            f"blocks on {found.context.target.name}: their zeros are computed like other numbers, "
            "and buy no latency"
        )
    arrived = sum(layer.resting.sparsity != DENSE for layer in found.layers.values())
    if arrived:
        notes.append(f"{arrived} layers arrive sparse: used as they are, they lose nothing")
    methods = [made.method for levels in found.made.values() for made in levels.values()]
    if "magnitude" in methods:
        notes.append(
            f"{methods.count('magnitude')} of {len(methods)} levels are by magnitude: "
            "reconstruction erred more on samples it was not fitted to"
        )
    if not found.chosen:
        notes.append(f"nothing can be pruned within {limit:g} points on the visible half")
    elif found.best.drop > limit:
        notes.append(
            f"the levels keep within {limit:g} points on the visible half, but lose "
            f"{found.best.drop:.2f} on the held-out half: lower --max-accuracy-drop, or take "
            "more samples"
        )
    return notes
