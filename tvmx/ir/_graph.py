"""The network as choices see it: layers, the operators between them, and how layouts flow.

Pure data (no TVM): built once from the Relax module by ``tvmx.passes``, used by lowering, by
the cost table and by the search environment, so that all of them agree on every conversion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tvmx.ir._implementation import Implementation
from tvmx.ir._layout import PLAIN, block_of, dtype_of, is_int8, layout_of, physical_shape, stored_as
from tvmx.ir._workload import Conv2dWorkload, DenseWorkload

_MOVES = frozenset({"relax.reshape", "relax.flatten", "relax.squeeze"})
NodeKind = Literal["layer", "follow", "concat", "flatten", "quantise", "opaque"]
"""How a node treats layouts.

``follow``: computes in whatever layout its first blocked input has (element-wise, pooling);
``concat``: channel concatenation, blocked only if every part fills its blocks;
``flatten``: (N, C, 1, 1) -> (N, C), free in a blocked layout whose blocks are full;
``quantise``: of a quantised model, to int8 in the layout of its input; with ``int8`` False
nothing is computed here, since all readers read int8 and convert what they need;
``opaque``: everything else, plain in and plain out.
"""


@dataclass(frozen=True)
class Layer:
    """One anchor operator with the epilogue fused into it: the unit of choice.

    ``name`` is unique in the model and comes from the source file; ``fused`` names the source
    operators of the epilogue. ``parameters`` counts weight and bias elements.
    """

    index: int
    name: str
    op: str
    workload: Conv2dWorkload | DenseWorkload
    fused: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Node:
    """One step of the network, in topological order. Values are numbered; inputs come first.

    ``int8``: the operator (no layer) can compute on int8; ``tied``: its int8 output then has its
    input's scale and zero point (pooling, clip, reshape).
    """

    kind: NodeKind
    inputs: tuple[int, ...]
    output: int
    op: str
    layer: int | None = None
    int8: bool = False
    tied: bool = False


@dataclass(frozen=True)
class Conversion:
    """A conversion of one value between formats: layout, type (quantise, dequantise) or both."""

    value: int
    shape: tuple[int, ...]
    source: str
    destination: str

    @property
    def key(self) -> tuple[tuple[int, ...], str, str]:
        """What its cost depends on."""
        return (self.shape, self.source, self.destination)


@dataclass(frozen=True)
class StatedValue:
    """Scale and zero point of a value that the model itself states in int8.

    ``unsigned``: in u8; ``zero_point`` is that of s8 all the same, less by 128.
    """

    value: int
    scale: float
    zero_point: int
    unsigned: bool = False


@dataclass(frozen=True)
class NetworkGraph:
    """Layers and nodes of a model. ``shapes[v]`` is the logical shape of value ``v``.

    ``stated`` are the scales and zero points that a quantised model brings along: those values
    are int8 in every plan.
    """

    layers: tuple[Layer, ...]
    nodes: tuple[Node, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs_elsewhere: int = 0
    stated: tuple[StatedValue, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.workload.macs for layer in self.layers)

    @cached_property
    def stated_values(self) -> frozenset[int]:
        """The values that the model states in int8."""
        return frozenset(stated.value for stated in self.stated)

    @cached_property
    def read_in_float(self) -> frozenset[int]:
        """Indices of the layers whose output nothing can read in int8, whatever the plan.

        Outputs of the network, and what only float operators read; reshapes are looked through.
        """
        in_int8: set[int] = set()
        for node in reversed(self.nodes):
            moves = node.op in _MOVES and node.output not in in_int8
            if node.layer is not None or node.kind == "quantise" or (node.int8 and not moves):
                in_int8.update(node.inputs)
        found = (n.layer for n in self.nodes if n.output not in in_int8)
        return frozenset(layer for layer in found if layer is not None)


@dataclass(frozen=True)
class Placement:
    """The formats one node was given: conversions to do first, what it reads and writes."""

    conversions: tuple[Conversion, ...]
    reads: tuple[str, ...]
    writes: str


def plain_or_blocked(form: str) -> str:
    """The format as the walk tells them apart: every unblocked layout (NC too) is plain."""
    return form if block_of(form) else stored_as(PLAIN, dtype_of(form))


WalkState = tuple[tuple[int, tuple[str, ...]], ...]
"""Values still to be read, each with the formats it exists in, the one it was made in first."""


class LayoutWalk:
    """Walks a network in topological order and decides every format and conversion.

    A conversion is done once and its result kept: a second reader in the same format is free.
    An operator between layers computes on int8 where it can and all its inputs were made so, or
    where the model states its output in int8.
    The state after ``n`` nodes depends only on the implementations of the layers among them;
    :meth:`state` sums it up and :meth:`restore` goes back to it.
    """

    def __init__(self, graph: NetworkGraph) -> None:
        self._graph = graph
        self.reset()

    def reset(self) -> None:
        """Start over: only the network inputs exist, in the plain layout."""
        self._layouts: dict[int, tuple[str, ...]] = dict.fromkeys(self._graph.inputs, (PLAIN,))

    def state(self) -> WalkState:
        """What later placements depend on, hashable."""
        return tuple(sorted(self._layouts.items()))

    def restore(self, state: WalkState) -> None:
        """Go back to a state of this network's walk."""
        self._layouts = dict(state)

    def forget(self, values: Sequence[int]) -> None:
        """Drop values that no later node reads, so that equal futures have equal states."""
        for value in values:
            self._layouts.pop(value, None)

    def step(self, node: Node, implementation: Implementation | None = None) -> Placement:
        """Place one node; ``implementation`` is needed for layers that a template covers."""
        reads, writes = self._decide(node, implementation)
        conversions: list[Conversion] = []
        for value, layout in zip(node.inputs, reads, strict=True):
            conversions += self._need(value, layout)
        self._layouts[node.output] = (writes,)
        return Placement(tuple(conversions), reads, writes)

    def finish(self) -> tuple[Conversion, ...]:
        """Conversions of the network outputs back to the plain layout."""
        return tuple(c for value in self._graph.outputs for c in self._need(value, PLAIN))

    def _need(self, value: int, layout: str) -> list[Conversion]:
        have = self._layouts[value]
        if layout in have:
            return []
        self._layouts[value] = (have[0], *sorted((*have[1:], layout)))
        return [Conversion(value, self._graph.shapes[value], have[0], layout)]

    def _decide(
        self, node: Node, implementation: Implementation | None
    ) -> tuple[tuple[str, ...], str]:
        homes = [self._layouts[v][0] for v in node.inputs]
        if node.kind == "layer" and implementation is not None:
            writes = plain_or_blocked(implementation.writes)
            rest = (writes,) * (len(node.inputs) - 1)
            return (plain_or_blocked(implementation.reads), *rest), writes
        layouts = [layout_of(h) for h in homes]
        if node.kind == "quantise":
            source = stored_as(layouts[0], "float32")
            return (source,), stored_as(layouts[0], "int8") if node.int8 else source
        stated = node.output in self._graph.stated_values
        made_so = node.int8 and bool(homes) and all(map(is_int8, homes))
        dtype = "int8" if stated or made_so else "float32"
        reads = writes = PLAIN
        if node.kind == "follow":
            reads = writes = self._follow(node.inputs, layouts)
        elif node.kind == "concat":
            reads = writes = self._concat(node.inputs, layouts)
        elif node.kind == "flatten" and self._full(node.inputs[0], layouts[0]):
            reads = layouts[0]
        return (stored_as(reads, dtype),) * len(homes), stored_as(writes, dtype)

    def _follow(self, values: Sequence[int], homes: Sequence[str]) -> str:
        four_d = all(len(self._graph.shapes[v]) == 4 for v in values)
        blocked = [h for h in homes if block_of(h)]
        return blocked[0] if blocked and four_d else PLAIN

    def _concat(self, values: Sequence[int], homes: Sequence[str]) -> str:
        """The blocked layout most bytes are in already, if every part fills its blocks."""
        weight: dict[str, int] = {}
        for value, home in zip(values, homes, strict=True):
            weight[home] = weight.get(home, 0) + math.prod(self._graph.shapes[value])
        best = max(weight, key=lambda h: (weight[h], h))
        return best if all(self._full(v, best) for v in values) else PLAIN

    def _full(self, value: int, layout: str) -> bool:
        v = block_of(layout)
        shape = self._graph.shapes[value]
        return v is not None and len(shape) == 4 and shape[1] % v == 0


def value_bytes(shape: tuple[int, ...], form: str) -> int:
    """Bytes of a value in a format, padding lanes included."""
    return math.prod(physical_shape(shape, form)) * (1 if is_int8(form) else 4)
