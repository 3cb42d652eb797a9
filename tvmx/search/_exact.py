"""The optimum of a cost table within budgets: relaxation and label setting over border states."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._border import ResumableWalk, plan_us
from tvmx.search._budgets import NO_BUDGETS, Budgets
from tvmx.search._labels import LabelSetting
from tvmx.search._objective import TIE_BREAK
from tvmx.search._reach import Reach
from tvmx.search._relaxed import Path, relax
from tvmx.search._stages import Price, stages_of

CAPS = (16, 256, 2048)
"""Labels kept per border state in the first pass, and in the next ones where doubt is left."""
STEPS = 16_384
"""Steps of the staircases: more than masks need, because what they hide costs the proof."""
TOLERANCE = 1e-9
"""Relative: costs nearer than that are equal."""


class ExactPlan(NamedTuple):
    """The best assignment, its latency in us (conversions included), drop and weights.

    ``exact`` is False where labels had to be given up; then no plan is better than this one by
    more than ``gap``, as a share of the objective (0 where exact).
    """

    actions: tuple[int, ...]
    latency_us: float
    accuracy_drop: float
    weights_bytes: int
    exact: bool
    gap: float


def solve_exact(
    table: CostTable,
    walk: ResumableWalk,
    budgets: Budgets = NO_BUDGETS,
    *,
    objective: Literal["latency", "weights"] = "latency",
    max_states: int = 100_000,
) -> ExactPlan:
    """The assignment of least latency (or weights) within the accuracy and weights budgets.

    Exact for chains and DAGs. Partial assignments that leave the walk in the same state are
    merged (Bellman's principle): without budgets only the best is kept, with them all that no
    other one undercuts in cost, drop and weights at once. The number of states grows with the
    tensors alive at once times the formats each may have: a handful for residual networks.

    Objective ``weights`` is the environment's: bytes, and latency (times ``TIE_BREAK``, both as
    shares of the baseline's) where they are nearly equal. The arena does not add up over the
    layers: ``budgets.max_arena_bytes`` is not looked at. Raises UsageError when no plan keeps
    the budgets and when a layer is reached in more than ``max_states``.
    """
    price = price_of(table, walk, objective)
    reach = Reach(table, budgets, STEPS)
    stages = stages_of(table, walk, reach, price, max_states)
    relaxed, best = relax(stages, reach)
    bound = relaxed.bound
    for cap in CAPS:
        if best is not None and bound >= best.cost - TOLERANCE * abs(best.cost):
            break
        beat = float("inf") if best is None else best.cost
        found = LabelSetting(stages, reach, relaxed, cap, beat).run()
        if found.actions:
            best = Path(found.actions, found.cost, 0, 0)
        bound = max(bound, found.bound)
    assert best is not None  # Reach has refused what has no plan
    gap = max(0.0, (best.cost - bound) / abs(best.cost)) if best.cost else 0.0
    return plan_of(table, walk, best.actions, gap)


def pick_memory(table: CostTable, walk: ResumableWalk, budgets: Budgets = NO_BUDGETS) -> ExactPlan:
    """The plan of least weights within the budgets; latency decides among the nearly equal."""
    return solve_exact(table, walk, budgets, objective="weights")


def plan_of(
    table: CostTable, walk: ResumableWalk, actions: tuple[int, ...], gap: float
) -> ExactPlan:
    """The figures of an assignment that no other one beats by more than ``gap``."""
    return ExactPlan(
        actions, plan_us(table, walk, actions), table.accuracy_drop(actions),
        table.weights_bytes(actions), gap <= TOLERANCE, 0.0 if gap <= TOLERANCE else gap,
    )  # fmt: skip


def price_of(table: CostTable, walk: ResumableWalk, objective: str) -> Price:
    """What us and bytes cost with an objective. Raises UsageError where it does not add up."""
    if objective not in ("latency", "weights"):
        raise UsageError(
            f"the exact solver has no objective {objective!r}", hint="latency or weights"
        )
    if objective == "latency":
        return lambda us, size: us
    base_us = plan_us(table, walk, table.baseline)
    base_bytes = max(1, table.weights_bytes(table.baseline))
    return lambda us, size: size / base_bytes + TIE_BREAK * us / base_us
