"""Temperature of a device, read through TVM's own RPC functions: works on a plain server."""

from __future__ import annotations

import time
from typing import Any

_ZONES = "/sys/class/thermal/thermal_zone{}/"
_MOST_ZONES = 16
_FRESH_SECONDS = 2.0
_LOST = (
    "kShutdown",
    "RPCCode::kReturn",  # of a copy to or from the device, as is the next
    "RPCCode::kCopyAck",
    "Broken pipe",
    "Connection reset",
    "Channel closes",
    "previously closed",
    "the serving process died",  # what servers say that know why (simulate/guest_server.py)
)


def is_lost(error: Exception) -> bool:
    """Whether an exception of TVM's client means that the connection is gone."""
    return any(sign in str(error) for sign in _LOST)


def read_text(remote: Any, path: str) -> str:
    """A small file on the device; empty when it cannot be read.

    TVM's ``download`` opens any path, but sees a file of /proc as empty. Raises what TVM raised
    when the connection is gone.
    """
    try:
        blob = bytes(remote.download(path))
    except Exception as err:
        if is_lost(err):
            raise
        return ""
    return blob.split(b"\0", 1)[0].decode(errors="replace").strip()


def parse_celsius(text: str) -> float | None:
    """Degrees from a thermal zone's text, in thousandths; None when it makes no sense."""
    try:
        celsius = int(text) / 1000.0
    except ValueError:
        return None
    return celsius if -50.0 < celsius < 200.0 else None


class Thermometer:
    """The highest temperature of a device's thermal zones, degrees Celsius."""

    def __init__(self, remote: Any) -> None:
        self._remote = remote
        self._zones: list[str] | None = None
        self._last: float | None = None
        self._stale = 0.0

    def close(self) -> None:
        """Let go of the session."""
        self._remote = None

    def read(self, *, fresh: bool = False) -> float | None:
        """None where the device shows none; at most two seconds old unless ``fresh``."""
        now = time.monotonic()
        if self._zones is None:
            self._zones = self._find()
        if self._zones and (fresh or now >= self._stale):
            found = [parse_celsius(read_text(self._remote, zone)) for zone in self._zones]
            self._last = max((c for c in found if c is not None), default=None)
            self._stale = now + _FRESH_SECONDS
        return self._last

    def _find(self) -> list[str]:
        """Zones are numbered without gaps; one whose sensor is off is there, but cannot be read."""
        zones = []
        for number in range(_MOST_ZONES):
            folder = _ZONES.format(number)
            if parse_celsius(read_text(self._remote, folder + "temp")) is not None:
                zones.append(folder + "temp")
            elif not read_text(self._remote, folder + "type"):
                break
        return zones
