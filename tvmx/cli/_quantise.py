"""``tvmx quantise``: a network in int8, without a device."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmx.cli._check import check_schedules, check_study
from tvmx.cli._errors import Interrupted, guarded
from tvmx.cli._options import (
    BiasCorrection,
    Equalise,
    Json,
    MaxAccuracyDrop,
    Metric,
    Model,
    Params,
    Preprocess,
    Schedules,
    Shapes,
    Skip,
    Target,
)
from tvmx.cli._output import Output
from tvmx.cli._parse import check_count, check_number, check_seed, parse_shapes
from tvmx.cli._preflight import check_data, check_metric, check_model
from tvmx.cli._progress import open_progress
from tvmx.cli._quantise_view import render_quantise

if TYPE_CHECKING:
    from tvmx.explore import QuantiseRequest

EPILOG = """Examples:
  tvmx quantise network.onnx --data eval.npz
  tvmx quantise network.onnx --data eval.npz --calibration all --equalise
  tvmx quantise network.onnx --data images --skip 'head*' --target rpi4 --out network.int8
  tvmx build network.onnx --target rpi4 --plan network.int8/plan.json --out bundle"""


class Method(StrEnum):
    """How the ranges of int8 activations are found."""

    PERCENTILE = "percentile"
    MINMAX = "minmax"
    AVERAGE = "average"
    KL = "kl"
    MSE = "mse"
    ALL = "all"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("quantise", epilog=EPILOG)(quantise_model)


@guarded
def quantise_model(
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
    calibration: Annotated[
        Method,
        typer.Option(
            "--calibration",
            metavar="percentile|minmax|average|kl|mse|all",
            help="How int8 ranges are taken from the calibration samples: 99.99 % percentiles, "
            "extremes, their mean over samples, least divergence, least squared error; or all of "
            "them, compared, and the best one for the rest.",
        ),
    ] = Method.PERCENTILE,
    equalise: Equalise = False,
    bias_correction: BiasCorrection = False,
    skip: Skip = None,
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
            help="Folder for report.json and plan.json, which `tvmx build --plan` takes. "
            "Earlier ones there are replaced.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Study a network in int8, layer by layer, by simulation on this machine: no device.

    Shows the calibrated ranges, the noise (SQNR) and the accuracy that each layer alone costs,
    and the best cut: the fewest layers to keep float so that the whole network loses no more
    than --max-accuracy-drop. Choices see one half of `inputs`; the cut is held to it on the other.
    """
    check_number(max_accuracy_drop, "--max-accuracy-drop", 0, 100, "percentage points")
    if samples is not None:
        check_count(samples, "--samples")
    check_seed(seed)
    shapes = parse_shapes(shape or ())
    from tvmx.targets import load_target

    load_target(target)
    if out is not None:
        check_study(out, {"report.json", "plan.json"}, "tvmx quantise")
    folders = check_schedules(schedules)
    if metric is not None:
        check_metric(metric, data)
    inputs = check_model(model, shapes, params)
    check_data(data, inputs, seed, preprocess)
    from tvmx.explore import QuantiseRequest

    request = QuantiseRequest(
        model=model,
        data=data,
        target=target,
        out=out,
        shapes=shapes,
        params=params,
        preprocess=preprocess,
        metric=metric,
        calibration=calibration.value,
        equalise=equalise,
        bias_correction=bias_correction,
        skip=tuple(skip or ()),
        max_accuracy_drop=max_accuracy_drop,
        samples=samples,
        schedules=folders,
        seed=seed,
    )
    _quantise(request, Output(as_json))


def _quantise(request: QuantiseRequest, output: Output) -> None:
    from tvmx.explore import quantise

    try:
        with open_progress(output) as progress:
            result = quantise(request, progress)
    except KeyboardInterrupt as err:
        raise Interrupted("nothing was written") from err
    output.emit(result, lambda screen: render_quantise(screen, result, request))
