"""The cost table and its walk as a layered graph: border states, and arcs between them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable, LayerCosts
from tvmx.search._border import ResumableWalk
from tvmx.search._reach import Ints, Reach

Floats = npt.NDArray[np.float64]

Price = Callable[[float, int], float]
"""Us and bytes to cost."""


@dataclass(frozen=True)
class Stage:
    """The arcs of one layer, sorted by source state, one array entry per arc.

    ``first[s]`` is the first arc of state s. ``cost`` contains the borders', the outputs' with
    the last layer. ``drop`` (units) and ``weights`` (bytes) are what the budgets are charged.
    """

    source: Ints
    target: Ints
    action: Ints
    cost: Floats
    drop: Ints
    weights: Ints
    first: Ints
    targets: int


@dataclass(frozen=True)
class _Move:
    """A way to compute a layer that is worth considering among those of equal formats."""

    action: int
    us: float
    size: int
    drop: int
    weights: int


def stages_of(
    table: CostTable, walk: ResumableWalk, reach: Reach, price: Price, max_states: int
) -> list[Stage]:
    """All stages; the last one leads to a single state.

    Of implementations with equal formats those that another one undercuts in all that counts
    are left out. Raises UsageError when a layer is reached in more than ``max_states``.
    """
    walk.reset()
    states: list[Hashable] = [walk.state()]
    stages = []
    for layer, costs in enumerate(table.layers):
        groups = _groups(costs, layer, reach, price)
        last = layer == len(table.layers) - 1
        numbers: dict[Hashable, int] = {}
        rows: list[tuple[int, int, int, float, int, int]] = []
        for source, state in enumerate(states):
            for moves in groups:
                walk.restore(state)
                border = walk.place(layer, costs.implementations[moves[0].action])
                if last:
                    border += walk.finish()
                key = None if last else walk.state()
                target = numbers.setdefault(key, len(numbers))
                rows += [
                    (source, target, m.action, price(m.us + border, m.size), m.drop, m.weights)
                    for m in moves
                ]
        if len(numbers) > max_states:
            raise UsageError(
                f"layer {costs.layer!r} is reached in {len(numbers)} border states, more than "
                f"the exact solver's {max_states}",
                hint="use the Q-learning agent",
            )
        stages.append(_stage(rows, len(states), len(numbers)))
        states = list(numbers)
    return stages


def _stage(rows: list[tuple[int, int, int, float, int, int]], states: int, targets: int) -> Stage:
    source, target, action, cost, drop, weights = zip(*rows, strict=True)
    sources = np.array(source, np.int64)
    return Stage(
        sources, np.array(target, np.int64), np.array(action, np.int64), np.array(cost),
        np.array(drop, np.int64), np.array(weights, np.int64),
        np.searchsorted(sources, np.arange(states)).astype(np.int64), targets,
    )  # fmt: skip


def _groups(costs: LayerCosts, layer: int, reach: Reach, price: Price) -> list[list[_Move]]:
    drops, weights = reach.drops[layer].tolist(), reach.weights[layer].tolist()
    groups: dict[tuple[str, str], list[_Move]] = {}
    for action in reach.legal[layer].tolist():
        implementation = costs.implementations[action]
        us, size = costs.latency_us[action] or 0.0, costs.weights_bytes[action]
        move = _Move(action, us, size, drops[action], weights[action])
        groups.setdefault((implementation.reads, implementation.writes), []).append(move)
    return [_undercut(moves, price) for moves in groups.values()]


def _undercut(moves: list[_Move], price: Price) -> list[_Move]:
    """Without the moves that an earlier one (by cost, then drop and weights) undercuts."""
    kept: list[_Move] = []
    for move in sorted(moves, key=lambda m: (price(m.us, m.size), m.drop, m.weights, m.action)):
        if not any(k.drop <= move.drop and k.weights <= move.weights for k in kept):
            kept.append(move)
    return kept
