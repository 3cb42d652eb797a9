"""What a device farm does when its devices misbehave: real processes, real faults.

On a user's boards, which nobody but the test repairs, and on a farm that tvmx owns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.boards import (
    SHORT,
    SLACK,
    Boards,
    Recorder,
    board_runner,
    freeze,
    meanwhile,
    messages,
    punctual,
    received,
    statuses,
    thaw,
    until,
)
from tests.measure_libraries import Libraries
from tvmx.measure import Deadlines, Job, LocalFarm, RpcRunner, TimingPolicy

pytestmark = pytest.mark.rpc

FAST = TimingPolicy(min_repeat_ms=0.1, repeats=2)
ONE_SECOND = TimingPolicy(number=200, repeats=1, min_repeats=1)  # of the sleeping kernel


@pytest.fixture(autouse=True)
def _punctual() -> Iterator[None]:
    with punctual(SLACK):
        yield


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
        with Boards(1) as boards, board_runner(boards) as runner:
            board = boards[0]

            def restart() -> None:
                board.kill()
                board.start()

            yield Bench(runner, lambda: board.pid, restart)


def _server(farm: LocalFarm) -> int:
    return next(pid for name, pid in farm.processes.items() if name != "tracker")


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
        assert statuses(results) == ["ok", "ok"], messages(results)
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
        assert statuses(results) == ["ok", "ok"], messages(results)
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
        assert statuses(results) == ["ok", "ok"], messages(results)
        assert took < 0.6 + max(SHORT.run, frozen) + 4.0 + SLACK


def test_frozen_for_good_fails_in_time_and_thawed_it_works(libraries: Libraries) -> None:
    good = libraries.kernel("good")
    with Boards(1) as boards, board_runner(boards, patience=0.0) as runner:
        assert runner.measure([good], FAST)[0].ok
        boards[0].freeze()
        start = time.monotonic()
        results = runner.measure([good] * 3, FAST)
        took = time.monotonic() - start
        assert all(r.device_fault for r in results), messages(results)
        # The session that was open is found dead, then there are two tries.
        assert took < SHORT.connect + 2 * (SHORT.queue + SHORT.connect) + SLACK
        boards[0].thaw()
        until(lambda: boards[0].serving() == [])
        assert statuses(runner.measure([good] * 3, FAST)) == ["ok"] * 3


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
        with Boards(2) as boards, board_runner(boards) as runner:
            boards[0].freeze()
            start = time.monotonic()
            results = runner.measure(jobs, FAST)
            assert {r.server for r in results} == {boards[1].server}
    assert statuses(results) == ["ok"] * 6, messages(results)
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
    assert after.get(used) == before[used]
    assert before[other] not in after.values()


def test_bad_kernels_are_told_from_bad_boards(libraries: Libraries) -> None:
    good, crash = libraries.kernel("good"), libraries.kernel("crash")
    jobs: list[Job] = [good, crash, libraries.wrong(), good, crash, good, libraries.network()]
    with Boards(2) as boards, board_runner(boards) as runner:
        start = time.monotonic()
        results = runner.measure(jobs, FAST)
        took = time.monotonic() - start
    expected = ["ok", "crash", "wrong-output", "ok", "crash", "ok", "ok"]
    assert statuses(results) == expected, messages(results)
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
    assert statuses(results) == ["timeout", *["ok"] * 20], messages(results)
    assert max(when for when, index in done if index) < 6 + SLACK
    assert max(when for when, _ in done) < 3 * deadlines.session() + 5 + SLACK


def test_a_tracker_that_restarts_costs_no_job(libraries: Libraries) -> None:
    recorder = Recorder()
    with Boards(2) as boards, board_runner(boards, recorder) as runner:

        def fault() -> None:
            time.sleep(1.5)
            boards.tracker.kill()
            time.sleep(1.0)
            boards.tracker.start()

        with meanwhile(fault):
            jobs: list[Job] = [libraries.sleeping(), libraries.kernel("good")] * 8
            results = runner.measure(jobs, TimingPolicy(number=60, repeats=1, min_repeats=1))
        assert statuses(results) == ["ok"] * 16, messages(results)


def test_a_library_for_another_machine(libraries: Libraries) -> None:
    good, foreign = libraries.kernel("good"), libraries.foreign()
    with Boards(1) as boards:
        with board_runner(boards) as runner:
            start = time.monotonic()
            results = runner.measure([good, foreign, good], FAST)
            assert time.monotonic() - start < 8
        assert statuses(results) == ["ok", "load", "ok"], messages(results)
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
        with board_runner(boards, patience=0.0) as runner:
            assert runner.measure([good], FAST)[0].ok
            boards[0].fill_disk(8192)
            start = time.monotonic()
            results = runner.measure([padded, good], FAST)
            assert time.monotonic() - start < 8
            assert statuses(results) == ["upload", "upload"], messages(results)
            assert "full" in results[0].message and boards[0].server in results[0].message
        with board_runner(boards, recorder) as runner:

            def free() -> None:
                until(lambda: len(recorder.waits) > 1)
                boards[0].free_disk()

            with meanwhile(free):
                results = runner.measure([padded, good], FAST)
    assert statuses(results) == ["ok", "ok"], messages(results)
    assert "full" in recorder.waits[0][1]
