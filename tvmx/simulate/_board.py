"""SimulatedBoard: servers of one board's kind on this machine, supervised like any farm."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psutil

from tvmx.errors import SimulationError, TrackerError, UsageError
from tvmx.measure import DeviceAddress, LocalFarm
from tvmx.measure._guard import GuardedProcess
from tvmx.simulate._core import simulated_core
from tvmx.simulate._emulator import Emulator
from tvmx.simulate._guest import PREPARE, Guest, find_guest
from tvmx.simulate._overlay import board_root
from tvmx.simulate._server import Emulation, start_server
from tvmx.simulate._tools import QEMU, require
from tvmx.targets import Target

_MOST = 64
_CHECK_SECONDS = 1.0


class SimulatedBoard(LocalFarm):
    """``count`` servers that run libraries for ``target`` as its fastest core would.

    A context manager, and a :class:`tvmx.measure.LocalFarm`: it starts a tracker of its own
    unless ``tracker`` (HOST:PORT) names one, registers servers under ``key`` (default: the
    target's name), restarts what dies, and gives runners. The guest must be prepared (see
    :func:`tvmx.simulate.prepare`). ``host`` is the address servers listen on.

    Creating it raises :class:`tvmx.errors.SimulationError` when something is missing here and
    :class:`tvmx.errors.UsageError` for a target that is no arm64 board; entering raises
    :class:`tvmx.errors.DeviceError` when the servers do not come up.
    """

    def __init__(
        self,
        target: Target,
        *,
        tracker: str | None = None,
        key: str | None = None,
        count: int = 1,
        host: str = "127.0.0.1",
        share_files: bool = True,
        emulation: Emulation | None = None,
    ) -> None:
        require_board(target)
        if not 1 <= count <= _MOST:
            raise UsageError(f"{count} simulated boards: give 1 to {_MOST}")
        key = DeviceAddress.parse(tracker or "127.0.0.1:9190", key or target.name).key
        require(QEMU)
        guest = find_guest()
        if guest is None:
            raise SimulationError(
                "the arm64 guest that simulated boards run in is not prepared", hint=PREPARE
            )
        super().__init__(count, 1, key, share_files=share_files, tracker=tracker)
        # The server waits for clients in real time; it starts the simulated clock where it times.
        self.emulation = emulation or Emulator(simulated_core(target), simulated=False)
        self.facts = {"board": target.name, **self.emulation.facts}
        self._guest: Guest = guest
        self._root = board_root(guest, target)
        self._host = host
        self._running = contextlib.ExitStack()

    def __enter__(self) -> SimulatedBoard:
        self._running.enter_context(self.emulation)
        super().__enter__()
        return self

    def close(self) -> None:
        """See :meth:`tvmx.measure.LocalFarm.close`."""
        super().close()
        self._running.close()

    def serving(self, pid: int) -> list[psutil.Process]:
        """See :meth:`tvmx.measure.LocalFarm.serving`; not the process that forks them."""
        forks = set(psutil.Process(pid).children()) if psutil.pid_exists(pid) else set()
        return [process for process in super().serving(pid) if process not in forks]

    def spawn(self) -> GuardedProcess:
        """See :meth:`tvmx.measure.LocalFarm.spawn`."""
        return start_server(
            self._guest,
            self._root,
            self.emulation,
            self.address,
            self.facts,
            host=self._host,
            share_files=self._share_files,
        )


def require_board(target: Target) -> None:
    """Raises :class:`tvmx.errors.UsageError` for a target that cannot be simulated."""
    if target.arch != "aarch64":
        raise UsageError(
            f"{target.name} is a target for {target.arch}: only aarch64 boards are simulated",
            hint="`tvmx targets` lists the boards",
        )


def simulate_forever(
    board: SimulatedBoard,
    on_ready: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Keep the servers of ``board`` running until interrupted; ``on_ready`` once they are there.

    ``say`` is told what happens to them. Raises :class:`tvmx.errors.DeviceError` when they
    cannot be started, or not again.
    """
    with board:
        on_ready()
        silent = False
        while True:
            time.sleep(_CHECK_SECONDS)
            try:
                if board.ensure():
                    say("a server or the tracker had ended and was started again")
                silent = False
            except TrackerError as err:
                if not silent:
                    say(f"{err.message}; the servers go on trying")
                silent = True
