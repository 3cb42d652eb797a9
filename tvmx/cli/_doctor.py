"""``tvmx doctor``: whether a device can be used, and what to type where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tvmx.cli._device import parse_device
from tvmx.cli._errors import guarded
from tvmx.cli._options import Json, Key
from tvmx.cli._output import Output, Screen
from tvmx.cli._progress import open_progress

if TYPE_CHECKING:
    from tvmx.doctor import Diagnosis, Finding

EPILOG = """Examples:
  tvmx doctor
  tvmx doctor --tracker 127.0.0.1:9190 --key rpi4
  tvmx doctor --tracker 127.0.0.1:9190 --key rpi4 --target rpi4 --json"""

_NAME, _LEVEL = 14, 8
_STYLES = {"ok": None, "hint": "yellow", "broken": "bold red"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("doctor", epilog=EPILOG)(doctor)


@guarded
def doctor(
    tracker: Annotated[
        str | None,
        typer.Option(
            "--tracker",
            metavar="HOST:PORT",
            help="RPC tracker of the devices. Without it: this machine is examined.",
        ),
    ] = None,
    key: Key = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Target to hold the devices against, see `tvmx targets`. Default: what they are.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine the way to the devices under a key, and every one of them that is free.

    Tracker, key, system, TVM, C library, CPU features, clock, temperature, disk; then a probe is
    uploaded, run and checked, which shows the peaks of one core and of memory. Each line says ok
    or what to do next. Exit code 1 when something is broken; hints are no failure.
    """
    address = parse_device(tracker, key)
    from tvmx.targets import load_target

    against = load_target(target) if target is not None else None
    output = Output(as_json)
    with open_progress(output) as progress:
        from tvmx.doctor import examine

        diagnosis = examine(address, against, on_stage=progress.stage)
    output.emit(diagnosis, lambda screen: _render(screen, diagnosis))
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _render(screen: Screen, diagnosis: Diagnosis) -> None:
    for section in diagnosis.sections:
        screen.line(section.title, style="bold")
        for finding in section.findings:
            _render_finding(screen, finding)
        screen.line()
    if diagnosis.target is not None:
        screen.line(f"held against target {diagnosis.target}: {diagnosis.why}")
    screen.line(_summary(diagnosis), style=None if diagnosis.healthy else "bold red")


def _render_finding(screen: Screen, finding: Finding) -> None:
    style = _STYLES[finding.level]
    screen.line(f"  {finding.name:<{_NAME}}{finding.level:<{_LEVEL}}{finding.text}", style=style)
    for todo in finding.todo:
        screen.line(f"  {'':<{_NAME}}{'':<{_LEVEL}}{todo}", style="bold")


def _summary(diagnosis: Diagnosis) -> str:
    broken, hints = diagnosis.count("broken"), diagnosis.count("hint")
    parts = [f"{n} {name}" for n, name in ((broken, "broken"), (hints, "to improve")) if n]
    return f"{', '.join(parts) or 'all well'}; {diagnosis.seconds:.1f} s"
