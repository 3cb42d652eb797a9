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

KEPT = 3
"""How many of the agent's plans are built whole."""
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

    def describe(self) -> str:
        """One line for the result's notes."""
        return (
            f"cost table: baseline templates tuned {self.baseline_us:.0f} us, agent's best after "
            f"{self.episodes} episodes {self.best_us:.0f} us, exact optimum {self.exact_us:.0f} us"
        )


def search(
    context: Context, table: TunedTable, costs: Mapping[ConversionKey, float],
    objective: Objective, seed: int,
) -> Found:  # fmt: skip
    """Train the agent on the table.

    The exact optimum (for latency) and the tuned baseline are always among the results.
    """
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
    top = TopCandidates(KEPT)
    episodes = min(_MAX_EPISODES, 200 + _EPISODES_PER_LAYER * len(covered))
    QLearning().train(env, episodes, seed, on_episode=top)
    assignments = [c.actions for c in top.best()]
    best_us = _latency(env, assignments[0])
    exact = solve_exact(table.table, GraphBorderWalk(graph, covered, costs))
    if objective == "latency" and exact.actions not in assignments:
        assignments[-1] = exact.actions
    baseline = tuple(table.table.baseline)
    if baseline not in assignments:
        assignments.append(baseline)
    return Found(assignments, env.baseline_us, best_us, exact.latency_us, episodes)


def _latency(env: DeployEnv, assignment: Sequence[int]) -> float:
    env.reset()
    info: dict[str, float] = {}
    for action in assignment:
        _, _, _, _, info = env.step(action)
    return float(info["latency_us"])
