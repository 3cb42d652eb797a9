"""A visit: one session with one of the devices under a key, to find out about it."""

from __future__ import annotations

from dataclasses import replace

from tvmx.measure._address import DeviceAddress
from tvmx.measure._cores import Cores
from tvmx.measure._deadlines import Deadlines
from tvmx.measure._probe import ProbeFigures, ProbeLibrary
from tvmx.measure._session import Session
from tvmx.measure._spool import Spool
from tvmx.measure._tasks import (
    ConnectedEvent,
    DescribeTask,
    Event,
    Fact,
    FailedEvent,
    InspectTask,
    Link,
    Task,
    TicketEvent,
)

BROKEN_OFF = "its connection broke off: the server ended, or let in a client that waited"


class Visit:
    """Asks for a device and keeps it to itself until :meth:`close`.

    ``facts`` are what was found so far, by the names of :mod:`tvmx.measure._inspect`;
    ``failure`` is what ended it early; ``server`` the device's host:port as soon as the tracker
    has named it. No method raises for what is wrong with a device, or waits past the deadlines.
    """

    def __init__(self, address: DeviceAddress, cores: Cores, deadlines: Deadlines) -> None:
        self._queue_seconds = deadlines.queue
        self._session = Session(Link(address, cores, deadlines), self._heard)
        self.server = ""
        self.identity = ""
        self.facts: dict[str, Fact] = {}
        self.failure: FailedEvent | None = None

    def look(self) -> None:
        """Connect, and read what shows without a probe."""
        self._call(InspectTask(self._queue_seconds))

    def stay(self) -> None:
        """Keep the device, which is let go when nothing is asked of it for some seconds."""
        self._call(DescribeTask(self._queue_seconds))

    def examine(self, probe: ProbeLibrary) -> None:
        """Upload and run the probe, and read what only it can reach."""
        self._session.link = replace(self._session.link, probe=probe)
        self._call(InspectTask(self._queue_seconds))

    def figures(self) -> ProbeFigures | None:
        """What the probe measured; None when it did not come to that."""
        texts = [self.facts[name].value for name in _FIGURES if name in self.facts]
        return ProbeFigures(*map(float, texts)) if len(texts) == len(_FIGURES) else None

    def close(self) -> None:
        """Let the device go."""
        self._session.close()

    def retire(self) -> None:
        """End at once, from any thread."""
        self._session.retire()

    def _call(self, task: Task) -> None:
        if self.failure is not None:
            return

        def make(_: Spool) -> Task:
            return task

        met = bool(self.identity)
        event = self._session.call(make)
        if isinstance(event, FailedEvent) and self.failure is None:
            # Who had a device and has to queue has lost it.
            lost = met and event.status == "queue"
            self.failure = FailedEvent("connect", BROKEN_OFF) if lost else event

    def _heard(self, session: Session, event: Event) -> None:
        if isinstance(event, TicketEvent):
            if self.server and event.server != self.server:
                self.failure = FailedEvent("connect", BROKEN_OFF)
            self.server = self.server or event.server
        elif isinstance(event, ConnectedEvent):
            self.identity = event.identity
        elif isinstance(event, Fact) and self.failure is None:
            self.facts[event.name] = event


_FIGURES = ("float", "bandwidth", "int8")
