"""``tvmx targets``: the boards tvmx knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmx.cli._errors import guarded
from tvmx.cli._options import Json
from tvmx.cli._output import Output, Screen

if TYPE_CHECKING:
    from tvmx.targets import Cluster, Target

targets = typer.Typer(help="List the targets, or show one.", rich_markup_mode="rich")

EPILOG = """Examples:
  tvmx targets
  tvmx targets show rpi4"""


def add_to(app: typer.Typer) -> None:
    """Register the group."""
    app.add_typer(targets, name="targets", epilog=EPILOG)


@targets.callback(invoke_without_command=True)
@guarded
def list_all(ctx: typer.Context, as_json: Json = False) -> None:
    """List the targets, or show one."""
    ctx.obj = as_json
    if ctx.invoked_subcommand is not None:
        return
    from tvmx.targets import list_targets, load_target

    found = [(entry.origin, load_target(entry.path or entry.name)) for entry in list_targets()]
    data = {"targets": [{**_describe(target), "origin": origin} for origin, target in found]}
    Output(as_json).emit(data, lambda screen: _render_all(screen, found))


@targets.command("show", epilog="Example:\n  tvmx targets show rpi4")
@guarded
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A target of `tvmx targets`.")],
    as_json: Json = False,
) -> None:
    """Show one target: compiler settings, cores, caches, memory and where the figures are from."""
    from tvmx.targets import load_target

    target = load_target(name)
    Output(as_json or bool(ctx.obj)).emit(
        _describe(target), lambda screen: _render_one(screen, target)
    )


def _describe(target: Target) -> dict[str, Any]:
    return {**target.model_dump(mode="json"), "arch": target.arch}


def _render_all(screen: Screen, found: list[tuple[str, Target]]) -> None:
    screen.table(
        ("target", "cores", "triple", "memory", "from", "description"),
        (
            (
                target.name,
                " + ".join(_cores(cluster) for cluster in target.clusters),
                target.triple,
                f"{target.memory_mib} MiB",
                origin,
                target.description,
            )
            for origin, target in found
        ),
        right=("memory",),
    )


def _render_one(screen: Screen, target: Target) -> None:
    screen.line(f"{target.name}: {target.description}", style="bold")
    screen.fields(
        {
            "triple": target.triple,
            "cpu": target.cpu,
            "features": " ".join(target.features) or None,
            "vector": f"{target.vector_bits} bits, {target.vector_registers} registers",
            "glibc": f"{target.glibc} or newer",
            "memory": f"{target.memory_mib} MiB",
        }
    )
    screen.table(
        ("core", "count", "clock", "order", "L1 data", "L2"),
        (
            (
                cluster.core,
                cluster.count,
                f"{cluster.clock_mhz} MHz",
                "in order" if cluster.in_order else "out of order",
                f"{cluster.l1d_kib} KiB",
                f"{cluster.l2_kib} KiB {'per core' if cluster.l2_private else 'shared'}",
            )
            for cluster in target.clusters
        ),
        right=("count", "clock", "L1 data"),
    )
    for source in target.sources:
        screen.line(f"source: {source}")


def _cores(cluster: Cluster) -> str:
    return f"{cluster.count} x {cluster.core}"
