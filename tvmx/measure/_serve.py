"""Tracker and server in the foreground, and what a board needs to join."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable

from tvmx.errors import DeviceError
from tvmx.measure._address import DeviceAddress
from tvmx.measure._farm import server_environment
from tvmx.measure._guard import GuardedProcess
from tvmx.measure._tracker import tracker_summary

TVM_VERSION = "0.27.0.post1"
FFI_VERSION = "0.1.14.post1"
BOARD_INSTALL = f"python3 -m pip install apache-tvm=={TVM_VERSION} apache-tvm-ffi=={FFI_VERSION}"
_START_SECONDS = 60.0


def exposure_warning(host: str) -> str | None:
    """What to tell the user before listening on ``host``; None on a loopback address."""
    if _is_loopback(host):
        return None
    return (
        f"WARNING: {host} is reachable from the network. TVM's RPC has no authentication:"
        " anyone who can connect can write files and run code on this machine as you."
        " Use it in a trusted network only, or stay on 127.0.0.1 and forward the port by SSH."
    )


def board_commands(key: str, tracker: str, port: int = 9090, host: str = "0.0.0.0") -> list[str]:
    """The two commands that make a board a device. Only TVM is installed there.

    ``tracker`` is HOST:PORT as the board sees it; the server listens on ``host``, at ``port`` or
    one of the nine after it (127.0.0.1 where an SSH tunnel leads to the board).
    ``python -m tvm.exec.rpc_server`` would do until the first kernel crashes: then its listener
    ends and the process stays. Here the process ends, and the loop starts another.
    """
    address = DeviceAddress.parse(tracker, key)
    program = (
        "from tvm.rpc.server import PopenRPCServerState as S;"
        f' S("{host}", {port}, {port + 10}, tracker_addr=("{address.host}", {address.port}),'
        f' key="{key}").thread.join()'
    )
    return [
        BOARD_INSTALL,
        f"while sleep 1; do python3 -c '{program}'; done",
    ]


def track_forever(
    host: str = "127.0.0.1",
    port: int = 9190,
    *,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Run a tracker until interrupted; ``on_ready(port)`` once it listens.

    The port is ``port`` or one of the nine after it. Raises :class:`tvmx.errors.DeviceError`
    when it cannot start or ends by itself.
    """
    args = ["tracker", "--host", host, "--port", str(port), "--port-end", str(port + 10)]
    _forever(GuardedProcess("tvmx.measure._child", args), "tracker", on_ready)


def serve_forever(
    key: str,
    tracker: str,
    *,
    host: str = "127.0.0.1",
    port_range: tuple[int, int] = (9090, 9199),
    threads: int | None = None,
    custom_addr: str | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve this machine as device ``key`` until interrupted; ``on_ready(port)`` once it listens.

    ``threads`` is the most threads a kernel may use (default: all processors);
    ``custom_addr`` the address the tracker should hand out instead of the one it sees.
    Restarts its listener after a kernel has crashed. Raises
    :class:`tvmx.errors.TrackerError` when there is no tracker, :class:`DeviceError` otherwise.
    """
    address = DeviceAddress.parse(tracker, key)
    tracker_summary(address.host, address.port)
    args = ["server", "--host", host, "--tracker", address.tracker, "--key", key]
    args += ["--port", str(port_range[0]), "--port-end", str(port_range[1])]
    if custom_addr:
        args += ["--custom-addr", custom_addr]
    env = server_environment(threads or os.cpu_count() or 1, bind=True)
    _forever(GuardedProcess("tvmx.measure._child", args, env=env), f"server {key!r}", on_ready)


def _forever(process: GuardedProcess, what: str, on_ready: Callable[[int], None] | None) -> None:
    try:
        port = int(process.ready(_START_SECONDS)["port"])
        if on_ready is not None:
            on_ready(port)
        while process.alive:
            time.sleep(0.2)
        raise DeviceError(f"the {what} ended by itself: {process.log_tail() or 'no message'}")
    finally:
        process.kill()


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)
