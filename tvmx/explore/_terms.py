"""What a plan has of everything that a cost table does not price: see ``tvmx.search.TERMS``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvmx.explore._walk import estimate_arena
from tvmx.ir import Conversion, CostTable, Implementation, LayoutWalk, NetworkGraph, value_bytes
from tvmx.search import conversion_terms
from tvmx.targets import Target

_NO_KERNEL = ("flatten",)


def plan_terms(
    graph: NetworkGraph, chosen: Mapping[int, Implementation], beyond_l2: float
) -> dict[str, float]:
    """The terms of a plan; ``chosen`` is by layer index, ``beyond_l2`` in bytes."""
    terms = {"kernels": 0.0, "adds": 0.0, "others_kib": 0.0, "cold_kib": beyond_l2 / 1024}
    walk = LayoutWalk(graph)
    conversions: list[Conversion] = []
    for node in graph.nodes:
        implementation = None if node.layer is None else chosen.get(node.layer)
        placed = walk.step(node, implementation)
        conversions += placed.conversions
        if node.kind in _NO_KERNEL or (node.kind == "quantise" and not node.int8):
            continue
        terms["kernels"] += 1
        if implementation is None:
            moved = sum(
                value_bytes(graph.shapes[value], form)
                for value, form in zip(node.inputs, placed.reads, strict=True)
            )
            moved += value_bytes(graph.shapes[node.output], placed.writes)
            terms["others_kib"] += moved / 1024
        elif len(node.inputs) > 1:
            terms["adds"] += 1
    for conversion in (*conversions, *walk.finish()):
        for name, value in conversion_terms(conversion.key).items():
            terms[name] = terms.get(name, 0.0) + value
    return terms


def table_terms(
    table: CostTable, target: Target, threads: int, assignment: Sequence[int]
) -> dict[str, float]:
    """The terms of an assignment of a table that brings its network along."""
    assert table.graph is not None
    index = {layer.name: layer.index for layer in table.graph.layers}
    chosen = {
        index[costs.layer]: costs.implementations[action]
        for costs, action in zip(table.layers, assignment, strict=True)
    }
    used = table.weights_bytes(assignment) + estimate_arena(table.graph, chosen)
    return plan_terms(table.graph, chosen, max(0.0, used - l2_bytes(target, threads)))


def l2_bytes(target: Target, threads: int) -> int:
    """The level-2 cache that so many threads have, bytes."""
    core = target.big
    return (core.l2_kib << 10) * (threads if core.l2_private else 1)
