"""Agents: regret against the optimum, determinism, candidates."""

from __future__ import annotations

import sys
from dataclasses import replace

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search_tables import (
    assignments,
    mixed_table,
    plan_us,
    random_table,
    residual_edges,
    tight_budgets,
    walk_of,
)
from tvmx.errors import MissingExtraError, UsageError
from tvmx.search import (
    AGENTS,
    Agent,
    Budgets,
    CoordinateAgent,
    DeployEnv,
    Episode,
    ExactAgent,
    GreedyAgent,
    QLearning,
    QLearningParameters,
    RandomAgent,
    TopCandidates,
    TpeAgent,
    default_agent,
    make_agent,
    settle,
    solve_exact,
)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("residual", [False, True])
def test_q_learning_finds_the_optimum_of_small_tables(seed: int, residual: bool) -> None:
    table = random_table(seed, layers=6, failing=0.2)
    edges = residual_edges(6) if residual else None
    best = min(plan_us(table, a, edges) for a in assignments(table))
    actions = QLearning().train(DeployEnv(table, walk_of(table, edges)), 400, seed=seed)
    assert plan_us(table, tuple(actions), edges) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_q_learning_is_within_one_percent_of_exact_on_54_layers(seed: int) -> None:
    table = random_table(seed, layers=54, choices=6, failing=0.1)
    edges = residual_edges(54)
    walk = walk_of(table, edges)
    actions = QLearning().train(DeployEnv(table, walk), 1000, seed=seed)
    best = solve_exact(table, walk).latency_us
    assert best - 1e-6 <= plan_us(table, tuple(actions), edges) <= 1.01 * best


@pytest.mark.parametrize("which", ["accuracy", "weights", "both"])
@pytest.mark.parametrize("layers", [12, 20])
def test_q_learning_is_within_a_few_percent_of_exact_under_budgets(layers: int, which: str) -> None:
    regrets = []
    for seed in range(4):
        table, edges = mixed_table(seed, layers), residual_edges(layers)
        limits = tight_budgets(table)
        budgets = Budgets(
            limits.max_accuracy_drop if which != "weights" else None,
            limits.max_weights_bytes if which != "accuracy" else None,
        )  # fmt: skip
        walk = walk_of(table, edges)
        env = DeployEnv(table, walk, budgets=budgets)
        actions = QLearning().train(env, 200 + 40 * layers, seed=seed)
        plan = settle(table, walk, actions, budgets)
        assert budgets.allow(table.accuracy_drop(plan), table.weights_bytes(plan))
        best = solve_exact(table, walk, budgets)
        assert best.exact
        regrets.append(plan_us(table, plan, edges) / best.latency_us - 1)
    assert min(regrets) >= -1e-9
    assert sum(regrets) / len(regrets) < 0.05 and max(regrets) < 0.12


def test_q_learning_beats_greedy_and_random_where_borders_matter() -> None:
    table = random_table(11, layers=20, choices=6, border=300)
    env = DeployEnv(table)

    def us(agent: Agent) -> float:
        return plan_us(table, tuple(agent.train(env, 500, seed=1)))

    learnt, greedy, drawn = us(QLearning()), us(GreedyAgent()), us(RandomAgent())
    assert learnt < greedy < drawn


@pytest.mark.parametrize("name", AGENTS)
def test_first_episode_is_the_baseline_and_none_exceeds_the_budget(name: str) -> None:
    table = random_table(2, layers=5, failing=0.3)
    seen: list[Episode] = []
    actions = make_agent(name).train(DeployEnv(table), 12, seed=3, on_episode=seen.append)
    assert seen[0].actions == table.baseline and seen[0].total == 0.0
    assert [e.number for e in seen] == list(range(len(seen)))
    assert len(seen) == 12 or (name == "exact" and len(seen) < 12)
    best = max(seen, key=lambda e: e.total)
    assert tuple(actions) == best.actions


@pytest.mark.parametrize("name", AGENTS)
def test_equal_seeds_give_equal_runs(name: str) -> None:
    table = random_table(2, layers=8, choices=4, failing=0.2)

    def run(seed: int) -> list[Episode]:
        seen: list[Episode] = []
        make_agent(name).train(DeployEnv(table), 60, seed=seed, on_episode=seen.append)
        return seen

    assert run(1) == run(1)
    if name not in ("greedy", "exact"):
        assert run(1) != run(2)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("arena", [None, 30])
def test_plans_keep_the_budgets(name: str, arena: int | None) -> None:
    table, edges = mixed_table(5, 8), residual_edges(8)
    limits = tight_budgets(table, 0.3)
    budgets = replace(limits, max_arena_bytes=arena)
    env = DeployEnv(table, walk_of(table, edges), budgets=budgets, arena_bytes=sum)
    agent = make_agent(name)
    if name == "exact" and arena:
        for refused in (agent.train, lambda env, _: agent.check("latency", budgets)):
            with pytest.raises(UsageError, match="arena"):
                refused(env, 60)
        return
    seen: list[Episode] = []
    agent.train(env, 60, seed=1, on_episode=seen.append)
    for episode in seen:
        drop, size = table.accuracy_drop(episode.actions), table.weights_bytes(episode.actions)
        assert limits.allow(drop, size)
        assert episode.feasible == (arena is None or sum(episode.actions) <= arena)
    assert len({episode.actions for episode in seen}) > 3


@pytest.mark.parametrize("name", ["annealing", "evolution", "coordinate"])
def test_local_search_comes_near_the_optimum(name: str) -> None:
    for seed in range(4):
        table, edges = random_table(seed, layers=20, choices=5), residual_edges(20)
        walk = walk_of(table, edges)
        us = plan_us(table, tuple(make_agent(name).train(DeployEnv(table, walk), 1500)), edges)
        best = solve_exact(table, walk).latency_us
        drawn = RandomAgent().train(DeployEnv(table, walk), 1500)
        assert best - 1e-6 <= us < 1.12 * best
        assert us < plan_us(table, tuple(drawn), edges)


def test_coordinate_descent_ends_where_no_single_change_helps() -> None:
    table, edges = random_table(3, layers=10, choices=4), residual_edges(10)
    plan = tuple(CoordinateAgent().train(DeployEnv(table, walk_of(table, edges)), 2000))
    for layer, costs in enumerate(table.layers):
        for action in costs.legal:
            changed = (*plan[:layer], action, *plan[layer + 1 :])
            assert plan_us(table, changed, edges) >= plan_us(table, plan, edges) - 1e-6


@pytest.mark.parametrize("objective", ["latency", "weights"])
def test_the_exact_agent_plays_the_optimum_second_and_then_its_neighbours(objective: str) -> None:
    table = mixed_table(6, 10)
    env = DeployEnv(table, objective=objective, budgets=tight_budgets(table))
    seen: list[Episode] = []
    actions = ExactAgent().train(env, 40, on_episode=seen.append)
    best = solve_exact(table, env.walk, env.budgets, objective=objective)  # type: ignore[arg-type]
    assert tuple(actions) == best.actions == seen[1].actions
    assert max(e.total for e in seen) == seen[1].total
    changed = [sum(a != b for a, b in zip(e.actions, actions, strict=True)) for e in seen[2:]]
    assert changed and changed[0] == 1


def test_the_exact_agent_needs_the_table() -> None:
    with pytest.raises(UsageError, match="tvmx/Deploy-v0"):
        ExactAgent().train(gymnasium.make("CartPole-v1"), 10)


def test_agents_by_name() -> None:
    with pytest.raises(UsageError, match=r"unknown agent 'ppo'; agents: .*q-learning"):
        make_agent("ppo")
    assert default_agent("latency", Budgets(max_accuracy_drop=1.0)) == "exact"
    assert default_agent("arena", Budgets()) == "q-learning"
    assert default_agent("latency", Budgets(max_arena_bytes=9)) == "q-learning"


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    agent = make_agent("tpe")
    for call in (
        lambda: agent.check("latency", Budgets()),
        lambda: agent.train(DeployEnv(random_table(1)), 5),
    ):
        with pytest.raises(MissingExtraError) as caught:
            call()
        assert "tvmx[tpe]" in str(caught.value.hint)


def test_tpe_learns_from_what_it_is_told() -> None:
    table = random_table(7, layers=12, choices=5, border=0)
    env = DeployEnv(table)
    us = [
        plan_us(table, tuple(agent.train(env, 150, seed=2)))
        for agent in (TpeAgent(), RandomAgent())
    ]
    assert us[0] < us[1]


def test_training_again_starts_afresh() -> None:
    env = DeployEnv(random_table(2, layers=8, choices=4))
    agent = QLearning()
    runs: list[list[Episode]] = [[], []]
    for seen in runs:
        agent.train(env, 60, seed=1, on_episode=seen.append)
    assert runs[0] == runs[1]


def test_greedy_takes_the_best_immediate_reward() -> None:
    table = random_table(4, layers=5, border=0)
    actions = GreedyAgent().train(DeployEnv(table), 1000)
    fastest = [min(c.legal, key=lambda i: c.latency_us[i] or 0) for c in table.layers]
    assert actions == fastest


def test_epsilon_explores_then_steps_down_to_exploitation() -> None:
    parameters = QLearningParameters(explore=0.5, epsilon_step=0.1)
    schedule = [parameters.epsilon(i, 1000) for i in range(1000)]
    assert schedule[:500] == [1.0] * 500
    assert [round(schedule[500 + 50 * k], 6) for k in range(10)] == [
        0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0,
    ]  # fmt: skip
    assert schedule == sorted(schedule, reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0}, {"discount": 1.5}, {"explore": -1}, {"epsilon_step": 0},
     {"replay_size": 0}, {"refine": 1.5}, {"replay_batch": -1}],
)  # fmt: skip
def test_impossible_parameters(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        QLearningParameters(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=60), st.integers(1, 8))
def test_candidates_are_the_k_best_distinct(entries: list[tuple[int, int]], k: int) -> None:
    totals: dict[tuple[int, ...], float] = {}
    top = TopCandidates(k)
    for key, value in entries:
        actions = (key,)
        totals.setdefault(actions, float(value))
        top.add(actions, totals[actions])
    wanted = sorted(totals.items(), key=lambda item: -item[1])[:k]  # stable: earlier first
    assert [(c.actions, c.total) for c in top.best()] == wanted


def test_candidates_collect_from_training() -> None:
    table = random_table(3, layers=5)
    top = TopCandidates(4)
    actions = QLearning().train(DeployEnv(table), 200, on_episode=top)
    best = top.best()
    assert len(best) == len({c.actions for c in best}) == 4
    assert best[0].actions == tuple(actions)
    assert [c.total for c in best] == sorted((c.total for c in best), reverse=True)
    with pytest.raises(UsageError, match="at least 1"):
        TopCandidates(0)
