"""``tvmx explore``: the search."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmx.cli._check import check_schedules, check_writable
from tvmx.cli._device import DEFAULT_WAIT, check_device, parse_device, parse_manners
from tvmx.cli._errors import Interrupted, guarded
from tvmx.cli._explore_view import render_dry_run, render_result
from tvmx.cli._options import (
    BiasCorrection,
    Cores,
    Deadline,
    Equalise,
    Json,
    Key,
    MaxAccuracyDrop,
    MaxTemperature,
    Metric,
    Model,
    Params,
    Preprocess,
    PruneMethod,
    Pruning,
    Ray,
    Schedules,
    Shapes,
    Skip,
    Target,
    Threads,
    Tracker,
    Wait,
)
from tvmx.cli._output import Output
from tvmx.cli._parse import (
    check_count,
    check_number,
    check_seed,
    parse_duration,
    parse_shapes,
    parse_size,
)
from tvmx.cli._preflight import (
    check_agent,
    check_data,
    check_measurable,
    check_metric,
    check_model,
    check_run,
    check_target,
)
from tvmx.cli._progress import open_progress
from tvmx.errors import UsageError

if TYPE_CHECKING:
    from tvmx.explore import ExploreRequest
    from tvmx.measure import Cores as ChosenCores
    from tvmx.targets import Target as TargetFile

EPILOG = """Examples:
  tvmx explore network.onnx --target host --budget 2m
  tvmx explore network.onnx --target rpi4 --tracker 127.0.0.1:9190 --key rpi4 --data eval.npz
  tvmx explore network.pt2 --target host --data eval.npz --objective weights
  tvmx explore network.onnx --target rpi4 --dry-run

The same command again continues where an interrupted one stopped."""


class Calibration(StrEnum):
    """How the ranges of int8 activations are found."""

    PERCENTILE = "percentile"
    MINMAX = "minmax"
    AVERAGE = "average"
    KL = "kl"
    MSE = "mse"


class Objective(StrEnum):
    """What the best plan is best at."""

    LATENCY = "latency"
    ARENA = "arena"
    WEIGHTS = "weights"


class Agent(StrEnum):
    """What chooses on the cost table."""

    EXACT = "exact"
    Q_LEARNING = "q-learning"
    ANNEALING = "annealing"
    EVOLUTION = "evolution"
    COORDINATE = "coordinate"
    TPE = "tpe"
    GREEDY = "greedy"
    RANDOM = "random"
    POLICY = "policy"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("explore", epilog=EPILOG)(explore_model)


@guarded
def explore_model(
    model: Model,
    target: Target,
    shape: Shapes = None,
    params: Params = None,
    tracker: Tracker = None,
    key: Key = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE.npz|FOLDER|MODULE:FUNCTION",
            help="Arrays `calibration`, `inputs` and optionally `labels`; a folder of images (one "
            "subfolder a class, or flat); or a function that returns the arrays. Without it layers "
            "are computed as the model states them.",
        ),
    ] = None,
    preprocess: Preprocess = None,
    metric: Metric = None,
    calibration: Annotated[
        Calibration,
        typer.Option(
            "--calibration",
            metavar="percentile|minmax|average|kl|mse",
            help="How int8 ranges are taken from the calibration samples: 99.99 % percentiles, "
            "extremes, their mean over samples, least divergence, least squared error.",
        ),
    ] = Calibration.PERCENTILE,
    equalise: Equalise = False,
    bias_correction: BiasCorrection = False,
    prune_method: PruneMethod = Pruning.RECONSTRUCTION,
    skip: Skip = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Time for everything, whole networks included, such as 90s, 10m or 1h30m. "
            "Default: 10m. With --trials, whichever ends first.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", metavar="N", help="Kernel measurements for tuning."),
    ] = None,
    max_accuracy_drop: MaxAccuracyDrop = 1.0,
    max_weights: Annotated[
        str | None,
        typer.Option("--max-weights", metavar="SIZE", help="Most weights, such as 2MB or 1.5MiB."),
    ] = None,
    max_arena: Annotated[
        str | None,
        typer.Option(
            "--max-arena", metavar="SIZE", help="Most memory for activations, such as 512KiB."
        ),
    ] = None,
    objective: Annotated[
        Objective,
        typer.Option(
            "--objective",
            metavar="latency|arena|weights",
            help="What the best plan is best at.",
        ),
    ] = Objective.LATENCY,
    agent: Annotated[
        Agent | None,
        typer.Option(
            "--agent",
            metavar="exact|q-learning|annealing|evolution|coordinate|tpe|greedy|random|policy",
            help="Who chooses on the cost table. Default: exact; q-learning where the arena "
            "counts, which does not add up over the layers. tpe needs the extra `tpe`.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="FILE", help="For --agent policy: a file of `tvmx train-agent`."
        ),
    ] = None,
    threads: Threads = None,
    cores: Cores = None,
    deadline: Deadline = None,
    wait: Wait = DEFAULT_WAIT,
    max_temperature: MaxTemperature = None,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold", help="Time kernels on flushed caches: as after other work, not in a loop."
        ),
    ] = False,
    schedules: Schedules = None,
    learn_from: Annotated[
        list[Path] | None,
        typer.Option(
            "--learn-from",
            metavar="RUN",
            help="Earlier run on the same target, of any model, whose measurements the knob tuner "
            "starts from. May be repeated.",
        ),
    ] = None,
    prefilter: Annotated[
        bool,
        typer.Option(
            "--prefilter",
            help="Do not measure kernels whose inner loop llvm-mca finds slow on the target's core "
            "(AArch64).",
        ),
    ] = False,
    ray: Ray = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of every choice.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="RUN",
            help="Folder of the run. Default: MODEL-TARGET.run in the current folder.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Drop what the run folder holds and start over.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be explored; measure nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search precision, sparsity, layout, schedule and knobs of every layer, over RPC.

    int8 and block-sparse layers need --data: their accuracy is measured, and no plan past
    --max-accuracy-drop is ever best. The best plans are built whole, verified, and measured
    interleaved with the baseline: every layer float, dense, at its template's default.
    """
    budget_s = None if budget is None else parse_duration(budget)
    _check_numbers(trials, max_accuracy_drop, seed)
    weights = None if max_weights is None else parse_size(max_weights, "--max-weights")
    arena = None if max_arena is None else parse_size(max_arena, "--max-arena")
    if preprocess is not None and data is None:
        raise UsageError("--preprocess needs images to prepare", hint="give --data FOLDER")
    if skip and data is None:
        raise UsageError(
            f"--skip {skip[0]!r}: without --data no layer becomes int8 anyway",
            hint="give --data FILE.npz, or leave out --skip",
        )
    check_agent(agent, policy, objective, arena)
    if ray is not None:
        from tvmx.build import RayCluster

        RayCluster.require()
    metric_digest = "" if metric is None else check_metric(metric, data)
    shapes = parse_shapes(shape or ())
    address = parse_device(tracker, key)
    board = check_target(target)
    manners = parse_manners(cores, threads, deadline, wait, max_temperature, cold)
    _check_cores(manners.cores, board)
    if address is None and not dry_run:
        check_measurable(board)
    run = check_writable(out or Path(f"{model.stem}-{board.name}.run"))
    folders = check_schedules(schedules)
    from tvmx.explore import ExploreRequest

    request = ExploreRequest(
        model=model,
        target=target,
        out=run,
        shapes=shapes,
        params=params,
        tracker=address,
        data=data,
        preprocess=preprocess,
        budget_s=budget_s,
        trials=trials,
        metric=metric,
        calibration=calibration.value,
        equalise=equalise,
        bias_correction=bias_correction,
        prune_method=prune_method.value,
        skip=tuple(skip or ()),
        max_accuracy_drop=max_accuracy_drop,
        max_weights=weights,
        max_arena=arena,
        objective=objective.value,
        agent=None if agent is None else agent.value,
        policy=policy,
        manners=manners,
        schedules=folders,
        learn_from=tuple(learn_from or ()),
        prefilter=prefilter,
        ray=ray,
        seed=seed,
        fresh=fresh,
    )
    inputs = check_model(model, shapes, params)
    digest = None if data is None else check_data(data, inputs, seed, preprocess)
    if not dry_run:
        check_run(request, board, digest, metric_digest)
        check_device(address)
    _dry_run(request, Output(as_json)) if dry_run else _explore(request, Output(as_json))


def _explore(request: ExploreRequest, output: Output) -> None:
    from tvmx.explore import explore

    try:
        with open_progress(output) as progress:
            result = explore(request, progress)
    except KeyboardInterrupt as err:
        raise Interrupted(
            f"every measurement so far is kept in {request.out}: the same command continues"
        ) from err
    output.emit(result, lambda screen: render_result(screen, result))


def _dry_run(request: ExploreRequest, output: Output) -> None:
    from tvmx.explore import dry_run

    plan = dry_run(request)
    output.emit(plan, lambda screen: render_dry_run(screen, plan))


def _check_cores(chosen: ChosenCores, board: TargetFile) -> None:
    """The target's file knows how many cores there are, and of which kind."""
    clusters = board.clusters[:1] if chosen.cluster == "big" else board.clusters[1:]
    if not clusters:
        raise UsageError(
            f"--cores {chosen}: target {board.name} has cores of one kind only",
            hint=f"--cores big:{chosen.threads}, or --threads {chosen.threads}",
        )
    # Threads beyond the big cluster go on to the others, as TVM assigns them.
    count = board.cores if chosen.cluster == "big" else sum(c.count for c in clusters)
    kind = "" if chosen.cluster == "big" else " little"
    check_count(chosen.threads, "--threads", count, f"target {board.name} has {count}{kind} cores")


def _check_numbers(trials: int | None, max_accuracy_drop: float, seed: int) -> None:
    if trials is not None:
        check_count(trials, "--trials")
    check_number(max_accuracy_drop, "--max-accuracy-drop", 0, 100, "percentage points")
    check_seed(seed)
