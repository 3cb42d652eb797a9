"""Label setting: partial plans per border state, in the three things that count.

A label is a partial plan: what it costs and spends. After M. Desrochers and F. Soumis, "A
generalized permanent labelling algorithm for the shortest path problem with time windows",
INFOR 26 (1988), with bounds from the relaxation to drop hopeless labels.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tvmx.search._reach import Ints, Reach
from tvmx.search._relaxed import Relaxed
from tvmx.search._stages import Floats, Stage


class Labelled(NamedTuple):
    """The best plan found. No plan costs less than ``bound``; equal to ``cost``: it is optimal.

    ``actions`` is empty, and ``cost`` infinite, when no plan is cheaper than the ``beat``
    that was given.
    """

    actions: tuple[int, ...]
    cost: float
    bound: float


@dataclass
class _Labels:
    """Labels of all states after a layer; ``trace`` and ``action`` say where they came from."""

    state: Ints
    cost: Floats
    drop: Ints
    weights: Ints
    trace: Ints
    action: Ints

    def pick(self, which: npt.NDArray[np.bool_] | Ints) -> _Labels:
        return _Labels(
            self.state[which], self.cost[which], self.drop[which],
            self.weights[which], self.trace[which], self.action[which],
        )  # fmt: skip


class LabelSetting:
    """One pass over the stages that keeps at most ``cap`` labels per border state.

    Of more, those stay whose cost plus relaxed cost to go is least: the prices in it weigh
    cost against what is left of the budgets. What is given up that way lowers ``bound`` to
    the least that could have come of it. Every label kept has a completion within the budgets
    (:class:`Reach`), so a pass never ends empty-handed unless all plans cost ``beat`` or more.
    """

    def __init__(
        self, stages: Sequence[Stage], reach: Reach, relaxed: Relaxed, cap: int, beat: float
    ) -> None:
        self._stages, self._reach, self._relaxed = stages, reach, relaxed
        self._cap, self._beat = cap, beat
        self._lost = math.inf

    def run(self) -> Labelled:
        """Go through all layers."""
        zero, none = np.zeros(1, np.int64), np.full(1, -1, np.int64)
        labels = _Labels(zero, np.zeros(1), zero, zero, none, none)
        history: list[_Labels] = []
        for layer, stage in enumerate(self._stages):
            labels = self._kept(layer, self._extend(stage, labels))
            history.append(labels)
        if not len(labels.cost):
            return Labelled((), math.inf, min(self._lost, self._beat))
        best = int(np.argmin(labels.cost))
        cost = float(labels.cost[best])
        actions = []
        for at in reversed(history):
            actions.append(int(at.action[best]))
            best = int(at.trace[best])
        return Labelled(tuple(reversed(actions)), cost, min(self._lost, cost))

    def _extend(self, stage: Stage, labels: _Labels) -> _Labels:
        """Every label along every arc that leaves its state."""
        ends = np.append(stage.first[1:], len(stage.cost))
        count = (ends - stage.first)[labels.state]
        trace = np.repeat(np.arange(len(labels.state)), count)
        within = np.arange(len(trace)) - np.repeat(np.cumsum(count) - count, count)
        arc = stage.first[labels.state[trace]] + within
        return _Labels(
            stage.target[arc],
            labels.cost[trace] + stage.cost[arc],
            labels.drop[trace] + stage.drop[arc],
            labels.weights[trace] + stage.weights[arc],
            trace,
            stage.action[arc],
        )

    def _kept(self, layer: int, labels: _Labels) -> _Labels:
        after = layer + 1
        hope = self._hope(after, labels)
        likely = hope < self._beat
        labels, hope = labels.pick(likely), hope[likely]
        reach = self._reach
        least = reach.least_weights(after, reach.drop_limit - labels.drop)
        possible = labels.weights + least <= reach.weights_limit
        if reach.thinned:
            self._give_up(hope[~possible])
        labels, hope = labels.pick(possible), hope[possible]
        order = np.lexsort((labels.weights, labels.drop, labels.cost, labels.state))
        labels, hope = labels.pick(order), hope[order]
        starts = np.searchsorted(labels.state, np.arange(self._stages[layer].targets + 1))
        chosen = [
            start
            + self._front(labels.drop[start:stop], labels.weights[start:stop], hope[start:stop])
            for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
            if stop > start
        ]
        return labels.pick(np.concatenate(chosen) if chosen else np.zeros(0, np.int64))

    def _front(self, drop: Ints, weights: Ints, hope: Floats) -> Ints:
        """Of one state's labels, sorted by cost, those to keep, as sorted indices."""
        index = np.arange(len(hope))
        if len(index) > 4 * self._cap:
            index = self._best(index, hope, 4 * self._cap)
        index = index[_undominated(drop[index].tolist(), weights[index].tolist())]
        return self._best(index, hope, self._cap) if len(index) > self._cap else index

    def _best(self, index: Ints, hope: Floats, count: int) -> Ints:
        order = np.argsort(hope[index], kind="stable")
        self._give_up(hope[index[order[count:]]])
        return np.sort(index[order[:count]])

    def _hope(self, layer: int, labels: _Labels) -> Floats:
        """The least that a plan which begins with the label can cost."""
        reach, (per_unit, per_byte) = self._reach, self._relaxed.prices
        hope: Floats = (
            labels.cost
            + self._relaxed.to_go[layer][labels.state]
            - per_unit * (reach.drop_limit - labels.drop)
            - per_byte * (reach.weights_limit - labels.weights)
        )
        return hope

    def _give_up(self, hopes: Floats) -> None:
        if len(hopes):
            self._lost = min(self._lost, float(hopes.min()))


def _undominated(drops: list[int], weights: list[int]) -> list[int]:
    """Positions of the labels that none before them undercuts in both.

    Keeps the staircase of what came so far: rising drop, falling weights.
    """
    kept: list[int] = []
    steps: list[int] = []
    heights: list[int] = []
    for position, (drop, weight) in enumerate(zip(drops, weights, strict=True)):
        at = bisect_right(steps, drop)
        if at and heights[at - 1] <= weight:
            continue
        kept.append(position)
        end = at
        while end < len(steps) and heights[end] >= weight:
            end += 1
        if at and steps[at - 1] == drop:
            at -= 1
        steps[at:end], heights[at:end] = [drop], [weight]
    return kept
