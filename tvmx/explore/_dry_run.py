"""What explore would do, without measuring anything."""

from __future__ import annotations

from tvmx.explore._context import Context
from tvmx.explore._request import DryRun, DryRunWorkload, ExploreRequest
from tvmx.explore._walk import possible_conversions
from tvmx.ir import DENSE, Implementation, Layer


def _label(implementation: Implementation) -> str:
    if implementation.exact:
        return implementation.template
    parts = [implementation.template]
    if implementation.precision != "f32":
        parts.append(implementation.precision)
    if implementation.sparsity != DENSE:
        parts.append(implementation.sparsity)
    return " ".join(parts)


def _configs(context: Context, layer: Layer, implementation: Implementation) -> int:
    template = context.registry.get(implementation.template).template
    return len(template.space(implementation.variant(layer.workload), context.target))


def dry_run(request: ExploreRequest) -> DryRun:
    """Import the model and count what there is to explore. No device is needed.

    Raises what ``explore`` raises for model, target and templates.
    """
    context = Context.open(
        request.model, request.shapes, request.target, request.schedules,
        exact=request.data is None, params=request.params, skip=request.skip,
    )  # fmt: skip
    options = context.options()
    covered = context.covered
    workloads: dict[str, DryRunWorkload] = {}
    for layer in covered:
        digest = layer.workload.digest
        if digest not in workloads:
            workloads[digest] = DryRunWorkload(
                workload=layer.workload.describe(), layers=[], templates={}
            )
        # Layers of one workload differ in their options where one of them is skipped.
        legal = {_label(i): _configs(context, layer, i) for i in options[layer.index]}
        workloads[digest].templates.update(legal)
        workloads[digest].layers.append(layer.name)
    notes = [] if request.data else ["no --data: no layer's numbers can be changed (int8, sparse)"]
    return DryRun(
        model=str(request.model), target=context.target.name,
        layers=len(context.network.graph.layers), covered=len(covered),
        workloads=list(workloads.values()),
        conversions=len(possible_conversions(context.network.graph, options)),
        notes=notes,
    )  # fmt: skip
