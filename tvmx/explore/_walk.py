"""Border costs and arena of a plan, from the same layout walk that lowering uses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

from tvmx.errors import UsageError
from tvmx.ir import (
    Conversion,
    Implementation,
    LayoutWalk,
    NetworkGraph,
    Node,
    Placement,
    WalkState,
    value_bytes,
)

ConversionKey = tuple[tuple[int, ...], str, str]


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
        return sum(self._costs[c.key] for c in conversions)


def possible_conversions(graph: NetworkGraph, layouts: Sequence[str]) -> list[Conversion]:
    """One conversion per distinct (shape, source, destination) that some plan may need."""
    found: dict[ConversionKey, Conversion] = {}
    for value, shape in enumerate(graph.shapes):
        if len(shape) != 4:
            continue
        for source in layouts:
            for destination in layouts:
                if source != destination:
                    conversion = Conversion(value, shape, source, destination)
                    found.setdefault(conversion.key, conversion)
    return list(found.values())


def estimate_arena(graph: NetworkGraph, chosen: Mapping[int, Implementation]) -> int:
    """Bytes of activations alive together at the worst moment, values in their layouts.

    A lower bound of what StaticPlanBlockMemory allocates, good for ranking plans; what is
    reported for a candidate is the planned figure of its own build. ``chosen`` maps layer
    index to implementation.
    """
    steps = _placements(graph, chosen)
    last_use = {v: i for i, (node, _) in enumerate(steps) for v in node.inputs}
    last_use |= dict.fromkeys(graph.outputs, len(steps))
    external = set(graph.inputs)
    live: dict[int, int] = {}
    peak = 0
    for index, (node, placement) in enumerate(steps):
        for conversion in placement.conversions:
            size = value_bytes(conversion.shape, conversion.destination)
            live[conversion.value] = live.get(conversion.value, 0) + size
        live[node.output] = value_bytes(graph.shapes[node.output], placement.writes)
        peak = max(peak, sum(live.values()))
        for value in [v for v in live if last_use.get(v, index) <= index and v not in external]:
            del live[value]
    return peak


def _placements(
    graph: NetworkGraph, chosen: Mapping[int, Implementation]
) -> list[tuple[Node, Placement]]:
    walk = LayoutWalk(graph)
    return [
        (node, walk.step(node, None if node.layer is None else chosen.get(node.layer)))
        for node in graph.nodes
    ]
