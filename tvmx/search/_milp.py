"""The optimum of a cost table as an integer program, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import optimize, sparse

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._border import ResumableWalk
from tvmx.search._budgets import NO_BUDGETS, Budgets
from tvmx.search._exact import STEPS, TOLERANCE, ExactPlan, plan_of, price_of
from tvmx.search._reach import Reach
from tvmx.search._stages import Stage, stages_of

_LIMITED = 1  # scipy's status: the time ran out


def solve_milp(
    table: CostTable, walk: ResumableWalk, budgets: Budgets = NO_BUDGETS, *,
    objective: Literal["latency", "weights"] = "latency", seconds: float = 60.0,
    max_states: int = 100_000,
) -> ExactPlan:  # fmt: skip
    """The same question as :func:`solve_exact`'s, answered by branch and cut.

    One binary variable for every arc (border state, implementation) of every layer; what flows
    into a state flows out of it, and the budgets are two more rows. Without budgets that is a
    shortest path. After ``seconds`` the best plan found counts, with the gap that is left.
    Raises UsageError when no plan keeps the budgets, and when none was found in time.
    """
    price = price_of(table, walk, objective)
    reach = Reach(table, budgets, STEPS)
    stages = stages_of(table, walk, reach, price, max_states)
    cost = np.concatenate([stage.cost for stage in stages])
    scale = float(np.abs(cost).max()) or 1.0
    found = optimize.milp(
        cost / scale,
        integrality=np.ones(len(cost)),
        bounds=optimize.Bounds(0, 1),
        constraints=_constraints(stages, reach),
        options={"time_limit": seconds, "mip_rel_gap": TOLERANCE},
    )
    if found.x is None:
        raise UsageError(
            f"HiGHS found no plan within {seconds:g} s: {found.message}",
            hint="give it more time, or relax a budget",
        )
    chosen = [int(arc) for arc in np.flatnonzero(found.x > 0.5)]
    actions = np.concatenate([stage.action for stage in stages])[chosen]
    spent = [sum(int(all_[a]) for a in chosen) for all_ in (_drops(stages), _weights(stages))]
    # Rows hold to a tolerance only; then a plan may be a byte over its limit.
    if spent[0] > reach.drop_limit or spent[1] > reach.weights_limit:
        raise UsageError(
            "HiGHS's plan breaks a budget by its tolerance", hint="solve_exact has no tolerance"
        )
    total = float(cost[chosen].sum())
    bound = total if found.mip_dual_bound is None else float(found.mip_dual_bound) * scale
    gap = max(0.0, (total - bound) / abs(total)) if found.status == _LIMITED and total else 0.0
    return plan_of(table, walk, tuple(int(a) for a in actions), gap)


def _constraints(stages: Sequence[Stage], reach: Reach) -> list[Any]:
    """One unit of flow from the first state to the last, and the budgets."""
    rows, columns, signs = [], [], []
    row = arc = 0
    for stage in stages:
        arcs = np.arange(arc, arc + len(stage.cost))
        after = row + len(stage.first)
        rows += [row + stage.source, after + stage.target]
        columns += [arcs, arcs]
        signs += [np.ones(len(arcs)), -np.ones(len(arcs))]
        row, arc = after, arc + len(arcs)
    flow = sparse.csr_array(
        (np.concatenate(signs), (np.concatenate(rows), np.concatenate(columns))),
        shape=(row + 1, arc),
    )
    balance = np.zeros(row + 1)
    balance[0], balance[-1] = 1, -1
    found: list[Any] = [optimize.LinearConstraint(flow, balance, balance)]
    limits = ((_drops(stages), reach.drop_limit), (_weights(stages), reach.weights_limit))
    for spent, limit in limits:
        if spent.any():
            unit = max(1, limit)
            found.append(optimize.LinearConstraint(spent[None, :] / unit, ub=limit / unit))
    return found


def _drops(stages: Sequence[Stage]) -> np.ndarray[Any, Any]:
    return np.concatenate([stage.drop for stage in stages])


def _weights(stages: Sequence[Stage]) -> np.ndarray[Any, Any]:
    return np.concatenate([stage.weights for stage in stages])
