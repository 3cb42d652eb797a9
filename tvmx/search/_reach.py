"""Reach: what the layers still to be decided need at the least, for every split of the budgets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._budgets import UNITS, Budgets, units_allowed, units_needed

Ints = npt.NDArray[np.int64]

NEVER = 1 << 60
"""More bytes than any limit: no completion exists."""


class Reach:
    """Per layer i, the staircase of (accuracy drop, weights) that layers i, i+1, ... can do with.

    Every step is a sum that some choice of implementations really has, and extends a step of
    the next layer's staircase: whoever follows a step never gets stuck. A budget that is not
    set counts as zero everywhere, which leaves one step. With both set a staircase may grow
    beyond ``most_steps``; it is then thinned (``thinned``), which may hide completions that come
    within a fraction of a percent of both limits, but never invents one.

    ``legal[i]`` are the implementations that fit at all; ``drops[i][a]`` (units) and
    ``weights[i][a]`` (bytes) are what layer i is charged for implementation a; ``drop_limit``
    and ``weights_limit`` are what may be spent. Charges and limits are zero where the budget is
    not set. Raises UsageError when no plan keeps the budgets.
    """

    def __init__(self, table: CostTable, budgets: Budgets, most_steps: int = 512) -> None:
        drop, weights = budgets.max_accuracy_drop, budgets.max_weights_bytes
        self.drop_limit = 0 if drop is None else units_allowed(drop)
        self.weights_limit = 0 if weights is None else weights
        layers = table.layers
        self.legal = [np.array(costs.legal, np.int64) for costs in layers]
        self.drops = [
            np.array([0 if drop is None else units_needed(d) for d in costs.drops], np.int64)
            for costs in layers
        ]
        self.weights = [
            np.array(costs.weights_bytes, np.int64) * (weights is not None) for costs in layers
        ]
        self.thinned = False
        self._stairs = self._staircases(self.drop_limit, most_steps)
        least = self.least_weights(0, np.array([self.drop_limit]))[0]
        if least > self.weights_limit:
            raise self._refusal(budgets, int(least))
        self._keep_possible(self.drops, self.drop_limit)
        self._keep_possible(self.weights, self.weights_limit)

    def least_weights(self, layer: int, left: Ints) -> Ints:
        """Bytes that the layers from ``layer`` on need when they may lose ``left`` units."""
        drops, weights = self._stairs[layer]
        step: Ints = np.searchsorted(drops, left, side="right")
        return weights[step]

    def steps(self, layer: int) -> Ints:
        """The accuracy drops (units) of the staircase from ``layer`` on."""
        return self._stairs[layer][0]

    def _keep_possible(self, rows: list[Ints], limit: int) -> None:
        """Leave out what breaks the limit even if all other layers take the least."""
        least = [int(row[legal].min()) for row, legal in zip(rows, self.legal, strict=True)]
        spare = limit - sum(least)
        self.legal = [
            legal[row[legal] - low <= spare]
            for row, legal, low in zip(rows, self.legal, least, strict=True)
        ]

    def _staircases(self, limit: int, most_steps: int) -> list[tuple[Ints, Ints]]:
        drops, weights = np.zeros(1, np.int64), np.zeros(1, np.int64)
        found = [_indexed(drops, weights)]
        for legal, drop, size in zip(
            reversed(self.legal), reversed(self.drops), reversed(self.weights), strict=True
        ):
            drops = (drop[legal][:, None] + drops).ravel()
            weights = (size[legal][:, None] + weights).ravel()
            within = drops <= limit
            drops, weights = _staircase(drops[within], weights[within])
            if len(drops) > most_steps:
                self.thinned = True
                drops, weights = _thin(drops, weights, most_steps)
            found.append(_indexed(drops, weights))
        return found[::-1]

    def _refusal(self, budgets: Budgets, least: int) -> UsageError:
        limits = []
        if budgets.max_accuracy_drop is not None:
            limits.append(f"an accuracy drop of {budgets.max_accuracy_drop:g} points")
        if budgets.max_weights_bytes is not None:
            limits.append(f"{budgets.max_weights_bytes} bytes of weights")
        can = self._best_drop() if least == NEVER else f"the smallest reachable is {least} bytes"
        if least != NEVER and budgets.max_accuracy_drop is not None:
            smallest = sum(int(w[a].min()) for w, a in zip(self.weights, self.legal, strict=True))
            can += f" within that accuracy drop, {smallest} bytes with any"
        return UsageError(
            f"no plan keeps to {' and '.join(limits)}: {can}",
            hint="relax --max-weights or --max-accuracy-drop",
        )

    def _best_drop(self) -> str:
        least = sum(int(d[a].min()) for d, a in zip(self.drops, self.legal, strict=True))
        return f"the least accuracy drop reachable is {least / UNITS:g} points"


def _indexed(drops: Ints, weights: Ints) -> tuple[Ints, Ints]:
    """Weights with NEVER in front, so that searchsorted's answer is an index."""
    return drops, np.concatenate([np.array([NEVER], np.int64), weights])


def _staircase(drops: Ints, weights: Ints) -> tuple[Ints, Ints]:
    """The points that no other one undercuts in both, by rising drop."""
    order = np.lexsort((weights, drops))
    drops, weights = drops[order], weights[order]
    best = np.minimum.accumulate(weights)
    keep = np.ones(len(weights), np.bool_)
    keep[1:] = weights[1:] < best[:-1]
    return drops[keep], weights[keep]


def _thin(drops: Ints, weights: Ints, most_steps: int) -> tuple[Ints, Ints]:
    """The first step, and of equal intervals of drop the last step in each."""
    cell = (drops - drops[0]) * (most_steps - 1) // max(1, int(drops[-1] - drops[0]))
    keep = np.ones(len(drops), np.bool_)
    keep[1:-1] = cell[1:-1] != cell[2:]
    return drops[keep], weights[keep]
