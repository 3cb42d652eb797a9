"""A client of TVM's RPC tracker that never blocks: plain sockets, every step with a deadline.

The protocol (``tvm/rpc/tracker.py``): both sides send a magic number, then each message is a
little-endian int32 length and that many bytes of JSON. TVM's own client waits 60 s for a
refused connection and for ever for an unknown key.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from tvmx.errors import TrackerError, UnknownKeyError
from tvmx.measure._address import DeviceAddress, join_host_port

_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_MAX_MESSAGE = 1 << 24


@dataclass(frozen=True)
class KeyStatus:
    """Servers registered under a key: how many, how many are free, clients waiting for one."""

    key: str
    servers: int
    free: int
    pending: int

    @property
    def busy(self) -> int:
        """Servers that serve a client now (or were handed out a moment ago)."""
        return max(0, self.servers - self.free)


@dataclass(frozen=True)
class TrackerSummary:
    """What a tracker knows. ``keys`` holds only keys with at least one registered server.

    ``servers`` are (key, host, port) of every registered server; a host of None in TVM's
    answer (the server gave no address) has been filled in by the tracker.
    """

    address: str
    keys: dict[str, KeyStatus]
    servers: tuple[tuple[str, str, int], ...]

    def addresses(self, key: str) -> tuple[str, ...]:
        """HOST:PORT of every server under a key."""
        return tuple(join_host_port(host, port) for k, host, port in self.servers if k == key)

    def registered(self, key: str, port: int) -> bool:
        """Whether a server with this key listens on this port, going by the tracker."""
        return any(k == key and p == port for k, _, p in self.servers)


@dataclass(frozen=True)
class ServerTicket:
    """A device handed out by the tracker: where it is and the one-time key to show there."""

    host: str
    port: int
    match_key: str


class TrackerConnection:
    """One connection to a tracker; ``timeout`` bounds connecting and every later answer."""

    def __init__(self, host: str, port: int, timeout: float = 5.0) -> None:
        self._where = f"{host}:{port}"
        self._timeout = timeout
        end = time.monotonic() + timeout
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except (OSError, UnicodeError) as err:
            raise TrackerError(
                f"no tracker answers at {self._where}: {reason(err)}",
                hint=f"start one with: tvmx tracker --host {host} --port {port}",
            ) from err
        try:
            self._send_raw(struct.pack("<i", _MAGIC))
            if struct.unpack("<i", self._receive_raw(4, end))[0] != _MAGIC:
                raise self._not_a_tracker()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; a request that is still queued is dropped by the tracker."""
        self._socket.close()

    def __enter__(self) -> TrackerConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self) -> TrackerSummary:
        """Ask for the state of all keys. Raises :class:`TrackerError`."""
        self._send([_SUMMARY])
        answer = self._receive(time.monotonic() + self._timeout)
        try:
            code, status = answer
            if code != _SUCCESS:
                raise self._not_a_tracker()
            return _parse_summary(self._where, status)
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise self._not_a_tracker() from err

    def request(self, key: str, timeout: float) -> ServerTicket | None:
        """Queue for a device; None if none was handed out within ``timeout`` seconds."""
        self._send([_REQUEST, key, "tvmx", 1])
        try:
            answer = self._receive(time.monotonic() + timeout)
        except TimeoutError:
            return None
        try:
            code, (host, port, match_key) = answer
        except (TypeError, ValueError) as err:
            raise self._not_a_tracker() from err
        if code != _SUCCESS:
            raise self._not_a_tracker()
        return ServerTicket(str(host), int(port), str(match_key))

    def _not_a_tracker(self) -> TrackerError:
        return TrackerError(
            f"what answers at {self._where} is not a TVM RPC tracker",
            hint="check host and port; `tvmx tracker` prints where it listens",
        )

    def _send(self, message: list[Any]) -> None:
        body = json.dumps(message).encode()
        self._send_raw(struct.pack("<i", len(body)) + body)

    def _send_raw(self, data: bytes) -> None:
        self._socket.settimeout(self._timeout)
        try:
            self._socket.sendall(data)
        except OSError as err:
            raise TrackerError(f"tracker {self._where} went away: {reason(err)}") from err

    def _receive(self, end: float) -> Any:
        (size,) = struct.unpack("<i", self._receive_raw(4, end, waits=True))
        if not 0 < size <= _MAX_MESSAGE:
            raise self._not_a_tracker()
        try:
            return json.loads(self._receive_raw(size, max(end, time.monotonic() + 1.0)))
        except ValueError as err:
            raise self._not_a_tracker() from err

    def _receive_raw(self, size: int, end: float, waits: bool = False) -> bytes:
        data = b""
        while len(data) < size:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                chunk = self._socket.recv(size - len(data))
            except TimeoutError as err:
                if waits and not data:
                    raise
                raise TrackerError(
                    f"{self._where} accepts connections but does not answer like a tracker",
                    hint="check host and port; `tvmx tracker` prints where it listens",
                ) from err
            except OSError as err:
                raise TrackerError(f"tracker {self._where} went away: {reason(err)}") from err
            if not chunk:
                raise TrackerError(
                    f"{self._where} closed the connection: not a tracker, or it just stopped",
                    hint="check host and port; `tvmx tracker` prints where it listens",
                )
            data += chunk
        return data


def tracker_summary(host: str, port: int, timeout: float = 5.0) -> TrackerSummary:
    """Keys and servers of a tracker, within ``timeout`` seconds.

    Raises :class:`TrackerError` when it refuses, does not answer or is no tracker.
    """
    with TrackerConnection(host, port, timeout) as tracker:
        try:
            return tracker.summary()
        except TimeoutError as err:
            raise TrackerError(
                f"the tracker at {host}:{port} does not answer within {timeout:g} s"
            ) from err


def require_key(
    address: DeviceAddress, timeout: float = 5.0, *, patience: float = 0.0
) -> KeyStatus:
    """The status of the address's key, asked before any request that would wait for it.

    Asks again for ``patience`` seconds while the key is missing. Raises
    :class:`TrackerError`, or :class:`UnknownKeyError` listing the keys there are.
    """
    end = time.monotonic() + patience
    while True:
        summary = tracker_summary(address.host, address.port, timeout)
        status = summary.keys.get(address.key)
        if status is not None or time.monotonic() > end:
            break
        time.sleep(0.1)
    if status is None:
        known = ", ".join(sorted(summary.keys)) or "none, no device is registered"
        raise UnknownKeyError(
            f"the tracker at {address.tracker} knows no device {address.key!r} (known: {known})",
            hint=f"register one with: tvmx serve --key {address.key} --tracker {address.tracker}",
        )
    return status


def _parse_summary(where: str, status: dict[str, Any]) -> TrackerSummary:
    servers = []
    for info in status["server_info"]:
        host, port = info["addr"]
        servers.append((str(info["key"]).removeprefix("server:"), str(host), int(port)))
    keys: dict[str, KeyStatus] = {}
    for key in sorted({k for k, _, _ in servers}):
        queue = status["queue_info"].get(key, {})
        count = sum(k == key for k, _, _ in servers)
        keys[key] = KeyStatus(key, count, int(queue.get("free", 0)), int(queue.get("pending", 0)))
    return TrackerSummary(where, keys, tuple(servers))


def reason(err: Exception) -> str:
    """Why a connection could not be made or broke, in a few words."""
    if isinstance(err, TimeoutError):
        return "timed out"
    if isinstance(err, OSError) and err.strerror:
        return err.strerror
    return str(err) or type(err).__name__
