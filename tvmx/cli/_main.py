"""The root: wires the command groups together, one file each, and nothing else."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tvmx import __version__
from tvmx.cli import (
    _bench,
    _bundle,
    _doctor,
    _explore,
    _farm,
    _import,
    _prune,
    _quantise,
    _run,
    _schedules,
    _simulate,
    _targets,
    _train_agent,
)
from tvmx.cli._errors import fail

app = typer.Typer(
    name="tvmx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tvmx {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """Deploy CNNs on Arm Cortex-A CPUs: import, explore, cross-compile, measure, export."""


for group in (
    _import,
    _targets,
    _farm,
    _simulate,
    _doctor,
    _schedules,
    _quantise,
    _prune,
    _explore,
    _train_agent,
    _bundle,
    _run,
    _bench,
):
    group.add_to(app)


def main() -> None:
    """Console entry point: run the command line and exit with its code."""
    try:
        app()
    except Exception as err:
        # Commands guard themselves; this is for what happens outside of them.
        try:
            fail(err, as_json="--json" in sys.argv)
        except typer.Exit as leave:
            sys.exit(leave.exit_code)
