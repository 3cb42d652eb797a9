"""Temperature of a device, and leaving it alone until it is cool. Zones and time are scripted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.clock import Clock
from tvmx.measure import Cores, Deadlines, DeviceAddress, _remote, _thermal
from tvmx.measure._remote import RemoteSession
from tvmx.measure._tasks import CoolingEvent, Event, Link, PhaseEvent
from tvmx.measure._thermal import Thermometer, is_lost


class Board:
    """A remote whose thermal zones follow a script; None stands for what cannot be read."""

    def __init__(self, clock: Clock, **zones: Callable[[float], float | None]) -> None:
        self._clock, self._start = clock, clock.now
        self._zones = {f"/sys/class/thermal/thermal_{name}": zone for name, zone in zones.items()}
        self.reads = 0

    def download(self, path: str) -> bytearray:
        folder, _, file = path.rpartition("/")
        if folder not in self._zones:
            raise RuntimeError(f"Check failed: cannot open {path}")
        if file == "type":
            return bytearray(b"cpu-thermal\n")
        self.reads += 1
        celsius = self._zones[folder](self._clock.now - self._start)
        # A sysfs file claims a page; what cannot be read of it is left zero.
        return bytearray(b"" if celsius is None else f"{celsius * 1000:.0f}\n".encode()) + bytes(9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_thermal, "time", clock)
    monkeypatch.setattr(_remote, "time", clock)
    return clock


def test_the_hottest_zone_counts(clock: Clock) -> None:
    board = Board(clock, zone0=lambda s: 40.0, zone1=lambda s: 61.25, zone2=lambda s: 50.0)
    assert Thermometer(board).read() == 61.25


def test_no_zone_is_no_temperature(clock: Clock) -> None:
    assert Thermometer(Board(clock)).read() is None


def test_a_zone_that_is_off_hides_no_other(clock: Clock) -> None:
    board = Board(clock, zone0=lambda s: None, zone1=lambda s: 999.0, zone2=lambda s: 50.0)
    assert Thermometer(board).read() == 50.0


def test_readings_are_two_seconds_old_at_most(clock: Clock) -> None:
    thermometer = Thermometer(Board(clock, zone0=lambda s: 40.0 + s))
    assert thermometer.read() == 40.0
    clock.sleep(1.5)
    assert thermometer.read() == 40.0
    assert thermometer.read(fresh=True) == 41.5
    clock.sleep(2.0)
    assert thermometer.read() == 43.5


def test_a_zone_that_vanishes_ends_its_reading(clock: Clock) -> None:
    board = Board(clock, zone0=lambda s: 40.0 if s < 1 else None)
    thermometer = Thermometer(board)
    assert thermometer.read() == 40.0
    clock.sleep(5.0)
    assert thermometer.read() is None


def test_a_lost_connection_is_no_missing_file(clock: Clock) -> None:
    class Lost:
        def download(self, path: str) -> bytearray:
            raise RuntimeError("code=kShutdown")

    with pytest.raises(RuntimeError, match="kShutdown"):
        Thermometer(Lost()).read()


def _session(clock: Clock, board: Board, limit: float | None, lasts: float = 1000.0) -> Any:
    """A session of which only cooling works, and what it emits."""
    session = RemoteSession.__new__(RemoteSession)
    session._link = Link(DeviceAddress("h", 1, "k"), Cores(), Deadlines(), None, limit)
    session._emit = (events := []).append  # type: ignore[method-assign, var-annotated]
    session._ends = clock.now + lasts
    session.subject = 0
    session.thermometer = Thermometer(board)
    return session, events


def _cooling(events: list[Event]) -> list[CoolingEvent]:
    return [event for event in events if isinstance(event, CoolingEvent)]


def test_a_cool_device_is_not_waited_for(clock: Clock) -> None:
    for limit, zones in ((80.0, {"zone0": lambda s: 80.0}), (80.0, {}), (None, {})):
        session, events = _session(clock, Board(clock, **zones), limit)  # type: ignore[arg-type]
        session.cool_down()
        assert (events, clock.now) == ([], 1000.0)


def test_cooling_goes_on_until_five_degrees_below(clock: Clock) -> None:
    board = Board(clock, zone0=lambda s: 90.0 - s, zone1=lambda s: 30.0)
    session, events = _session(clock, board, 80.0)
    session.cool_down()
    assert clock.now - 1000.0 == 15.0
    assert isinstance(events[0], PhaseEvent)
    assert [e.temperature_c for e in _cooling(events)] == [90.0 - s for s in range(15)]
    left = [e.seconds_left for e in _cooling(events)]
    assert all(a - b == 1.0 for a, b in itertools.pairwise(left))
    assert events[0].seconds >= left[0] > 60


def test_cooling_is_given_up(clock: Clock) -> None:
    session, events = _session(clock, Board(clock, zone0=lambda s: 90.0 + s / 10), 80.0)
    session.cool_down()
    phase = events[0]
    assert isinstance(phase, PhaseEvent)
    assert 60 < clock.now - 1000.0 < phase.seconds  # else the worker would be killed for it
    assert _cooling(events)[-1].seconds_left <= 1.0


def test_cooling_leaves_time_in_the_session(clock: Clock) -> None:
    session, _ = _session(clock, Board(clock, zone0=lambda s: 90.0), 80.0, lasts=50.0)
    session.cool_down()
    assert session._ends - clock.now >= 15.0
    assert clock.now > 1000.0


def test_a_sensor_that_vanishes_ends_the_cooling(clock: Clock) -> None:
    board = Board(clock, zone0=lambda s: 90.0 if s < 3 else None)
    session, events = _session(clock, board, 80.0)
    session.cool_down()
    assert [e.temperature_c for e in _cooling(events)] == [90.0] * 3


@pytest.mark.parametrize(
    "text",
    [
        "code=kShutdown",
        "Check failed: (HandleUntilReturnEvent(true, [](ffi::PackedArgs) {}) == RPCCode::kCopyAck)",
        "Check failed: code == RPCCode::kReturn: code=kShutdown",
        "Socket SockChannel::Send Error:Broken pipe",
    ],
)
def test_ways_a_connection_that_went_shows(text: str) -> None:
    assert is_lost(RuntimeError(text))
    assert not is_lost(RuntimeError("Check failed: shape mismatch"))
