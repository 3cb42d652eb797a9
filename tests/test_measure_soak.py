"""Measurements on two boards under random faults end with exactly the expected records.

``TVMX_SOAK=500`` makes so many of them (about two minutes), in the place of 240.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boards import KEY, Boards, Recorder, punctual, until
from tests.measure_libraries import Libraries, build
from tvmx.measure import Deadlines, KernelJob, Measurement, RpcRunner, TimingPolicy
from tvmx.store import Journal, MeasurementKey, MeasurementRecord

pytestmark = [pytest.mark.rpc, pytest.mark.slow, pytest.mark.timeout(600)]

COUNT = int(os.environ.get("TVMX_SOAK", "240"))
BAD = {"wrong-output": COUNT // 16, "crash": COUNT // 20, "load": COUNT // 80, "timeout": 2}
SEED = 20261121
DEADLINES = Deadlines(queue=4, connect=3, upload=2, load=1, run=1)
POLICY = TimingPolicy(min_repeat_ms=0.1, number=16, repeats=1, min_repeats=1)
BATCH = 60


class Chaos:
    """Breaks the boards and the tracker in turn, at random, and makes them well again."""

    def __init__(self, boards: Boards, seed: int) -> None:
        self._boards = boards
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.faults: Counter[str] = Counter()

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        weights: dict[Callable[[], None], int] = {
            self._kill_serving: 4, self._freeze: 3, self._kill_server: 2, self._kill_tracker: 1,
        }  # fmt: skip
        try:
            while not self._stop.wait(self._random.uniform(0.2, 1.2)):
                (fault,) = self._random.choices([*weights], [*weights.values()])
                self.faults[fault.__name__] += 1
                fault()
        except BaseException as err:
            self._error = err

    def _kill_server(self) -> None:
        board = self._random.choice(self._boards.boards)
        board.kill()
        time.sleep(self._random.uniform(0.0, 1.0))
        board.start()

    def _kill_serving(self) -> None:
        self._random.choice(self._boards.boards).kill_serving()

    def _freeze(self) -> None:
        board = self._random.choice(self._boards.boards)
        board.freeze()
        time.sleep(DEADLINES.run + self._random.uniform(0.3, 1.5))
        board.thaw()

    def _kill_tracker(self) -> None:
        self._boards.tracker.kill()
        time.sleep(self._random.uniform(0.0, 1.0))
        self._boards.tracker.start()
        # TVM's servers look for it every five seconds; faults before would hit nothing.
        until(lambda: self._boards.registered() != set(), 30)


def _plan() -> list[str]:
    """The status each of the jobs must get, in a random order."""
    statuses = [status for status, count in BAD.items() for _ in range(count)]
    statuses += ["ok"] * (COUNT - len(statuses))
    random.Random(SEED).shuffle(statuses)
    return statuses


def _job(libraries: Libraries, status: str, number: int) -> KernelJob:
    label = f"job {number}"
    if status == "ok" and number % 3:
        return libraries.sleeping(label=label)
    if status == "ok":
        return libraries.kernel("good", label=label)
    if status == "wrong-output":
        return libraries.kernel("good", expected=libraries.data * 2 + 1.1, label=label)
    name = {"crash": "crash", "timeout": "loop", "load": "foreign"}[status]
    return libraries.kernel(name, label=label)


def _key(number: int) -> MeasurementKey:
    return MeasurementKey(
        workload=f"job {number}", implementation="{}", config="{}", target="soak", device=KEY,
        threads=1, tvmx="0", tvm="0",
    )  # fmt: skip


def _measure_all(runner: RpcRunner, jobs: list[KernelJob], journal: Journal) -> int:
    """Journal every verdict at once, try the devices' faults again; returns their number."""
    faults = 0
    for start in range(0, len(jobs), BATCH):
        left = list(range(start, min(start + BATCH, len(jobs))))
        while left:
            numbers, again = left, []

            def record(position: int, result: Measurement) -> None:
                number = numbers[position]  # noqa: B023
                if result.device_fault:
                    again.append(number)  # noqa: B023
                    return
                journal.append(
                    MeasurementRecord(
                        key=_key(number), measurement=result.model_dump(mode="json"),
                        timestamp=time.time(),
                    )
                )  # fmt: skip

            runner.measure([jobs[n] for n in numbers], POLICY, record)
            left = again
            faults += len(again)
            assert faults < COUNT, "the devices do not come back"
    return faults


def test_soak(tmp_path: Path) -> None:
    libraries = build(tmp_path)
    libraries.foreign()
    expected = _plan()
    jobs = [_job(libraries, status, number) for number, status in enumerate(expected)]
    recorder = Recorder()
    path = tmp_path / "journal.jsonl"
    start = time.monotonic()
    with (
        punctual(2.0),
        Boards(2) as boards,
        RpcRunner(
            boards.address, parallel=None, deadlines=DEADLINES, patience_s=60, observer=recorder
        ) as runner,
    ):
        with Chaos(boards, SEED) as chaos:
            given_back = _measure_all(runner, jobs, Journal(path))
        took = time.monotonic() - start
        reports = runner.devices
        until(lambda: len(boards.registered()) == 2, 30)
    print(f"{took:.0f} s, {dict(chaos.faults)}, {given_back} measured again")

    records = list(Journal(path).records())
    counted = Counter(record.key for record in records)
    assert counted == Counter(_key(number) for number in range(COUNT))
    found = {record.key.workload: record.measurement for record in records}
    wrong = {
        name: (status, found[name]["status"], found[name]["message"])
        for number, status in enumerate(expected)
        if found[name := f"job {number}"]["status"] != status
    }
    assert not wrong
    for number, status in enumerate(expected):
        measured = found[f"job {number}"]
        if status == "ok" and number % 3:
            assert measured["median_us"] >= 5000
        if status in ("ok", "wrong-output"):
            assert measured["server"] in {board.server for board in boards}
    assert sum(chaos.faults.values()) >= COUNT // 25 and len(chaos.faults) == 4
    assert sum(report.measured for report in reports) == expected.count("ok")
    assert took < 400 * COUNT / 500
