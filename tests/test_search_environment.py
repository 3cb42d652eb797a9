"""DeployEnv: gymnasium's checker, return identity, masks, objectives."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from tests.search_tables import (
    plan_us,
    random_table,
    residual_edges,
    walk_of,
)
from tvmx.errors import UsageError
from tvmx.ir import Implementation
from tvmx.ir._cost_table import CostTable
from tvmx.search import ENV_ID, Budgets, DeployEnv
from tvmx.search._observation import FEATURES


def play(env: DeployEnv, actions: tuple[int, ...]) -> tuple[float, dict[str, object]]:
    _, info = env.reset()
    total = 0.0
    for action in actions:
        _, reward, _, _, info = env.step(action)
        total += reward
    return total, info


def draw(table: CostTable, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.choice(costs.legal) for costs in table.layers)


@pytest.mark.parametrize("objective", ["latency", "weights", "arena"])
def test_check_env(objective: str) -> None:
    env = gymnasium.make(ENV_ID, table=random_table(0), objective=objective, arena_bytes=sum)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("arena", [None, 8])
def test_check_env_with_budgets(arena: int | None) -> None:
    budgets = Budgets(max_accuracy_drop=1.0, max_weights_bytes=9000, max_arena_bytes=arena)
    env = gymnasium.make(ENV_ID, table=random_table(0), budgets=budgets, arena_bytes=sum)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@given(st.integers(0, 10_000), st.booleans())
def test_return_is_the_share_of_the_baseline_saved(seed: int, residual: bool) -> None:
    table = random_table(seed, layers=6, failing=0.3)
    edges = residual_edges(6) if residual else None
    env = DeployEnv(table, walk_of(table, edges))
    base = plan_us(table, table.baseline, edges)
    assert env.baseline_us == pytest.approx(base, rel=1e-12)
    actions = draw(table, seed)
    total, info = play(env, actions)
    assert total == pytest.approx((base - plan_us(table, actions, edges)) / base, abs=1e-12)
    assert info["latency_us"] == pytest.approx(plan_us(table, actions, edges), rel=1e-12)
    assert info["assignment"] == actions
    assert info["weights_bytes"] == table.weights_bytes(actions)
    assert info["accuracy_drop"] == 0.0 and info["feasible"] is True


def test_baseline_returns_zero() -> None:
    table = random_table(5, layers=8)
    assert play(DeployEnv(table), table.baseline)[0] == 0.0


def test_observations_stay_in_the_space_and_follow_the_table() -> None:
    table = random_table(7, layers=6)
    env = DeployEnv(table)
    observation, info = env.reset(seed=0)
    start = len(FEATURES)
    assert observation[start] == 1 and info["previous"] == -1
    assert observation[1] == pytest.approx(np.log2(table.workloads[
        table.layers[0].workload].macs) / 40)  # fmt: skip
    for i, action in enumerate(draw(table, 7)):
        assert info["layer"] == i
        observation, _, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        hot = np.flatnonzero(observation[start:])
        assert list(hot) == [info["previous"] + 1] and info["previous"] >= 0
        assert observation[0] == pytest.approx((i + 1) / 6)
        assert terminated == (i == 5) and not truncated
    assert observation[11] == pytest.approx(1.0)
    plan, base = info["latency_us"], env.baseline_us
    assert observation[12] == pytest.approx(plan / (plan + base))


def test_masks_tell_exactly_what_step_accepts() -> None:
    table = random_table(3, layers=5, choices=4, failing=0.5)
    assert any(len(costs.legal) < 4 for costs in table.layers)
    env = DeployEnv(table)
    _, info = env.reset()
    for costs in table.layers:
        mask = env.action_masks()
        assert list(np.flatnonzero(mask)) == list(costs.legal)
        assert np.array_equal(info["action_mask"], mask)
        for action in {-1, 0, 1, 2, 3, 4} - set(costs.legal):
            with pytest.raises(UsageError, match=f"'{costs.layer}': action {action} is masked"):
                env.step(action)
        info = env.step(costs.legal[-1])[4]
    assert not env.action_masks().any()


def test_layers_with_fewer_implementations_are_masked() -> None:
    small, large = random_table(1, choices=2, layers=2), random_table(2, choices=3, layers=2)
    table = CostTable(layers=small.layers + large.layers, transitions=large.transitions,
                      workloads=large.workloads)  # fmt: skip
    env = DeployEnv(table)
    env.reset()
    assert env.action_masks().tolist() == [True, True, False]
    with pytest.raises(UsageError, match="action 2 is masked"):
        env.step(2)


def test_step_after_the_end_asks_for_reset() -> None:
    table = random_table(3)
    env = DeployEnv(table)
    play(env, table.baseline)
    with pytest.raises(UsageError, match="over") as caught:
        env.step(0)
    assert "reset()" in str(caught.value.hint)


def test_reset_mid_episode_forgets_it() -> None:
    table = random_table(4, layers=5)
    env = DeployEnv(table)
    actions = draw(table, 4)
    first = play(env, actions)
    env.reset()
    env.step(table.layers[0].legal[0])
    total, info = play(env, actions)
    assert (total, info["latency_us"]) == (first[0], first[1]["latency_us"])


def test_weights_objective_breaks_ties_by_latency() -> None:
    table = random_table(6, layers=4)
    even = [c.model_copy(update={"weights_bytes": (10, 10, 10)}) for c in table.layers]
    tied = CostTable(layers=tuple(even), transitions=table.transitions, workloads=table.workloads)
    latency = {a: play(DeployEnv(tied), a)[0] for a in ((0,) * 4, (1,) * 4, (2,) * 4)}
    weights = {a: play(DeployEnv(tied, objective="weights"), a)[0] for a in latency}
    assert sorted(latency, key=latency.__getitem__) == sorted(weights, key=weights.__getitem__)
    env = DeployEnv(table, objective="weights")
    base = table.weights_bytes(table.baseline)
    for actions in latency:
        saved = (base - table.weights_bytes(actions)) / base
        faster = play(DeployEnv(table), actions)[0]
        assert play(env, actions)[0] == pytest.approx(saved + 1e-3 * faster)


def test_arena_is_rewarded_at_the_end() -> None:
    table = random_table(8)
    env = DeployEnv(table, objective="arena", arena_bytes=lambda a: 1000 - 10 * sum(a))
    actions = (2, 2, 2, 2)
    total, info = play(env, actions)
    base = 1000 - 10 * sum(table.baseline)
    saved = (base - 920) / base
    assert info["arena_bytes"] == 920
    assert total == pytest.approx(saved + 1e-3 * play(DeployEnv(table), actions)[0])


def test_bad_arguments() -> None:
    table = random_table(0)
    with pytest.raises(UsageError, match="unknown objective 'speed'"):
        DeployEnv(table, objective="speed")
    with pytest.raises(UsageError, match="arena_bytes"):
        DeployEnv(table, objective="arena")
    with pytest.raises(UsageError, match="slots lack"):
        DeployEnv(table, slots=["other"])


def test_works_without_workloads_and_without_a_resumable_walk() -> None:
    table = random_table(0)

    class Free:
        def reset(self) -> None: ...

        def place(self, layer_index: int, implementation: object) -> float:
            return 0.0

        def finish(self) -> float:
            return 0.0

    env = DeployEnv(CostTable(layers=table.layers), Free())
    observation, info = env.reset()
    assert not observation[1:10].any()
    assert info["state"] == (0, -1)
    assert env.step(0)[4]["state"] == (1, 0)
    assert env.baseline_us == pytest.approx(table.layers_us(table.baseline))


def test_a_resumable_walk_is_asked_once_per_choice_and_may_be_shared() -> None:
    table = random_table(9, layers=6)
    walk = walk_of(table, residual_edges(6))
    asked: list[int] = []
    place = walk.place

    def counted(layer_index: int, implementation: Implementation) -> float:
        asked.append(layer_index)
        return place(layer_index, implementation)

    walk.place = counted  # type: ignore[method-assign]
    env, other = DeployEnv(table, walk), DeployEnv(table, walk)
    actions = draw(table, 9)
    first = play(env, actions)[0]
    before = len(asked)
    assert play(env, actions)[0] == first
    assert len(asked) == before
    env.reset()
    for action in actions[:3]:
        env.step(action)
    play(other, draw(table, 10))  # leaves the shared walk elsewhere
    for action in actions[3:]:
        info = env.step(action)[4]
    assert info["latency_us"] == pytest.approx(plan_us(table, actions, residual_edges(6)))
