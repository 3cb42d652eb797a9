"""What can be checked without TVM is checked first: mistakes are answered at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.cli._check import check_file
from tvmx.errors import RunMismatchError, UsageError

if TYPE_CHECKING:
    from tvmx.explore import ExploreRequest
    from tvmx.ir import TensorSpec
    from tvmx.targets import Target

_RUN_FILES = {
    ".lock",
    "curve.jsonl",
    "journal.jsonl",
    "journal.jsonl.lock",
    "plans",
    "result.json",
    "work",
}
"""What an interrupted run may hold before its settings are written."""


def check_target(name: str) -> Target:
    """A known target that something here can link for. Raises UsageError or LinkerError."""
    from tvmx.build import find_linker
    from tvmx.targets import load_target

    target = load_target(name)
    find_linker(target)
    return target


def check_model(
    path: Path, shapes: dict[str, tuple[int, ...]], params: Path | None = None
) -> tuple[TensorSpec, ...]:
    """The inputs of a network file that can be imported, as far as a look can tell.

    Raises ModelError for damage, unsupported operators (all at once) and dynamic shapes.
    """
    check_file(path, "model", hint="give the path of an .onnx, .pt2 or Relay file")
    from tvmx.frontends import check_model as look_at

    return look_at(path, shapes, params)


def check_data(
    path: Path, inputs: tuple[TensorSpec, ...], seed: int, preprocess: Path | None = None
) -> str:
    """Digest of evaluation data that fits the network.

    A NaN found after minutes of tuning would be an insult.
    """
    from tvmx.accuracy import kind_of, load_data

    if kind_of(path) == "npz":
        check_file(
            path, "data file",
            hint="--data takes an .npz file, a folder of images or MODULE:FUNCTION",
        )  # fmt: skip
    return load_data(path, inputs, seed, preprocess).digest


def check_agent(agent: str | None, policy: Path | None, objective: str, arena: int | None) -> None:
    """An agent that exists, has what it needs, and can choose by what is asked."""
    if agent is None and policy is None:
        return
    from tvmx.search import Budgets, choose_agent

    choose_agent(agent, policy, objective, Budgets(max_arena_bytes=arena))


def check_metric(name: str, data: Path | None) -> str:
    """Fingerprint of a metric that can be imported; there must be data to apply it to."""
    from tvmx.accuracy import load_metric

    if data is None:
        raise UsageError("--metric needs evaluation data", hint="give --data FILE.npz")
    return load_metric(name).fingerprint


def check_measurable(target: Target) -> None:
    """A target that this machine can stand in for when no device is named."""
    from tvmx.build import host_arch

    if target.arch != host_arch():
        raise UsageError(
            f"target {target.name!r} is {target.arch}, this machine is {host_arch()}: "
            "measuring needs a device",
            hint="give --tracker HOST:PORT --key K; `tvmx serve --key K --commands` prints what "
            "the board needs, and `tvmx build` compiles without measuring",
        )


def check_run(
    request: ExploreRequest, target: Target, data: str | None, metric_digest: str = ""
) -> None:
    """A run folder that is new, empty, or of the same exploration; ``--fresh`` clears any run.

    ``data`` is the digest of the evaluation data. What takes TVM to know (templates) is left
    to explore itself.
    """
    out = request.out
    settings_file = out / "settings.json"
    if not settings_file.is_file():
        if out.is_dir() and not (names := {entry.name for entry in out.iterdir()}) <= _RUN_FILES:
            raise UsageError(
                f"--out {out} is not empty and not a tvmx run "
                f"(it holds {', '.join(sorted(names - _RUN_FILES)[:3])})",
                hint="name another folder",
            )
        return
    if request.fresh:
        return
    from tvmx.frontends import model_digest
    from tvmx.store import RunSettings

    before = RunSettings.load(settings_file)
    now = before.model_copy(
        update={
            "model": model_digest(request.model, request.shapes, request.params),
            "target": target.name,
            "device": request.tracker.key if request.tracker else "host",
            "threads": request.threads,
            "cores": request.manners.cores.cluster,
            "cache": request.manners.cache,
            "seed": request.seed,
            "objective": request.objective,
            "metric": request.metric,
            "metric_digest": metric_digest,
            "calibration": request.calibration,
            "equalise": request.equalise,
            "bias_correction": request.bias_correction,
            "prune_method": request.pruning,
            "skip": tuple(sorted(set(request.skip))),
            "max_accuracy_drop": request.max_accuracy_drop,
            "max_weights": request.max_weights,
            "max_arena": request.max_arena,
            "data": data,
        }
    )
    if differences := before.differences(now):
        raise RunMismatchError(
            f"{out} holds another exploration: {'; '.join(differences)}",
            hint="--fresh to delete it and start over, or another folder with --out",
        )
