"""A user's boards: plain TVM trackers and servers that whoever measures does not own.

They can be killed, frozen and started again as a board is switched off, hangs and returns;
:class:`tvmx.measure.LocalFarm` knows nothing of them. Nothing here outlives the test: each
process has a guard (``tvmx/measure/_guard.py``).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tvmx.errors import TrackerError
from tvmx.measure import Deadlines, DeviceAddress, Measurement, RpcRunner, tracker_summary
from tvmx.measure._deadlines import PHASES
from tvmx.measure._guard import GuardedProcess
from tvmx.measure._session import Session
from tvmx.measure._tasks import (
    DoneEvent,
    FailedEvent,
    LinkTask,
    MeasureTask,
    Task,
    library_bytes,
    upload_bytes,
)

KEY = "board"
SHORT = Deadlines(queue=3, connect=2, upload=5, load=2, run=2)
SLACK = 2.0  # seconds an attempt may last longer than its deadline
_START_SECONDS = 60.0


def until(condition: Callable[[], bool], seconds: float = 20.0, what: str = "") -> None:
    """Wait for a condition; fail when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what or "it did not come true"
        time.sleep(0.02)


def family(pid: int) -> list[psutil.Process]:
    """A process and all it started; empty when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def freeze(pid: int) -> None:
    """Stop a process and all it started where they are."""
    for _ in range(2):  # again, for what was forked in between
        for process in family(pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()


def thaw(pid: int) -> None:
    """Let them go on."""
    for process in reversed(family(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def received(pid: int) -> int:
    """Bytes that the processes started by the server ``pid`` hold in memory."""
    total = 0
    for process in family(pid)[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


class Child:
    """A tracker or server process that comes back on its port."""

    def __init__(self, *args: str) -> None:
        self._args = args
        self.port = 0
        self._process: GuardedProcess | None = None

    def spawn(self) -> None:
        """Start it; :meth:`ready` says when it is up."""
        port = ["--port", str(self.port)] if self.port else []
        environment = {"TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"}
        self._process = GuardedProcess("tvmx.measure._child", [*self._args, *port], env=environment)

    def ready(self) -> None:
        assert self._process is not None
        self.port = int(self._process.ready(_START_SECONDS)["port"])

    def start(self) -> None:
        self.spawn()
        self.ready()

    def kill(self) -> None:
        """As when the power fails: it and all it started end at once."""
        if self._process is not None:
            if self._process.worker_pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.worker_pid, signal.SIGKILL)
            self._process.kill()
        self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None and self._process.worker_pid is not None
        return self._process.worker_pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    def freeze(self) -> None:
        """It hangs, and so does all it started; the kernel still accepts connections."""
        freeze(self.pid)

    def thaw(self) -> None:
        thaw(self.pid)


class Board(Child):
    """A device: a server that offers TVM's own functions only."""

    def __init__(self, tracker: str) -> None:
        super().__init__("server", "--plain", "--tracker", tracker, "--key", KEY)

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serving(self) -> list[psutil.Process]:
        """The processes that serve a client: one, or none while the board is free."""
        return family(self.pid)[1:]

    def kill_serving(self) -> bool:
        """What a crashing kernel does; whether there was anything to kill."""
        killed = False
        for process in self.serving():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed = True
        return killed

    def fill_disk(self, room: int) -> None:
        """From now on no file grows beyond ``room`` bytes; needs no root and can be undone."""
        self._limit_files(room)

    def free_disk(self) -> None:
        self._limit_files(resource.RLIM_INFINITY)

    def _limit_files(self, soft: int) -> None:
        for process in family(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
                process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))


class Boards:
    """A tracker and some boards under :data:`KEY`."""

    def __init__(self, count: int) -> None:
        self.tracker = Child("tracker")
        self.boards: list[Board] = []
        self._count = count

    def __enter__(self) -> Boards:
        try:
            self.tracker.start()
            self.boards = [Board(self.address.tracker) for _ in range(self._count)]
            for board in self.boards:
                board.spawn()
            for board in self.boards:
                board.ready()
            self.await_registered()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, index: int) -> Board:
        return self.boards[index]

    def __iter__(self) -> Iterator[Board]:
        return iter(self.boards)

    @property
    def address(self) -> DeviceAddress:
        return DeviceAddress("127.0.0.1", self.tracker.port, KEY)

    def close(self) -> None:
        for child in [*self.boards, self.tracker]:
            child.kill()

    def registered(self) -> set[int]:
        """Ports the tracker lists; none when it is silent."""
        try:
            summary = tracker_summary("127.0.0.1", self.tracker.port, 1.0)
        except TrackerError:
            return set()
        return {port for key, _, port in summary.servers if key == KEY}

    def await_registered(self) -> None:
        """Until every board is there."""
        wanted = {board.port for board in self.boards}
        until(lambda: self.registered() == wanted, 30.0, "a board does not register")

    def busy(self) -> list[Board]:
        """Boards that serve a client."""
        return [board for board in self.boards if board.serving()]


class Recorder:
    """An observer that keeps what it is told, and when."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, str]] = []
        self.waits: list[tuple[float, str, float | None]] = []
        self._lock = threading.Lock()

    def message(self, text: str) -> None:
        with self._lock:
            self.messages.append((time.monotonic(), text))

    def waiting(self, text: str, seconds_left: float | None) -> None:
        with self._lock:
            self.waits.append((time.monotonic(), text, seconds_left))

    def said(self, part: str) -> list[str]:
        """Messages with this text in them."""
        with self._lock:
            return [text for _, text in self.messages if part in text]


def board_runner(
    boards: Boards, observer: Recorder | None = None, patience: float = 30.0
) -> RpcRunner:
    """A runner on all the boards there are, with short deadlines."""
    return RpcRunner(
        boards.address, parallel=None, deadlines=SHORT, patience_s=patience, observer=observer
    )


def statuses(results: list[Measurement]) -> list[str]:
    return [r.status for r in results]


def messages(results: list[Measurement]) -> list[str]:
    """To be shown when the statuses are wrong."""
    return [f"{r.status}: {r.message}" for r in results]


@contextlib.contextmanager
def punctual(slack: float) -> Iterator[None]:
    """No attempt that is made meanwhile may last ``slack`` seconds longer than its deadline."""
    converse = Session._converse
    late: list[str] = []

    def timed(self: Session, task: Task) -> DoneEvent | FailedEvent:
        answer = converse(self, task)
        limit, took = _limit(self, task), time.monotonic() - self.phase_since
        if self.phase is not None and took > limit + slack:
            late.append(f"{self.phase} took {took:.1f} s, its deadline is {limit:g} s")
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_converse", timed)
        yield
    assert late == []


def _limit(session: Session, task: Task) -> float:
    deadlines, phase = session.link.deadlines, session.phase
    if isinstance(task, MeasureTask) and phase == "upload":
        return deadlines.transfer(upload_bytes(task.spec))
    if isinstance(task, MeasureTask) and phase == "load":
        return deadlines.loading(library_bytes(task.spec))
    if not isinstance(task, LinkTask) and phase == "queue":
        return task.queue_seconds
    return deadlines.of(phase) if phase in PHASES else _START_SECONDS


@contextlib.contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Run ``action`` in another thread; what it raises is raised at the end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(60.0)
    assert not thread.is_alive(), "the fault was not injected in time"
    if errors:
        raise errors[0]
