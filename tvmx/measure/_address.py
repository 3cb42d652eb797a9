"""Where a device is: a tracker and a key."""

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


def join_host_port(host: str, port: int) -> str:
    """``HOST:PORT`` as :func:`parse_host_port` takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
        return join_host_port(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.key} at {self.tracker}"
