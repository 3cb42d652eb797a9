"""The optimum of a cost table, by dynamic programming over the walk's states."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._border import ResumableWalk


class ExactPlan(NamedTuple):
    """The fastest assignment and its latency in us, border conversions included."""

    actions: tuple[int, ...]
    latency_us: float


class _Node(NamedTuple):
    us: float
    action: int
    parent: _Node | None


def solve_exact(table: CostTable, walk: ResumableWalk, max_states: int = 100_000) -> ExactPlan:
    """The assignment of least latency, exact for chains and DAGs.

    Layer by layer, partial assignments that leave the walk in the same state are merged and
    only the fastest is kept (Bellman's principle). The number of states grows with the
    tensors alive at once times the layouts each may have: a handful for residual networks.
    Raises UsageError when a layer has more than ``max_states``.
    """
    walk.reset()
    front: dict[Hashable, _Node] = {walk.state(): _Node(0.0, -1, None)}
    for layer, costs in enumerate(table.layers):
        following: dict[Hashable, _Node] = {}
        for state, node in front.items():
            for action in costs.legal:
                walk.restore(state)
                us = node.us + walk.place(layer, costs.implementations[action])
                us += costs.latency_us[action] or 0.0
                key = walk.state()
                known = following.get(key)
                if known is None or us < known.us:
                    following[key] = _Node(us, action, node)
        if len(following) > max_states:
            raise UsageError(
                f"layer {costs.layer!r} is reached in {len(following)} border states, more than "
                f"the exact solver's {max_states}",
                hint="use the Q-learning agent",
            )
        front = following
    return _finish(front, walk)


def _finish(front: dict[Hashable, _Node], walk: ResumableWalk) -> ExactPlan:
    best: _Node | None = None
    for state, node in front.items():
        walk.restore(state)
        us = node.us + walk.finish()
        if best is None or us < best.us:
            best = node._replace(us=us)
    assert best is not None  # a table has layers, and each layer a legal baseline
    actions: list[int] = []
    node_: _Node | None = best
    while node_ is not None and node_.parent is not None:
        actions.append(node_.action)
        node_ = node_.parent
    return ExactPlan(tuple(reversed(actions)), best.us)
