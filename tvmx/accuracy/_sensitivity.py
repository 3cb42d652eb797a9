"""How much accuracy each layer costs in int8 or pruned, and a whole plan: by simulation.

Only the half of the data that choices may see is used. A layer's figure is

    points = max(0, drop, smoothed over the margins) + relative squared error of the output

*Smoothed*: with few samples most layers flip none, and one flip is a leap. So a decision counts
by how likely its margin stays positive under noise of ``_SMOOTHING`` times what the change did to
the margins (RMS), before and after alike. It ranks better than counting flips where samples are
few, and is about as good where they are many; assuming all of the change to be noise is far off,
since most margins are much wider. *Error*: ranks changes that flip nothing, and keeps a plan of
many changes from looking free; it is below 0.001 for a good int8 layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._batches import Chunk, calls_at_once, chunks, spread
from tvmx.accuracy._metric import Metric, drop
from tvmx.accuracy._samples import InputSpec, Samples, batch_size

if TYPE_CHECKING:
    from tvmx.ir import Implementation
    from tvmx.numerics import QuantParams
    from tvmx.passes._simulate import Simulator

Array = npt.NDArray[Any]
Watch = Callable[[int, Chunk, Mapping[int, Array], Mapping[int, Array]], None]
"""Position of a plan, a chunk of samples, the float network's values, the plan's."""

FEWEST_SAMPLES = 32
HOPELESS = 25.0
"""Points from which a layer's higher levels of the same block shape are not simulated."""
_SMOOTHING = 0.1
_GROUP = 8  # changes that share one float run where its values do not fit into memory at once


@dataclass(frozen=True)
class Sensitivities:
    """``points`` by :func:`sensitivity_key`; ``samples`` of the visible half were simulated.

    ``samples`` is 0 when every figure was known.
    """

    points: dict[str, float]
    samples: int


def sensitivity_key(layer: str, implementation: Implementation) -> str:
    """What implementations of a layer that compute the same numbers share."""
    return f"{layer}|{implementation.precision}|{implementation.sparsity}"


def sensitivities(
    simulator: Simulator, samples: Samples, specs: Mapping[str, InputSpec], metric: Metric,
    params: Mapping[int, QuantParams], options: Mapping[int, Sequence[Implementation]], *,
    budget_s: float, fewest_samples: int = FEWEST_SAMPLES, most_samples: int | None = None,
    known: Mapping[str, float] | None = None,
    on_result: Callable[[str, float], None] = lambda key, points: None,
    on_samples: Callable[[int], None] = lambda samples: None,
) -> Sensitivities:  # fmt: skip
    """Expected drop in percentage points when one layer alone gets one of its ``options``.

    ``options`` is by layer index, ``params`` by value, ``specs`` are the model's inputs by
    name in its order. Exact implementations cost 0. Of ``samples`` so many are used, evenly
    spread, as ``budget_s`` seconds allow going by a first simulation, at least
    ``fewest_samples`` and at most ``most_samples``; the sum of points is not bounded by 100.
    Pass the ``samples`` of an earlier result as the fewest and most to complete a table alike;
    ``on_samples`` is told their number before the first figure.

    A level of sparsity above one that costs ``HOPELESS`` points or more gets the same points,
    unsimulated. Figures in ``known`` are taken as they are; ``on_result`` is called with each new
    one, to be stored.

    Raises:
        DataError: the metric cannot score the network's first output.
    """
    table = _Table(
        simulator, samples, specs, metric, params, dict(known or {}), on_result, on_samples
    )
    names = {layer.index: layer.name for layer in simulator.network.graph.layers}
    for index, implementations in options.items():
        for implementation in implementations:
            key = sensitivity_key(names[index], implementation)
            table.changes.setdefault(key, _Change(key, index, implementation))
    return table.complete(budget_s, fewest_samples, most_samples)


def joint_drop(
    simulator: Simulator, samples: Samples, specs: Mapping[str, InputSpec], metric: Metric,
    params: Mapping[int, QuantParams], choices: Mapping[int, Implementation],
) -> float:  # fmt: skip
    """Percentage points a whole plan loses on ``samples``, simulated with its exact arithmetic.

    ``choices`` is by layer index. Negative where the plan is better than the float network.
    Raises DataError as :func:`sensitivities` does.
    """
    judge = Judge(simulator, samples, specs, metric, params)
    reference, (outputs,) = judge.simulate([choices])
    scores = [
        metric.score(o, labels=samples.labels, reference=reference) for o in (reference, outputs)
    ]
    return drop(*scores)


@dataclass(frozen=True)
class _Change:
    key: str
    layer: int
    implementation: Implementation

    @property
    def blocks(self) -> tuple[int, str, str]:
        """Layer, precision and shape of the blocks: levels of one are comparable."""
        how = self.implementation
        return self.layer, how.precision, how.sparsity.partition("@")[0]

    @property
    def order(self) -> tuple[int, int, str]:
        """By level, so that hopeless ones are known before higher levels are simulated."""
        level = self.implementation.sparsity.partition("@")[2]
        return int(level or 0), self.layer, self.key


@dataclass
class Judge:
    """The float outputs, and those of changed networks, over samples."""

    simulator: Simulator
    samples: Samples
    specs: Mapping[str, InputSpec]
    metric: Metric
    params: Mapping[int, QuantParams]
    _kept: tuple[Chunk, dict[int, Array]] | None = None

    def simulate(
        self, plans: Sequence[Mapping[int, Implementation]], watch: Watch = lambda *_: None
    ) -> tuple[Array, list[Array]]:
        """First outputs (samples, ...): the float network's, and those of each plan.

        ``watch`` is shown all values of each plan (by its position) on each chunk: the float
        network's and the plan's.
        """
        reference: list[Array] = []
        found: list[list[Array]] = [[] for _ in plans]
        for chunk, values in self._runs():
            reference.append(self._first(chunk, values))
            for position, plan in enumerate(plans):
                changed = self.simulator.rerun(values, plan, self.params)
                watch(position, chunk, values, changed)
                found[position].append(self._first(chunk, changed))
        return np.concatenate(reference), [np.concatenate(parts) for parts in found]

    @property
    def in_memory(self) -> bool:
        """Whether the float run of all samples is made but once."""
        calls = -(-len(self.samples) // batch_size(list(self.specs.values())))
        return calls <= calls_at_once(self.simulator.network)

    def _runs(self) -> Iterator[tuple[Chunk, dict[int, Array]]]:
        if self._kept is not None:
            yield self._kept
            return
        for chunk in chunks(self.samples, self.specs, calls_at_once(self.simulator.network)):
            run = (chunk, self.simulator.run(chunk.inputs))
            if self.in_memory:
                self._kept = run
            yield run

    def _first(self, chunk: Chunk, values: dict[int, Array]) -> Array:
        return chunk.valid(self.simulator.outputs(values)[0])


@dataclass
class _Table:
    simulator: Simulator
    samples: Samples
    specs: Mapping[str, InputSpec]
    metric: Metric
    params: Mapping[int, QuantParams]
    known: dict[str, float]
    on_result: Callable[[str, float], None]
    on_samples: Callable[[int], None]
    changes: dict[str, _Change] = field(default_factory=dict)

    def complete(self, budget_s: float, fewest: int, most: int | None) -> Sensitivities:
        for change in self.changes.values():
            if change.implementation.exact:
                self.known[change.key] = 0.0
        missing = sorted(self._missing(self.changes.values()), key=lambda c: c.order)
        used = 0
        if missing:
            wanted = max(fewest, self._affordable(missing, budget_s))
            samples = spread(self.samples, wanted if most is None else min(wanted, most))
            used = len(samples)
            self.on_samples(used)
            self._simulate(
                Judge(self.simulator, samples, self.specs, self.metric, self.params), missing
            )
        return Sensitivities({key: self.known[key] for key in self.changes}, used)

    def _missing(self, changes: Iterable[_Change]) -> list[_Change]:
        return [c for c in changes if c.key not in self.known]

    def _simulate(self, judge: Judge, missing: Sequence[_Change]) -> None:
        rest = list(missing)
        while rest:
            group = self._group(rest, 1 if judge.in_memory else _GROUP)
            if not group:
                continue
            reference, outputs = judge.simulate([{c.layer: c.implementation} for c in group])
            for change, found in zip(group, outputs, strict=True):
                points = drop_points(self.metric, found, reference, judge.samples.labels)
                self._put(change, points)

    def _group(self, rest: list[_Change], size: int) -> list[_Change]:
        """Take the next changes off ``rest``; hopeless ones are done with at once.

        Two levels of the same blocks are never in one group: the lower one comes first.
        """
        group: list[_Change] = []
        while rest and len(group) < size and rest[0].blocks not in {c.blocks for c in group}:
            change = rest.pop(0)
            hopeless = self._hopeless(change)
            if hopeless is None:
                group.append(change)
            else:
                self._put(change, hopeless)
        return group

    def _put(self, change: _Change, points: float) -> None:
        self.known[change.key] = points
        self.on_result(change.key, points)

    def _hopeless(self, change: _Change) -> float | None:
        """The points of a lower level of the same blocks that is hopeless already."""
        lower = [
            self.known[c.key] for c in self.changes.values()
            if c.blocks == change.blocks and c.order < change.order and c.key in self.known
        ]  # fmt: skip
        worst = max(lower, default=0.0)
        return worst if worst >= HOPELESS else None

    def _affordable(self, missing: Sequence[_Change], budget_s: float) -> int:
        """Samples whose whole table takes ``budget_s``, by timing one change of the first layer.

        A change costs what lies behind its layer, by multiply-accumulates.
        """
        network = self.simulator.network
        batch = batch_size(list(self.specs.values()))
        start = time.monotonic()
        calls = min(4, calls_at_once(network))
        probe = spread(self.samples, calls * batch)
        judge = Judge(self.simulator, probe, self.specs, self.metric, self.params)
        judge.simulate([])  # compiles
        first = min(missing, key=lambda c: (c.layer, c.order))
        before = time.monotonic()
        judge.simulate([{first.layer: first.implementation}])
        per_sample = (time.monotonic() - before) / len(probe)
        behind = np.cumsum([layer.workload.macs for layer in network.graph.layers][::-1])[::-1]
        share = sum(behind[c.layer] / behind[first.layer] for c in missing)
        left = budget_s - (time.monotonic() - start)
        return int(max(0.0, left) / max(per_sample * share, 1e-9))


def drop_points(
    metric: Metric, outputs: Array, reference: Array, labels: Array | None
) -> float:  # fmt: skip
    """The figure of the module's first paragraph for one changed network's outputs."""
    margins = metric.margins(outputs, labels=labels, reference=reference)
    before = metric.margins(reference, labels=labels, reference=reference)
    if margins is None or before is None:
        scores = [metric.score(o, labels=labels, reference=reference) for o in (reference, outputs)]
        lost = drop(*scores)
    else:
        lost = _smoothed_drop(before, margins)
    return max(0.0, lost) + output_error(outputs, reference)


def _smoothed_drop(before: Array, after: Array) -> float:
    from scipy.special import ndtr

    both = np.isfinite(before) & np.isfinite(after)
    moved = after[both].astype(np.float64) - before[both]
    noise = max(_SMOOTHING * float(np.sqrt(np.mean(np.square(moved)))) if both.any() else 0.0, 1e-9)
    kept = [float(np.mean(ndtr(m.astype(np.float64) / noise))) for m in (before, after)]
    return 100.0 * (kept[0] - kept[1])


def output_error(outputs: Array, reference: Array) -> float:
    """Mean squared error over mean square of the float outputs, at most 1."""
    with np.errstate(all="ignore"):
        error = float(np.mean(np.square(outputs.astype(np.float64) - reference)))
        power = float(np.mean(np.square(reference.astype(np.float64))))
    if error == 0.0:
        return 0.0
    return error / power if error < power else 1.0
