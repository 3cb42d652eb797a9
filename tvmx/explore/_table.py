"""From tuned kernels and measured borders to a cost table, and from a choice to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tvmx.errors import MeasureError
from tvmx.explore._choices import Choices
from tvmx.explore._evaluate import Task
from tvmx.explore._tuning import Tuned
from tvmx.ir import (
    CostTable,
    Implementation,
    Layer,
    LayerChoice,
    LayerCosts,
    Plan,
    transition_key,
)
from tvmx.passes import choose, named, versions
from tvmx.search import target_features

if TYPE_CHECKING:
    from tvmx.explore._context import Context

ConversionKey = tuple[tuple[int, ...], str, str]


def no_drop(layer: Layer, implementation: Implementation) -> float:
    """Where only exact implementations are legal, none loses accuracy."""
    return 0.0


class TunedTable:
    """The cost table of a network, with the config behind every figure."""

    def __init__(
        self, context: Context, tuned: Sequence[Tuned], transitions: Mapping[ConversionKey, float],
        sizes: Mapping[Task, int], options: Mapping[int, Sequence[Implementation]],
        drops: Callable[[Layer, Implementation], float] = no_drop,
    ) -> None:  # fmt: skip
        self._context = context
        self.layers: list[Layer] = context.covered
        self._options, self._drops = options, drops
        self._tuned = {(t.task.workload.digest, t.task.implementation): t for t in tuned}
        self.table = CostTable(
            layers=tuple(self._costs(layer, sizes) for layer in self.layers),
            transitions={transition_key(*key): us for key, us in transitions.items()},
            workloads={layer.workload.digest: layer.workload for layer in self.layers},
            graph=context.network.graph,
            target=target_features(context.target),
        )

    def options(self, layer: Layer) -> list[Tuned]:
        """The implementations of a layer, in the table's order."""
        digest = layer.workload.digest
        return [
            self._tuned[digest, implementation] for implementation in self._options[layer.index]
        ]

    def chosen(self, assignment: Sequence[int]) -> dict[int, Implementation]:
        """Layer index -> implementation of an assignment."""
        pairs = zip(self.layers, assignment, strict=True)
        return {la.index: self._options[la.index][i] for la, i in pairs}

    def plan(self, assignment: Sequence[int], seed: int, note: str) -> Plan:
        """The plan of an assignment, every layer at the best config found; not yet calibrated."""
        pairs = zip(self.layers, assignment, strict=True)
        tuned = [(la, self.options(la)[i]) for la, i in pairs]
        return Plan(
            model=self._context.model.digest, target=self._context.target.name,
            choices=tuple(self._choice(la, t) for la, t in tuned),
            seed=seed, versions=versions(), note=note,
        )  # fmt: skip

    def choices(self, seed: int) -> Choices:
        """The plans of all assignments; not yet calibrated."""
        return Choices(
            model=self._context.model.digest, target=self._context.target.name, seed=seed,
            versions=versions(),
            layers=tuple(
                tuple(self._choice(la, tuned) for tuned in self.options(la)) for la in self.layers
            ),
        )  # fmt: skip

    def _choice(self, layer: Layer, tuned: Tuned) -> LayerChoice:
        target = self._context.target
        entry, how = tuned.task.entry, tuned.task.implementation
        return named(choose(entry, layer, target, tuned.best, how), self._context.network)

    def _costs(self, layer: Layer, sizes: Mapping[Task, int]) -> LayerCosts:
        options = self.options(layer)
        if options[0].best_us is None:
            raise MeasureError(
                f"layer {layer.name!r}: no config of its baseline template "
                f"{options[0].task.entry.name!r} could be measured",
                hint="the journal of the run holds the reasons",
            )
        digest = layer.workload.digest
        return LayerCosts(
            layer=layer.name,
            workload=digest,
            implementations=tuple(t.task.implementation for t in options),
            latency_us=tuple(_beyond_noise(t, options[0]) for t in options),
            weights_bytes=tuple(sizes[t.task] for t in options),
            accuracy_drop=tuple(self._drops(layer, t.task.implementation) for t in options),
            baseline=0,
        )


def _beyond_noise(tuned: Tuned, baseline: Tuned) -> float | None:
    """The latency an implementation is credited with, us.

    A difference from the layer's baseline inside the noise earns nothing: then it is the
    baseline's.
    """
    if tuned.noise_us is None or baseline.noise_us is None:
        return tuned.best_us
    (low, high), (base_low, base_high) = tuned.noise_us, baseline.noise_us
    return baseline.best_us if low <= base_high and base_low <= high else tuned.best_us
