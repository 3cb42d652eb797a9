"""From tuned kernels and measured borders to a cost table, and from a choice to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tvmx.errors import MeasureError
from tvmx.explore._tuning import Tuned
from tvmx.ir import Config, CostTable, Layer, LayerChoice, LayerCosts, Plan, transition_key
from tvmx.passes import choose, versions

if TYPE_CHECKING:
    from tvmx.explore._context import Context

ConversionKey = tuple[tuple[int, ...], str, str]


class TunedTable:
    """The cost table of a network, with the config behind every figure."""

    def __init__(
        self, context: Context, tuned: Sequence[Tuned], transitions: Mapping[ConversionKey, float],
        sizes: Mapping[tuple[str, str], int],
    ) -> None:  # fmt: skip
        self._context = context
        self.layers: list[Layer] = context.covered
        self._by_workload: dict[str, list[Tuned]] = {}
        for t in tuned:
            self._by_workload.setdefault(t.task.workload.digest, []).append(t)
        self.table = CostTable(
            layers=tuple(self._costs(layer, sizes) for layer in self.layers),
            transitions={transition_key(*key): us for key, us in transitions.items()},
            workloads={layer.workload.digest: layer.workload for layer in self.layers},
        )

    def options(self, layer: Layer) -> list[Tuned]:
        """The implementations of a layer, in the table's order."""
        return self._by_workload[layer.workload.digest]

    def plan(self, assignment: Sequence[int], seed: int, note: str) -> Plan:
        """The plan of an assignment, every layer at the best config found."""
        pairs = zip(self.layers, assignment, strict=True)
        return self._plan(
            [self._choice(la, self.options(la)[i], None) for la, i in pairs], seed, note
        )

    def _plan(self, choices: list[LayerChoice], seed: int, note: str) -> Plan:
        return Plan(
            model=self._context.model.digest, target=self._context.target.name,
            choices=tuple(choices), seed=seed, versions=versions(), note=note,
        )  # fmt: skip

    def _choice(self, layer: Layer, tuned: Tuned, config: Config | None) -> LayerChoice:
        return choose(tuned.task.entry, layer, self._context.target, config or tuned.best)

    def _costs(self, layer: Layer, sizes: Mapping[tuple[str, str], int]) -> LayerCosts:
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
            latency_us=tuple(t.best_us for t in options),
            weights_bytes=tuple(sizes[digest, t.task.entry.name] for t in options),
            baseline=0,
        )
