"""Border costs: what conversions between formats a choice of implementation causes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from tvmx.errors import StoreError
from tvmx.ir._cost_table import CostTable, transition_key
from tvmx.ir._graph import plain_or_blocked
from tvmx.ir._implementation import Implementation
from tvmx.ir._layout import PLAIN

NETWORK_INPUT = -1
"""Predecessor index that stands for the network's input."""


@runtime_checkable
class BorderWalk(Protocol):
    """Walks a network's layers in topological order and prices the conversions.

    A conversion changes the layout, the type (quantise, dequantise), or both.
    ``reset`` starts over; ``place`` fixes one layer's implementation and returns the us of
    the conversions it causes (its inputs', and those of the other operators up to the next
    layer); ``finish`` returns the us of converting the outputs. Pure: the same placements
    cost the same. Of an implementation only its formats (``reads``, ``writes``) matter.
    """

    def reset(self) -> None: ...

    def place(self, layer_index: int, implementation: Implementation) -> float: ...

    def finish(self) -> float: ...


@runtime_checkable
class ResumableWalk(BorderWalk, Protocol):
    """A walk whose past is summed up by a small hashable state.

    Two walks at the same layer with equal ``state()`` have equal costs from there on (the
    formats of the tensors still to be read are such a state). That turns the walk into a
    Markov process: the exact solver merges equal states, Q-learning uses them as keys.
    ``restore`` goes back to a state taken earlier.
    """

    def state(self) -> Hashable: ...

    def restore(self, state: Hashable) -> None: ...


def plan_us(table: CostTable, walk: BorderWalk, assignment: Sequence[int]) -> float:
    """Latency of a whole plan in us: all layers and all border conversions.

    Raises StoreError when the assignment has an implementation without a latency.
    """
    total = table.layers_us(assignment)
    walk.reset()
    for layer, (costs, action) in enumerate(zip(table.layers, assignment, strict=True)):
        total += walk.place(layer, costs.implementations[action])
    return total + walk.finish()


class ChainBorderWalk:
    """Border costs of a chain of layers, or of a small DAG given by its edges.

    ``shapes[i]`` is the logical output shape of layer i. ``predecessors[i]`` lists whose
    outputs layer i reads, :data:`NETWORK_INPUT` for the network's input: the first in the
    format the implementation ``reads``, the rest (residuals) in the one it ``writes``; by
    default each layer reads the one before. Layers that nobody reads are the network's outputs
    and are converted to ``output_format``. A tensor converted once is kept for later readers.
    All unblocked formats of a type are one, so flattening (NCHW to NC) is free. Raises
    StoreError where ``transitions`` lacks a conversion.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        transitions: Mapping[str, float],
        *,
        predecessors: Sequence[Sequence[int]] | None = None,
        input_shape: tuple[int, ...],
        input_format: str = PLAIN,
        output_format: str = PLAIN,
    ) -> None:
        count = len(shapes)
        if predecessors is None:
            predecessors = [(i - 1,) for i in range(count)]
        if len(predecessors) != count or any(
            not NETWORK_INPUT <= p < i for i, ps in enumerate(predecessors) for p in ps
        ):
            raise StoreError(f"predecessors of {count} layers must come before their readers")
        self._shapes = {NETWORK_INPUT: tuple(input_shape)}
        self._shapes.update((i, tuple(shape)) for i, shape in enumerate(shapes))
        self._predecessors = [tuple(ps) for ps in predecessors]
        self._transitions = dict(transitions)
        self._input_format = plain_or_blocked(input_format)
        self._output_format = plain_or_blocked(output_format)
        readers = {p: i for i, ps in enumerate(self._predecessors) for p in ps}
        self._outputs = [i for i in range(count) if i not in readers]
        self._expiring: list[list[int]] = [[] for _ in range(count)]
        for producer, last in readers.items():
            self._expiring[last].append(producer)
        self._cost: dict[tuple[int, str, str], float] = {}
        self._live: dict[int, tuple[str, ...]] = {}
        self.reset()

    @classmethod
    def from_table(
        cls, table: CostTable, *, predecessors: Sequence[Sequence[int]] | None = None
    ) -> ChainBorderWalk:
        """The walk of a self-describing table; the network's input is the first layer's.

        Raises StoreError when the table lacks a layer's workload.
        """
        missing = [c.layer for c in table.layers if c.workload not in table.workloads]
        if missing:
            raise StoreError(f"the cost table has no workload for layer {missing[0]!r}")
        workloads = [table.workloads[c.workload] for c in table.layers]
        return cls(
            [w.out_shape for w in workloads],
            table.transitions,
            predecessors=predecessors,
            input_shape=workloads[0].data_shape,
        )

    def reset(self) -> None:
        """Start over: only the network's input exists."""
        self._live = {NETWORK_INPUT: (self._input_format,)}

    def place(self, layer_index: int, implementation: Implementation) -> float:
        """Us of the conversions of this layer's inputs."""
        us = 0.0
        wanted, made = (
            plain_or_blocked(implementation.reads),
            plain_or_blocked(implementation.writes),
        )
        for producer in self._predecessors[layer_index]:
            us += self._convert(producer, wanted)
            wanted = made
        for producer in self._expiring[layer_index]:
            del self._live[producer]
        self._live[layer_index] = (made,)
        return us

    def finish(self) -> float:
        """Us of the conversions of the network's outputs."""
        return sum(self._convert(i, self._output_format) for i in self._outputs)

    def state(self) -> Hashable:
        """The formats every tensor that is still to be read exists in, its own first."""
        return tuple(self._live.items())

    def restore(self, state: Hashable) -> None:
        """Go back to a state of this walk."""
        self._live = dict(cast("tuple[tuple[int, tuple[str, ...]], ...]", state))

    def _convert(self, producer: int, wanted: str) -> float:
        have = self._live[producer]
        if wanted in have:
            return 0.0
        key = (producer, have[0], wanted)
        us = self._cost.get(key)
        if us is None:
            us = self._cost[key] = self._price(*key)
        self._live[producer] = (have[0], *sorted((*have[1:], wanted)))
        return us

    def _price(self, producer: int, source: str, destination: str) -> float:
        key = transition_key(self._shapes[producer], source, destination)
        if key not in self._transitions:
            raise StoreError(f"the cost table has no transition {key!r}")
        return self._transitions[key]
