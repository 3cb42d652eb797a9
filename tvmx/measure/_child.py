"""``python -m tvmx.measure._child tracker|server``: TVM's tracker or RPC server as our child.

Prints one JSON line with pid and port when it is up. Ends with its parent (see ``_guard``).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from tvmx.measure._address import parse_host_port
from tvmx.measure._guard import split

_BIND_SECONDS = 5.0


def without_torch() -> None:
    """Keep tvm_ffi from importing torch, which takes 2 s and 200 MB and is not needed here."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def main() -> None:
    """Parse the command line, put the guard in place, serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("tracker", "server"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--port-end", type=int, default=0)
    parser.add_argument("--tracker", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--custom-addr", default=None)
    parser.add_argument("--plain", action="store_true", help="offer only TVM's own functions")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--scratch", default=None)
    args = parser.parse_args()
    split(args.parent, args.scratch)
    without_torch()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # candidates that crash leave no core files
    first, end = _port_range(args.port, args.port_end)
    if args.role == "tracker":
        _track(args.host, first, end)
    else:
        _serve(args, first, end)


def _port_range(port: int, port_end: int) -> tuple[int, int]:
    if port:
        return port, max(port_end, port + 1)
    # TVM cannot bind port 0. Below 32768, where Linux starts to hand out ephemeral ports.
    start = random.SystemRandom().randrange(20000, 31000)
    return start, start + 1000


def _announce(port: int) -> None:
    sys.stdout.write(json.dumps({"pid": os.getpid(), "port": port}) + "\n")
    sys.stdout.flush()
    os.dup2(2, 1)  # whatever prints from now on is log


def _track(host: str, first: int, end: int) -> None:
    from tvm.rpc.tracker import PopenTrackerServerState

    state = PopenTrackerServerState(host, first, end, silent=True)
    _announce(state.port)
    state.thread.join()


def _serve(args: argparse.Namespace, first: int, end: int) -> None:
    """Listen for ever.

    TVM's listener thread ends when a client's kernel crashes, and leaves the process alive but
    gone from the tracker; a new listener on the same port takes its place at once.
    """
    if not args.plain:
        from tvmx.measure import _server_functions

        _server_functions.register()
    home = Path.cwd()
    port = 0
    while True:
        state = _listen(args, first, end)
        if not port:
            port = state.port
            first, end = port, port + 1
            _announce(port)
        state.thread.join()
        time.sleep(0.05)  # keeps a listener that dies at once from spinning
        state.sock.close()
        os.chdir(home)  # it died inside the client's folder
        for child in multiprocessing.active_children():  # they hold the listening socket
            child.kill()
            child.join()


def _listen(args: argparse.Namespace, first: int, end: int) -> Any:
    from tvm.rpc.server import PopenRPCServerState

    give_up = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            return PopenRPCServerState(
                args.host,
                first,
                end,
                tracker_addr=parse_host_port(args.tracker),
                key=args.key,
                custom_addr=args.custom_addr,
                silent=True,
            )
        except (ValueError, OSError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
