"""The parent's side of a worker: deadlines, and a new worker when one had to be killed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from tvmx.errors import DeviceError
from tvmx.measure._guard import GuardedProcess
from tvmx.measure._measurement import Status
from tvmx.measure._spool import Spool
from tvmx.measure._tasks import (
    ConnectedEvent,
    DoneEvent,
    Event,
    FailedEvent,
    Link,
    LinkTask,
    Phase,
    PhaseEvent,
    Task,
    TicketEvent,
)

_START_SECONDS = 60.0
_GOODBYE_SECONDS = 1.0


class Session:
    """Runs tasks in a worker process and never waits past a phase's deadline.

    A worker that is late or dies is killed; the task fails with the phase it was in, and the
    next task starts a new worker.

    ``on_event`` gets what the worker says of the device: connected, probed, cooling.
    """

    def __init__(self, link: Link, on_event: Callable[[Session, Event], None]) -> None:
        self._link = link
        self._on_event = on_event
        self._relink = False
        self.ticket: TicketEvent | None = None  # the server handed out last
        self.connected: ConnectedEvent | None = None  # and once it has answered
        self.ends = 0.0  # when that server ends the session by itself
        self.retired = False
        self.phase: Phase | None = None  # of the task that runs now
        self.phase_since = 0.0
        self._process: GuardedProcess | None = None
        self._channel: Connection | None = None
        self._spool: Spool | None = None

    @property
    def link(self) -> Link:
        """How the device is reached; what is set holds from the next task on."""
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        self._relink |= link != self._link
        self._link = link

    def close(self) -> None:
        """Let an idle worker say goodbye to the device, which is then free at once."""
        channel, process = self._channel, self._process
        if channel is not None:
            channel.close()
        if process is not None:
            process.wait(_GOODBYE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the worker wherever it is; any thread may."""
        channel, process = self._channel, self._process
        self._process = self._channel = self._spool = None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()

    def retire(self) -> None:
        """End the worker and let none start again: a task under way fails, so do later ones."""
        self.retired = True
        self.kill()

    def start(self) -> None:
        """Start the worker now instead of with the first task. Raises DeviceError."""
        if self._process is not None and self._process.alive:
            return
        self.kill()
        self.ticket = self.connected = None
        ours, theirs = socket.socketpair()
        with theirs:
            process = GuardedProcess(
                "tvmx.measure._worker",
                ["--channel", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        channel = Connection(ours.detach())
        self._process, self._channel = process, channel
        try:
            if self.retired:  # while the process was being started
                raise DeviceError("measuring was stopped")
            process.ready(_START_SECONDS)
            channel.send(self._link)
            self._relink = False
        except BaseException:
            self.kill()
            raise
        spool = process.scratch / "spool"
        spool.mkdir()
        self._spool = Spool(spool)

    @property
    def folder(self) -> Path:
        """The worker's scratch folder; it vanishes with the worker."""
        assert self._process is not None
        return self._process.scratch

    def call(self, make: Callable[[Spool], Task]) -> DoneEvent | FailedEvent:
        """Run the task that ``make`` builds with its arrays in the worker's spool."""
        if self.retired:
            return FailedEvent("connect", "measuring was stopped")
        try:
            self.start()
            assert self._spool is not None
            self._spool.trim()
            if self._relink:
                self._relink = False
                answer = self._converse(LinkTask(self._link))
                if isinstance(answer, FailedEvent):
                    return answer
            return self._converse(make(self._spool))
        except DeviceError as err:
            self.kill()
            return FailedEvent("connect", err.message)
        except OSError as err:  # disk full, no memory for a process
            self.kill()
            return FailedEvent("upload", f"on this machine: {err}")
        except BaseException:  # Ctrl-C: the worker is in the middle of something
            self.kill()
            raise
        finally:
            self.phase = None

    def _converse(self, task: Task) -> DoneEvent | FailedEvent:
        channel = self._channel
        if channel is None:
            raise DeviceError("measuring was stopped")
        now = PhaseEvent("start", _START_SECONDS)
        end = time.monotonic() + now.seconds
        try:
            channel.send(task)
            while True:
                if not channel.poll(max(0.0, end - time.monotonic())):
                    self.kill()
                    return _late(now)
                event: Event = channel.recv()
                if isinstance(event, DoneEvent | FailedEvent):
                    return event
                if isinstance(event, PhaseEvent):
                    now = event
                    end = time.monotonic() + now.seconds
                    self.phase, self.phase_since = now.phase, time.monotonic()
                    if now.phase == "queue":
                        self.ticket = self.connected = None
                elif isinstance(event, TicketEvent):
                    self.ticket = event
                elif isinstance(event, ConnectedEvent):
                    self.connected, self.ends = event, time.monotonic() + event.seconds
                self._on_event(self, event)
        except (EOFError, ConnectionError):
            self.kill()
            return FailedEvent(
                _blame(now.phase, "crash"),
                f"{now.phase}: the connection took the client process down with it",
                now.subject,
            )


def _blame(phase: Phase, in_candidate: Status) -> Status:
    if phase in ("load", "run"):
        return in_candidate
    if phase == "start" or phase == "cool":
        return "connect"
    return phase


def _late(now: PhaseEvent) -> FailedEvent:
    return FailedEvent(
        _blame(now.phase, "timeout"), f"{now.phase}: no end after {now.seconds:g} s", now.subject
    )
