"""What a device farm does when its devices misbehave: real processes, real faults.

On a user's boards, which nobody but the test repairs, and on a farm that tvmx owns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.boards import (
    Boards,
    Recorder,
    family,
    freeze,
    meanwhile,
    punctual,
    received,
    thaw,
    until,
)
from tests.measure_libraries import Libraries, build
from tvmx.measure import Deadlines, Job, LocalFarm, Measurement, RpcRunner, TimingPolicy

pytestmark = pytest.mark.rpc

FAST = TimingPolicy(min_repeat_ms=0.1, repeats=2)
ONE_SECOND = TimingPolicy(number=200, repeats=1, min_repeats=1)  # of the sleeping kernel
SHORT = Deadlines(queue=3, connect=2, upload=5, load=2, run=2)
SLACK = 2.0


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return build(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(autouse=True)
def _punctual() -> Iterator[None]:
    with punctual(SLACK):
        yield


def _runner(boards: Boards, observer: Recorder | None = None, patience: float = 30.0) -> RpcRunner:
    return RpcRunner(
        boards.address, parallel=None, deadlines=SHORT, patience_s=patience, observer=observer
    )


@dataclass
class Bench:
    """One device and a runner on it; ``repair`` is what its owner would do."""

    runner: RpcRunner
    pid: Callable[[], int]
    repair: Callable[[], None]

    def kill(self) -> None:
        os.kill(self.pid(), signal.SIGKILL)


@contextlib.contextmanager
def _bench(where: str) -> Iterator[Bench]:
    if where == "farm":
        with LocalFarm(share_files=False) as farm, farm.runner(deadlines=SHORT) as runner:
            yield Bench(runner, lambda: _server(farm), lambda: None)
    else:
        with Boards(1) as boards, _runner(boards) as runner:
            board = boards[0]

            def restart() -> None:
                board.kill()
                board.start()

            yield Bench(runner, lambda: board.pid, restart)


def _server(farm: LocalFarm) -> int:
    return next(pid for name, pid in farm.processes.items() if name != "tracker")


def _statuses(results: list[Measurement]) -> list[str]:
    return [r.status for r in results]


def _messages(results: list[Measurement]) -> list[str]:
    return [f"{r.status}: {r.message}" for r in results]


both = pytest.mark.parametrize("where", ["board", "farm"])


@both
def test_killed_during_upload(where: str, libraries: Libraries) -> None:
    with _bench(where) as bench:
        runner, good = bench.runner, libraries.kernel("good")
        assert runner.measure([good], FAST)[0].ok

        def fault() -> None:
            victim = bench.pid()
            until(lambda: received(victim) > 0)
            before = received(victim)
            until(lambda: received(victim) > before + (10 << 20))
            bench.kill()
            bench.repair()

        start = time.monotonic()
        with meanwhile(fault):
            results = runner.measure([libraries.large(48 << 20), good], FAST)
        assert _statuses(results) == ["ok", "ok"], _messages(results)
        assert time.monotonic() - start < 20


@both
def test_killed_while_it_runs(where: str, libraries: Libraries) -> None:
    with _bench(where) as bench:
        runner, good = bench.runner, libraries.kernel("good")
        assert runner.measure([good], FAST)[0].ok

        def fault() -> None:
            time.sleep(0.6)
            bench.kill()
            bench.repair()

        start = time.monotonic()
        with meanwhile(fault):
            results = runner.measure([libraries.sleeping(), good], ONE_SECOND)
        assert _statuses(results) == ["ok", "ok"], _messages(results)
        assert results[0].median_us is not None and results[0].median_us > 5000
        assert time.monotonic() - start < 15


@both
def test_frozen_while_it_runs(where: str, libraries: Libraries) -> None:
    """Beyond the deadline; a board thaws by itself, a server of the farm never does."""
    with _bench(where) as bench:
        runner, good = bench.runner, libraries.kernel("good")
        assert runner.measure([good], FAST)[0].ok
        frozen = SHORT.run + 2.5

        def fault() -> None:
            time.sleep(0.6)
            pid = bench.pid()
            freeze(pid)
            if where == "board":
                time.sleep(frozen)
                thaw(pid)

        start = time.monotonic()
        with meanwhile(fault):
            results = runner.measure([libraries.sleeping(), good], ONE_SECOND)
        took = time.monotonic() - start
        assert _statuses(results) == ["ok", "ok"], _messages(results)
        assert took < 0.6 + max(SHORT.run, frozen) + 4.0 + SLACK


def test_frozen_for_good_fails_in_time_and_thawed_it_works(libraries: Libraries) -> None:
    good = libraries.kernel("good")
    with Boards(1) as boards, _runner(boards, patience=0.0) as runner:
        assert runner.measure([good], FAST)[0].ok
        boards[0].freeze()
        start = time.monotonic()
        results = runner.measure([good] * 3, FAST)
        took = time.monotonic() - start
        assert all(r.device_fault for r in results), _messages(results)
        # The session that was open is found dead, then there are two tries.
        assert took < SHORT.connect + 2 * (SHORT.queue + SHORT.connect) + SLACK
        boards[0].thaw()
        until(lambda: boards[0].serving() == [])
        assert _statuses(runner.measure([good] * 3, FAST)) == ["ok"] * 3


@both
def test_frozen_before_the_first_connection(where: str, libraries: Libraries) -> None:
    jobs: list[Job] = [libraries.kernel("good")] * 6
    start = time.monotonic()
    if where == "farm":
        with LocalFarm(servers=2) as farm, farm.runner(deadlines=SHORT) as runner:
            freeze(_server(farm))
            start = time.monotonic()
            results = runner.measure(jobs, FAST)
    else:
        with Boards(2) as boards, _runner(boards) as runner:
            boards[0].freeze()
            start = time.monotonic()
            results = runner.measure(jobs, FAST)
            assert {r.server for r in results} == {boards[1].server}
    assert _statuses(results) == ["ok"] * 6, _messages(results)
    assert time.monotonic() - start < 2 * SHORT.connect + 6 + SLACK


def test_only_the_server_that_does_not_answer_is_replaced(libraries: Libraries) -> None:
    good = [libraries.kernel("good")]
    with (
        LocalFarm(servers=2) as farm,
        RpcRunner(farm.address, deadlines=SHORT, recover=farm.recover) as runner,
    ):
        (first,) = runner.measure(good, FAST)
        until(lambda: farm.summary().keys[farm.address.key].free == 2, 10)  # let go when idle
        used = f"server:{first.server.rpartition(':')[2]}"
        before = farm.processes
        (other,) = [name for name in before if name not in (used, "tracker")]
        freeze(before[other])  # the tracker hands out the one that was free for longer
        (second,) = runner.measure(good, FAST)
        assert second.ok, second.message
        after = farm.processes
    assert after[used] == before[used]
    assert before[other] not in after.values()


def test_bad_kernels_are_told_from_bad_boards(libraries: Libraries) -> None:
    good, crash = libraries.kernel("good"), libraries.kernel("crash")
    jobs: list[Job] = [good, crash, libraries.wrong(), good, crash, good, libraries.network()]
    with Boards(2) as boards, _runner(boards) as runner:
        start = time.monotonic()
        results = runner.measure(jobs, FAST)
        took = time.monotonic() - start
    expected = ["ok", "crash", "wrong-output", "ok", "crash", "ok", "ok"]
    assert _statuses(results) == expected, _messages(results)
    assert results[2].max_error is not None and results[2].max_error > 0.01
    assert took < 20


def test_an_endless_kernel_stops_nobody_else(libraries: Libraries) -> None:
    good, loop = libraries.kernel("good"), libraries.kernel("loop")
    deadlines = Deadlines(queue=4, connect=2, upload=1, load=1, run=1)
    done: list[tuple[float, int]] = []
    with (
        Boards(2) as boards,
        RpcRunner(boards.address, parallel=None, deadlines=deadlines, patience_s=60) as runner,
    ):
        start = time.monotonic()
        results = runner.measure(
            [loop, *[good] * 20],
            FAST,
            lambda index, _: done.append((time.monotonic() - start, index)),
        )
    assert _statuses(results) == ["timeout", *["ok"] * 20], _messages(results)
    assert max(when for when, index in done if index) < 6 + SLACK
    assert max(when for when, _ in done) < 3 * deadlines.session() + 5 + SLACK


def test_a_tracker_that_restarts_costs_no_job(libraries: Libraries) -> None:
    recorder = Recorder()
    with Boards(2) as boards, _runner(boards, recorder) as runner:

        def fault() -> None:
            time.sleep(1.5)
            boards.tracker.kill()
            time.sleep(1.0)
            boards.tracker.start()

        with meanwhile(fault):
            jobs: list[Job] = [libraries.sleeping(), libraries.kernel("good")] * 8
            results = runner.measure(jobs, TimingPolicy(number=60, repeats=1, min_repeats=1))
        assert _statuses(results) == ["ok"] * 16, _messages(results)


def test_a_library_for_another_machine(libraries: Libraries) -> None:
    good, foreign = libraries.kernel("good"), libraries.foreign()
    with Boards(1) as boards:
        with _runner(boards) as runner:
            start = time.monotonic()
            results = runner.measure([good, foreign, good], FAST)
            assert time.monotonic() - start < 8
        assert _statuses(results) == ["ok", "load", "ok"], _messages(results)
        assert "aarch64" in results[1].message and "foreign.so" in results[1].message
        with RpcRunner(boards.address, deadlines=SHORT, arch="x86_64") as runner:
            (result,) = runner.measure([foreign])
        assert result.status == "load"  # and nothing had to travel to know it
        assert "aarch64, the device is x86_64" in result.message


@pytest.mark.parametrize("nbytes", [0, 3 << 20])
def test_a_full_folder_is_the_devices_fault(
    nbytes: int, libraries: Libraries, tmp_path: Path
) -> None:
    """TVM's server does not notice that it could not write a library; loading it crashes."""
    library = tmp_path / "padded.so"
    library.write_bytes((libraries.folder / "good.so").read_bytes() + bytes(nbytes))
    good, recorder = libraries.kernel("good"), Recorder()
    padded = libraries.kernel(str(tmp_path / "padded"))
    with Boards(1) as boards:
        with _runner(boards, patience=0.0) as runner:
            assert runner.measure([good], FAST)[0].ok
            boards[0].fill_disk(8192)
            start = time.monotonic()
            results = runner.measure([padded, good], FAST)
            assert time.monotonic() - start < 8
            assert _statuses(results) == ["upload", "upload"], _messages(results)
            assert "full" in results[0].message and boards[0].server in results[0].message
        with _runner(boards, recorder) as runner:

            def free() -> None:
                until(lambda: len(recorder.waits) > 1)
                boards[0].free_disk()

            with meanwhile(free):
                results = runner.measure([padded, good], FAST)
    assert _statuses(results) == ["ok", "ok"], _messages(results)
    assert "full" in recorder.waits[0][1]


def test_two_clients_take_turns_on_one_board(libraries: Libraries) -> None:
    """Also while one of them has a kernel there that crashes."""
    jobs: list[Job] = [libraries.sleeping()] * 6
    bad: list[Job] = [libraries.sleeping(), libraries.kernel("crash"), libraries.sleeping()]
    results: dict[str, list[Measurement]] = {}
    policy = TimingPolicy(number=60, repeats=1, min_repeats=1)
    with Boards(1) as boards:

        def client(name: str, jobs: list[Job]) -> None:
            with _runner(boards) as runner:
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
    assert _statuses(results["first"]) == ["ok"] * 12, _messages(results["first"])
    expected = ["ok", "crash", "ok"] * 2
    assert _statuses(results["second"]) == expected, _messages(results["second"])
    assert time.monotonic() - start < 40


def test_a_board_that_leaves_and_returns(libraries: Libraries) -> None:
    recorder = Recorder()
    policy = TimingPolicy(number=50, repeats=1, min_repeats=1)
    jobs: list[Job] = [libraries.sleeping()] * 10
    with Boards(2) as boards, _runner(boards, recorder, 60) as runner:
        runner.measure(jobs, policy)
        boards[1].kill()
        seen: list[Measurement] = []
        until_left = time.monotonic() + 30
        while not recorder.said("has left") and time.monotonic() < until_left:
            seen += runner.measure(jobs, policy)
        assert all(r.ok for r in seen), _messages(seen)
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
    with Boards(2) as boards, _runner(boards, recorder, 60) as runner:
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
    assert _statuses(results) == ["ok"] * 16, _messages(results)
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
    with Boards(1) as boards, _runner(boards, recorder, patience=6.0) as runner:

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
    assert "ok" in kinds and kinds <= {"ok", "queue", "connect"}, _messages(results)
    assert sorted(told) == list(range(20))
    assert 5.5 < ended - killed[0] < 6.0 + SHORT.queue + SLACK
    assert again[0].ok, again[0].message


def test_two_boards_measure_nearly_twice_as_much(libraries: Libraries) -> None:
    policy = TimingPolicy(number=40, repeats=1, min_repeats=1)  # 0.2 s asleep
    jobs: list[Job] = [libraries.sleeping()] * 20
    per_minute: dict[int, float] = {}
    for count in (1, 2):
        with Boards(count) as boards, _runner(boards) as runner:
            runner.measure(jobs[: 4 * count], policy)  # workers are up
            start = time.monotonic()
            results = runner.measure(jobs, policy)
            per_minute[count] = 60 * len(jobs) / (time.monotonic() - start)
        assert _statuses(results) == ["ok"] * len(jobs), _messages(results)
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
