"""tracker, serve and devices, as real processes that end with Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from tvmx.cli._main import app
from tvmx.measure import KeyStatus, TrackerSummary

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A command that stays, and the JSON document it prints when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from tvmx.cli import main; main()", *arguments, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            text += line
        yield process, json.loads(text)
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; what it said last. Its children must be gone with it."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out == ""
    assert process.returncode == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    return err


def devices_once(address: str, count: int) -> list[dict[str, Any]]:
    """What `tvmx devices` says as soon as there are ``count`` keys: servers register late."""
    deadline = time.monotonic() + 15
    while True:
        result = CliRunner().invoke(app, ["devices", "--tracker", address, "--json"])
        found: list[dict[str, Any]] = json.loads(result.stdout)["devices"]
        free = all(device["free"] for device in found)  # a moment after it has registered
        if (len(found) == count and free) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.mark.rpc
def test_a_device_comes_and_goes() -> None:
    with running("tracker", "--port", "28190") as (tracker, data):
        address = data["tracker"]
        assert data["warning"] is None
        empty = CliRunner().invoke(app, ["devices", "--tracker", address])
        assert "no device is registered" in empty.stdout
        assert f"tvmx serve --key host --tracker {address}" in empty.stdout
        with running("serve", "--key", "box", "--tracker", address) as (server, data):
            assert data["key"] == "box"
            assert len(data["board_commands"]) == 2
            found = devices_once(address, 1)
            (device,) = found
            assert (device["key"], device["servers"], device["free"]) == ("box", 1, 1)
            assert device["addresses"] == [data["server"]]
            unknown = CliRunner().invoke(app, ["run", str(ROOT), "--tracker", address])
            assert unknown.exit_code == 2
            assert interrupt(server) == "interrupted; device 'box' has left the tracker\n"
        assert devices_once(address, 0) == []
        assert interrupt(tracker) == "interrupted; the tracker has stopped\n"


def test_devices_show_who_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = TrackerSummary(
        "t", {"pi": KeyStatus("pi", 3, 1, 2)}, (("pi", "::1", 9090), ("pi", "10.0.0.1", 9091))
    )
    monkeypatch.setattr("tvmx.measure.tracker_summary", lambda host, port: summary)
    data = json.loads(CliRunner().invoke(app, ["devices", "--json"]).stdout)
    assert data["devices"] == [
        {"key": "pi", "servers": 3, "free": 1, "busy": 2, "waiting": 2,
         "addresses": ["[::1]:9090", "10.0.0.1:9091"]}
    ]  # fmt: skip
    assert "10.0.0.1:9091" in CliRunner().invoke(app, ["devices"]).stdout


def test_listening_beyond_loopback_is_a_loud_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(*arguments: Any, on_ready: Any, **settings: Any) -> None:
        on_ready(9190)
        raise KeyboardInterrupt

    monkeypatch.setattr("tvmx.measure.track_forever", at_once)
    monkeypatch.setattr("tvmx.measure.serve_forever", at_once)
    for arguments in (["tracker"], ["serve", "--key", "k"]):
        quiet = CliRunner().invoke(app, arguments)
        loud = CliRunner().invoke(app, [*arguments, "--host", "0.0.0.0"])
        assert (quiet.exit_code, loud.exit_code) == (130, 130)
        assert "WARNING" not in quiet.stderr
        assert "WARNING" in loud.stderr
        assert "no authentication" in loud.stderr


def test_a_board_behind_a_tunnel_and_one_in_the_network() -> None:
    near = CliRunner().invoke(app, ["serve", "--key", "rpi4", "--commands"]).stdout
    assert "ssh -N -R 9190:127.0.0.1:9190" in near
    assert '"127.0.0.1"' in near
    options = "serve --key rpi4 --tracker 10.0.0.2:9190 --commands --json"
    far = json.loads(CliRunner().invoke(app, options.split()).stdout)
    assert "tunnel" not in far
    assert "10.0.0.2" in far["board_commands"][1]
    assert all("tvmx" not in command for command in far["board_commands"])
