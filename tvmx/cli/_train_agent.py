"""``tvmx train-agent``: a policy from the cost tables of earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from tvmx.cli._check import check_writable
from tvmx.cli._errors import guarded
from tvmx.cli._options import Json
from tvmx.cli._output import Output, Screen
from tvmx.cli._parse import check_count, check_seed
from tvmx.cli._progress import open_progress
from tvmx.errors import UsageError

if TYPE_CHECKING:
    from tvmx.ir import CostTable

EPILOG = """Examples:
  tvmx train-agent squeezenet-rpi4.run resnet50-rpi4.run resnet50-rpi5.run --out agent.json
  tvmx explore mobilenet.onnx --target rpi4 --agent policy --policy agent.json"""


class TrainedAgent(BaseModel):
    """What was trained: the policy's file, and on how many cost tables."""

    policy: str
    tables: int
    layers: int


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("train-agent", epilog=EPILOG)(train_agent)


@guarded
def train_agent(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Runs of `tvmx explore`, or cost tables (.json)."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The policy, as JSON.")],
    updates: Annotated[
        int, typer.Option("--updates", metavar="N", help="Updates of the policy's weights.")
    ] = 2000,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of every choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Train an agent on the cost tables of earlier runs, to choose in the next ones.

    The more networks and targets the runs are of, the better it guesses on others. Nothing is
    measured.
    """
    check_count(updates, "--updates")
    check_seed(seed)
    if out.suffix != ".json":
        raise UsageError(f"--out {out}: a policy is a .json file", hint="--out agent.json")
    check_writable(out.absolute().parent)
    tables = [_table(run) for run in runs]
    from tvmx.search.policy import TrainingParameters, train_policy, training_envs

    output = Output(as_json)
    reinforce = updates // 4
    parameters = TrainingParameters(imitate=updates - reinforce, reinforce=reinforce)
    with open_progress(output) as progress:
        progress.stage("train")

        def step(done: int, total: int) -> None:
            progress.update(done, total, best_us=None, baseline_us=None, seconds_left=None)

        policy = train_policy(training_envs(tables), parameters, seed=seed, on_update=step)
    policy.save(out)
    layers = sum(len(table.layers) for table in tables)
    trained = TrainedAgent(policy=str(out), tables=len(tables), layers=layers)
    output.emit(trained, lambda screen: _render(screen, trained))


def _table(run: Path) -> CostTable:
    from tvmx.ir import CostTable

    return CostTable.load(run / "work" / "cost_table.json" if run.is_dir() else run)


def _render(screen: Screen, trained: TrainedAgent) -> None:
    screen.line(f"trained on {trained.layers} layers of {trained.tables} cost tables")
    screen.command(f"tvmx explore MODEL --target NAME --agent policy --policy {trained.policy}")
