"""Devices that come, go, drift and differ; and waiting when there is none. Time is scripted."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clock import Clock
from tvmx.errors import TrackerError
from tvmx.measure import (
    DeviceAddress,
    KernelJob,
    KeyStatus,
    Measurement,
    ProbeFigures,
    TimingPolicy,
    TrackerSummary,
    Unobserved,
    _crew,
    _roster,
)
from tvmx.measure._batch import Batch
from tvmx.measure._crew import Crew, Patience, Slot
from tvmx.measure._roster import Roster
from tvmx.measure._tasks import ConnectedEvent, FailedEvent, ProbedEvent

KEY = "rpi4"
A, B, C = "10.0.0.1:9090", "10.0.0.2:9090", "10.0.0.3:9090"


class Log:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.waits: list[tuple[str, float | None]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def waiting(self, text: str, seconds_left: float | None) -> None:
        self.waits.append((text, seconds_left))


class Tracker:
    """What the roster sees of a tracker: the servers of the moment, or silence."""

    def __init__(self, *servers: str) -> None:
        self.servers: set[str] | None = set(servers)

    def __call__(self, host: str, port: int, timeout: float) -> TrackerSummary:
        if self.servers is None:
            raise TrackerError("no tracker answers")
        entries = [(KEY, *s.split(":")) for s in sorted(self.servers)]
        infos = tuple((key, host, int(port)) for key, host, port in entries)
        count = len(infos)
        keys = {KEY: KeyStatus(KEY, count, count, 0)} if count else {}
        other = ("other", "10.0.0.9", 9090)
        return TrackerSummary(f"{host}:{port}", keys, (*infos, other))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_roster, "time", clock)
    monkeypatch.setattr(_crew, "time", clock)
    return clock


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    tracker = Tracker(A, B)
    monkeypatch.setattr(_roster, "tracker_summary", tracker)
    return tracker


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def roster(log: Log, tracker: Tracker, clock: Clock) -> Roster:
    return Roster(DeviceAddress("127.0.0.1", 9190, KEY), log)


def poll(roster: Roster, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        roster.poll()
        clock.sleep(1.0)


# Presence


def test_a_device_that_left_is_missed_after_five_seconds(
    roster: Roster, tracker: Tracker, clock: Clock, log: Log
) -> None:
    poll(roster, clock, 3)
    tracker.servers = {B}
    poll(roster, clock, 6)  # unseen at 0 s .. 5 s
    assert log.messages == []
    poll(roster, clock, 20)
    (text,) = log.messages
    assert A in text and "has left the tracker" in text and f"1 left under '{KEY}'" in text


def test_a_server_that_restarts_its_listener_has_not_left(
    roster: Roster, tracker: Tracker, clock: Clock, log: Log
) -> None:
    for _ in range(10):
        tracker.servers = {A, B}
        poll(roster, clock, 1)
        tracker.servers = {B}
        poll(roster, clock, 4)
    tracker.servers = {A, B}
    poll(roster, clock, 10)
    assert log.messages == []


def test_who_returns_is_named_by_what_it_is(
    roster: Roster, tracker: Tracker, clock: Clock, log: Log
) -> None:
    roster.connected(ConnectedEvent("10.0.0.1", 9090, "Raspberry Pi 4", 4))
    poll(roster, clock, 1)
    for _ in range(2):
        tracker.servers = set()
        poll(roster, clock, 8)
        tracker.servers = {A, B}
        poll(roster, clock, 2)
    left = [text for text in log.messages if "has left" in text]
    back = [text for text in log.messages if "is back" in text]
    assert [len(left), len(back)] == [4, 4]  # both devices, twice
    assert all("none is left" in text for text in left)
    assert sum(f"{A} (Raspberry Pi 4)" in text for text in left + back) == 4


def test_a_silent_tracker_is_no_device_that_left(
    roster: Roster, tracker: Tracker, clock: Clock, log: Log
) -> None:
    status = roster.poll()
    assert status is not None and status.servers == 2
    tracker.servers = None
    poll(roster, clock, 60)
    assert roster.poll() is None
    tracker.servers = {A, B}
    poll(roster, clock, 3)
    assert log.messages == []


def test_the_roster_asks_a_tracker_by_its_protocol(log: Log) -> None:
    """Against a socket that answers as TVM's tracker does; the others do without."""
    listener = socket.create_server(("127.0.0.1", 0))
    status = {
        "queue_info": {KEY: {"free": 1, "pending": 2}},
        "server_info": [{"key": f"server:{KEY}", "addr": ["10.0.0.1", 9090]}],
    }

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(connection.recv(4))  # the magic number is the same both ways
            connection.recv(4 + 3)  # [6]: a summary is asked for
            body = json.dumps([0, status]).encode()
            connection.sendall(struct.pack("<i", len(body)) + body)

    with listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        roster = Roster(DeviceAddress("127.0.0.1", listener.getsockname()[1], KEY), log)
        assert roster.poll() == KeyStatus(KEY, 1, 1, 2)
        thread.join(5)


# Figures


def probe(roster: Roster, server: str, fma: float, stream: float = 4.0, **more: Any) -> None:
    host, port = server.split(":")
    roster.connected(ConnectedEvent(host, int(port), "board", 1))
    roster.probed(server, ProbedEvent(ProbeFigures(fma, stream), **more))


def test_drift_is_the_largest_change_since_the_first_figures(roster: Roster) -> None:
    assert roster.drift(A) is None
    probe(roster, A, 10.0, 4.0)
    assert roster.drift(A) == 0.0
    probe(roster, A, 9.9, 4.2)
    assert roster.drift(A) == pytest.approx(0.05)
    probe(roster, A, 8.0, 4.0)
    assert roster.drift(A) == pytest.approx(0.2)
    (report,) = roster.reports()
    assert report.first == ProbeFigures(10.0, 4.0) and report.figures == ProbeFigures(8.0, 4.0)


def test_drift_over_three_percent_is_flagged_once(roster: Roster, log: Log) -> None:
    probe(roster, A, 100.0)
    probe(roster, A, 97.5)
    assert log.messages == []
    for fma in (95.0, 94.0, 93.0):
        probe(roster, A, fma, temperature_c=81.6)
    (text,) = log.messages
    assert A in text and "float peak 5% lower than at the start at 82 °C" in text
    probe(roster, A, 99.0)  # well again
    probe(roster, A, 90.0)
    assert len(log.messages) == 2 and "10% lower" in log.messages[1]


def test_every_device_drifts_on_its_own(roster: Roster, log: Log) -> None:
    probe(roster, A, 100.0)
    probe(roster, B, 100.0)
    probe(roster, A, 90.0)
    probe(roster, B, 90.0)
    assert [A in log.messages[0], B in log.messages[1]] == [True, True]


def test_siblings_within_ten_percent_are_alike(roster: Roster, log: Log) -> None:
    for server, fma in ((A, 100.0), (B, 109.0), (C, 104.0)):
        probe(roster, server, fma)
    assert log.messages == []
    assert [report.deviation for report in roster.reports()] == [None] * 3


def test_the_one_that_differs_is_flagged_and_not_its_siblings(roster: Roster, log: Log) -> None:
    for server, stream in ((A, 4.0), (B, 4.1), (C, 2.0)):
        probe(roster, server, 100.0, stream)
    flagged = {r.server: r.deviation for r in roster.reports() if r.deviation}
    assert flagged.keys() == {C}
    assert flagged[C].startswith("memory bandwidth 5")
    assert sum(C in text for text in log.messages) == 1


def test_of_two_that_differ_both_are_flagged(roster: Roster, log: Log) -> None:
    probe(roster, A, 100.0)
    probe(roster, B, 85.0)
    assert len(log.messages) == 2
    texts = {r.server: r.deviation for r in roster.reports()}
    assert texts == {A: "float peak 18% higher", B: "float peak 15% lower"}
    for _ in range(3):
        probe(roster, B, 85.0)
    assert len(log.messages) == 2  # said once


def test_siblings_are_compared_as_they_were_at_first(roster: Roster) -> None:
    """A device that heats up drifts; it is no other device for that."""
    probe(roster, A, 100.0)
    probe(roster, B, 100.0)
    probe(roster, A, 70.0)
    assert [r.deviation for r in roster.reports()] == [None, None]


def test_measurements_are_counted_where_they_were_made(roster: Roster) -> None:
    for host in ("10.0.0.1", "10.0.0.2"):
        roster.connected(ConnectedEvent(host, 9090, "board", 1))
    for server in (A, B, A, "10.0.0.8:1"):
        roster.measured(server)
    assert [(r.server, r.measured) for r in roster.reports()] == [(A, 2), (B, 1)]


# Patience


def test_patience_counts_down_once_a_second_and_ends(clock: Clock, log: Log) -> None:
    patience = Patience(10.0, log)
    while patience.waiting("no device"):
        clock.sleep(0.1)
    *waits, (last, _) = log.waits
    assert last == ""  # work goes on, or was given up: the display returns to normal
    assert [text for text, _ in waits] == ["no device"] * len(waits)
    left = [seconds for _, seconds in waits if seconds is not None]
    assert left[0] == pytest.approx(10.0) and left[-1] < 1.2
    assert 9 <= len(left) <= 11
    assert patience.waited_s == pytest.approx(10.0, abs=0.2)
    assert not patience.waiting("no device")  # over is over


def test_patience_starts_anew_when_a_device_worked(clock: Clock, log: Log) -> None:
    patience = Patience(10.0, log)
    for _ in range(3):
        for _ in range(8):
            assert patience.waiting("no device")
            clock.sleep(1.0)
        patience.resumed()
        patience.well()
    assert patience.waited_s == pytest.approx(24.0)
    assert log.waits.count(("", None)) == 3


def test_nobody_waits_without_patience(clock: Clock, log: Log) -> None:
    patience = Patience(0.0, log)
    assert patience.none
    assert not patience.waiting("no device")
    assert patience.waited_s == 0


# The crew


class Worker:
    """A session's place, where there is none."""

    phase = None
    phase_since = 0.0

    def retire(self) -> None:
        return

    def close(self) -> None:
        return


FAULT = FailedEvent("queue", "no device rpi4 at 127.0.0.1:9190 within 5 s: none is registered")
JOB = KernelJob(Path("none.so"), "k", (np.zeros(1, np.float32),), (1,))


def make_crew(
    roster: Roster, log: Log, patience_s: float, fixed: int | None = None
) -> tuple[Crew, Patience]:
    patience = Patience(patience_s, log)
    return Crew(lambda: Slot(Worker()), fixed, roster, patience), patience  # type: ignore[arg-type]


def test_a_device_is_awaited_and_its_absence_explained(
    roster: Roster, tracker: Tracker, clock: Clock, log: Log
) -> None:
    crew, patience = make_crew(roster, log, 60.0, fixed=1)
    tracker.servers = set()
    returns = clock.now + 20

    def appear(seconds: float) -> None:
        clock.now += seconds
        if clock.now >= returns:
            tracker.servers = {A}

    clock.sleep = appear  # type: ignore[method-assign]
    assert crew.await_device(FAULT)
    assert 20 <= patience.waited_s < 22.5  # the tracker is asked once a second
    assert {text for text, _ in log.waits} == {
        f"no device {KEY} at 127.0.0.1:9190 is registered", ""
    }  # fmt: skip
    assert log.waits[-1] == ("", None)


def test_a_device_that_stays_away_is_given_up(
    roster: Roster, tracker: Tracker, clock: Clock, log: Log
) -> None:
    crew, patience = make_crew(roster, log, 30.0, fixed=1)
    tracker.servers = set()
    assert not crew.await_device(FAULT)
    assert patience.waited_s == pytest.approx(30.0, abs=0.5)


def test_a_sick_device_rests_longer_each_time(
    roster: Roster, tracker: Tracker, clock: Clock, log: Log
) -> None:
    """It is listed like a sound one, so only its slot's rest keeps it from being asked at once."""
    crew, _ = make_crew(roster, log, 600.0, fixed=1)
    rests = []
    for _ in range(6):
        crew.slots[0].fault("connect")
        before = clock.now
        assert crew.await_device(FAULT)
        rests.append(round(clock.now - before))
    assert rests == [1, 2, 4, 8, 15, 15]
    crew.slots[0].well()
    crew.slots[0].fault("connect")
    before = clock.now
    crew.await_device(FAULT)
    assert round(clock.now - before) == 1


@pytest.fixture
def quick_poll(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_crew, "_POLL_S", 0.05)
    monkeypatch.setattr(_crew, "_TICK_S", 0.02)
    yield


def drain(slot: Slot, batch: Batch) -> None:
    while (index := batch.take()) is not None:
        time.sleep(0.02)
        batch.done(index, Measurement.success([1.0], server=f"slot {id(slot)}"))


@pytest.mark.usefixtures("quick_poll")
def test_as_many_slots_work_as_devices_are_listed(tracker: Tracker, log: Log) -> None:
    real = Roster(DeviceAddress("127.0.0.1", 9190, KEY), log)
    crew, _ = make_crew(real, log, 5.0)
    batch = Batch([JOB] * 10, TimingPolicy(), None)
    crew.work(batch, drain)
    assert len({m.server for m in batch.ordered()}) == 2
    tracker.servers = {A, B, C}
    batch = Batch([JOB] * 20, TimingPolicy(), None)
    time.sleep(0.1)
    crew.work(batch, drain)
    assert len({m.server for m in batch.ordered()}) == 3


@pytest.mark.usefixtures("quick_poll")
def test_work_pauses_without_a_device_and_goes_on_with_it(tracker: Tracker, log: Log) -> None:
    real = Roster(DeviceAddress("127.0.0.1", 9190, KEY), log)
    crew, patience = make_crew(real, log, 30.0)
    batch = Batch([JOB] * 5, TimingPolicy(), None)
    tracker.servers = set()

    def return_() -> None:
        tracker.servers = {A}

    timer = threading.Timer(1.5, return_)
    timer.start()
    crew.work(batch, drain)
    timer.join()
    assert len(batch.ordered()) == 5
    assert patience.waited_s >= 1.0
    assert log.waits[0][0] == f"no device {KEY} at 127.0.0.1:9190 is registered"
    assert log.waits[-1] == ("", None)


@pytest.mark.usefixtures("quick_poll")
def test_patience_ends_and_the_rest_is_left(tracker: Tracker) -> None:
    log = Log()
    real = Roster(DeviceAddress("127.0.0.1", 9190, KEY), Unobserved())
    crew, patience = make_crew(real, log, 0.6)
    batch = Batch([JOB] * 3, TimingPolicy(), None)
    tracker.servers = set()
    start = time.monotonic()
    crew.work(batch, drain)
    assert 0.5 <= time.monotonic() - start < 5
    assert (batch.open_jobs, batch.finished) == (3, False)
    assert patience.waited_s > 0.4
