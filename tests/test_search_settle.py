"""settle: never slower, never over a budget, nothing int8 or sparse without a gain."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search_tables import mixed_table, plan_us, residual_edges, tight_budgets, walk_of
from tvmx.errors import UsageError
from tvmx.ir import CostTable, Implementation
from tvmx.search import Budgets, settle, solve_exact


def inexact(table: CostTable, plan: tuple[int, ...]) -> list[int]:
    pairs = zip(table.layers, plan, strict=True)
    return [i for i, (c, a) in enumerate(pairs) if not c.implementations[a].exact]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["latency", "weights"]))
def test_settled_plans_are_no_slower_and_no_single_layer_can_go_back(
    seed: int, residual: bool, objective: str
) -> None:
    table, edges = mixed_table(seed, 6), residual_edges(6) if residual else None
    rng = random.Random(seed)
    before = tuple(rng.choice(costs.legal) for costs in table.layers)
    plan = settle(table, walk_of(table, edges), before, objective=objective)
    us = plan_us(table, plan, edges)
    assert us <= plan_us(table, before, edges) * (1 + 1e-6)
    assert set(inexact(table, plan)) <= set(inexact(table, before))
    assert all(plan[i] == before[i] for i in range(6) if i not in inexact(table, before))
    if objective == "weights":
        assert table.weights_bytes(plan) <= table.weights_bytes(before)
    for layer in inexact(table, plan):
        costs = table.layers[layer]
        for action in costs.legal:
            option = (*plan[:layer], action, *plan[layer + 1 :])
            if not costs.implementations[action].exact:
                continue
            heavier = table.weights_bytes(option) > table.weights_bytes(plan)
            assert plan_us(table, option, edges) > us or (objective == "weights" and heavier)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.5))
def test_settling_keeps_the_budgets(seed: int, share: float) -> None:
    table = mixed_table(seed, 8)
    limits = tight_budgets(table, share)
    budgets = Budgets(max_weights_bytes=limits.max_weights_bytes)
    found = solve_exact(table, walk_of(table), budgets)
    plan = settle(table, walk_of(table), found.actions, budgets)
    assert budgets.allow(table.accuracy_drop(plan), table.weights_bytes(plan))
    assert plan_us(table, plan) == pytest.approx(found.latency_us)


def two_way(us: tuple[float, float]) -> CostTable:
    """One float and one int8 implementation per layer, and no borders."""
    table = mixed_table(0, 3, layouts=("NCHW",), border=0)
    forms = [Implementation(template="t", layout="NCHW", data_layout="NCHW", precision=p)
             for p in ("f32", "int8")]  # fmt: skip
    rows = [
        c.model_copy(update={
            "implementations": tuple(forms), "latency_us": us, "weights_bytes": (40, 10),
            "accuracy_drop": (0.0, 0.1), "baseline": 0,
        })
        for c in table.layers
    ]  # fmt: skip
    return table.model_copy(update={"layers": tuple(rows)})


def test_a_tie_goes_to_float_and_a_gain_stays() -> None:
    tie, gain = two_way((10.0, 10.0)), two_way((10.0, 9.9))
    assert settle(tie, walk_of(tie), (1, 1, 1)) == (0, 0, 0)
    assert settle(gain, walk_of(gain), (1, 1, 1)) == (1, 1, 1)
    assert settle(tie, walk_of(tie), (1, 1, 1), objective="weights") == (1, 1, 1)


def test_limits_stop_it() -> None:
    table = two_way((10.0, 10.0))
    limit = Budgets(max_weights_bytes=60)
    plan = settle(table, walk_of(table), (1, 1, 1), limit)
    assert sorted(plan) == [0, 1, 1] and table.weights_bytes(plan) == 60

    def arena(assignment: tuple[int, ...]) -> int:
        return 10 - sum(assignment)

    plan = settle(table, walk_of(table), (1, 1, 1), Budgets(max_arena_bytes=8), arena_bytes=arena)
    assert sum(plan) == 2
    objective = settle(table, walk_of(table), (1, 1, 1), objective="arena", arena_bytes=arena)
    assert objective == (1, 1, 1)
    with pytest.raises(UsageError, match="arena_bytes"):
        settle(table, walk_of(table), (1, 1, 1), Budgets(max_arena_bytes=8))


def test_a_gain_within_the_noise_is_given_up() -> None:
    table = two_way((10.0, 9.9))
    assert settle(table, walk_of(table), (1, 1, 1), least_gain=0.002) == (1, 1, 1)
    assert settle(table, walk_of(table), (1, 1, 1), least_gain=0.01) == (0, 0, 0)
