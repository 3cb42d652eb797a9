"""What quantise found, for people."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tvmx.cli._units import clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvmx.cli._output import Screen
    from tvmx.explore import NetworkFigures, PruneRequest, QuantiseRequest, QuantiseResult

_EQUAL_DB = 200.0
_MOST_SKIPS = 6  # layers that are named in the command to try next


def render_quantise(screen: Screen, result: QuantiseResult, request: QuantiseRequest) -> None:
    """Methods, values, layers, then the cut's curve, then the whole network."""
    if result.methods:
        _methods(screen, result)
    _values(screen, result)
    _layers(screen, result)
    _curve(screen, result)
    _network(screen, result)
    screen.fields(
        {
            "calibration": result.calibration,
            "simulated": f"{result.visible} of {result.visible_total} visible and "
            f"{result.held_out} of {result.held_out_total} held-out samples, "
            f"in {clock(result.seconds)}",
            "kept float": ", ".join(result.kept_float) or "none",
            "report": result.report,
            "plan": result.plan,
        }
    )
    for note in result.notes:
        screen.line(f"note: {note}")
    if result.plan is None:
        screen.line("note: --out DIR writes the report and the plan of the cut")
    if commands := list(_next(result, request)):
        screen.line("next:")
        for command in commands:
            screen.command(command)


def _methods(screen: Screen, result: QuantiseResult) -> None:
    screen.table(
        ("calibration", "SQNR", "drop", "sensitivity", ""),
        (
            (
                row.calibration,
                decibels(row.output_sqnr_db),
                points(row.drop),
                f"{row.sensitivity:.2g}",
                "used below" if row.calibration == result.calibration else "",
            )
            for row in result.methods
        ),
        title="Calibration methods, every layer int8 (visible half)",
        right=("SQNR", "drop", "sensitivity"),
    )


def _values(screen: Screen, result: QuantiseResult) -> None:
    screen.table(
        ("value", "range", "scale", "zero point", "clipped"),
        (
            (
                value.name if value.kind == "layer" else f"({value.kind}) {value.name}",
                f"{value.low:.3g} .. {value.high:.3g}",
                f"{value.scale:.3g}",
                value.zero_point,
                f"{100 * value.clipped:.2g} %" if value.clipped else "0",
            )
            for value in result.values
        ),
        title="Ranges of what inputs, layers and operators give out",
        right=("range", "scale", "zero point", "clipped"),
    )


def _layers(screen: Screen, result: QuantiseResult) -> None:
    screen.table(
        ("layer", "its SQNR", "network's", "drop", "rank", "cut"),
        (
            (
                row.layer,
                decibels(row.sqnr_db),
                decibels(row.output_sqnr_db),
                points(row.drop),
                row.rank,
                row.cut,
            )
            for row in result.layers
        ),
        title="Each layer int8 alone (visible half)",
        right=("its SQNR", "network's", "drop", "rank"),
    )


def _curve(screen: Screen, result: QuantiseResult) -> None:
    chosen = len(result.kept_float)
    screen.table(
        ("kept float", "with", "SQNR", "drop", ""),
        (
            (
                point.kept_float,
                point.layer,
                decibels(point.output_sqnr_db),
                points(point.drop),
                "cut" if point.kept_float == chosen else "",
            )
            for point in result.curve
        ),
        title="Most sensitive layers kept float (visible half)",
        right=("kept float", "SQNR", "drop"),
    )


def _network(screen: Screen, result: QuantiseResult) -> None:
    total = len(result.layers)

    def row(name: str, figures: NetworkFigures) -> tuple[object, ...]:
        layers, accuracy = f"{figures.int8_layers} of {total}", f"{figures.accuracy:.2f} %"
        return name, layers, decibels(figures.sqnr_db), accuracy, points(figures.drop)

    cut = "cut" if result.meets else "cut (past the limit)"
    screen.table(
        ("network", "int8 layers", "SQNR", result.metric, "drop"),
        (
            ("float", f"0 of {total}", "", f"{result.float_accuracy:.2f} %", ""),
            row("all int8", result.int8),
            row(cut, result.cut),
        ),
        title=f"Whole networks (held-out half; limit {result.max_accuracy_drop:g})",
        right=("int8 layers", "SQNR", result.metric, "drop"),
    )


def _next(result: QuantiseResult, request: QuantiseRequest) -> Iterator[str]:
    """Build the plan that was written; explore what the cut leaves int8."""
    model = model_words(request)
    target = ["--target", result.target]
    if result.plan is not None:
        yield shlex.join(
            ["tvmx", "build", *model, *target, "--plan", result.plan, "--out", "BUNDLE"]
        )
    if result.cut.int8_layers and len(result.kept_float) <= _MOST_SKIPS:
        yield shlex.join(["tvmx", "explore", *model, *target, *_how(result, request)])


def model_words(request: QuantiseRequest | PruneRequest) -> list[str]:
    """The words that name a study's model in the next command."""
    model = [str(request.model)]
    for name, dims in request.shapes.items():
        model += ["--shape", f"{name}={','.join(map(str, dims))}"]
    if request.params is not None:
        model += ["--params", str(request.params)]
    for folder in request.schedules:
        model += ["--schedules", str(folder)]
    return model


def _how(result: QuantiseResult, request: QuantiseRequest) -> Iterator[str]:
    """The options that make explore calibrate as was done here, and leave the cut float."""
    yield from ("--data", str(request.data))
    if request.preprocess is not None:
        yield from ("--preprocess", str(request.preprocess))
    if request.metric is not None:
        yield from ("--metric", request.metric)
    if result.calibration != "percentile":
        yield from ("--calibration", result.calibration)
    if request.equalise:
        yield "--equalise"
    if request.bias_correction:
        yield "--bias-correction"
    if request.max_accuracy_drop != 1.0:
        yield from ("--max-accuracy-drop", f"{request.max_accuracy_drop:g}")
    for name in (*request.skip, *result.kept_float):
        yield from ("--skip", name)


def decibels(value: float | None) -> str:
    """An SQNR; empty for None."""
    if value is None:
        return ""
    return "equal" if value >= _EQUAL_DB else f"{value:.1f} dB"


def points(value: float | None) -> str:
    """A loss in percentage points; a gain is negative."""
    return "" if value is None else f"{value + 0.0:+.2f}"
