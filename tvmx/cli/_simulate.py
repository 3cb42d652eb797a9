"""``tvmx simulate``: a board that is not there, in an emulator on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmx.cli._errors import Stopped, guarded
from tvmx.cli._options import Json
from tvmx.cli._output import Output, Screen
from tvmx.cli._parse import check_count
from tvmx.errors import UsageError

if TYPE_CHECKING:
    from tvmx.simulate import SimulatedBoard

EPILOG = """Examples:
  tvmx simulate --prepare
  tvmx simulate rpi4
  tvmx simulate rpi5 --tracker 127.0.0.1:9190 --key sim-rpi5 --count 2"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("simulate", epilog=EPILOG)(simulate)


@guarded
def simulate(
    board: Annotated[
        str | None,
        typer.Argument(metavar="BOARD", help="Target to simulate, see `tvmx targets`."),
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(
            "--tracker",
            metavar="HOST:PORT",
            help="RPC tracker to register at. Without it: one of its own on this machine.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="K", help="Device key. Default: the target's name."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", metavar="N", help="How many boards, all under the key.")
    ] = 1,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address the servers listen on. TVM's RPC runs whatever it is sent: anything but "
            "loopback opens this machine to the network.",
        ),
    ] = "127.0.0.1",
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare",
            help="Only put the arm64 Python and TVM into the cache folder. Otherwise that happens "
            "at first use.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run simulated boards until interrupted, each a device like any other.

    Their servers run in qemu's emulation of the board's core, with this machine's files. Times
    are simulated, never measured: they are no board's.
    """
    output = Output(as_json)
    if board is None and not prepare:
        raise UsageError(
            "which board is to be simulated?",
            hint="name a target of `tvmx targets`, such as: tvmx simulate rpi4",
        )
    check_count(count, "--count")
    if board is None:
        _prepare(output, emit=True)
        return
    from tvmx.measure import exposure_warning
    from tvmx.simulate import SimulatedBoard, require_board, simulate_forever
    from tvmx.targets import load_target

    target = load_target(board)
    require_board(target)
    _prepare(output, emit=prepare)
    if prepare:
        return
    boards = SimulatedBoard(target, tracker=tracker, key=key, count=count, host=host)
    warning = exposure_warning(host)
    if warning:
        output.warn(warning)

    def ready() -> None:
        data = _describe(boards, target.name, host, own_tracker=tracker is None)
        output.emit({**data, "warning": warning}, lambda screen: _render(screen, data))

    try:
        simulate_forever(boards, ready, output.note)
    except KeyboardInterrupt as err:
        raise Stopped(f"simulated {board} has left the tracker") from err


def _prepare(output: Output, *, emit: bool) -> None:
    from tvmx.simulate import find_guest, prepare

    if not emit and find_guest() is not None:
        return
    guest = prepare(output.note)
    if emit:
        data = {"root": guest.root, "site": guest.site, "python": guest.python}
        output.emit(data, lambda screen: screen.fields(data))


def _describe(boards: SimulatedBoard, name: str, host: str, *, own_tracker: bool) -> dict[str, Any]:
    from tvmx.measure import join_host_port

    ports = sorted(int(n.removeprefix("server:")) for n in boards.processes if n != "tracker")
    return {
        "board": name,
        "key": boards.address.key,
        "tracker": boards.address.tracker,
        "own_tracker": own_tracker,
        "servers": [join_host_port(host, port) for port in ports],
        "simulated": boards.facts,
    }


def _render(screen: Screen, data: dict[str, Any]) -> None:
    facts = data["simulated"]
    count = len(data["servers"])
    number = "a board" if count == 1 else f"{count} boards"
    screen.line(
        f"{number} {data['board']!r} ({facts['core']}), simulated on this machine, as device"
        f" {data['key']!r} at the tracker {data['tracker']}, Ctrl-C ends it"
    )
    screen.line(_meaning(facts), style="bold")
    if not facts.get("exact_isa", True):
        screen.line(
            f"qemu has no {facts['core']}: instructions that the core lacks run here all the same"
        )
    screen.line("use it:")
    screen.command(
        f"tvmx explore MODEL --target {data['board']} --tracker {data['tracker']}"
        f" --key {data['key']}"
    )


def _meaning(facts: dict[str, Any]) -> str:
    """What its times are, so that nobody takes them for a board's."""
    if facts["figure"] is None:
        return (
            "NO CYCLE MODEL: its times are the emulator's on this machine and say nothing about"
            " a board; only results and crashes mean anything"
        )
    return (
        f"its times are SIMULATED: {facts['figure']} cycles of a model of {facts['core']}, at"
        f" {facts['clock_mhz']} MHz; differences under 20 % are ties"
    )
