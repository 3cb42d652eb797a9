"""Boards that come and go, are shared, work side by side, and are left at Ctrl-C.

With real processes; the faults in the middle of a job are in ``test_measure_faults.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.boards import (
    SHORT,
    SLACK,
    Boards,
    Recorder,
    board_runner,
    family,
    meanwhile,
    messages,
    punctual,
    statuses,
    until,
)
from tests.measure_libraries import Libraries
from tvmx.measure import Job, Measurement, RpcRunner, TimingPolicy

pytestmark = pytest.mark.rpc


@pytest.fixture(autouse=True)
def _punctual() -> Iterator[None]:
    with punctual(SLACK):
        yield


def test_two_clients_take_turns_on_one_board(libraries: Libraries) -> None:
    """Also while one of them has a kernel there that crashes."""
    jobs: list[Job] = [libraries.sleeping()] * 6
    bad: list[Job] = [libraries.sleeping(), libraries.kernel("crash"), libraries.sleeping()]
    results: dict[str, list[Measurement]] = {}
    policy = TimingPolicy(number=60, repeats=1, min_repeats=1)
    with Boards(1) as boards:

        def client(name: str, jobs: list[Job]) -> None:
            with board_runner(boards) as runner:
                results[name] = runner.measure(jobs * 2, policy)

        threads = [
            threading.Thread(target=client, args=arguments)
            for arguments in (("first", jobs), ("second", bad))
        ]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert statuses(results["first"]) == ["ok"] * 12, messages(results["first"])
    expected = ["ok", "crash", "ok"] * 2
    assert statuses(results["second"]) == expected, messages(results["second"])
    assert time.monotonic() - start < 40


def test_a_board_that_leaves_and_returns(libraries: Libraries) -> None:
    recorder = Recorder()
    policy = TimingPolicy(number=50, repeats=1, min_repeats=1)
    jobs: list[Job] = [libraries.sleeping()] * 10
    with Boards(2) as boards, board_runner(boards, recorder, 60) as runner:
        runner.measure(jobs, policy)
        boards[1].kill()
        seen: list[Measurement] = []
        until_left = time.monotonic() + 30
        while not recorder.said("has left") and time.monotonic() < until_left:
            seen += runner.measure(jobs, policy)
        assert all(r.ok for r in seen), messages(seen)
        assert boards[1].server in recorder.said("has left")[0]
        assert {r.server for r in seen} == {boards[0].server}
        boards[1].start()
        until_back = time.monotonic() + 30
        while boards[1].server not in {r.server for r in seen} and time.monotonic() < until_back:
            seen += runner.measure(jobs, policy)
        assert len(recorder.said(f"{boards[1].server}")) == 2 and recorder.said("is back")
        assert {r.server for r in seen} == {board.server for board in boards}
        reports = {report.server: report for report in runner.devices}
        assert set(reports) == {board.server for board in boards}
        assert sum(r.measured for r in reports.values()) == len(seen) + 10
        assert {r.identity for r in seen} == {report.identity for report in reports.values()}
        assert "" not in {r.identity for r in seen}


def test_work_pauses_while_no_board_is_there(libraries: Libraries) -> None:
    recorder = Recorder()
    policy = TimingPolicy(number=50, repeats=1, min_repeats=1)
    with Boards(2) as boards, board_runner(boards, recorder, 60) as runner:
        gone: list[float] = []
        told: list[int] = []

        def fault() -> None:
            until(lambda: len(told) >= 4)
            for board in boards:
                board.kill()
            gone.append(time.monotonic())
            until(lambda: any("registered" in text for _, text, _ in recorder.waits))
            time.sleep(2.5)
            boards[0].start()
            gone.append(time.monotonic())

        with meanwhile(fault):
            results = runner.measure(
                [libraries.sleeping()] * 16, policy, lambda index, _: told.append(index)
            )
        ended = time.monotonic()
    assert statuses(results) == ["ok"] * 16, messages(results)
    pauses: list[list[float]] = [[]]
    for _, text, left in recorder.waits:
        if text and left is not None:
            pauses[-1].append(left)
        else:
            pauses.append([])
    countdown = max(pauses, key=len)
    assert len(countdown) >= 3
    assert countdown == sorted(countdown, reverse=True) and 40 < countdown[0] <= 60
    assert recorder.waits[-1][1:] == ("", None)  # work goes on
    assert runner.waited_s > 2
    assert ended - gone[1] < 15


def test_patience_ends(libraries: Libraries) -> None:
    recorder = Recorder()
    policy = TimingPolicy(number=50, repeats=1, min_repeats=1)
    told: list[int] = []
    killed: list[float] = []
    with Boards(1) as boards, board_runner(boards, recorder, patience=6.0) as runner:

        def fault() -> None:
            until(lambda: len(told) >= 2)
            boards[0].kill()
            killed.append(time.monotonic())

        with meanwhile(fault):
            results = runner.measure(
                [libraries.sleeping()] * 20, policy, lambda index, _: told.append(index)
            )
        ended = time.monotonic()
        boards[0].start()
        boards.await_registered()
        again = runner.measure([libraries.sleeping()], policy)
    kinds = {r.status for r in results}
    assert "ok" in kinds and kinds <= {"ok", "queue", "connect"}, messages(results)
    assert sorted(told) == list(range(20))
    assert 5.5 < ended - killed[0] < 6.0 + SHORT.queue + SLACK
    assert again[0].ok, again[0].message


def test_two_boards_measure_nearly_twice_as_much(libraries: Libraries) -> None:
    policy = TimingPolicy(number=40, repeats=1, min_repeats=1)  # 0.2 s asleep
    jobs: list[Job] = [libraries.sleeping()] * 20
    per_minute: dict[int, float] = {}
    for count in (1, 2):
        with Boards(count) as boards, board_runner(boards) as runner:
            runner.measure(jobs[: 4 * count], policy)  # workers are up
            start = time.monotonic()
            results = runner.measure(jobs, policy)
            per_minute[count] = 60 * len(jobs) / (time.monotonic() - start)
        assert statuses(results) == ["ok"] * len(jobs), messages(results)
        assert len({r.server for r in results}) == count
    assert per_minute[2] / per_minute[1] >= 1.7, per_minute


CLIENT = """
import sys
from pathlib import Path
import numpy as np
from tvmx.measure import Deadlines, DeviceAddress, KernelJob, RpcRunner
address = DeviceAddress("127.0.0.1", int(sys.argv[1]), "board")
x = np.zeros(3, np.float32)
job = KernelJob(Path(sys.argv[2]), "k", (x,), (1,), "int32")
with RpcRunner(address, parallel=None, patience_s=60, deadlines=Deadlines(queue=30)) as runner:
    print("measuring", flush=True)
    try:
        runner.measure([job] * 100000)
    except KeyboardInterrupt:
        sys.exit(17)
"""


@pytest.mark.parametrize("moment", ["starting", "running", "hanging", "queueing", "pausing"])
def test_an_interrupt_leaves_nothing(moment: str, libraries: Libraries, tmp_path: Path) -> None:
    library = libraries.folder / ("loop.so" if moment == "hanging" else "sleep.so")
    root = Path(__file__).resolve().parents[1]
    with Boards(1) as boards, contextlib.ExitStack() as stack:
        if moment == "queueing":
            patient = replace(SHORT, run=20)
            other = stack.enter_context(RpcRunner(boards.address, deadlines=patient))
            policy = TimingPolicy(number=1400, repeats=1, min_repeats=1)  # seven seconds
            hold = threading.Thread(target=other.measure, args=([libraries.sleeping()], policy))
            hold.start()
            stack.callback(hold.join)
            until(lambda: boards.busy() != [])
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(boards.address.port), str(library)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)},
            start_new_session=True,
        )
        with client:
            assert client.stdout is not None and client.stdout.readline()
            until(lambda: len(family(client.pid)) >= 3)
            time.sleep(0.0 if moment == "starting" else 2.5)
            if moment == "pausing":
                boards[0].kill()
                time.sleep(2.0)
            relatives = family(client.pid)[1:]
            start = time.monotonic()
            client.send_signal(signal.SIGINT)
            try:
                code = client.wait(20)
            finally:
                client.kill()
        took = time.monotonic() - start
    assert code == 17
    assert took < 4, f"ended after {took:.1f} s"
    _, alive = psutil.wait_procs(relatives, timeout=3)
    assert alive == []
    assert list(tmp_path.iterdir()) == []
