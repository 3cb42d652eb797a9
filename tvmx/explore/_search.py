"""The search on the cost table: Q-learning episodes, the best distinct plans out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmx.explore._table import ConversionKey, TunedTable
from tvmx.explore._walk import GraphBorderWalk, estimate_arena
from tvmx.search import DeployEnv, QLearning, TopCandidates, solve_exact

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.explore._request import Objective

_KEPT = 4
_EPISODES_PER_LAYER = 40
_MAX_EPISODES = 2000


@dataclass(frozen=True)
class Found:
    """What the agent found: assignments best first, and what the table promises for them."""

    assignments: list[tuple[int, ...]]
    baseline_us: float
    best_us: float
    exact_us: float
    episodes: int


def search(
    context: Context, table: TunedTable, costs: Mapping[ConversionKey, float],
    objective: Objective, seed: int,
) -> Found:  # fmt: skip
    """Train the agent on the table; the tuned baseline assignment is always among the results."""
    graph = context.network.graph
    covered = [layer.index for layer in table.layers]

    def arena(assignment: Sequence[int]) -> int:
        pairs = zip(table.layers, assignment, strict=True)
        return estimate_arena(
            graph, {la.index: table.options(la)[i].task.implementation for la, i in pairs}
        )

    env = DeployEnv(
        table.table, GraphBorderWalk(graph, covered, costs), objective=objective,
        arena_bytes=arena if objective == "arena" else None,
    )  # fmt: skip
    top = TopCandidates(_KEPT)
    episodes = min(_MAX_EPISODES, 200 + _EPISODES_PER_LAYER * len(covered))
    QLearning().train(env, episodes, seed, on_episode=top)
    assignments = [c.actions for c in top.best()]
    latencies = [_latency(env, a) for a in assignments]
    exact = solve_exact(table.table, GraphBorderWalk(graph, covered, costs))
    baseline = tuple(table.table.baseline)
    if baseline not in assignments:
        assignments.append(baseline)
    return Found(assignments, env.baseline_us, latencies[0], exact.latency_us, episodes)


def _latency(env: DeployEnv, assignment: Sequence[int]) -> float:
    env.reset()
    info: dict[str, float] = {}
    for action in assignment:
        _, _, _, _, info = env.step(action)
    return float(info["latency_us"])
