"""Lagrangian relaxation: budgets as prices, which makes every plan's cost a sum over arcs.

After M. L. Fisher, "The Lagrangian relaxation method for solving integer programming
problems", Management Science 27 (1981): for any prices >= 0 the cheapest path of the relaxed
problem bounds the true optimum from below; subgradient steps look for the best prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmx.search._reach import Reach
from tvmx.search._stages import Floats, Stage

_STEPS = 120


@dataclass(frozen=True)
class Relaxed:
    """Prices per unit and per byte, and what they prove.

    ``to_go[i][s]`` is the least of cost + prices x budgets spent from state s of layer i on;
    ``bound`` is a lower bound on every plan within the budgets.
    """

    prices: tuple[float, float]
    to_go: list[Floats]
    bound: float


@dataclass(frozen=True)
class Path:
    """A complete plan: what it costs and spends."""

    actions: tuple[int, ...]
    cost: float
    drop: int
    weights: int


def relax(stages: Sequence[Stage], reach: Reach) -> tuple[Relaxed, Path | None]:
    """The best prices found, and the cheapest plan within the budgets met on the way, if any.

    Where the unpriced optimum keeps the budgets it is the plan, and the bound equals its cost.
    """
    limits = (reach.drop_limit, reach.weights_limit)
    scale = _scale(stages, limits)
    prices = (0.0, 0.0)
    best, plan = _evaluate(stages, prices, limits), None
    unit = abs(best.bound) or 1.0
    relaxed, step = best, 1.0
    for _ in range(_STEPS):
        path = _cheapest(stages, relaxed)
        over = (path.drop - limits[0], path.weights - limits[1])
        if max(over) <= 0 and (plan is None or path.cost < plan.cost):
            plan = path
        slope = [o / s for o, s in zip(over, scale, strict=True)]
        norm = sum(v * v for v in slope)
        if norm == 0 or (plan is not None and _proven(best.bound, plan.cost)):
            break
        # Polyak's step towards the best plan, towards a little above the bound without one.
        goal = plan.cost if plan is not None else best.bound + 0.1 * unit
        length = step * max(goal - relaxed.bound, 1e-6 * unit) / norm
        prices = (
            max(0.0, prices[0] + length * slope[0] / scale[0]),
            max(0.0, prices[1] + length * slope[1] / scale[1]),
        )
        relaxed = _evaluate(stages, prices, limits)
        if relaxed.bound > best.bound:
            best = relaxed
        else:
            step *= 0.93
    return best, plan


def _scale(stages: Sequence[Stage], limits: tuple[int, int]) -> tuple[int, int]:
    """What makes drops and weights comparable: their limits, or more where those are tiny."""
    drop = max(int(stage.drop.max()) for stage in stages)
    weights = max(int(stage.weights.max()) for stage in stages)
    return max(1, limits[0], drop), max(1, limits[1], weights)


def _proven(bound: float, cost: float) -> bool:
    return bound >= cost - 1e-9 * abs(cost)


def _evaluate(
    stages: Sequence[Stage], prices: tuple[float, float], limits: tuple[int, int]
) -> Relaxed:
    to_go = [np.zeros(1)]
    for stage in reversed(stages):
        along = stage.cost + prices[0] * stage.drop + prices[1] * stage.weights
        to_go.append(np.minimum.reduceat(along + to_go[-1][stage.target], stage.first))
    to_go.reverse()
    bound = float(to_go[0][0]) - prices[0] * limits[0] - prices[1] * limits[1]
    return Relaxed(prices, to_go, bound)


def _cheapest(stages: Sequence[Stage], relaxed: Relaxed) -> Path:
    state, actions, cost, drop, weights = 0, [], 0.0, 0, 0
    for i, stage in enumerate(stages):
        first = int(stage.first[state])
        stop = int(stage.first[state + 1]) if state + 1 < len(stage.first) else len(stage.cost)
        arcs = slice(first, stop)
        along = (
            stage.cost[arcs]
            + relaxed.prices[0] * stage.drop[arcs]
            + relaxed.prices[1] * stage.weights[arcs]
            + relaxed.to_go[i + 1][stage.target[arcs]]
        )
        arc = first + int(np.argmin(along))
        actions.append(int(stage.action[arc]))
        cost += float(stage.cost[arc])
        drop += int(stage.drop[arc])
        weights += int(stage.weights[arc])
        state = int(stage.target[arc])
    return Path(tuple(actions), cost, drop, weights)
