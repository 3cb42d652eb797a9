"""Leaving out implementations that no good plan uses, before their borders are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tvmx.ir import Implementation, Layer, NetworkGraph, block_of


class Worth(NamedTuple):
    """What speaks for an implementation of a layer: less is better in each."""

    us: float
    accuracy_drop: float
    weights_bytes: int


Judge = Callable[[Layer, Implementation], Worth | None]
"""The worth of a layer's implementation; None where it could not be measured."""


def undominated(
    graph: NetworkGraph, options: Mapping[int, Sequence[Implementation]], judge: Judge
) -> dict[int, list[Implementation]]:
    """The options without those that another one beats or equals in every respect.

    One in the plain layout also gives way to one in a blocked layout, unless the layer's
    neighbourhood is plain anyway (the network's ends, operators without a blocked form): there
    it may save conversions. The first option, the baseline's, always stays.
    """
    plain = plain_values(graph)
    nodes = {node.layer: node for node in graph.nodes if node.layer is not None}
    kept: dict[int, list[Implementation]] = {}
    for layer in graph.layers:
        if layer.index not in options:
            continue
        node = nodes[layer.index]
        at_plain = bool(plain & {*node.inputs, node.output})
        first, *others = options[layer.index]
        worths = [(i, worth) for i in (first, *others) if (worth := judge(layer, i)) is not None]
        kept[layer.index] = [first]
        for rank, (i, worth) in enumerate(worths):
            rivals = ((j, w, r < rank) for r, (j, w) in enumerate(worths) if j != i)
            if i != first and not any(_gives_way(i, worth, *r, at_plain) for r in rivals):
                kept[layer.index].append(i)
    return kept


def _gives_way(
    loser: Implementation, worth: Worth, winner: Implementation, theirs: Worth, earlier: bool,
    at_plain: bool,
) -> bool:  # fmt: skip
    """Whether ``loser`` is not needed beside ``winner``; of equals the earlier one stays."""
    if any(b > a for a, b in zip(worth, theirs, strict=True)):
        return False
    if worth == theirs and not earlier:
        return False
    if (loser.reads, loser.writes) == (winner.reads, winner.writes):
        return True
    # An exact layer between exact ones must not pay for quantising its neighbours' values.
    if loser.dtype != winner.dtype and loser.exact:
        return False
    return not block_of(loser.layout) and bool(block_of(winner.layout)) and not at_plain


def plain_values(graph: NetworkGraph) -> set[int]:
    """Values that are plain in every plan, and what operators between layers make of them."""
    plain = {*graph.inputs, *graph.outputs}
    for node in graph.nodes:
        if node.kind in ("opaque", "flatten"):
            plain |= {*node.inputs, node.output}
    for node in graph.nodes:
        if node.kind in ("follow", "concat") and plain & set(node.inputs):
            plain.add(node.output)
    for node in reversed(graph.nodes):
        if node.kind in ("follow", "concat") and node.output in plain:
            plain.update(node.inputs)
    return plain
