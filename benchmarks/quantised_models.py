"""Quantised ONNX models, QDQ and QOperator, run with their own numbers: tvmx and ONNX Runtime.

::

    python benchmarks/quantised_models.py --out bench-quantised
    python benchmarks/quantised_models.py --out bench-quantised --networks resnet50 --rounds 5

ONNX Runtime's quantiser makes them of networks with random weights. Outputs are compared on
images of their own; a step is the scale of the output. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._candidates import (
    ONE_THREAD,
    Expectation,
    measure_rounds,
    onnxruntime_candidate,
    vm_candidate,
)
from benchmarks._folder import MOBILENETS, SEED, Folder
from benchmarks._models import calibration_samples, prepare_model
from benchmarks._results import Rounds
from benchmarks._stages import alone, say
from tvmx.errors import TvmxError

NETWORKS = ("bvlc_alexnet", "inception_v1", "resnet50", "squeezenet", "vgg19", *MOBILENETS)
FORMS = ("QDQ", "QOperator")
TVMX, ORT = "tvmx", "onnxruntime"
_IMAGES = 5
_WITHIN = 1.001  # steps: scales are float32


class Result(BaseModel):
    """One model. ``equal`` and ``within_one`` are shares of the elements of all outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    form: str
    layers: int
    int8_layers: int
    elements: int
    equal: float
    within_one: float
    largest_steps: float
    rounds: Rounds


def main(
    out: Annotated[Path, typer.Option(help="Folder of models and figures.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(NETWORKS),
    rounds: Annotated[int, typer.Option(min=1, help="Paired rounds.")] = 15,
) -> None:
    """Measure what has no figures in OUT yet, then print the table."""
    os.environ.update(ONE_THREAD)
    results = []
    try:
        for network in networks.split(","):
            for form in FORMS:
                folder = Folder(out.resolve() / network)
                path = folder.path / f"{form}.json"
                if not path.is_file():
                    say(f"{network}: {form}")
                    folder.path.mkdir(parents=True, exist_ok=True)
                    alone(prepare_model, folder)
                    path.write_text(alone(measure, folder, form, rounds).model_dump_json(indent=1))
                results.append(Result.model_validate_json(path.read_text()))
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    _print(results)


def measure(folder: Folder, form: str, rounds: int) -> Result:
    """Quantise, build with template defaults, compare, time. For a process of its own."""
    import onnxruntime as ort

    from benchmarks._ort_int8 import quantise_model
    from tvmx.explore._context import Context
    from tvmx.explore._whole import build_plan
    from tvmx.passes import baseline_plan

    file = folder.path / f"{folder.network}.{form}.onnx"
    floats = ort.InferenceSession(str(folder.onnx), providers=["CPUExecutionProvider"])
    given = floats.get_inputs()
    rng = np.random.default_rng(SEED + 2)
    images = [
        [rng.standard_normal(value.shape, dtype=np.float32) for value in given]
        for _ in range(_IMAGES)
    ]
    if not file.is_file():
        quantise_model(folder.onnx, file, calibration_samples(given), form)
    context = Context.open(file, {}, "host", [])
    plan = baseline_plan(context.network, context.registry, context.target, SEED)
    built = build_plan(form, plan, context.network, context.registry, context.target, folder.path)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in context.model.inputs]
    distances = []
    graph = context.network.graph
    scales = {value.value: value.scale for value in graph.stated}
    for image in images:
        wanted = session.run(None, dict(zip(names, image, strict=True)))
        candidate = vm_candidate(TVMX, built.build.path, image, Expectation(wanted))
        candidate.run()
        for value, got, want in zip(graph.outputs, candidate.outputs(), wanted, strict=True):
            distances.append(np.abs(got - want).ravel() / scales[value])
    steps = np.concatenate(distances)
    last = Expectation(wanted, limit=1.0)
    timed = measure_rounds(
        [
            vm_candidate(TVMX, built.build.path, image, last),
            onnxruntime_candidate(ORT, file, image, last),
        ],
        wanted,
        rounds,
    )
    return Result(
        network=folder.network, form=form, layers=built.lowered.total,
        int8_layers=sum(c.implementation.precision == "int8" for c in plan.choices),
        elements=steps.size, equal=float((steps < 0.5).mean()),
        within_one=float((steps <= _WITHIN).mean()), largest_steps=float(steps.max()),
        rounds=timed,
    )  # fmt: skip


def _print(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Quantised models, u8 activations, 1 thread, {_IMAGES} images")
    for column in ("network", "form", "int8 layers", "equal", "within one step", "tvmx ms",
                   "ONNX Runtime ms", "tvmx / ONNX Runtime"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("network", "form") else "right")
    for r in results:
        times = [r.rounds.get(name) for name in (TVMX, ORT)]
        table.add_row(
            r.network, r.form, f"{r.int8_layers}/{r.layers}", f"{r.equal:.2%}",
            f"{r.within_one:.2%}", *(f"{np.median(t.wall_ms):.2f}" for t in times if t),
            f"{r.rounds.ratio(TVMX, ORT):.2f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
