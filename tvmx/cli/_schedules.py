"""``tvmx schedules``: which schedule templates there are, and conformance of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmx.cli._check import check_file, check_schedules
from tvmx.cli._errors import guarded
from tvmx.cli._options import Json, Schedules
from tvmx.cli._output import Output, Screen

if TYPE_CHECKING:
    from tvmx.templates import Registry, TemplateEntry

schedules = typer.Typer(
    help="List the schedule templates, show one, or check a file.", rich_markup_mode="rich"
)

EPILOG = """Examples:
  tvmx schedules
  tvmx schedules --schedules my_schedules
  tvmx schedules show conv2d_direct
  tvmx schedules check my_schedules/fast_conv.py"""


def add_to(app: typer.Typer) -> None:
    """Register the group."""
    app.add_typer(schedules, name="schedules", epilog=EPILOG)


def load_registry(folders: tuple[Path, ...]) -> Registry:
    """Built-in templates, installed entry points, then the user's folders."""
    from tvmx.templates import Registry

    registry = Registry.with_builtin()
    for folder in folders:
        registry.add_folder(folder)
    return registry


@schedules.callback(invoke_without_command=True)
@guarded
def list_all(ctx: typer.Context, schedules: Schedules = None, as_json: Json = False) -> None:
    """List the schedule templates, show one, or check a file."""
    ctx.obj = (as_json, schedules or [])
    if ctx.invoked_subcommand is not None:
        return
    entries = load_registry(check_schedules(schedules)).entries()
    data = {"schedules": [_describe(entry) for entry in entries]}
    Output(as_json).emit(data, lambda screen: _render_all(screen, entries))


@schedules.command("show", epilog="Example:\n  tvmx schedules show conv2d_direct")
@guarded
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A template of `tvmx schedules`.")],
    schedules: Schedules = None,
    as_json: Json = False,
) -> None:
    """Show one template: what it computes, where it comes from, its documentation."""
    above, folders = ctx.obj
    entry = load_registry(check_schedules([*folders, *(schedules or [])])).get(name)
    data = _describe(entry)
    Output(as_json or above).emit(data, lambda screen: _render_one(screen, data))


@schedules.command("check", epilog="Example:\n  tvmx schedules check my_schedules/fast_conv.py")
@guarded
def check(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A template file (*.py).")],
    as_json: Json = False,
) -> None:
    """Check a template file against the contract, and time it on this machine.

    Kernels are compared with PyTorch; speed is told as a share of the core's measured peak.
    The file is executed. Exit code 1 when a check fails.
    """
    check_file(file, "template file", hint="start from examples/schedules/")
    from tvmx.testing.templates import check_template_file

    report = check_template_file(file)
    data = report.model_dump(mode="json")
    Output(as_json or ctx.obj[0]).emit(data, lambda screen: _render_check(screen, data))
    if not report.passed:
        raise typer.Exit(1)


def _describe(entry: TemplateEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "op": entry.op,
        "precision": entry.template.precision,
        "priority": entry.template.priority,
        "origin": entry.origin,
        "path": str(entry.path),
        "fingerprint": entry.fingerprint,
        "documentation": _documentation(entry),
    }


def _documentation(entry: TemplateEntry) -> str:
    import inspect

    return inspect.getdoc(type(entry.template)) or ""


def _render_all(screen: Screen, entries: list[TemplateEntry]) -> None:
    screen.table(
        ("template", "operator", "precision", "priority", "from", "file"),
        (
            (e.name, e.op, e.template.precision, e.template.priority, e.origin, e.path)
            for e in entries
        ),
        right=("priority",),
    )
    screen.line("Among the templates that support a layer, the lowest priority is the baseline's.")


def _render_one(screen: Screen, data: dict[str, Any]) -> None:
    screen.line(data["name"], style="bold")
    screen.fields({name: data[name] for name in data if name not in ("name", "documentation")})
    screen.line()
    screen.line(data["documentation"])


def _render_check(screen: Screen, data: dict[str, Any]) -> None:
    screen.table(
        ("template", "check", "result", "detail"),
        (
            (row["template"], row["check"], "ok" if row["passed"] else "FAILED", row["detail"])
            for row in data["checks"]
        ),
    )
    if data["performance"]:
        screen.table(
            ("template", "layer", "GFLOP/s", "of peak"),
            (
                (row["template"], row["workload"], row["gflops"], f"{row['peak_share']:.0%}")
                for row in data["performance"]
            ),
            title=f"Default configs, 1 thread; peak measured: {data['peak_gflops']:.1f} GFLOP/s",
            right=("GFLOP/s", "of peak"),
        )
    failed = sum(not row["passed"] for row in data["checks"])
    total = len(data["checks"])
    screen.line(f"{total - failed} of {total} checks passed", style="bold")
