"""The policy: features, training, files, and what it does on a table it has not seen."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from tests.search_tables import mixed_table, plan_us, residual_edges, tight_budgets, walk_of
from tests.test_search_graph_walk import branched
from tvmx.errors import StoreError, UsageError
from tvmx.ir import CostTable
from tvmx.search import Budgets, DeployEnv, Episode, QLearning, make_agent, solve_exact
from tvmx.search._features import ACTION, CONTEXT, TableFeatures
from tvmx.search._policy_rollout import Stage, likeliest, sample
from tvmx.search.policy import (
    ImplementationPolicy,
    PolicyAgent,
    TrainingParameters,
    train_policy,
    training_envs,
)

QUICK = TrainingParameters(imitate=200, reinforce=20, episodes=4)


def taught() -> ImplementationPolicy:
    """Trained on six tables; seeds from 100 on are left for tests."""
    envs = [DeployEnv(mixed_table(seed, 8)) for seed in range(6)]
    return train_policy(envs, QUICK, seed=1)


@pytest.fixture(scope="module")
def policy() -> ImplementationPolicy:
    return taught()


def test_the_first_guess_on_unseen_tables_is_near_the_optimum(
    policy: ImplementationPolicy,
) -> None:
    guessed, base = [], []
    for seed in range(100, 106):
        table = mixed_table(seed, 20)
        walk = walk_of(table, residual_edges(20))
        plan = PolicyAgent(policy).train(DeployEnv(table, walk), 2)
        best = solve_exact(table, walk).latency_us
        guessed.append(plan_us(table, tuple(plan), residual_edges(20)) / best - 1)
        base.append(plan_us(table, table.baseline, residual_edges(20)) / best - 1)
    assert statistics.median(guessed) < 0.4 * statistics.median(base)


def test_after_ten_plans_it_is_ahead_of_q_learning(policy: ImplementationPolicy) -> None:
    ratios = []
    for seed in range(100, 106):
        table = mixed_table(seed, 20)
        us = [
            plan_us(table, tuple(agent.train(DeployEnv(table), 11, seed=seed)))
            for agent in (PolicyAgent(policy), QLearning())
        ]
        ratios.append(us[0] / us[1])
    assert statistics.median(ratios) < 0.95


def test_what_it_knows_has_no_latency_but_the_baselines(policy: ImplementationPolicy) -> None:
    table = mixed_table(101, 8)
    rows = [
        costs.model_copy(
            update={
                "latency_us": tuple(
                    us if i == costs.baseline or us is None else us * (3 + i)
                    for i, us in enumerate(costs.latency_us)
                )
            }
        )
        for costs in table.layers
    ]
    other = table.model_copy(update={"layers": tuple(rows)})
    plans = []
    for each in (table, other):
        seen: list[Episode] = []
        PolicyAgent(policy).train(DeployEnv(each), 2, on_episode=seen.append)
        # What an observation says of the time decided so far is measured, plan by plan.
        first = next(iter(Stage(DeployEnv(each), 1).play(policy, likeliest).chosen))
        plans.append((int(first[0]), seen[1].actions[0]))
        features = TableFeatures(each, 8)
        plans[-1] += (features.actions.tobytes(), features.context.tobytes())
    assert plans[0] == plans[1]


def test_the_number_of_an_implementation_does_not_matter(policy: ImplementationPolicy) -> None:
    context, actions = torch.rand(3, len(CONTEXT)), torch.rand(3, 6, len(ACTION))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 2] = False
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight = policy(context, actions, mask)[:, order]
    assert torch.allclose(straight, policy(context, actions[:, order], mask[:, order]), atol=1e-5)
    assert straight.exp().sum(dim=1).detach().numpy() == pytest.approx(1)
    assert policy(context, actions, mask)[1, 2] == float("-inf")


def test_matches_follow_branches_and_joins() -> None:
    table = branched(3)
    features = TableFeatures(table, 8)
    blocked = [
        next(i for i, how in enumerate(costs.implementations) if how.writes == "NCHW8c")
        for costs in table.layers
    ]
    plain = [
        next(i for i, how in enumerate(costs.implementations) if how.writes == "NCHW")
        for costs in table.layers
    ]
    # Layer 3 reads the concat of layers 1 and 2, and adds layer 1's output.
    one_each = features.matches(3, [blocked[0], blocked[1], plain[2]])
    assert one_each[blocked[3]].tolist() == [0.5, 1.0]
    assert one_each[plain[3]].tolist() == [0.5, 0.0]
    first = features.matches(0, [])
    assert first[plain[0]].tolist() == [1.0, 0.0]  # the network's input is plain


def test_observed_columns_are_the_context() -> None:
    env = DeployEnv(mixed_table(2, 5))
    features = TableFeatures(env.table, 8)
    observation, _ = env.reset()
    row = features.observed(observation, 0)
    assert row.shape == (len(CONTEXT),)
    assert np.abs(row).max() <= 1 and np.abs(features.actions).max() <= 1


def test_forks_play_as_the_environment_does_alone(policy: ImplementationPolicy) -> None:
    table = mixed_table(4, 6)
    budgets = tight_budgets(table)
    stage = Stage(DeployEnv(table, budgets=budgets), 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rollouts = stage.play(policy, sample)
    assert len({tuple(column) for column in rollouts.chosen.T.tolist()}) > 1
    for n in range(5):
        env = DeployEnv(table, budgets=budgets)
        env.reset()
        for layer in range(6):
            assert rollouts.mask[layer, n].tolist() == env.action_masks().tolist()
            reward = env.step(int(rollouts.chosen[layer, n]))[1]
            assert float(rollouts.rewards[layer, n]) == pytest.approx(reward, abs=1e-6)


def test_equal_seeds_train_equal_policies() -> None:
    envs = [DeployEnv(mixed_table(seed, 5)) for seed in range(2)]
    how = TrainingParameters(imitate=10, reinforce=10, episodes=3)
    one, two, other = (train_policy(envs, how, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_reinforcement_alone_learns() -> None:
    envs = [DeployEnv(mixed_table(seed, 6)) for seed in range(3)]
    how = TrainingParameters(imitate=0, reinforce=150, episodes=8, learning_rate=1e-2)
    learnt = train_policy(envs, how, seed=0)
    untaught = train_policy(envs, TrainingParameters(imitate=0, reinforce=1, episodes=2), seed=0)

    def mean_return(policy: ImplementationPolicy) -> float:
        return statistics.mean(
            float(Stage(env, 1).play(policy, likeliest).rewards.sum()) for env in envs
        )

    assert mean_return(learnt) > mean_return(untaught) + 0.1


def test_tables_that_lose_accuracy_are_trained_on_within_a_budget_too() -> None:
    lossy = mixed_table(1, 4)
    rows = [costs.model_copy(update={"accuracy_drop": ()}) for costs in lossy.layers]
    exact = lossy.model_copy(update={"layers": tuple(rows)})
    assert [env.budgets.additive for env in training_envs([lossy, exact])] == [False, False, True]
    with pytest.raises(UsageError, match="cost tables"):
        train_policy([])
    with pytest.raises(UsageError, match="two episodes"):
        TrainingParameters(episodes=1)


def test_files(policy: ImplementationPolicy, tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    policy.save(path)
    again = ImplementationPolicy.load(path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in policy.state_dict().items())
    table = mixed_table(103, 6)
    plans = [
        agent.train(DeployEnv(table), 8, seed=2)
        for agent in (PolicyAgent(policy), make_agent("policy", path))
    ]
    assert plans[0] == plans[1]
    content = json.loads(path.read_text())

    def refused(match: str, **changes: object) -> None:
        path.write_text(json.dumps({**content, **changes}))
        with pytest.raises(StoreError, match=match):
            ImplementationPolicy.load(path)

    refused("another version", schema_version=99)
    refused("another version", action=["latency"])
    refused("not a tvmx policy", format="other")
    refused("damaged", weights={})
    refused("damaged", weights={**content["weights"], "score.0.bias": [1.0]})
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(StoreError, match="not a tvmx policy"):
        ImplementationPolicy.load(path)
    with pytest.raises(StoreError, match="cannot read"):
        ImplementationPolicy.load(tmp_path / "none.json")


def test_the_agent_policy_and_its_file_belong_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a policy's file"):
        make_agent("policy")
    with pytest.raises(UsageError, match="random has no use"):
        make_agent("random", tmp_path / "agent.json")


def test_plans_keep_budgets_and_the_baseline_comes_first(policy: ImplementationPolicy) -> None:
    table = mixed_table(104, 10)
    budgets = tight_budgets(table, 0.3)
    seen: list[Episode] = []
    PolicyAgent(policy).train(DeployEnv(table, budgets=budgets), 30, on_episode=seen.append)
    assert len(seen) == 30
    for episode in seen:
        assert budgets.allow(
            table.accuracy_drop(episode.actions), table.weights_bytes(episode.actions)
        )
    seen.clear()
    PolicyAgent(policy).train(DeployEnv(table), 3, on_episode=seen.append)
    assert seen[0].actions == table.baseline


def test_it_needs_the_table(policy: ImplementationPolicy) -> None:
    with pytest.raises(UsageError, match="tvmx/Deploy-v0"):
        PolicyAgent(policy).train(gymnasium.make("CartPole-v1"), 5)


def test_target_numbers_reach_the_policy() -> None:
    table = mixed_table(1, 3)
    known: CostTable = table.model_copy(update={"target": {"in_order": 1.0, "vector": 0.7}})
    column = CONTEXT.index("in_order")
    for each, value in ((table, 0.0), (known, 1.0)):
        env = DeployEnv(each, budgets=Budgets())
        row = TableFeatures(each, 8).observed(env.reset()[0], 0)
        assert row[column] == value
