from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tests.measure_libraries import build_c
from tvmx.errors import TrackerError, UsageError
from tvmx.measure import (
    Deadlines,
    DeviceAddress,
    KernelJob,
    RpcRunner,
    board_commands,
    exposure_warning,
    serve_forever,
    tracker_summary,
)
from tvmx.measure._guard import GuardedProcess


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_warning(host: str) -> None:
    assert exposure_warning(host) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "no.such.host.invalid"])
def test_anything_else_does(host: str) -> None:
    assert "run code" in str(exposure_warning(host))


def test_board_commands_pin_what_is_tested_here() -> None:
    install, serve = board_commands("rpi4", "192.168.1.2:9190")
    assert f"apache-tvm=={version('apache-tvm')}" in shlex.split(install)
    assert f"apache-tvm-ffi=={version('apache-tvm-ffi')}" in shlex.split(install)
    assert '"192.168.1.2", 9190' in serve and 'key="rpi4"' in serve
    with pytest.raises(UsageError):
        board_commands("rpi4", "nowhere")


@pytest.mark.rpc
def test_a_board_survives_a_crashing_kernel(tmp_path: Path) -> None:
    """The command for boards, as printed, in a shell that has nothing of tvmx."""
    build_c(tmp_path, ("crash", "idle"))
    x = np.zeros(3, np.float32)
    crash, idle = (
        KernelJob(tmp_path / f"{name}.so", "k", (x,), (1,), "int32") for name in ("crash", "idle")
    )
    tracker = GuardedProcess("tvmx.measure._child", ["tracker"])
    board = None
    try:
        port = int(tracker.ready(30)["port"])
        address = DeviceAddress("127.0.0.1", port, "board")
        command = board_commands("board", address.tracker, port=29300)[1]
        command = command.replace("python3", sys.executable).replace("0.0.0.0", "127.0.0.1")
        (tmp_path / "torch.py").write_text("raise ImportError('a board has no torch')")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TVM_USE_RUNTIME_LIB": "1"}
        with (tmp_path / "log").open("wb") as log:
            board = subprocess.Popen(
                ["sh", "-c", command], env=environment, stderr=log, start_new_session=True
            )
        _until(lambda: "board" in tracker_summary("127.0.0.1", port).keys)
        with RpcRunner(address, deadlines=Deadlines(queue=20)) as runner:
            results = runner.measure([idle, crash, idle])
        assert [r.status for r in results] == ["ok", "crash", "ok"], [r.message for r in results]
    finally:
        tracker.kill()
        if board is not None:
            os.killpg(board.pid, signal.SIGKILL)
            board.wait()


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_serving_without_a_tracker_fails_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(TrackerError, match="refused"):
        serve_forever("k", f"127.0.0.1:{port}")
    assert time.monotonic() - start < 5


@pytest.mark.rpc
def test_serve_registers_and_ends_with_an_exception() -> None:
    before = set(threading.enumerate())
    tracker = GuardedProcess("tvmx.measure._child", ["tracker"])
    try:
        port = int(tracker.ready(30)["port"])
        seen: list[int] = []

        def stop_when_registered(server_port: int) -> None:
            _until(lambda: tracker_summary("127.0.0.1", port).registered("mine", server_port))
            seen.append(server_port)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            serve_forever("mine", f"127.0.0.1:{port}", on_ready=stop_when_registered)
        assert len(seen) == 1
        _until(lambda: not tracker_summary("127.0.0.1", port).keys)
        assert set(threading.enumerate()) <= before
    finally:
        tracker.kill()
