"""The way to the devices: the tracker, the key, and who is free."""

from __future__ import annotations

import difflib
import socket
import time
from dataclasses import dataclass

from tvmx.doctor._diagnosis import Finding, broken, hint, ok
from tvmx.errors import TrackerError
from tvmx.measure import DeviceAddress, KeyStatus, TrackerSummary, tracker_summary
from tvmx.measure._tracker import reason

_CONNECT_S = 4.0
_ANSWER_S = 4.0
# A server that has just started or lost its client is listed, or free, within one or two.
_PATIENCE_S = 3.0
_PATIENCE_WITH_ONE_S = 1.5
_POLL_S = 0.2


@dataclass(frozen=True)
class Way:
    """What stands between here and the devices; ``servers`` are host:port of those under the key.

    ``free`` of them can be had now.
    """

    findings: tuple[Finding, ...]
    servers: tuple[str, ...] = ()
    free: int = 0


def check_way(address: DeviceAddress) -> Way:
    """Ask the tracker, within a few seconds."""
    findings = [_connection(address)]
    if findings[0].level == "broken":
        return Way(tuple(findings))
    try:
        summary = _ask(address)
    except TrackerError as err:
        findings.append(broken("protocol", err.message, *filter(None, [err.hint])))
        return Way(tuple(findings))
    findings.append(ok("protocol", "a TVM RPC tracker"))
    status = summary.keys.get(address.key)
    findings.append(_key(address, summary, status))
    if status is None:
        return Way(tuple(findings))
    findings.append(_free(status))
    servers = summary.addresses(address.key)
    return Way(tuple(findings), servers, min(status.free, len(servers)))


def _connection(address: DeviceAddress) -> Finding:
    start = time.monotonic()
    try:
        socket.create_connection((address.host, address.port), _CONNECT_S).close()
    except (OSError, UnicodeError) as err:
        timed_out = isinstance(err, TimeoutError)
        why = f"no answer within {_CONNECT_S:g} s" if timed_out else reason(err)
        return broken("connection", f"{address.tracker}: {why}", *_todo(address, err))
    return ok(
        "connection", f"{address.tracker} answers in {(time.monotonic() - start) * 1e3:.0f} ms"
    )


def _todo(address: DeviceAddress, err: Exception) -> tuple[str, ...]:
    start = f"tvmx tracker --host {address.host} --port {address.port}"
    if isinstance(err, ConnectionRefusedError):
        return (f"no tracker runs there; start one: {start}",)
    if isinstance(err, (socket.gaierror, UnicodeError)):
        return (f"is the name right? ping {address.host}",)
    return (
        f"ping {address.host}",
        f"is a firewall in between? the tracker's port is {address.port}",
    )


def _ask(address: DeviceAddress) -> TrackerSummary:
    """The tracker's summary; waits a little for the key to be there and all devices free."""
    start = time.monotonic()
    while True:
        summary = tracker_summary(address.host, address.port, _ANSWER_S)
        status = summary.keys.get(address.key)
        free = status.free if status else 0
        waited = time.monotonic() - start
        if status is not None and free >= status.servers:
            return summary
        if waited > (_PATIENCE_WITH_ONE_S if free else _PATIENCE_S):
            return summary
        time.sleep(_POLL_S)


def _key(address: DeviceAddress, summary: TrackerSummary, status: KeyStatus | None) -> Finding:
    if status is not None:
        count = f"{status.servers} device{'s' if status.servers > 1 else ''}"
        return ok("key", f"{address.key}: {count} registered")
    serve = f"tvmx serve --key {address.key} --tracker {address.tracker} --commands"
    if not summary.keys:
        return broken(
            "key",
            f"no device {address.key!r}: none is registered at all",
            f"what to type on the board is printed by: {serve}",
        )
    known = sorted(summary.keys)
    close = difflib.get_close_matches(address.key, known, 1, 0.4) or known[:1]
    return broken(
        "key",
        f"no device {address.key!r}; there {'is' if len(known) == 1 else 'are'} {', '.join(known)}",
        f"tvmx doctor --tracker {address.tracker} --key {close[0]}",
        f"or register the board; what to type there is printed by: {serve}",
    )


def _free(status: KeyStatus) -> Finding:
    waiting = {0: "nobody waits", 1: "1 client waits"}.get(
        status.pending, f"{status.pending} clients wait"
    )
    text = f"{status.free} of {status.servers}, {waiting}"
    if status.free == status.servers and not status.pending:
        return ok("free", text)
    again = "a busy device is not examined: type the same again when it is free"
    return (hint if status.free else broken)("free", text, again)
