"""Whose fault it is, and how long to wait: without any device."""

from __future__ import annotations

import time

import pytest

from tests.boards import Recorder
from tests.clock import Clock
from tvmx.measure import DeviceAddress
from tvmx.measure._batch import Suspicion, Unrest
from tvmx.measure._cores import Cores
from tvmx.measure._crew import Patience
from tvmx.measure._deadlines import Deadlines
from tvmx.measure._remote import status_of
from tvmx.measure._tasks import DescribeTask, FailedEvent, Link, Phase
from tvmx.measure._worker import Worker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


def _tries(status: str, *, vouched: bool, doubts: int = 0, early: int = 0) -> int:
    suspicion = Suspicion(early=early)
    count = 1
    while not suspicion.convicts(status, vouched=vouched, doubts=doubts):  # type: ignore[arg-type]
        count += 1
    return count


def test_how_often_it_takes() -> None:
    assert (_tries("crash", vouched=False), _tries("crash", vouched=True)) == (3, 2)
    assert (_tries("timeout", vouched=False), _tries("timeout", vouched=True)) == (2, 1)
    assert _tries("crash", vouched=False, doubts=2) == 5
    assert _tries("timeout", vouched=False, doubts=2) == 4
    assert _tries("timeout", vouched=True, doubts=2) == 1  # the farm knows


def test_a_server_that_lets_go_early_was_not_in_an_endless_kernel() -> None:
    assert _tries("timeout", vouched=False, early=1) == 3
    assert _tries("timeout", vouched=False, early=9) == 4  # a slow kernel lets go as well


def test_crashes_and_time_limits_are_counted_apart() -> None:
    suspicion = Suspicion()
    assert not suspicion.any
    assert not suspicion.convicts("timeout", vouched=False, doubts=0)
    assert not suspicion.convicts("crash", vouched=False, doubts=0)
    assert not suspicion.server_died(0)
    assert suspicion.any


def test_false_alarms_raise_doubts_for_a_while(clock: Clock) -> None:
    unrest = Unrest()
    assert unrest.doubts == 0
    for expected in (1, 2, 2):
        unrest.false_alarm()
        assert unrest.doubts == expected
        clock.now += 10
    clock.now += 289  # of the last two alarms one is older than five minutes
    assert unrest.doubts == 1
    clock.now += 20
    assert unrest.doubts == 0


def test_patience_counts_from_the_first_trouble(clock: Clock) -> None:
    recorder = Recorder()
    patience = Patience(10.0, recorder)
    clock.now += 100  # a long job, for instance
    assert patience.left_s == 10
    patience.fault()
    clock.now += 4
    patience.fault()
    assert patience.left_s == 6
    assert patience.waiting("why")
    clock.now += 7
    assert not patience.waiting("why") and not patience.waiting("why")
    assert [(text, left) for _, text, left in recorder.waits] == [("why", 6.0), ("", None)]
    assert patience.waited_s == 7
    patience.well()
    assert patience.left_s == 10


# What TVM's client said when the process that served it was killed at random.
LOST = [
    "Check failed: (code == RPCCode::kReturn) is false: code=kShutdown",
    "Socket SockChannel::Recv Error:Connection reset by peer",
    "Socket SockChannel::Send Error:Broken pipe",
    "Check failed: (HandleUntilReturnEvent(true, [](...) {}) == RPCCode::kReturn) is false:",
]


@pytest.mark.parametrize("text", LOST)
def test_a_lost_connection_is_no_verdict(text: str) -> None:
    error = RuntimeError(text)
    assert [status_of(p, error) for p in ("connect", "upload", "load", "run")] == [
        "connect", "upload", "crash", "crash",
    ]  # fmt: skip
    assert status_of("run", RuntimeError("Error caught from RPC call: no such symbol")) == "run"


class LostSession:
    """Its server dies while nothing of the candidate runs."""

    server, simulated = "127.0.0.1:1", ""
    subject = 0

    def __init__(self, step: Phase) -> None:
        self.step = step

    def cool_down(self) -> None:
        raise RuntimeError(LOST[0])

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("step", "status"), [("connect", "connect"), ("run", "crash")])
def test_a_connection_lost_between_two_steps(
    step: Phase, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(DeviceAddress("127.0.0.1", 1, "board"), Cores(), Deadlines())
    worker = Worker(None, link)  # type: ignore[arg-type]
    worker._session = session = LostSession(step)  # type: ignore[assignment]
    monkeypatch.setattr(worker, "_connected", lambda *_: session)
    answer = worker._do(DescribeTask(1.0))
    assert isinstance(answer, FailedEvent)
    assert (answer.status, session.closed) == (status, True)
    assert "kShutdown" in answer.message
