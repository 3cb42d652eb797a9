"""The exact solver against brute force; its proof, its limits, and how long it takes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search_tables import (
    assignments,
    mixed_table,
    plan_us,
    random_table,
    residual_edges,
    tight_budgets,
    walk_of,
    within,
)
from tvmx.errors import UsageError
from tvmx.search import Budgets, DeployEnv, pick_memory, solve_exact, solve_milp
from tvmx.search import _exact as exact_module


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_exact_is_the_brute_force_optimum(seed: int, residual: bool) -> None:
    table = random_table(seed, layers=6, failing=0.2)
    edges = residual_edges(6) if residual else None
    plan = solve_exact(table, walk_of(table, edges))
    best = min(plan_us(table, a, edges) for a in assignments(table))
    assert plan.exact and plan.gap == 0
    assert plan.latency_us == pytest.approx(best)
    assert plan_us(table, plan.actions, edges) == pytest.approx(best)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(["accuracy", "weights", "both"]),
    st.floats(0.02, 0.9), st.sampled_from([0.8, 1.0, 1.05, 1.3]), st.booleans(),
)  # fmt: skip
def test_exact_is_the_brute_force_optimum_within_budgets(
    seed: int, which: str, share: float, slack: float, residual: bool
) -> None:
    table, edges = mixed_table(seed, 4), residual_edges(4) if residual else None
    limits = tight_budgets(table, share, slack)
    budgets = Budgets(
        limits.max_accuracy_drop if which != "weights" else None,
        limits.max_weights_bytes if which != "accuracy" else None,
    )
    plans = within(table, budgets)
    if not plans:
        with pytest.raises(UsageError, match="no plan keeps"):
            solve_exact(table, walk_of(table, edges), budgets)
        return
    plan = solve_exact(table, walk_of(table, edges), budgets)
    assert plan.exact and plan.actions in plans
    best = min(plan_us(table, a, edges) for a in plans)
    assert plan.latency_us == pytest.approx(best)
    assert plan_us(table, plan.actions, edges) == pytest.approx(best)
    assert plan.accuracy_drop == table.accuracy_drop(plan.actions)
    assert plan.weights_bytes == table.weights_bytes(plan.actions)


@pytest.mark.parametrize("objective", ["latency", "weights"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("limited", [False, True])
def test_highs_and_dynamic_programming_agree(objective: str, residual: bool, limited: bool) -> None:
    """Chains and joins, free and within both budgets, deeper than brute force can go."""
    for seed in range(3):
        table, edges = mixed_table(seed, 14), residual_edges(14) if residual else None
        walk = walk_of(table, edges)
        budgets = tight_budgets(table, 0.2) if limited else Budgets()
        one = solve_exact(table, walk, budgets, objective=objective)  # type: ignore[arg-type]
        other = solve_milp(table, walk, budgets, objective=objective)  # type: ignore[arg-type]
        assert one.exact and other.exact
        assert budgets.allow(other.accuracy_drop, other.weights_bytes)
        assert other.latency_us == pytest.approx(plan_us(table, other.actions, edges))
        if objective == "latency":
            assert one.latency_us == pytest.approx(other.latency_us, rel=1e-7)
        else:
            assert one.weights_bytes == pytest.approx(other.weights_bytes, rel=1e-5)


def test_highs_refuses_what_nothing_keeps() -> None:
    table = mixed_table(1, 4)
    with pytest.raises(UsageError, match="no plan keeps"):
        solve_milp(table, walk_of(table), Budgets(max_weights_bytes=1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9))
def test_pick_memory_is_the_environments_best_return(seed: int, share: float) -> None:
    table = mixed_table(seed, 4)
    budgets = Budgets(max_accuracy_drop=tight_budgets(table, share).max_accuracy_drop)
    env = DeployEnv(table, walk_of(table), objective="weights", budgets=budgets)

    def total(actions: tuple[int, ...]) -> float:
        env.reset()
        return sum(env.step(action)[1] for action in actions)

    plan = pick_memory(table, walk_of(table), budgets)
    assert total(plan.actions) == pytest.approx(max(map(total, within(table, budgets))))


def test_exact_refuses_too_many_states() -> None:
    table = random_table(1, layers=6)
    with pytest.raises(UsageError, match="'conv"):
        solve_exact(table, walk_of(table, residual_edges(6)), max_states=2)


def test_exact_has_no_arena_objective() -> None:
    table = random_table(1)
    with pytest.raises(UsageError, match="'arena'"):
        solve_exact(table, walk_of(table), objective="arena")  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", ["latency", "weights"])
def test_54_layers_and_12_implementations_take_seconds(objective: str) -> None:
    table = mixed_table(3, 54, layouts=("NCHW", "NCHW4c", "NCHW8c"))
    assert max(len(costs.legal) for costs in table.layers) == 12
    walk, budgets = walk_of(table, residual_edges(54)), tight_budgets(table, 0.1)
    start = time.process_time()
    plan = solve_exact(table, walk, budgets, objective=objective)  # type: ignore[arg-type]
    assert time.process_time() - start < 5
    assert budgets.allow(plan.accuracy_drop, plan.weights_bytes)
    free = solve_exact(table, walk, objective=objective)  # type: ignore[arg-type]
    assert not budgets.allow(free.accuracy_drop, free.weights_bytes)
    assert plan.gap < 0.01


def test_a_thinned_search_keeps_the_budgets_and_says_how_far_off_it_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = mixed_table(4, 20)
    walk, budgets = walk_of(table, residual_edges(20)), tight_budgets(table, 0.1, 1.0)
    best = solve_exact(table, walk, budgets)
    assert best.exact
    monkeypatch.setattr(exact_module, "CAPS", (1,))
    monkeypatch.setattr(exact_module, "STEPS", 24)
    rough = solve_exact(table, walk, budgets)
    assert budgets.allow(rough.accuracy_drop, rough.weights_bytes)
    assert not rough.exact and rough.gap > 0
    assert best.latency_us <= rough.latency_us <= best.latency_us / (1 - rough.gap) + 1e-6
