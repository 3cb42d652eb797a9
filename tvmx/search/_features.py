"""What a policy may know of a layer's implementations before any of them is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tvmx.ir._cost_table import CostTable, LayerCosts
from tvmx.ir._graph import NetworkGraph, plain_or_blocked
from tvmx.ir._implementation import Implementation
from tvmx.ir._layout import PLAIN, block_of
from tvmx.ir._sparsity import DENSE
from tvmx.search._budgets import NO_BUDGETS, Budgets
from tvmx.search._observation import FEATURES, Vector

Floats = npt.NDArray[np.float32]

TARGET = ("vector", "in_order", "l2", "int8_rate")
"""Keys of :attr:`CostTable.target`, as :func:`tvmx.search.target_features` fills them in."""

_FAMILIES = ("direct", "im2col", "winograd", "depthwise", "dense", "bsr")
"""Templates by what is in their names; others are of no family."""

CONTEXT = (*FEATURES, "baseline_rate", *TARGET)
ACTION = (
    "baseline", "int8", "sparse", "density", "reads_plain", "writes_plain", "weights", "drop",
    *_FAMILIES, "successors_read", "matches_input", "matches_residual",
)  # fmt: skip
_DYNAMIC = 2  # the last columns of ACTION depend on what was chosen before


class TableFeatures:
    """The features of one table. Of the latencies only the baseline's are looked at.

    ``context[layer]`` has the columns of ``CONTEXT`` that no episode changes; ``actions`` is of
    shape (layers, width, len(ACTION)), its last columns to be filled in by :meth:`matches`.
    """

    def __init__(self, table: CostTable, width: int, budgets: Budgets = NO_BUDGETS) -> None:
        layers = table.layers
        self._limit = budgets.max_accuracy_drop
        self._sources = _sources(table.graph, [costs.layer for costs in layers])
        self._reads = [_forms(c, width, "reads") for c in layers]
        self._writes = [_forms(c, width, "writes") for c in layers]
        self.actions = np.zeros((len(layers), width, len(ACTION)), np.float32)
        readers: list[list[int]] = [[] for _ in layers]
        for layer, (data, residuals) in enumerate(self._sources):
            for source in (*data, *residuals):
                if source >= 0:
                    readers[source].append(layer)
        for layer, costs in enumerate(layers):
            for index in costs.legal:
                self.actions[layer, index, :-_DYNAMIC] = self._static(table, layer, index, readers)
        target = [table.target.get(key, 0.0) for key in TARGET]
        self.context = np.zeros((len(layers), 1 + len(TARGET)), np.float32)
        self.context[:, 1:] = target
        rates = [_rate(table, costs) for costs in layers]
        known = [rate for rate in rates if rate is not None]
        middle = float(np.median(known)) if known else 0.0
        for layer, rate in enumerate(rates):
            self.context[layer, 0] = 0.0 if rate is None else np.clip((rate - middle) / 4, -1, 1)

    def observed(self, observation: Vector, layer: int) -> Floats:
        """``CONTEXT`` at a step: the observation without its one-hot columns, and the layer's."""
        return np.concatenate([observation[: len(FEATURES)], self.context[layer]])

    def sources(self, layer: int, chosen: Sequence[int]) -> tuple[int, ...]:
        """What :meth:`matches` depends on: the actions of the layers that this one reads."""
        data, residuals = self._sources[layer]
        return tuple(chosen[s] for s in (*data, *residuals) if s >= 0)

    def matches(self, layer: int, chosen: Sequence[int]) -> Floats:
        """The last columns of ``ACTION`` for every action, after ``chosen`` for the layers before.

        The share of the layers before, as far as this one reads them, that write what the action
        reads as its data, and as its residuals.
        """
        data, residuals = self._sources[layer]
        found = np.zeros((len(self._reads[layer]), _DYNAMIC), np.float32)
        for column, sources, wanted in (
            (0, data, self._reads[layer]), (1, residuals, self._writes[layer]),
        ):  # fmt: skip
            made = [PLAIN if s < 0 else self._writes[s][chosen[s]] for s in sources]
            for action, form in enumerate(wanted):
                found[action, column] = sum(m == form for m in made) / max(1, len(made))
        return found

    def _static(
        self, table: CostTable, layer: int, index: int, readers: Sequence[Sequence[int]]
    ) -> list[float]:
        costs = table.layers[layer]
        how = costs.implementations[index]
        after = readers[layer]
        written = self._writes[layer][index]
        reading = sum(written in self._reads[reader] for reader in after)
        size, base = costs.weights_bytes[index], costs.weights_bytes[costs.baseline]
        return [
            float(index == costs.baseline),
            float(how.precision == "int8"),
            float(how.sparsity != DENSE),
            _density(how),
            float(not block_of(how.data_layout)),
            float(not block_of(how.layout)),
            max(-1.0, min(1.0, math.log2(max(1, size) / max(1, base)) / 4)),
            self._drop(costs.drops[index]),
            *(float(family in how.template) for family in _FAMILIES),
            reading / len(after) if after else float(written == PLAIN),
        ]

    def _drop(self, points: float) -> float:
        """The root of the share of the accuracy budget: most layers need little of it."""
        if self._limit is None:
            return 0.0
        return min(1.0, math.sqrt(points / max(self._limit, 1e-6)))


def _forms(costs: LayerCosts, width: int, which: str) -> list[str]:
    forms = [plain_or_blocked(getattr(how, which)) for how in costs.implementations]
    return forms + [""] * (width - len(forms))


def _rate(table: CostTable, costs: LayerCosts) -> float | None:
    """log2 of the baseline's MACs per us."""
    workload, us = table.workloads.get(costs.workload), costs.latency_us[costs.baseline]
    return None if workload is None or not us else math.log2(max(1, workload.macs) / us)


def _density(how: Implementation) -> float:
    """Share of the weights that is left, by the level in the sparsity's name (``8x1@50``)."""
    level = how.sparsity.partition("@")[2]
    return 1.0 - float(level or 0) / 100


def _sources(
    graph: NetworkGraph | None, names: Sequence[str]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For every layer those whose outputs are its data, and those whose are its residuals.

    Through the operators between; -1 is the network's input. Without a graph it is a chain.
    """
    if graph is None:
        return [((layer - 1,), ()) for layer in range(len(names))]
    position = {name: i for i, name in enumerate(names)}
    number = {layer.index: position.get(layer.name) for layer in graph.layers}
    origin: dict[int, tuple[int, ...]] = dict.fromkeys(graph.inputs, (-1,))
    found: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for node in graph.nodes:
        first = origin[node.inputs[0]] if node.inputs else ()
        rest = tuple(dict.fromkeys(s for v in node.inputs[1:] for s in origin[v]))
        at = None if node.layer is None else number[node.layer]
        if at is None:
            origin[node.output] = tuple(dict.fromkeys((*first, *rest)))
        else:
            found[at] = (first, rest)
            origin[node.output] = (at,)
    return [found[layer] for layer in range(len(names))]
