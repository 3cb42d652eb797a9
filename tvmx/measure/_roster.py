"""The roster: which devices are under a key, and what is known of each."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from tvmx.errors import TrackerError
from tvmx.measure._address import DeviceAddress
from tvmx.measure._observer import Observer
from tvmx.measure._probe import DRIFT, ProbeFigures, unlike_siblings
from tvmx.measure._tasks import ConnectedEvent, ProbedEvent
from tvmx.measure._tracker import KeyStatus, tracker_summary

_LEFT_AFTER_S = 5.0  # a server restarts its listener in one or two
_POLL_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class DeviceReport:
    """What a runner knows of one device. ``server`` is host:port, ``drift`` as in Measurement.

    ``first`` are its earliest probe figures, ``figures`` its latest. ``deviation`` says how they
    differ from those of its siblings, where they do by more than 10 %.
    """

    server: str
    identity: str
    first: ProbeFigures | None = None
    figures: ProbeFigures | None = None
    temperature_c: float | None = None
    drift: float | None = None
    deviation: str | None = None
    measured: int = 0


@dataclass
class _Presence:
    missing_since: float | None = None
    gone: bool = False


@dataclass
class Roster:
    """Keeps the reports, and tells the observer who leaves, returns, drifts or stands out."""

    address: DeviceAddress
    observer: Observer
    _reports: dict[str, DeviceReport] = field(default_factory=dict)
    _presence: dict[str, _Presence] = field(default_factory=dict)
    _flags: dict[str, str] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def poll(self) -> KeyStatus | None:
        """The key's state at the tracker; None when the tracker is silent or the key unknown."""
        try:
            summary = tracker_summary(self.address.host, self.address.port, _POLL_TIMEOUT_S)
        except TrackerError:
            return None
        present = set(summary.addresses(self.address.key))
        with self._lock:
            self._note_presence(present)
        return summary.keys.get(self.address.key)

    def connected(self, event: ConnectedEvent) -> None:
        """A session was opened with this device."""
        with self._lock:
            known = self._reports.get(event.server) or DeviceReport(event.server, event.identity)
            self._reports[event.server] = replace(known, identity=event.identity)

    def measured(self, server: str) -> None:
        """One more candidate was measured there."""
        with self._lock:
            if (known := self._reports.get(server)) is not None:
                self._reports[server] = replace(known, measured=known.measured + 1)

    def probed(self, server: str, event: ProbedEvent) -> None:
        """The probe was run there; flags drift and what sets the device apart."""
        with self._lock:
            known = self._reports.get(server)
            if known is None:
                return
            first = known.first or event.figures
            ratios = event.figures.ratios(first)
            drift = max((abs(r - 1) for r in ratios.values()), default=0.0)
            self._reports[server] = replace(
                known,
                first=first,
                figures=event.figures,
                temperature_c=event.temperature_c,
                drift=drift,
            )
            warm = "" if event.temperature_c is None else f" at {event.temperature_c:.0f} °C"
            moved = event.figures.deviation(first, DRIFT)
            self._flag(server, "drift", moved and f"{moved} than at the start{warm}")
            self._compare_siblings()

    def drift(self, server: str) -> float | None:
        """See :class:`DeviceReport`; None before the first probe."""
        with self._lock:
            known = self._reports.get(server)
            return None if known is None else known.drift

    def reports(self) -> tuple[DeviceReport, ...]:
        """All devices met so far, by server."""
        with self._lock:
            return tuple(self._reports[server] for server in sorted(self._reports))

    def _compare_siblings(self) -> None:
        known = {s: r.first for s, r in self._reports.items() if r.first is not None}
        if len(known) < 2:
            return
        for server, deviation in unlike_siblings(known).items():
            self._reports[server] = replace(self._reports[server], deviation=deviation)
            self._flag(server, "siblings", deviation and f"{deviation} than its siblings'")

    def _flag(self, server: str, kind: str, text: str | None) -> None:
        """Say it once, and again only after it was well in between."""
        name = f"{kind} {server}"
        if not text:
            self._flags.pop(name, None)
        elif name not in self._flags:
            self._flags[name] = text
            self.observer.message(f"{self._name(server)}: {text}; its figures are flagged")

    def _note_presence(self, present: set[str]) -> None:
        now = time.monotonic()
        for server in present | set(self._presence):
            state = self._presence.setdefault(server, _Presence())
            if server in present:
                if state.gone:
                    self.observer.message(f"{self._name(server)} is back")
                self._presence[server] = _Presence()
            elif state.missing_since is None:
                state.missing_since = now
            elif not state.gone and now - state.missing_since > _LEFT_AFTER_S:
                state.gone = True
                left = len(present)
                rest = f"{left} left" if left else "none is left"
                self.observer.message(
                    f"{self._name(server)} has left the tracker; {rest} under {self.address.key!r}"
                )

    def _name(self, server: str) -> str:
        known = self._reports.get(server)
        identity = f" ({known.identity})" if known else ""
        return f"device {self.address.key} on {server}{identity}"
