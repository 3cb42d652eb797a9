"""The search on the cost table: an agent's episodes, the best distinct plans out of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvmx.errors import UsageError
from tvmx.explore._rollouts import SEEDED, SEEDS, ArenaEstimate, Rollout, spread_out
from tvmx.explore._table import ConversionKey, TunedTable
from tvmx.explore._walk import estimate_arena
from tvmx.ir import DENSE
from tvmx.search import (
    Budgets,
    Correction,
    GraphBorderWalk,
    choose_agent,
    make_agent,
    pick_memory,
    plan_us,
    settle,
    solve_exact,
    walk_of,
)

if TYPE_CHECKING:
    from tvmx.build import RayCluster
    from tvmx.explore._compress import Compression
    from tvmx.explore._context import Context
    from tvmx.explore._request import ExploreRequest
    from tvmx.ir import NetworkGraph

KEPT = 5
"""How many plans besides the baseline are built whole where only trials bound the run."""
_FROM_AGENT = 2
_POOL = 32  # of the agent's plans: what a correction may choose from
_WORTH_HALVING = 1.1  # the fastest plan's weights over the smallest's: is there a middle?
_EPISODES_PER_LAYER = 40
_MAX_EPISODES = 2000
_TRIES = 6
_LEAST_GAIN = 0.002  # of the plan's latency: what int8 or sparsity must win in a layer
_TIGHTEN = 0.7  # of the accuracy budget that just turned out too loose

Assignment = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """Assignments worth building, and what the table promises for them.

    ``required`` come first, in this order; then those of ``others`` that look best, going by
    ``latency`` (us, by the table) and what was learnt from plans that were measured. Of ``others``
    what is not ``lossless`` is to be passed by: that simulates it, on data choices may see.
    ``corrected`` is the optimum of a corrected table, None where there is none; ``drop`` the points
    that an assignment loses by simulation, where that is known.
    """

    required: list[Assignment]
    others: list[Assignment]
    notes: list[str]
    latency: Callable[[Assignment], float]
    lossless: Callable[[Assignment], bool]
    corrected: Callable[[Correction, bool], Assignment | None]
    drop: Callable[[Assignment], float | None]

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
    baseline_arena: int, cluster: RayCluster | None = None,
) -> Found:  # fmt: skip
    """Train the agent on the table under the limits; add the exact optimum and the smallest plan.

    ``weights_elsewhere`` are the library's bytes of constants outside the layers,
    ``baseline_arena`` the planned arena of the baseline, which scales the estimates. Where the
    visible half shows that a plan's layers together lose more than each alone promised, the
    accuracy budget is tightened and the search repeated. The tuned baseline's templates and
    the best plan without pruned layers are always among what is required. On a ``cluster`` the
    agent plays from several seeds.
    """
    sizes = (weights_elsewhere, baseline_arena)
    return _Search(context, table, costs, request, compression, sizes, cluster).run()


class _Search:
    def __init__(
        self, context: Context, table: TunedTable, costs: Mapping[ConversionKey, float],
        request: ExploreRequest, compression: Compression | None, sizes: tuple[int, int],
        cluster: RayCluster | None,
    ) -> None:  # fmt: skip
        self._graph: NetworkGraph = context.network.graph
        self._table, self._request, self._compression = table, request, compression
        self._covered = [layer.index for layer in table.layers]
        self._costs, self._cluster = costs, cluster
        self._elsewhere, built = sizes
        estimated = estimate_arena(self._graph, table.chosen(table.table.baseline))
        pairs = zip(self._covered, table.table.layers, strict=True)
        options = {index: costs.implementations for index, costs in pairs}
        self._arena = ArenaEstimate(self._graph, options, built / max(1, estimated))
        self._limit = request.max_accuracy_drop
        self._joint: dict[Assignment, float] = {}
        self._notes: list[str] = []

    def run(self) -> Found:
        """Where the arena counts, or weights are the objective, figures of us choose nothing."""
        request = self._request
        agents, pool = self._agent()
        exact = self._within(self._exact)
        smallest = None if self._compression is None else self._within(self._smallest)
        dense = None if self._compression is None else self._within(self._dense)
        tuned = tuple(self._table.table.baseline)
        if request.objective == "latency" and request.max_arena is None:
            fastest = sorted((a for a in (*agents, exact) if a is not None), key=self._latency)
            required = _distinct([*fastest[:1], dense, smallest, tuned])
            others = _distinct([*fastest, self._halfway(fastest[:1], smallest), *pool])
        else:
            required, others = _distinct([*agents, exact, dense, smallest, tuned])[:KEPT], []
        others = [a for a in others if a not in required]
        return Found(
            required, others, self._notes, self._latency, self._lossless, self._corrected,
            self._joint.get,
        )  # fmt: skip

    def _halfway(
        self, fastest: Sequence[Assignment], smallest: Assignment | None
    ) -> Assignment | None:
        """The fastest plan with weights between those of the fastest and the smallest."""
        if smallest is None or not fastest:
            return None
        most, least = (self._table.table.weights_bytes(a) for a in (fastest[0], smallest))
        if most < _WORTH_HALVING * least:
            return None

        def solve(limit: float) -> Assignment:
            budgets = replace(self._budgets(limit), max_weights_bytes=(most + least) // 2)
            return solve_exact(self._table.table, self._walk(), budgets).actions

        return self._within(solve)

    def _corrected(self, correction: Correction, cold: bool) -> Assignment | None:
        """The optimum of the table with what was learnt from whole plans in its figures."""
        table = correction.applied(self._table.table, cold=cold)
        try:
            found = solve_exact(table, walk_of(table), self._budgets(self._limit)).actions
        except UsageError:
            return None
        return found if self._lossless(found) else None

    def _agent(self) -> tuple[list[Assignment], list[Assignment]]:
        """The agent's best plans, without those that lose too much together; more, unchecked."""
        name = agent_name(self._request)
        agent = make_agent(name, self._request.policy)
        episodes = min(
            agent.affordable or _MAX_EPISODES, _MAX_EPISODES,
            200 + _EPISODES_PER_LAYER * len(self._covered),
        )  # fmt: skip
        played = Rollout(
            self._table.table, name, self._request.policy, episodes, self._request.seed, _POOL,
            self._request.objective, self._budgets(self._limit), self._arena,
        )  # fmt: skip
        seeds = SEEDS if self._cluster is not None and name in SEEDED else 1
        found = [c.actions for c in spread_out(played, seeds, self._cluster)]
        tuned_us = self._latency(tuple(self._table.table.baseline))
        self._notes.append(
            f"cost table: baseline templates tuned {tuned_us:.0f} us, best of agent {name} "
            f"after {episodes} episodes {self._compared(found)}"
            + (f" (from {seeds} seeds)" if seeds > 1 else "")
        )
        plans = [self._settled(actions) for actions in found[:_FROM_AGENT]]
        return [plan for plan in plans if self._lossless(plan)], found

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

    def _dense(self, limit: float) -> Assignment:
        """The optimum without pruned layers.

        Pruned weights were fitted to the samples that judge them too, and lose more on others: a
        plan that needs none is at hand where those with them fail on the samples held out.
        """
        table = self._table.table
        layers = tuple(
            costs.model_copy(update={"latency_us": tuple(
                us if how.exact or how.sparsity == DENSE else None
                for how, us in zip(costs.implementations, costs.latency_us, strict=True)
            )})
            for costs in table.layers
        )  # fmt: skip
        without = table.model_copy(update={"layers": layers})
        return self._settled(solve_exact(without, walk_of(without), self._budgets(limit)).actions)

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

    def _latency(self, assignment: Sequence[int]) -> float:
        """What the table promises, in us."""
        return plan_us(self._table.table, self._walk(), tuple(assignment))

    def _walk(self) -> GraphBorderWalk:
        return GraphBorderWalk(self._graph, self._covered, self._costs)


def _distinct(assignments: Sequence[Assignment | None]) -> list[Assignment]:
    return [a for a in dict.fromkeys(assignments) if a is not None]
