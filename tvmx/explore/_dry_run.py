"""What explore would do, without measuring anything."""

from __future__ import annotations

from tvmx.explore._context import Context
from tvmx.explore._request import DryRun, DryRunWorkload, ExploreRequest
from tvmx.explore._walk import possible_conversions


def dry_run(request: ExploreRequest) -> DryRun:
    """Import the model and count what there is to explore. No device is needed.

    Raises what ``explore`` raises for model, target and templates.
    """
    context = Context.open(request.model, request.shapes, request.target, request.schedules)
    covered = context.covered
    workloads: dict[str, DryRunWorkload] = {}
    for layer in covered:
        digest = layer.workload.digest
        if digest not in workloads:
            legal = context.registry.legal(layer.workload, context.target)
            workloads[digest] = DryRunWorkload(
                workload=layer.workload.describe(), layers=[],
                templates={
                    e.name: len(e.template.space(layer.workload, context.target)) for e in legal
                },
            )  # fmt: skip
        workloads[digest].layers.append(layer.name)
    notes = [] if request.data else ["no --data: only float, dense implementations are legal"]
    return DryRun(
        model=str(request.model), target=context.target.name,
        layers=len(context.network.graph.layers), covered=len(covered),
        workloads=list(workloads.values()),
        conversions=len(possible_conversions(context.network.graph, context.options())),
        notes=notes,
    )  # fmt: skip
