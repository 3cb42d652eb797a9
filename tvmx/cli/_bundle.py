"""``tvmx build`` and ``tvmx export``: write a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmx.cli._check import check_bundle_out, check_file, check_folder, check_schedules
from tvmx.cli._errors import Interrupted, guarded
from tvmx.cli._options import BundleOut, Json, Model, Params, Schedules, Shapes, Target
from tvmx.cli._output import Output, Screen
from tvmx.cli._parse import parse_shapes
from tvmx.cli._preflight import check_model, check_target
from tvmx.cli._progress import open_progress
from tvmx.cli._units import size

if TYPE_CHECKING:
    from tvmx.explore import BundleSummary

BUILD_EPILOG = """Examples:
  tvmx build network.onnx --target rpi4 --out bundle
  tvmx build network.onnx --target rpi4 --plan run/plan.json --out bundle"""
EXPORT_EPILOG = """Examples:
  tvmx export network-rpi4.run --out bundle
  tvmx export network-rpi4.run --pick baseline --out bundle-baseline
  tvmx export network-rpi4.run --pick "latency; drop<=0.5; weights<=2MB" --out small
  tvmx export network-host.run --target rpi4 --out bundle-rpi4"""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("build", epilog=BUILD_EPILOG)(build)
    app.command("export", epilog=EXPORT_EPILOG)(export)


@guarded
def build(
    model: Model,
    target: Target,
    out: BundleOut,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="plan.json", help="Rebuild this plan. Default: baseline."),
    ] = None,
    shape: Shapes = None,
    params: Params = None,
    schedules: Schedules = None,
    as_json: Json = False,
) -> None:
    """Build a bundle without search: every template's default, or the replay of a plan."""
    shapes = parse_shapes(shape or ())
    check_target(target)
    check_bundle_out(out)
    check_model(model, shapes, params)
    if plan is not None:
        check_file(plan, "plan", hint="plans are in the run folder of `tvmx explore`")
    folders = check_schedules(schedules)
    output = Output(as_json)
    from tvmx.explore import build_bundle

    try:
        with open_progress(output) as progress:
            summary = build_bundle(
                model,
                target,
                out,
                shapes=shapes,
                params=params,
                plan=plan,
                schedules=folders,
                progress=progress,
            )
    except KeyboardInterrupt as err:
        raise Interrupted(f"no bundle was written to {out}") from err
    output.emit(summary, lambda screen: _render(screen, summary))


@guarded
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder of an explore.")],
    out: BundleOut,
    pick: Annotated[
        str,
        typer.Option(
            "--pick",
            metavar="best|memory|baseline|INDEX|RULE",
            help="The candidate: best, memory (least weights and activations), baseline, its index "
            "in explore's table, or a rule such as 'latency; drop<=0.5; weights<=2MB': what to "
            "minimise, then limits. Figures: latency, weights, arena, memory, library, drop.",
        ),
    ] = "best",
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Another target than the explored one: keeps precision and sparsity, takes "
            "that target's template defaults. Not measured there.",
        ),
    ] = None,
    schedules: Schedules = None,
    as_json: Json = False,
) -> None:
    """Export a bundle from a run; while it is explored, of the best plan so far."""
    check_folder(run, "run", hint="a run is what `tvmx explore --out RUN` writes")
    from tvmx.explore import check_pick

    check_pick(pick)
    if target is not None:
        check_target(target)
    check_bundle_out(out)
    folders = check_schedules(schedules)
    output = Output(as_json)
    from tvmx.explore import export_run

    try:
        with open_progress(output) as progress:
            summary = export_run(
                run, out, pick=pick, target=target, schedules=folders, progress=progress
            )
    except KeyboardInterrupt as err:
        raise Interrupted(f"the run is unchanged, no bundle was written to {out}") from err
    output.emit(summary, lambda screen: _render(screen, summary))


def _render(screen: Screen, summary: BundleSummary) -> None:
    screen.fields(
        {
            "bundle": summary.path,
            "target": summary.target
            + ("" if summary.measured_on_target else " (not measured on this target)"),
            "layers by templates": f"{summary.layers_hit}/{summary.layers}",
            "library": size(summary.library_bytes),
            "weights": size(summary.weights_bytes),
            "arena": size(summary.arena_bytes),
            "scratch": size(summary.scratch_bytes),
        }
    )
    for note in summary.notes:
        screen.line(f"note: {note}")
    screen.line("next, on this machine or copied to the board:")
    screen.command(f"tvmx run {summary.path}")
    screen.command(f"python {summary.path}/run.py")
