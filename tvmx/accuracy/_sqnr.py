"""What int8 does to a network's numbers: signal to quantisation noise, and decisions that change.

    SQNR = 10 log10(sum of x^2 / sum of (y - x)^2)  dB

of the float network's numbers x and the changed network's y, over all elements and samples. It
needs neither labels nor classes: 20 dB is an error of 10 % of the signal, 40 dB of 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._metric import Score, drop
from tvmx.accuracy._sensitivity import drop_points

if TYPE_CHECKING:
    from tvmx.accuracy._batches import Chunk
    from tvmx.accuracy._sensitivity import Judge
    from tvmx.ir import Implementation

Array = npt.NDArray[Any]
Choices = Mapping[int, "Implementation"]

MOST_DB = 200.0
"""Bound of every SQNR, on both sides: beyond what float32 can tell from equal."""
_HELD_BYTES = 256 * 2**20  # outputs of layers that share one float run


class Noise:
    """The SQNR of numbers that come in parts."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, reference: Array, changed: Array) -> None:
        """Take in arrays of one shape."""
        with np.errstate(all="ignore"):
            self._signal += float(np.sum(np.square(reference, dtype=np.float64)))
            difference = np.subtract(changed, reference, dtype=np.float64)
            self._noise += float(np.sum(np.square(difference)))

    @property
    def db(self) -> float:
        """In [-200, 200] dB: 200 where all is equal, -200 where the changed ones are not finite."""
        if self._noise == 0.0:
            return MOST_DB
        if self._signal == 0.0 or not math.isfinite(self._noise):
            return -MOST_DB
        return max(-MOST_DB, min(MOST_DB, 10 * math.log10(self._signal / self._noise)))


def sqnr(reference: Array, changed: Array) -> float:
    """SQNR in dB of ``changed`` against ``reference``, see :class:`Noise`."""
    noise = Noise()
    noise.add(reference, changed)
    return noise.db


@dataclass(frozen=True)
class Effect:
    """What a change of the network does.

    ``score`` is the changed network's, ``drop`` what it loses, in percentage points of the metric
    (negative: a gain). ``points`` is the sensitivity that ranks changes, see
    :mod:`tvmx.accuracy._sensitivity`. ``output_db`` is the SQNR of the network's first output,
    ``own_db`` that of the output of the one layer that was changed (None for several layers).
    """

    score: Score
    drop: float
    points: float
    output_db: float
    own_db: float | None = None


def plan_effects(judge: Judge, plans: Sequence[Choices]) -> list[Effect]:
    """Effects of whole choices (layer index -> implementation), simulated exactly.

    Raises:
        DataError: the metric cannot score the network's first output.
    """
    reference, outputs = judge.simulate(plans)
    return [_effect(judge, reference, found) for found in outputs]


def layer_effects(
    judge: Judge, choices: Choices, on_layer: Callable[[int], None] = lambda index: None
) -> dict[int, Effect]:
    """Effects of every layer of ``choices`` alone, the others float; by layer index.

    ``on_layer`` is told each layer that is done. Raises DataError as :func:`plan_effects` does.
    """
    outputs = {n.layer: n.output for n in judge.simulator.network.graph.nodes}
    found: dict[int, Effect] = {}
    for group in _groups(judge, list(choices)):
        own = _OwnNoise([outputs[index] for index in group])
        reference, changed = judge.simulate([{index: choices[index]} for index in group], own)
        for index, noise, after in zip(group, own.noises, changed, strict=True):
            found[index] = _effect(judge, reference, after, noise.db)
            on_layer(index)
    return found


class _OwnNoise:
    """Watches one value in each of several plans."""

    def __init__(self, values: Sequence[int]) -> None:
        self.noises = [Noise() for _ in values]
        self._values = values

    def __call__(
        self, position: int, chunk: Chunk, before: Mapping[int, Array], after: Mapping[int, Array]
    ) -> None:
        value = self._values[position]
        self.noises[position].add(chunk.valid(before[value]), chunk.valid(after[value]))


def _groups(judge: Judge, layers: list[int]) -> list[list[int]]:
    """Layers that share a float run: as many as their outputs fit into memory."""
    reference, _ = judge.simulate([])
    judge.metric.score(reference, labels=judge.samples.labels, reference=reference)
    size = 1 if judge.in_memory else max(1, _HELD_BYTES // max(1, reference.nbytes))
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _effect(judge: Judge, reference: Array, changed: Array, own: float | None = None) -> Effect:
    labels, metric = judge.samples.labels, judge.metric
    scores = [metric.score(o, labels=labels, reference=reference) for o in (reference, changed)]
    points = drop_points(metric, changed, reference, labels)
    return Effect(scores[1], drop(*scores), points, sqnr(reference, changed), own)
