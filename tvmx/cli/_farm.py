"""``tvmx tracker``, ``tvmx serve``, ``tvmx devices``: what stands between here and the boards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmx.cli._device import DEFAULT_TRACKER, is_loopback
from tvmx.cli._errors import Stopped, guarded
from tvmx.cli._options import Json
from tvmx.cli._output import Output, Screen
from tvmx.cli._parse import check_count, check_port

if TYPE_CHECKING:
    from tvmx.measure import TrackerSummary

Host = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Address to listen on. TVM's RPC runs whatever it is sent: anything but loopback "
        "opens this machine to the network.",
    ),
]
AtTracker = Annotated[str, typer.Option("--tracker", metavar="HOST:PORT", help="The RPC tracker.")]

_TUNNEL = 9290
"""Port of a board's server at both ends of a tunnel: outside of what servers here take."""

TRACKER_EPILOG = """Example:
  tvmx tracker --port 9190"""
SERVE_EPILOG = """Examples:
  tvmx serve --key host
  tvmx serve --key rpi4 --commands"""
DEVICES_EPILOG = """Example:
  tvmx devices --tracker 127.0.0.1:9190"""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("tracker", epilog=TRACKER_EPILOG)(tracker)
    app.command("serve", epilog=SERVE_EPILOG)(serve)
    app.command("devices", epilog=DEVICES_EPILOG)(devices)


@guarded
def tracker(
    host: Host = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", help="Port, or one of the nine after it.")
    ] = 9190,
    as_json: Json = False,
) -> None:
    """Run a TVM RPC tracker until interrupted. Devices register there under a key."""
    check_port(port)
    output = Output(as_json)
    from tvmx.measure import exposure_warning, join_host_port, track_forever

    _warn(output, exposure_warning(host))

    def ready(actual: int) -> None:
        address = join_host_port(host, actual)
        data = {"tracker": address, "warning": exposure_warning(host)}
        output.emit(data, lambda screen: _render_tracker(screen, address))

    try:
        track_forever(host, port, on_ready=ready)
    except KeyboardInterrupt as err:
        raise Stopped("the tracker has stopped") from err


@guarded
def serve(
    key: Annotated[
        str, typer.Option("--key", metavar="K", help="Key the device is registered under.")
    ],
    tracker: AtTracker = DEFAULT_TRACKER,
    host: Host = "127.0.0.1",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", help="Most threads of a kernel. Default: all processors."
        ),
    ] = None,
    commands: Annotated[
        bool,
        typer.Option("--commands", help="Only print what a board needs; serve nothing here."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make this machine a device until interrupted, and print the two commands a board needs.

    On a board only apache-tvm is installed, never tvmx.
    """
    if threads is not None:
        check_count(threads, "--threads")
    output = Output(as_json)
    from tvmx.measure import exposure_warning, join_host_port, serve_forever

    data = _board(key, tracker)
    if commands:
        output.emit(data, lambda screen: _render_board(screen, data))
        return
    _warn(output, exposure_warning(host))

    def ready(port: int) -> None:
        data.update(key=key, server=join_host_port(host, port), warning=exposure_warning(host))
        output.emit(data, lambda screen: _render_serve(screen, data))

    try:
        serve_forever(key, tracker, host=host, threads=threads, on_ready=ready)
    except KeyboardInterrupt as err:
        raise Stopped(f"device {key!r} has left the tracker") from err


@guarded
def devices(tracker: AtTracker = DEFAULT_TRACKER, as_json: Json = False) -> None:
    """List the device keys at a tracker: how many servers, free and busy."""
    from tvmx.measure import parse_host_port, tracker_summary

    summary = tracker_summary(*parse_host_port(tracker))
    data = _describe(tracker, summary)
    Output(as_json).emit(data, lambda screen: _render_devices(screen, data))


def _warn(output: Output, warning: str | None) -> None:
    if warning:
        output.warn(warning)


def _board(key: str, tracker: str) -> dict[str, Any]:
    """The commands; behind an SSH tunnel where the tracker listens on loopback only."""
    from tvmx.measure import board_commands, parse_host_port

    host, port = parse_host_port(tracker)
    if not is_loopback(host):
        return {"tracker": tracker, "board_commands": board_commands(key, tracker)}
    board = board_commands(key, f"127.0.0.1:{port}", port=_TUNNEL, host="127.0.0.1")
    tunnel = f"ssh -N -R {port}:127.0.0.1:{port} -L {_TUNNEL}:127.0.0.1:{_TUNNEL} USER@BOARD"
    return {"tracker": tracker, "tunnel": tunnel, "board_commands": board}


def _render_tracker(screen: Screen, address: str) -> None:
    screen.line(f"tracker at {address}, Ctrl-C ends it")
    screen.line("make this machine a device, and see what a board needs:")
    screen.command(f"tvmx serve --key host --tracker {address}")


def _render_serve(screen: Screen, data: dict[str, Any]) -> None:
    screen.line(
        f"device {data['key']!r} at {data['server']}, tracker {data['tracker']}, Ctrl-C ends it"
    )
    _render_board(screen, data)


def _render_board(screen: Screen, data: dict[str, Any]) -> None:
    if "tunnel" in data:
        screen.line("the tracker is on loopback: bring the board to it, from this machine:")
        screen.command(data["tunnel"])
    screen.line("on the board:")
    for command in data["board_commands"]:
        screen.command(command)


def _describe(tracker: str, summary: TrackerSummary) -> dict[str, Any]:
    return {
        "tracker": tracker,
        "devices": [
            {
                "key": status.key,
                "servers": status.servers,
                "free": status.free,
                "busy": status.busy,
                "waiting": status.pending,
                "addresses": list(summary.addresses(status.key)),
            }
            for status in summary.keys.values()
        ],
    }


def _render_devices(screen: Screen, data: dict[str, Any]) -> None:
    if not data["devices"]:
        screen.line(f"no device is registered at {data['tracker']}; make this machine one:")
        screen.command(f"tvmx serve --key host --tracker {data['tracker']}")
        return
    screen.table(
        ("key", "servers", "free", "busy", "waiting", "addresses"),
        ((*list(row.values())[:5], ", ".join(row["addresses"])) for row in data["devices"]),
        right=("servers", "free", "busy", "waiting"),
    )
