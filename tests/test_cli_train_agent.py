"""``tvmx train-agent``, and ``--agent`` where it makes no sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from tests.search_tables import mixed_table
from tvmx.cli._main import app
from tvmx.search import DeployEnv
from tvmx.search.policy import ImplementationPolicy, PolicyAgent
from tvmx.testing.models import conv_model


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run's folder and a lone table."""
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_model(in_channels=3, size=(9, 11)), "net.onnx")
    Path("net.run/work").mkdir(parents=True)
    mixed_table(1, 5).save(Path("net.run/work/cost_table.json"))
    mixed_table(2, 5).save(Path("other.json"))
    return ["net.run", "other.json"]


def test_trains_on_runs_and_tables(tables: list[str]) -> None:
    arguments = ["train-agent", *tables, "--out", "agent.json", "--updates", "8", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"policy": "agent.json", "tables": 2, "layers": 10}
    policy = ImplementationPolicy.load(Path("agent.json"))
    assert len(PolicyAgent(policy).train(DeployEnv(mixed_table(3, 4)), 4)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train-agent none.run --out agent.json", "none.run"),
        ("train-agent net.onnx --out agent.json", "not a tvmx cost table"),
        ("train-agent other.json --out agent.pt", "a policy is a .json file"),
        ("train-agent other.json --out agent.json --updates 0", "--updates"),
        ("explore net.onnx --target host --agent policy", "needs a policy's file"),
        ("explore net.onnx --target host --policy other.json", "not a tvmx policy"),
        ("explore net.onnx --target host --agent random --policy other.json", "has no use"),
        ("explore net.onnx --target host --agent exact --objective arena", "knows no arena"),
        ("explore net.onnx --target host --agent exact --max-arena 9KB", "knows no arena"),
    ],
)
@pytest.mark.usefixtures("tables")
def test_what_cannot_be(arguments: str, message: str) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not Path("agent.json").exists() and not Path("net-host.run").exists()


def test_searching_a_table_loads_neither_tvm_nor_torch() -> None:
    code = "import sys, tvmx.search; print({'tvm', 'torch', 'optuna'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert found.stdout.strip() == "set()"
