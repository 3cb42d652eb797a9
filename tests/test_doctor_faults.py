"""``tvmx doctor`` against real trackers and servers: whatever they do, a line says what to do."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.boards import KEY, Boards, until
from tvmx.cli._main import app
from tvmx.doctor import DEADLINES, Diagnosis, Finding, build_probe, examine
from tvmx.measure import Cores, DeviceAddress, Visit, tracker_summary
from tvmx.measure._tracker import TrackerConnection
from tvmx.targets import load_target

pytestmark = pytest.mark.rpc

SOON = replace(DEADLINES, queue=2.0, connect=3.0, run=4.0)
"""Deadlines for tests that run into one."""


@pytest.fixture(scope="module")
def farm() -> Iterator[Boards]:
    with Boards(2) as boards:
        yield boards


@pytest.fixture
def boards(farm: Boards) -> Boards:
    """Both registered and free, whatever the test before did to them."""
    for board in farm:
        if not board.alive:
            board.start()
        board.free_disk()
    farm.await_registered()
    address = farm.address

    def free() -> bool:
        status = tracker_summary(address.host, address.port).keys.get(KEY)
        return status is not None and status.free == len(farm.boards)

    until(free, 30.0, "a board stays busy")
    return farm


def lines(diagnosis: Diagnosis, title: str) -> dict[str, Finding]:
    """The lines of the one section whose title starts so, by name."""
    (section,) = [s for s in diagnosis.sections if s.title.startswith(title)]
    return {finding.name: finding for finding in section.findings}


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


@contextlib.contextmanager
def answering(reply: bytes | None) -> Iterator[int]:
    """Something that is no tracker: it answers so whoever has said something; None: nothing."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    held.append(connection)
                    if reply is not None and connection.recv(100):
                        connection.sendall(reply)
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in held:
        connection.close()


def test_this_machine_is_healthy() -> None:
    start = time.monotonic()
    result = doctor("--json")
    assert time.monotonic() - start < 30
    data = json.loads(result.stdout)
    broken = [f for s in data["sections"] for f in s["findings"] if f["level"] == "broken"]
    assert result.exit_code == 0 and data["healthy"] and not broken, broken
    assert data["target"] == "host"
    facts = data["sections"][1]["facts"]
    assert facts["right"] == "yes" and facts["sent"] == "all"
    assert Path("/proc/sys/kernel/osrelease").read_text().strip() == facts["kernel"]
    assert 0.1 < float(facts["upload"]) < 10_000


def test_each_device_is_seen_once_and_compared(
    boards: Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnosis = examine(boards.address)
    for board in boards:
        found = lines(diagnosis, f"device {board.server}")
        assert found["probe"].level == "ok", found
        assert found["TVM"].level == "ok"
        assert {"float peak", "int8 peak", "bandwidth"} <= set(found)
    assert lines(diagnosis, "siblings")
    assert diagnosis.healthy
    assert len(diagnosis.sections) == 4
    monkeypatch.setattr("tvmx.doctor.examine", lambda *_, **__: diagnosis)
    shown = doctor().stdout.splitlines()
    rows = [line for line in shown if line.startswith("  ")]
    assert len(rows) > 20
    assert {row[16:24].strip() for row in rows} <= {"ok", "hint", ""}
    assert all(row[24] != " " and len(row) < 200 for row in rows)
    assert shown[-1].endswith(" s")


@pytest.mark.parametrize(
    ("reply", "name"),
    [(None, "protocol"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol"), (b"x", "protocol")],
)
def test_not_a_tracker(reply: bytes | None, name: str) -> None:
    with answering(reply) as port:
        start = time.monotonic()
        result = doctor("--tracker", f"127.0.0.1:{port}", "--key", "k", "--json")
    assert time.monotonic() - start < 12
    assert result.exit_code == 1
    (section,) = json.loads(result.stdout)["sections"]
    assert [f["level"] for f in section["findings"]] == ["ok", "broken"]
    assert section["findings"][1]["name"] == name
    assert "tracker" in section["findings"][1]["text"] and section["findings"][1]["todo"]


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = doctor("--tracker", f"127.0.0.1:{port}", "--key", "k")
    assert result.exit_code == 1
    assert "Connection refused" in result.stdout
    assert f"tvmx tracker --host 127.0.0.1 --port {port}" in result.stdout


def test_an_unknown_key(boards: Boards) -> None:
    address = boards.address
    result = doctor("--tracker", address.tracker, "--key", "bord")
    assert result.exit_code == 1
    assert "no device 'bord'; there is board" in result.stdout
    assert f"tvmx doctor --tracker {address.tracker} --key board" in result.stdout


def test_busy_devices_are_named(boards: Boards) -> None:
    address = boards.address
    with contextlib.ExitStack() as stack:
        first = hold(stack, address)
        diagnosis = examine(address, deadlines=SOON)
        assert lines(diagnosis, f"device {first.server}")["connection"].text.startswith("busy")
        (other,) = [b.server for b in boards if b.server != first.server]
        assert lines(diagnosis, f"device {other}")["probe"].level == "ok"
        assert lines(diagnosis, "tracker")["free"].text.startswith("1 of 2")
        hold(stack, address)
        tracker = stack.enter_context(TrackerConnection(address.host, address.port))
        waiting = threading.Thread(target=tracker.request, args=(KEY, 4.5), daemon=True)
        waiting.start()
        until(lambda: tracker_summary(address.host, address.port).keys[KEY].pending == 1)
        start = time.monotonic()
        diagnosis = examine(address, deadlines=SOON)
        assert time.monotonic() - start < 6
        free = lines(diagnosis, "tracker")["free"]
        assert free.level == "broken" and free.todo
        assert free.text == "0 of 2, 1 client waits"
        waiting.join()


def hold(stack: contextlib.ExitStack, address: DeviceAddress) -> Visit:
    """Somebody else who uses a device, and does not let go."""
    visit = Visit(address, Cores(), DEADLINES)
    stack.callback(visit.close)
    visit.look()
    assert visit.failure is None and visit.server
    stop = threading.Event()

    def stay() -> None:
        while not stop.wait(1.0):
            visit.stay()

    thread = threading.Thread(target=stay, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(stop.set)
    return visit


def test_a_frozen_server(boards: Boards) -> None:
    boards[0].freeze()
    try:
        start = time.monotonic()
        diagnosis = examine(boards.address, deadlines=SOON)
        seconds = time.monotonic() - start
    finally:
        boards[0].thaw()
    line = lines(diagnosis, f"device {boards[0].server}")["connection"]
    assert line.level == "broken" and "no answer within 3 s" in line.text
    assert f"tvmx serve --key {KEY} --tracker {boards.address.tracker}" in line.todo[0]
    assert lines(diagnosis, f"device {boards[1].server}")["probe"].level == "ok"
    assert not diagnosis.healthy
    assert seconds < 25


class AtTheProbe:
    """Does something to a board as soon as the probe has been built, from another thread."""

    def __init__(self, action: Any) -> None:
        self._action = action
        self._thread: threading.Thread | None = None

    def __call__(self, stage: str) -> None:
        if stage == "running the probe":
            self._thread = threading.Thread(target=self._action, daemon=True)
            self._thread.start()

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join()


def test_a_device_that_is_lost_is_not_waited_for(boards: Boards) -> None:
    """Neither taken for a busy one, nor is what another one says taken for it."""
    with contextlib.ExitStack() as stack:
        visit = Visit(boards.address, Cores(), SOON)
        stack.callback(visit.close)
        visit.look()
        (board,) = [b for b in boards if b.server == visit.server]
        (other,) = [b for b in boards if b.server != visit.server]
        assert hold(stack, boards.address).server == other.server
        board.kill()
        visit.stay()
        assert visit.failure is not None and visit.failure.status == "connect"
        assert "broke off" in visit.failure.message
        assert visit.server == board.server


def test_ctrl_c_lets_the_devices_go(boards: Boards) -> None:
    before = set(threading.enumerate())

    def interrupt(stage: str) -> None:
        if stage == "running the probe":
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        examine(boards.address, on_stage=interrupt)
    assert time.monotonic() - start < 15
    assert set(threading.enumerate()) <= before
    until(lambda: not boards.busy(), 15.0, "a board is still held")


@pytest.mark.parametrize("what", ["kill", "freeze"])
def test_a_server_that_fails_midway(boards: Boards, what: str) -> None:
    """At the moment the examination of both begins in earnest: the other one is finished."""
    victim = boards[1]
    at_the_probe = AtTheProbe(getattr(victim, what))
    start = time.monotonic()
    try:
        diagnosis = examine(boards.address, deadlines=SOON, on_stage=at_the_probe)
        at_the_probe.join()
    finally:
        if what == "freeze":
            victim.thaw()
    assert time.monotonic() - start < 30
    found = lines(diagnosis, f"device {victim.server}")
    assert found["userland"].level == "ok", "what was known before is kept"
    broken = [f for f in found.values() if f.level == "broken"]
    assert len(broken) == 1 and broken[0].todo, found
    assert lines(diagnosis, f"device {boards[0].server}")["probe"].level == "ok"


def test_a_full_disk(boards: Boards) -> None:
    boards[1].fill_disk(4096)
    diagnosis = examine(boards.address)
    line = lines(diagnosis, f"device {boards[1].server}")["disk"]
    assert line.level == "broken" and "4096 of" in line.text and "TMPDIR" in line.todo[1]
    assert lines(diagnosis, f"device {boards[0].server}")["disk"].level == "ok"


def test_a_target_of_another_architecture(boards: Boards) -> None:
    if load_target("host").arch != "x86_64":
        pytest.skip("this machine is what boards are")
    result = doctor("--tracker", boards.address.tracker, "--key", KEY, "--target", "rpi4")
    assert result.exit_code == 1
    assert "x86_64 there, target 'rpi4' is aarch64" in result.stdout
    assert "--target host" in result.stdout
    assert "Traceback" not in result.output


@pytest.mark.cross
def test_a_probe_the_device_cannot_load(boards: Boards, tmp_path: Path) -> None:
    """Where nothing told its machine beforehand."""
    other = "rpi4" if load_target("host").arch == "x86_64" else "host"
    probe = build_probe(load_target(other), tmp_path)  # first: an idle device is let go
    visit = Visit(boards.address, Cores(), SOON)
    visit.look()
    visit.examine(probe)
    visit.close()
    assert visit.failure is not None and visit.failure.status == "load"
    assert visit.facts["sent"].value == "all" and "loaded" not in visit.facts


def test_a_target_the_linker_has_no_command_for(
    boards: Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVMX_LINKER", "/no/such/linker")
    diagnosis = examine(boards.address)
    line = lines(diagnosis, f"device {boards[0].server}")["probe"]
    assert line.level == "broken" and "/no/such/linker" in line.text


def test_a_wrong_target_name_is_a_usage_error() -> None:
    assert doctor("--target", "rpi44").exit_code == 2
    assert doctor("--tracker", "127.0.0.1:9190").exit_code == 2
