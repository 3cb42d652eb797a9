"""Where a device is, and how long each step towards it may take."""

from __future__ import annotations

from dataclasses import dataclass

from tvmx.errors import UsageError


def parse_host_port(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` (IPv6 hosts in brackets). Raises :class:`UsageError` on nonsense."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"{text!r} is not HOST:PORT", hint="give the tracker as, for instance, 127.0.0.1:9190"
        )
    return host, int(port)


@dataclass(frozen=True)
class DeviceAddress:
    """A device: the tracker at ``host:port`` and the key under which servers register."""

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, tracker: str, key: str) -> DeviceAddress:
        """From ``HOST:PORT`` and a key. Raises :class:`UsageError` when either is unusable."""
        host, port = parse_host_port(tracker)
        if not key or any(c.isspace() or c == ":" for c in key):
            raise UsageError(f"{key!r} is no device key: it is empty or holds blanks or colons")
        return cls(host, port, key)

    @property
    def tracker(self) -> str:
        """The tracker as ``HOST:PORT``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.key} at {self.tracker}"


@dataclass(frozen=True)
class Timeouts:
    """Seconds each phase of a job may take; the measuring side enforces all of them itself.

    ``queue``: until the tracker hands out a device; ``connect``: until the device's server has
    answered; ``upload``: library and arrays, plus one second for each 4 MB of them; ``load``:
    opening the library; ``run``: each remote call that executes the candidate (check, then
    timing).
    """

    queue: float = 30.0
    connect: float = 15.0
    upload: float = 60.0
    load: float = 30.0
    run: float = 60.0

    def __post_init__(self) -> None:
        for name in ("queue", "connect", "upload", "load", "run"):
            value = getattr(self, name)
            if not 0 < value < 86400:
                raise UsageError(f"timeout {name}={value} must lie between 0 and 86400 seconds")

    def of(self, phase: str) -> float:
        """Seconds of a phase by name."""
        return float(getattr(self, phase))

    def transfer(self, nbytes: int) -> float:
        """Seconds an upload of this size may take on the slowest boards."""
        return self.upload + nbytes / 4e6

    @property
    def job(self) -> float:
        """The longest time a connected job may hold the device, seconds."""
        return self.upload + self.load + self.run

    @property
    def session(self) -> float:
        """After this many seconds the server ends a session by itself.

        It is what frees a board from a candidate that hangs, so it is no longer than needed.
        """
        return self.job + 30.0
