"""Hard constraints: masks against brute force, no dead ends, no plan over a budget."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search_tables import mixed_table, plan_us, tight_budgets, walk_of, within
from tvmx.errors import UsageError
from tvmx.ir import CostTable
from tvmx.search import (
    Agent,
    Budgets,
    DeployEnv,
    Episode,
    GreedyAgent,
    QLearning,
    RandomAgent,
    TopCandidates,
)
from tvmx.search._observation import FEATURES
from tvmx.search._reach import Reach

DROP, WEIGHTS = FEATURES.index("accuracy_left"), FEATURES.index("weights_left")
AGENTS = [QLearning, RandomAgent, GreedyAgent]


@st.composite
def bounded(draw: st.DrawFn, layers: int = 4) -> tuple[CostTable, Budgets]:
    """A table and budgets that something keeps: a random plan's own needs, or some more."""
    table = mixed_table(draw(st.integers(0, 10_000)), layers)
    rng = random.Random(draw(st.integers(0, 1000)))
    plan = tuple(rng.choice(costs.legal) for costs in table.layers)
    spare = draw(st.sampled_from([1.0, 1.1, 1.5]))
    which = draw(st.sampled_from(["accuracy", "weights", "both"]))
    return table, Budgets(
        max_accuracy_drop=None if which == "weights" else table.accuracy_drop(plan) * spare,
        max_weights_bytes=None if which == "accuracy" else int(table.weights_bytes(plan) * spare),
    )


def legal(info: dict[str, Any]) -> set[int]:
    return {int(a) for a in np.flatnonzero(info["action_mask"])}


@settings(max_examples=40, deadline=None)
@given(bounded(), st.integers(0, 1000))
def test_masks_are_exactly_what_some_plan_within_the_budgets_does(
    case: tuple[CostTable, Budgets], seed: int
) -> None:
    table, budgets = case
    plans = within(table, budgets)
    env = DeployEnv(table, budgets=budgets)
    rng = random.Random(seed)
    prefix: tuple[int, ...] = ()
    _, info = env.reset()
    while len(prefix) < len(table.layers):
        wanted = {plan[len(prefix)] for plan in plans if plan[: len(prefix)] == prefix}
        assert legal(info) == wanted == set(np.flatnonzero(env.action_masks()))
        for action in set(range(len(info["action_mask"]))) - wanted:
            with pytest.raises(UsageError, match=f"action {action} is masked"):
                env.step(action)
        prefix += (rng.choice(sorted(wanted)),)
        info = env.step(prefix[-1])[4]
    assert info["feasible"] and prefix in plans


@settings(max_examples=30, deadline=None)
@given(bounded(layers=40), st.integers(0, 1000), st.sampled_from([8, 512]))
def test_masks_never_lead_into_a_dead_end_or_over_a_budget(
    case: tuple[CostTable, Budgets], seed: int, steps: int
) -> None:
    table, budgets = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reach.__init__, "__defaults__", (steps,))  # 8: thinned all the time
        try:
            env = DeployEnv(table, budgets=budgets)
        except UsageError:
            assert steps == 8 and None not in (budgets.max_accuracy_drop, budgets.max_weights_bytes)
            return
    rng = random.Random(seed)
    _, info = env.reset()
    for _ in table.layers:
        options = sorted(legal(info))
        assert options and info["baseline"] in options
        info = env.step(rng.choice(options))[4]
    plan = info["assignment"]
    assert info["accuracy_drop"] == table.accuracy_drop(plan)
    assert budgets.allow(table.accuracy_drop(plan), table.weights_bytes(plan))


@settings(max_examples=25, deadline=None)
@given(bounded(layers=8), st.sampled_from(AGENTS), st.integers(0, 100))
def test_no_agent_plays_a_plan_over_a_budget(
    case: tuple[CostTable, Budgets], make: type[Agent], seed: int
) -> None:
    table, budgets = case
    seen: list[Episode] = []
    actions = make().train(DeployEnv(table, budgets=budgets), 40, seed, on_episode=seen.append)
    for plan in [*(e.actions for e in seen), tuple(actions)]:
        assert budgets.allow(table.accuracy_drop(plan), table.weights_bytes(plan))
    assert tuple(actions) == max(seen, key=lambda e: e.total).actions


def test_the_baseline_is_followed_where_legal_and_else_the_fastest_is() -> None:
    table = mixed_table(3, 6)
    budgets = tight_budgets(table, 0.5)
    seen: list[Episode] = []
    RandomAgent().train(DeployEnv(table, budgets=budgets), 1, on_episode=seen.append)
    env = DeployEnv(table, budgets=budgets)
    _, info = env.reset()
    replaced = 0
    for costs, action in zip(table.layers, seen[0].actions, strict=True):
        options = legal(info)
        if costs.baseline in options:
            assert action == costs.baseline
        else:
            replaced += 1
            assert action == min(options, key=lambda i: costs.latency_us[i] or 0.0)
        info = env.step(action)[4]
    assert 0 < replaced < 6


def test_what_is_left_is_observed_and_part_of_the_state() -> None:
    table = mixed_table(3, 6)
    budgets = tight_budgets(table, 0.5)
    assert budgets.max_accuracy_drop and budgets.max_weights_bytes
    env = DeployEnv(table, budgets=budgets)
    observation, info = env.reset()
    assert observation[DROP] == observation[WEIGHTS] == 1.0
    assert len(info["state"]) == 4
    drop = size = 0.0
    while info["layer"] < 6:
        layer, action = info["layer"], max(legal(info))
        drop += table.layers[layer].drops[action] / budgets.max_accuracy_drop
        size += table.layers[layer].weights_bytes[action] / budgets.max_weights_bytes
        observation, _, _, _, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert observation[DROP] == pytest.approx(1 - drop, abs=1e-5)
        assert observation[WEIGHTS] == pytest.approx(1 - size, abs=1e-5)
    free = DeployEnv(table, budgets=Budgets(max_arena_bytes=10), arena_bytes=len)
    observation, info = free.reset()
    assert observation[DROP] == observation[WEIGHTS] == 1.0 and len(info["state"]) == 2


def test_states_tell_little_left_from_much() -> None:
    table = mixed_table(5, 12)
    plan = tuple(max(c.legal, key=c.drops.__getitem__) for c in table.layers)
    env = DeployEnv(table, budgets=Budgets(max_accuracy_drop=0.5 * table.accuracy_drop(plan)))
    levels = set()
    for spend in (min, max):
        _, info = env.reset()
        for costs in table.layers[:8]:
            info = env.step(spend(sorted(legal(info)), key=costs.drops.__getitem__))[4]
        levels.add(info["state"][2])
    assert len(levels) == 2


def test_impossible_budgets_say_what_can_be_had() -> None:
    table = mixed_table(3, 6)
    plans = within(table, Budgets())
    smallest = min(map(table.weights_bytes, plans))
    with pytest.raises(UsageError, match=f"no plan keeps to 10 bytes .* {smallest} bytes"):
        DeployEnv(table, budgets=Budgets(max_weights_bytes=10))
    frugal = min(map(table.weights_bytes, within(table, Budgets(max_accuracy_drop=0.2))))
    assert frugal > smallest
    with pytest.raises(
        UsageError, match=f"{frugal} bytes within that accuracy drop, {smallest} bytes with any"
    ):
        DeployEnv(table, budgets=Budgets(max_accuracy_drop=0.2, max_weights_bytes=frugal - 1))
    DeployEnv(table, budgets=Budgets(max_accuracy_drop=0.2, max_weights_bytes=frugal))
    lossy = [c.model_copy(update={"accuracy_drop": (0.25,) * len(c.latency_us)})
             for c in table.layers]  # fmt: skip
    table = table.model_copy(update={"layers": tuple(lossy)})
    with pytest.raises(UsageError, match=r"least accuracy drop reachable is 1\.5 points"):
        DeployEnv(table, budgets=Budgets(max_accuracy_drop=1.0))


@pytest.mark.parametrize(
    "wrong",
    [{"max_accuracy_drop": -0.1}, {"max_accuracy_drop": float("nan")}, {"max_weights_bytes": -1},
     {"max_arena_bytes": -1}],
)  # fmt: skip
def test_senseless_budgets(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 0"):
        Budgets(**wrong)


def test_a_sum_that_is_the_budget_in_decimals_is_within_it() -> None:
    table = mixed_table(1, 3)
    rows = [
        c.model_copy(update={"accuracy_drop": (drop,) * len(c.latency_us)})
        for c, drop in zip(table.layers, (0.1, 0.2, 0.3), strict=True)
    ]
    table = table.model_copy(update={"layers": tuple(rows)})
    DeployEnv(table, budgets=Budgets(max_accuracy_drop=0.6))
    with pytest.raises(UsageError):
        DeployEnv(table, budgets=Budgets(max_accuracy_drop=0.599999))


def arena(assignment: tuple[int, ...]) -> int:
    return 100 + 7 * sum(a * (i + 1) % 5 for i, a in enumerate(assignment))


@pytest.mark.parametrize("objective", ["latency", "weights", "arena"])
def test_any_plan_within_the_arena_beats_any_plan_over_it(objective: str) -> None:
    table = mixed_table(2, 4, border=2000)
    env = DeployEnv(table, objective=objective, arena_bytes=arena,
                    budgets=Budgets(max_arena_bytes=140))  # fmt: skip
    returns: dict[bool, dict[tuple[int, ...], float]] = {True: {}, False: {}}
    rng = random.Random(0)
    for _ in range(400):
        _, info = env.reset()
        total = 0.0
        while info["layer"] < 4:
            _, reward, _, _, info = env.step(rng.choice(sorted(legal(info))))
            total += reward
        assert info["feasible"] == (arena(info["assignment"]) <= 140)
        assert info["arena_bytes"] == arena(info["assignment"])
        returns[info["feasible"]][info["assignment"]] = total
    assert min(returns[True].values()) > max(returns[False].values())
    by_excess = sorted(returns[False], key=arena)
    totals = [round(returns[False][plan], 9) for plan in by_excess]
    assert totals == sorted(totals, reverse=True)


def test_within_the_arena_returns_are_what_they_are_without_a_limit() -> None:
    table = mixed_table(2, 4)
    env = DeployEnv(table, arena_bytes=arena, budgets=Budgets(max_arena_bytes=arena((0,) * 4)))
    env.reset()
    total = sum(env.step(0)[1] for _ in range(4))
    base = plan_us(table, table.baseline)
    assert total == pytest.approx((base - plan_us(table, (0,) * 4)) / base)


@pytest.mark.parametrize("make", AGENTS)
def test_agents_and_candidates_keep_the_arena(make: type[Agent]) -> None:
    table = mixed_table(2, 6)
    limit = arena(table.baseline) - 1
    env = DeployEnv(table, budgets=Budgets(max_arena_bytes=limit), arena_bytes=arena)
    top = TopCandidates(3)
    seen: list[Episode] = []

    def both(episode: Episode) -> None:
        top(episode)
        seen.append(episode)

    actions = make().train(env, 200, seed=1, on_episode=both)
    assert [e.feasible for e in seen] == [arena(e.actions) <= limit for e in seen]
    assert not seen[0].feasible  # the baseline
    assert arena(tuple(actions)) <= limit
    assert top.best()[0].actions == tuple(actions)
    assert all(arena(c.actions) <= limit for c in top.best())


def test_without_any_plan_in_the_arena_no_candidate_is_kept() -> None:
    table = mixed_table(2, 3)
    env = DeployEnv(table, budgets=Budgets(max_arena_bytes=1), arena_bytes=arena)
    top = TopCandidates(3)
    actions = QLearning().train(env, 300, on_episode=top)
    assert top.best() == []
    assert arena(tuple(actions)) == min(map(arena, within(table, Budgets())))
    with pytest.raises(UsageError, match="need arena_bytes"):
        DeployEnv(table, budgets=Budgets(max_arena_bytes=1))


def test_other_objectives_work_within_budgets() -> None:
    table = mixed_table(2, 4)
    budgets = replace(tight_budgets(table), max_accuracy_drop=0.3)
    env = DeployEnv(table, walk_of(table), objective="weights", budgets=budgets)
    actions = tuple(QLearning().train(env, 600))
    smallest = min(map(table.weights_bytes, within(table, budgets)))
    assert smallest <= table.weights_bytes(actions) <= 1.01 * smallest
