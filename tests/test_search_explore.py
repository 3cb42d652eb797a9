"""Who chooses in an exploration: agents by name, a policy's file, and what the result says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import gymnasium
import pytest

from tests.explorations import explored, save_model, scripted
from tvmx.errors import MissingExtraError, StoreError, UsageError
from tvmx.explore import ExploreResult
from tvmx.ir import CostTable
from tvmx.measure import Job, NetworkJob
from tvmx.search import ENV_ID, GraphBorderWalk, plan_us, solve_exact, target_features, walk_of
from tvmx.search.policy import TrainingParameters, train_policy, training_envs
from tvmx.targets import load_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def im2col_wins(job: Job) -> float:
    if isinstance(job, NetworkJob):
        return 100.0
    return 5.0 if "im2col" in job.label else 10.0


def regret(result: ExploreResult) -> tuple[str, float]:
    """The agent and its regret in percent, as the notes tell."""
    (note,) = (note for note in result.notes if note.startswith("cost table: "))
    found = re.search(r"best of agent (\S+) after \d+ episodes \d+ us, ([\d.]+)% above", note)
    assert found is not None, note
    return found[1], float(found[2])


@pytest.mark.parametrize("agent", [None, "q-learning", "coordinate"])
def test_the_agent_and_its_regret_are_told(model: Path, tmp_path: Path, agent: str | None) -> None:
    with scripted(im2col_wins):
        result = explored(model, tmp_path / "run", agent=agent)
    assert regret(result) == (agent or "exact", 0.0)


def test_the_cost_table_of_a_run_is_all_the_environment_needs(model: Path, tmp_path: Path) -> None:
    """Its network, its device and its borders come along; a policy trains on it and chooses."""
    with scripted(im2col_wins):
        explored(model, tmp_path / "run")
        path = tmp_path / "run" / "work" / "cost_table.json"
        table = CostTable.load(path)
        assert isinstance(walk_of(table), GraphBorderWalk)
        assert table.target == target_features(load_target("host"))
        env = gymnasium.make(ENV_ID, table=table)
        env.reset()
        plan = solve_exact(table, walk_of(table)).actions
        for action in plan:
            info = env.step(action)[4]
        assert info["latency_us"] == pytest.approx(plan_us(table, walk_of(table), plan))
        how = TrainingParameters(imitate=30, reinforce=0, episodes=2)
        train_policy(training_envs([table]), how).save(tmp_path / "agent.json")
        result = explored(model, tmp_path / "other", policy=tmp_path / "agent.json")
    assert regret(result) == ("policy", 0.0)


def test_an_agent_that_cannot_choose_is_refused_before_anything_is_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="unknown agent 'ppo'"):
        explored(model, run, agent="ppo")
    with pytest.raises(UsageError, match="knows no arena"):
        explored(model, run, agent="exact", objective="arena")
    with pytest.raises(UsageError, match="needs a policy's file"):
        explored(model, run, agent="policy")
    with pytest.raises(StoreError, match=r"none\.json"):
        explored(model, run, policy=tmp_path / "none.json")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError):
        explored(model, run, agent="tpe")
    assert not run.exists()
