"""Border costs over a real network, from the same layout walk that lowering uses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

from tvmx.errors import StoreError, UsageError
from tvmx.ir import (
    Conversion,
    CostTable,
    Implementation,
    LayoutWalk,
    NetworkGraph,
    Node,
    WalkState,
    plain_or_blocked,
    transition_key,
)
from tvmx.search._border import ChainBorderWalk, ResumableWalk

ConversionKey = tuple[tuple[int, ...], str, str]
"""Logical shape, source and destination format."""


class GraphBorderWalk:
    """The environment's border costs over a real network.

    ``costs`` maps a conversion's key to us. ``covered`` lists, in network order, the layers
    that have implementations to choose from; ``place`` takes positions in that list.
    """

    def __init__(
        self, graph: NetworkGraph, covered: Sequence[int], costs: Mapping[ConversionKey, float]
    ) -> None:
        self._graph = graph
        self._covered = tuple(covered)
        self._costs = costs
        self._walk = LayoutWalk(graph)
        self._nodes = graph.nodes
        self._stops = frozenset(covered)
        last = {v: i for i, node in enumerate(graph.nodes) for v in node.inputs}
        last |= dict.fromkeys(graph.outputs, len(graph.nodes))
        self._expiring: dict[int, list[int]] = {}
        for value, index in last.items():
            self._expiring.setdefault(index, []).append(value)
        self.reset()

    @classmethod
    def from_table(cls, table: CostTable) -> GraphBorderWalk:
        """The walk of a table that brings its network along.

        Raises StoreError when it does not, or when its layers are not the network's.
        """
        if table.graph is None:
            raise StoreError(
                "the cost table has no network graph", hint="explore again: newer tables have one"
            )
        index = {layer.name: layer.index for layer in table.graph.layers}
        covered = [index.get(costs.layer, -1) for costs in table.layers]
        if covered != sorted(set(covered)) or covered[0] < 0:
            raise StoreError("the layers of the cost table are not those of its network, in order")
        costs = {parse_transition(key): us for key, us in table.transitions.items()}
        return cls(table.graph, covered, costs)

    def reset(self) -> None:
        """Back to the network's inputs."""
        self._walk.reset()
        self._cursor = 0
        self._advance()

    def place(self, layer_index: int, implementation: Implementation) -> float:
        """Us of the conversions caused by this layer and by what follows up to the next one.

        Raises:
            UsageError: layers are placed out of network order.
        """
        node = self._nodes[self._cursor] if self._cursor < len(self._nodes) else None
        if node is None or node.layer != self._covered[layer_index]:
            raise UsageError(f"layer {layer_index} is placed out of order")
        return self._step(node, implementation) + self._advance()

    def state(self) -> Hashable:
        """Position and layouts of the values still to be read."""
        return (self._cursor, self._walk.state())

    def restore(self, state: Hashable) -> None:
        """Go back to what :meth:`state` returned."""
        self._cursor, layouts = cast(tuple[int, WalkState], state)
        self._walk.restore(layouts)

    def finish(self) -> float:
        """Us of bringing the network outputs back to the plain layout."""
        return self._cost(self._walk.finish())

    def _advance(self) -> float:
        cost = 0.0
        while self._cursor < len(self._nodes):
            node = self._nodes[self._cursor]
            if node.layer in self._stops:
                break
            cost += self._step(node, None)
        return cost

    def _step(self, node: Node, implementation: Implementation | None) -> float:
        conversions = self._walk.step(node, implementation).conversions
        self._walk.forget(self._expiring.get(self._cursor, ()))
        self._cursor += 1
        return self._cost(conversions)

    def _cost(self, conversions: Sequence[Conversion]) -> float:
        try:
            return sum(self._costs[c.key] for c in conversions)
        except KeyError as err:
            raise StoreError(
                f"the cost table has no transition {transition_key(*err.args[0])!r}"
            ) from err


def walk_of(table: CostTable) -> ResumableWalk:
    """The walk a table asks for: over its network, or over the chain of its layers."""
    if table.graph is None:
        return ChainBorderWalk.from_table(table)
    return GraphBorderWalk.from_table(table)


def parse_transition(key: str) -> ConversionKey:
    """The key of a table's transition as the walk asks for it."""
    shape, _, forms = key.partition(":")
    source, _, destination = forms.partition(">")
    sizes = tuple(int(size) for size in shape.split("x"))
    return sizes, plain_or_blocked(source), plain_or_blocked(destination)
