"""The environment's measured mode: rewards from whole plans, counted; failures are typed."""

from __future__ import annotations

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from tests.search_tables import random_table
from tvmx.search import ENV_ID, Budgets, DeployEnv, Measured, QLearning, TopCandidates


def surprising(assignment: tuple[int, ...]) -> Measured:
    """Nothing like the table: every 2 saves 10 % of 1000 us."""
    return Measured(1000.0 - 100.0 * assignment.count(2), 1000.0)


def play(env: DeployEnv, actions: tuple[int, ...]) -> tuple[list[float], dict[str, object]]:
    _, info = env.reset()
    rewards = []
    for action in actions:
        _, reward, _, _, info = env.step(action)
        rewards.append(reward)
    return rewards, info


@pytest.mark.parametrize("objective", ["latency", "weights", "arena"])
def test_check_env(objective: str) -> None:
    env = gymnasium.make(
        ENV_ID, table=random_table(0), objective=objective, arena_bytes=sum, measure=surprising
    )
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_the_last_step_is_rewarded_with_what_was_measured() -> None:
    env = DeployEnv(random_table(1), measure=surprising)
    rewards, info = play(env, (2, 0, 2, 1))
    assert rewards == [0.0, 0.0, 0.0, pytest.approx(0.2)]
    assert (info["measured_us"], info["outcome"], info["feasible"]) == (800.0, "ok", True)
    table = DeployEnv(random_table(1))
    assert info["latency_us"] == play(table, (2, 0, 2, 1))[1]["latency_us"]
    assert "measurements" not in table.reset()[1]


def test_measurements_are_counted_and_no_plan_is_measured_twice() -> None:
    asked: list[tuple[int, ...]] = []

    def measure(assignment: tuple[int, ...]) -> Measured:
        asked.append(assignment)
        return surprising(assignment)

    env = DeployEnv(random_table(1), measure=measure)
    assert env.reset()[1]["measurements"] == 0
    other = env.fork()
    for actions, count in (((0,) * 4, 1), ((2,) * 4, 2), ((0,) * 4, 2)):
        assert play(env, actions)[1]["measurements"] == count
        assert play(other, actions)[1]["measurements"] == count
    assert asked == [(0,) * 4, (2,) * 4]


@pytest.mark.parametrize("outcome", ["build", "crash", "wrong-output"])
@pytest.mark.parametrize("objective", ["latency", "weights", "arena"])
def test_a_plan_without_a_figure_is_worse_than_any_other(objective: str, outcome: str) -> None:
    table = random_table(2)

    def measure(assignment: tuple[int, ...]) -> Measured:
        if assignment == (1, 1, 1, 1):
            return Measured(None, 1000.0, outcome, "why")
        return Measured(1e9, 1000.0)

    env = DeployEnv(
        table, objective=objective, measure=measure, arena_bytes=lambda a: 10 + sum(a),
        budgets=Budgets(max_arena_bytes=13),
    )  # fmt: skip
    failed, info = play(env, (1, 1, 1, 1))
    assert (info["outcome"], info["message"], info["feasible"]) == (outcome, "why", False)
    assert info["measured_us"] is None
    slow, told = play(env, (0, 0, 0, 0))
    large, past = play(env, (2, 2, 2, 2))
    assert told["feasible"] is True and past["feasible"] is False
    assert sum(failed) < sum(large) < sum(slow)


def test_an_agent_finds_what_the_table_does_not_know() -> None:
    """It learns from measured returns alone, and passes over plans that failed."""

    def measure(assignment: tuple[int, ...]) -> Measured:
        if assignment == (2, 2, 2, 2):
            return Measured(None, 1000.0, "crash")
        return surprising(assignment)

    env = DeployEnv(random_table(3), measure=measure)
    top = TopCandidates(1)
    QLearning().train(env, 120, 0, on_episode=top)
    ((actions, total),) = top.best()
    assert actions.count(2) == 3
    assert total == pytest.approx(0.3)
