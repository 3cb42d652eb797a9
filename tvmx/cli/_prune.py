"""``tvmx prune``: a network with fewer weights, without a device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmx.cli._check import check_schedules, check_study
from tvmx.cli._errors import Interrupted, guarded
from tvmx.cli._options import (
    PRUNING,
    Json,
    MaxAccuracyDrop,
    Metric,
    Model,
    Params,
    Preprocess,
    Pruning,
    Schedules,
    Shapes,
    Target,
)
from tvmx.cli._output import Output
from tvmx.cli._parse import check_count, check_number, check_seed, parse_shapes
from tvmx.cli._preflight import check_data, check_metric, check_model
from tvmx.cli._progress import open_progress
from tvmx.cli._prune_view import render_prune
from tvmx.errors import UsageError

if TYPE_CHECKING:
    from tvmx.explore import PruneRequest

EPILOG = """Examples:
  tvmx prune network.onnx --data eval.npz
  tvmx prune network.onnx --data eval.npz --levels 0.5,0.6,0.7 --max-accuracy-drop 0.5
  tvmx prune network.onnx --data eval.npz --pattern unstructured --method magnitude
  tvmx prune network.onnx --data images --target rpi4 --out network.pruned
  tvmx build network.onnx --target rpi4 --plan network.pruned/plan.json --out bundle"""

_PATTERN = re.compile(r"^([1-9]\d?)x([1-9]\d?)$")
_MOST = 64  # rows or columns of a block


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("prune", epilog=EPILOG)(prune_model)


@guarded
def prune_model(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE.npz|FOLDER|MODULE:FUNCTION",
            help="Arrays `calibration`, `inputs` and optionally `labels`; a folder of images (one "
            "subfolder a class, or flat); or a function that returns the arrays.",
        ),
    ],
    target: Target = "host",
    shape: Shapes = None,
    params: Params = None,
    preprocess: Preprocess = None,
    metric: Metric = None,
    levels: Annotated[
        str,
        typer.Option(
            "--levels",
            metavar="SHARE,SHARE...",
            help="Shares of a layer's blocks to try without, in whole percent.",
        ),
    ] = "0.5,0.7,0.8,0.9",
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            metavar="target|unstructured|RxC",
            help="Blocks that are zero together: those of the target's sparse kernels (then only "
            "layers that have one are pruned), single weights, or R output channels x C inputs "
            "such as 16x1. Zeros that no kernel skips buy no latency.",
        ),
    ] = "target",
    method: Annotated[
        Pruning,
        typer.Option("--method", metavar="magnitude|reconstruction", help=PRUNING),
    ] = Pruning.RECONSTRUCTION,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="GLOB",
            help="Layers that are not pruned, by name or glob such as 'block1*' (quoted); `tvmx "
            "import` lists the names. Repeatable.",
        ),
    ] = None,
    max_accuracy_drop: MaxAccuracyDrop = 1.0,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            help="Samples of each half of `inputs` to simulate, at most. Default: as many as "
            "about a minute allows, at least 16.",
        ),
    ] = None,
    schedules: Schedules = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", help="Seed of the data's two halves.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for report.json, plan.json and the weights it names, which `tvmx build "
            "--plan` takes. Earlier ones there are replaced.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Study a network pruned, layer by layer, by simulation on this machine: no device.

    Shows the zeros that layers arrive with, the noise (SQNR) and the accuracy that each layer at
    each level alone costs, and the highest levels with which the whole network loses no more than
    --max-accuracy-drop, with operations and bytes. It measures no latency. Choices see one half of
    `inputs`; the levels are held to the limit on the other.
    """
    check_number(max_accuracy_drop, "--max-accuracy-drop", 0, 100, "percentage points")
    wanted, blocks = _parse_levels(levels), _parse_pattern(pattern)
    if samples is not None:
        check_count(samples, "--samples")
    check_seed(seed)
    shapes = parse_shapes(shape or ())
    from tvmx.targets import load_target

    load_target(target)
    if out is not None:
        check_study(out, {"report.json", "plan.json", "weights"}, "tvmx prune")
    folders = check_schedules(schedules)
    if metric is not None:
        check_metric(metric, data)
    inputs = check_model(model, shapes, params)
    check_data(data, inputs, seed, preprocess)
    from tvmx.explore import PruneRequest

    request = PruneRequest(
        model=model,
        data=data,
        target=target,
        out=out,
        shapes=shapes,
        params=params,
        preprocess=preprocess,
        metric=metric,
        levels=wanted,
        pattern=blocks,
        method=method.value,
        skip=tuple(skip or ()),
        max_accuracy_drop=max_accuracy_drop,
        samples=samples,
        schedules=folders,
        seed=seed,
    )
    _prune(request, Output(as_json))


def _prune(request: PruneRequest, output: Output) -> None:
    from tvmx.explore import prune_network

    try:
        with open_progress(output) as progress:
            result = prune_network(request, progress)
    except KeyboardInterrupt as err:
        raise Interrupted("nothing was written") from err
    output.emit(result, lambda screen: render_prune(screen, result, request))


def _parse_levels(text: str) -> tuple[int, ...]:
    """Shares as percent. Raises UsageError."""
    found = set()
    for part in text.split(","):
        try:
            percent = 100 * float(part)
        except ValueError as err:
            raise UsageError(f"--levels {text}: {part!r} is no number", hint=_LEVELS) from err
        if not 0 < percent < 100 or abs(percent - round(percent)) > 1e-6:
            raise UsageError(
                f"--levels {text}: {part} is no share of whole percent between 0 and 1",
                hint=_LEVELS,
            )
        found.add(round(percent))
    return tuple(sorted(found))


_LEVELS = "such as --levels 0.5,0.7,0.9"


def _parse_pattern(text: str) -> tuple[int, int] | None:
    """Rows and columns of a block; None for the target's. Raises UsageError."""
    if text == "target":
        return None
    if text == "unstructured":
        return 1, 1
    match = _PATTERN.match(text)
    rows, columns = map(int, match.groups()) if match else (0, 0)
    if not (1 <= rows <= _MOST and 1 <= columns <= _MOST):
        raise UsageError(
            f"--pattern {text} is no block of at most {_MOST} x {_MOST}",
            hint="target, unstructured, or outputs x inputs such as 16x1",
        )
    return rows, columns
