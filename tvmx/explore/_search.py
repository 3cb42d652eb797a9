"""The search on the cost table: an agent's episodes, the best distinct plans out of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmx.errors import UsageError
from tvmx.explore._table import ConversionKey, TunedTable
from tvmx.explore._walk import estimate_arena
from tvmx.search import (
    Budgets,
    DeployEnv,
    GraphBorderWalk,
    TopCandidates,
    choose_agent,
    make_agent,
    pick_memory,
    plan_us,
    settle,
    solve_exact,
)

if TYPE_CHECKING:
    from tvmx.explore._compress import Compression
    from tvmx.explore._context import Context
    from tvmx.explore._request import ExploreRequest
    from tvmx.ir import NetworkGraph

KEPT = 5
"""How many plans besides the baseline are built whole, at the most."""
_FROM_AGENT = 2
_EPISODES_PER_LAYER = 40
_MAX_EPISODES = 2000
_TRIES = 6
_LEAST_GAIN = 0.002  # of the plan's latency: what int8 or sparsity must win in a layer
_TIGHTEN = 0.7  # of the accuracy budget that just turned out too loose

Assignment = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """Assignments worth building, best first, and what the table promises for them."""

    assignments: list[Assignment]
    notes: list[str]

    def describe(self) -> list[str]:
        """Lines for the result's notes."""
        return list(dict.fromkeys(self.notes))


def agent_name(request: ExploreRequest) -> str:
    """The agent that chooses. Raises UsageError for one that does not exist, or cannot choose."""
    limits = Budgets(max_arena_bytes=request.max_arena)
    return choose_agent(request.agent, request.policy, request.objective, limits)


def search(
    context: Context, table: TunedTable, costs: Mapping[ConversionKey, float],
    request: ExploreRequest, compression: Compression | None, weights_elsewhere: int,
    baseline_arena: int,
) -> Found:  # fmt: skip
    """Train the agent on the table under the limits; add the exact optimum and the smallest plan.

    ``weights_elsewhere`` are the library's bytes of constants outside the layers,
    ``baseline_arena`` the planned arena of the baseline, which scales the estimates. Where the
    visible half shows that a plan's layers together lose more than each alone promised, the
    accuracy budget is tightened and the search repeated. The tuned baseline's templates are
    always among the results.
    """
    sizes = (weights_elsewhere, baseline_arena)
    return _Search(context, table, costs, request, compression, sizes).run()


class _Search:
    def __init__(
        self, context: Context, table: TunedTable, costs: Mapping[ConversionKey, float],
        request: ExploreRequest, compression: Compression | None, sizes: tuple[int, int],
    ) -> None:  # fmt: skip
        self._graph: NetworkGraph = context.network.graph
        self._table, self._request, self._compression = table, request, compression
        self._covered = [layer.index for layer in table.layers]
        self._costs = costs
        self._elsewhere, built = sizes
        estimated = estimate_arena(self._graph, table.chosen(table.table.baseline))
        self._arena_scale = built / max(1, estimated)
        self._limit = request.max_accuracy_drop
        self._joint: dict[Assignment, float] = {}
        self._notes: list[str] = []

    def run(self) -> Found:
        request = self._request
        found = [*self._agent(), self._within(self._exact)]
        if self._compression is not None:
            found.append(self._within(self._smallest))
        found.append(tuple(self._table.table.baseline))
        distinct = [a for a in dict.fromkeys(found) if a is not None]
        if request.objective == "latency" and request.max_arena is None:
            distinct.sort(key=self._latency)
        return Found(distinct[: KEPT + 1], self._notes)

    def _agent(self) -> list[Assignment | None]:
        """The agent's best plans; those that lose too much together are left out."""
        env = DeployEnv(
            self._table.table, self._walk(), objective=self._request.objective,
            arena_bytes=self._arena, budgets=self._budgets(self._limit),
        )  # fmt: skip
        name = agent_name(self._request)
        agent = make_agent(name, self._request.policy)
        episodes = min(
            agent.affordable or _MAX_EPISODES, _MAX_EPISODES,
            200 + _EPISODES_PER_LAYER * len(self._covered),
        )  # fmt: skip
        top = TopCandidates(_FROM_AGENT)
        agent.train(env, episodes, self._request.seed, on_episode=top)
        found = [c.actions for c in top.best()]
        self._notes.append(
            f"cost table: baseline templates tuned {env.baseline_us:.0f} us, best of agent {name} "
            f"after {episodes} episodes {self._compared(found)}"
        )
        plans = [self._settled(actions) for actions in found]
        return [plan for plan in plans if self._lossless(plan)]

    def _compared(self, found: Sequence[Assignment]) -> str:
        """The agent's best plan beside the optimum of the table, where that can be had."""
        request, table = self._request, self._table.table
        if not found:
            return "none within the limits"
        us = self._latency(found[0])
        if request.objective == "arena" or request.max_arena is not None:
            return f"{us:.0f} us (no optimum: the arena does not add up over the layers)"
        budgets = self._budgets(self._limit)
        best = solve_exact(table, self._walk(), budgets, objective=request.objective)
        known = "the optimum" if best.exact else f"a plan within {best.gap:.1%} of the optimum"
        if request.objective == "weights":
            size = table.weights_bytes(found[0])
            regret = size / max(1, best.weights_bytes) - 1
            return f"{size} bytes, {regret:.2%} above {known}, {best.weights_bytes} bytes"
        return (
            f"{us:.0f} us, {us / best.latency_us - 1:.2%} above {known}, {best.latency_us:.0f} us"
        )

    def _within(self, solve: Callable[[float], Assignment]) -> Assignment | None:
        """The plan of ``solve`` at the loosest accuracy budget that keeps the limit jointly."""
        kept: tuple[float, Assignment] | None = None
        limit = loose = self._limit
        for attempt in range(_TRIES):
            try:
                plan = solve(limit)
            except UsageError:
                if not attempt:
                    raise
                break  # within this accuracy no plan is small enough
            if self._lossless(plan):
                kept = (limit, plan)
            else:
                loose = limit
            if limit == self._limit and kept is not None:
                return plan
            if kept is None:
                limit *= _TIGHTEN * min(1.0, self._limit / max(self._joint[plan], 1e-9))
            else:
                limit = math.sqrt(kept[0] * loose)
        return None if kept is None else self._tightened(*kept)

    def _tightened(self, limit: float, plan: Assignment) -> Assignment:
        self._notes.append(
            f"layers lose more together than alone: searched within {limit:.2f} instead of "
            f"{self._limit:g} points for a plan of {self._joint[plan]:+.2f} on the visible half"
        )
        return plan

    def _lossless(self, plan: Assignment) -> bool:
        """Whether the simulated plan stays within the drop on the data choices may see."""
        if self._compression is None:
            return True
        chosen = self._table.chosen(plan)
        if all(implementation.exact for implementation in chosen.values()):
            self._joint[plan] = 0.0
        if plan not in self._joint:
            self._joint[plan] = self._compression.joint(chosen)
        return self._joint[plan] <= self._limit

    def _exact(self, limit: float) -> Assignment:
        if self._request.objective == "weights":
            return self._settled(self._smallest(limit))
        found = solve_exact(self._table.table, self._walk(), self._budgets(limit))
        return self._settled(found.actions)

    def _smallest(self, limit: float) -> Assignment:
        return pick_memory(self._table.table, self._walk(), self._budgets(limit)).actions

    def _settled(self, plan: Assignment) -> Assignment:
        """Layers that int8 or sparsity does not make faster stay as they were."""
        return settle(
            self._table.table, self._walk(), plan, self._budgets(self._limit),
            objective=self._request.objective, arena_bytes=self._arena, least_gain=_LEAST_GAIN,
        )  # fmt: skip

    def _budgets(self, limit: float) -> Budgets:
        request = self._request
        weights = request.max_weights
        return Budgets(
            max_accuracy_drop=None if self._compression is None else limit,
            max_weights_bytes=None if weights is None else max(0, weights - self._elsewhere),
            max_arena_bytes=request.max_arena,
        )

    def _arena(self, assignment: Sequence[int]) -> int:
        return int(self._arena_scale * estimate_arena(self._graph, self._table.chosen(assignment)))

    def _latency(self, assignment: Sequence[int]) -> float:
        """What the table promises, in us."""
        return plan_us(self._table.table, self._walk(), tuple(assignment))

    def _walk(self) -> GraphBorderWalk:
        return GraphBorderWalk(self._graph, self._covered, self._costs)
