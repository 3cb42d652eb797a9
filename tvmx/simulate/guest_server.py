"""TVM's RPC server inside the guest: run there as a script, with Python, numpy and TVM alone.

It is the plain server of any board, with these differences: a candidate that crashes does not
end its listener; the client learns which signal it was; while a time evaluator runs, the clock
shows simulated time where the emulator can; and three functions tell what this is:

``tvmx.identity()``                 one line
``tvmx.simulated()``                the board's facts, a JSON object
``tvmx.simulated_counters(index)``  what ran between two looks at the clock, a JSON object of
                                    :data:`COUNTERS`; index 0 is before the last look, 1 the one
                                    before that. Where there is none: ``{"missing": "why"}``

With ``--functions`` files are shared with the client by path, as tvmx's servers of the host do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import json
import multiprocessing
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

SIMULATED = "tvmx.simulated"
SIMULATED_COUNTERS = "tvmx.simulated_counters"
COUNTERS = (
    "nanoseconds",  # by which the clock went on
    "core_cycles",
    "memory_cycles",
    "instructions",
    "l1_misses",
    "l2_hits",
    "prefetched_lines",
    "l2_misses",
    "blocks",  # of code that ran
    "unmodelled_instructions",  # in rare blocks, at a fixed cost
    "looks",  # at the clock so far
)
DIED = "the serving process died"
"""Begins what the client is told after a crash."""

_BIND_SECONDS = 5.0
# The emulator's plugin hears these syscalls (plugin/guest_clock.c); anyone else has no such call.
_SYSCALL, _REPORT, _SIMULATED_CLOCK, _HOST_CLOCK = 0x74766D78, 0, 1, 2
_SIMULATOR_FAILED = 70  # EXIT_FAILED of plugin/plugin.c
_NEWS = struct.Struct("<ii")  # a pid and its exit code, or _BORN
_BORN = 1000
_BIRTH_SECONDS = 20.0
_REHEARSAL, _REHEARSALS = b"r", 8
_FIELDS = 1 + len(COUNTERS)  # the first says that the others are there


def main() -> None:
    """Parse the command line, listen until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--port-end", type=int, required=True)
    parser.add_argument("--tracker-host", required=True)
    parser.add_argument("--tracker-port", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--facts", type=json.loads, required=True, help="a JSON object")
    parser.add_argument("--identity", required=True)
    parser.add_argument("--functions", type=Path, help="tvmx/measure/_server_functions.py")
    args = parser.parse_args()
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # nothing may look for it
    multiprocessing.set_start_method("fork")
    from tvm.rpc import server

    _register(args)
    _simulate_timing()
    _listen(args, server)


def _register(args: argparse.Namespace) -> None:
    import tvm_ffi

    if args.functions is not None:
        _load(args.functions).register()
    offered: dict[str, Callable[..., str]] = {
        "tvmx.identity": lambda: str(args.identity),
        SIMULATED: lambda: json.dumps(args.facts),
        SIMULATED_COUNTERS: lambda index=0: json.dumps(_counters(index)),
    }
    for name, function in offered.items():
        tvm_ffi.register_global_func(name, function, override=True)


def _simulate_timing() -> None:
    """Give TVM's time evaluators, and nothing else in here, the simulated clock.

    All caches are empty when it starts, so a figure does not depend on what ran before; the
    evaluator's own first call warms them. And the emulator need not find out what the cycles of
    a whole Python are.
    """
    import tvm_ffi

    name = "runtime.RPCTimeEvaluator"
    make = tvm_ffi.get_global_func(name)

    def make_simulated(*settings: Any) -> Any:
        evaluate = make(*settings)

        def evaluate_simulated(*arguments: Any) -> Any:
            _call_emulator(ctypes.c_long(_SIMULATED_CLOCK))
            try:
                return evaluate(*arguments)
            finally:
                _call_emulator(ctypes.c_long(_HOST_CLOCK))

        return tvm_ffi.convert(evaluate_simulated)

    tvm_ffi.register_global_func(name, make_simulated, override=True)


def _load(path: Path) -> Any:
    """A module of tvmx by its file: tvmx itself is not installed here."""
    spec = importlib.util.spec_from_file_location("server_functions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call_emulator(*arguments: Any) -> None:
    ctypes.CDLL(None).syscall(ctypes.c_long(_SYSCALL), *arguments)


def _counters(index: int) -> dict[str, Any]:
    fields = (ctypes.c_double * _FIELDS)()
    _call_emulator(ctypes.c_long(_REPORT), fields, ctypes.c_long(index))
    if not fields[0]:
        return {"missing": "the emulator simulates no clock, or not so many looks were had at it"}
    return dict(zip(COUNTERS, fields[1:], strict=True))


def _listen(args: argparse.Namespace, server: Any) -> None:
    server._serving = _Serving(server, args.facts.get("core", "the core"))
    port, end, give_up = args.port, args.port_end, time.monotonic() + _BIND_SECONDS
    announced = False
    while True:
        try:
            state = server.PopenRPCServerState(
                args.host,
                port,
                end,
                tracker_addr=(args.tracker_host, args.tracker_port),
                key=args.key,
                silent=True,
            )
        except (ValueError, OSError):
            if not announced or time.monotonic() > give_up:
                raise
            time.sleep(0.1)
            continue
        if not announced:
            announced, port, end = True, state.port, state.port + 1
            sys.stdout.write(json.dumps({"pid": os.getpid(), "port": port}) + "\n")
            sys.stdout.flush()
            os.dup2(2, 1)  # whatever prints from now on is log
        state.thread.join()  # ends when TVM's listener does, by a defect or a broken handshake
        time.sleep(0.05)
        state.sock.close()
        give_up = time.monotonic() + _BIND_SECONDS


class _Serving:
    """In the place of TVM's function that serves one client.

    TVM's raises when the serving process died, which ends the listener, and the client sees no
    more than a broken connection.
    """

    def __init__(self, server: Any, core: str) -> None:
        self._server, self._core = server, core
        self._folder = Path(tempfile.gettempdir(), "client")
        self._nursery = _Nursery(self._serve)

    def __call__(self, sock: Any, addr: Any, options: dict[str, float], library: Any) -> None:
        try:
            pid = self._nursery.start(sock)
            seconds = options.get("timeout")
            code = self._nursery.ended(seconds)
            if code is None:
                self._tell(sock, f"RPCSessionTimeoutError: the session's {seconds} s are over")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._nursery.ended(None)
            elif code:
                self._tell(sock, describe_end(code, self._core))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        """One client, in a process of its own."""
        folder = self._server.utils.tempdir(str(self._folder))
        os.chdir(folder.path)
        self._server._serve_loop(sock, None, folder)

    def _tell(self, sock: Any, text: str) -> None:
        """To the client as the answer to its call, if it still listens."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
        with contextlib.suppress(RuntimeError):  # of TVM: the client has gone
            self._server._ffi_api.ReturnException(sock.fileno(), text)


class _Nursery:
    """A process that forks the ones that serve clients, and itself never changes.

    Forked from the server, each would have the heap as the clients before it left it, and
    simulated caches show where memory lies: the same job would cost other cycles.
    """

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._child = 0
        self._channel, theirs = socket.socketpair()
        if os.fork() == 0:
            self._channel.close()
            _bear(theirs, serve)
        theirs.close()
        for _ in range(_REHEARSALS):  # what its first children leave behind
            with socket.socket() as nobody:
                self.start(nobody, _REHEARSAL)
                self.ended(None)

    def start(self, sock: socket.socket, order: bytes = b"s") -> int:
        """Let a new process serve ``sock``; its pid."""
        socket.send_fds(self._channel, [order], [sock.fileno()])
        while True:
            if not select.select([self._channel], [], [], _BIRTH_SECONDS)[0]:
                self._give_up("the process that forks servers is stuck")
            self._child, code = self._news()
            if code == _BORN:  # and not the end of one that had no client yet
                return self._child

    def ended(self, seconds: float | None) -> int | None:
        """The exit code of that process, negative for a signal; None if it still runs."""
        while select.select([self._channel], [], [], seconds)[0]:
            pid, code = self._news()
            if pid == self._child:
                return code
        return None

    def _news(self) -> tuple[int, int]:
        data = b""
        while len(data) < _NEWS.size:
            part = self._channel.recv(_NEWS.size - len(data))
            if not part:
                self._give_up("the process that forks servers is gone")
            data += part
        pid, code = _NEWS.unpack(data)
        return int(pid), int(code)

    def _give_up(self, why: str) -> NoReturn:
        """Whoever watches this process starts another."""
        sys.stderr.write(why + "\n")
        sys.stderr.flush()
        os._exit(1)


def _bear(channel: socket.socket, serve: Callable[[socket.socket], None]) -> NoReturn:
    """What the nursery does until the server is gone.

    A child is there before it has anything to do: what an order is, and brings, is seen in the
    child alone.
    """
    gc.collect()
    gc.disable()  # it would come at some client or other; those that serve may collect
    fork, wait, pack, send = os.fork, os.wait, _NEWS.pack, channel.sendall
    code = os.waitstatus_to_exitcode
    while fork():
        pid, status = wait()
        send(pack(pid, code(status)))
    _serve_and_end(channel, serve)


def _serve_and_end(channel: socket.socket, serve: Callable[[socket.socket], None]) -> NoReturn:
    order, files, _, _ = socket.recv_fds(channel, 1, 1)
    if not order:  # the server is gone
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    channel.sendall(_NEWS.pack(os.getpid(), _BORN))
    channel.close()
    gc.enable()
    try:
        if order != _REHEARSAL:
            serve(socket.socket(fileno=files[0]))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def describe_end(code: int, core: str) -> str:
    """What to tell the client of a serving process that ended with ``code``."""
    if code == _SIMULATOR_FAILED:
        return f"{DIED}: the simulator failed, see what the server wrote; no fault of the library"
    if code > 0:
        return f"{DIED}: it ended with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGILL:
        return f"{DIED} of {name}: an illegal instruction, one that {core} does not have"
    return f"{DIED} of {name} ({signal.strsignal(-code)})"


if __name__ == "__main__":
    main()
