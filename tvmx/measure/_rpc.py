"""RpcRunner: measures over TVM's RPC, on any device that a tracker knows."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tvmx.errors import DeviceError, MeasureError, UsageError
from tvmx.measure._address import DeviceAddress, Timeouts
from tvmx.measure._base import OnResult, Runner
from tvmx.measure._elf import library_problem
from tvmx.measure._jobs import Array, Job, NetworkJob, check_sample
from tvmx.measure._measurement import DEVICE_FAULTS, Measurement, Status
from tvmx.measure._session import Session
from tvmx.measure._spool import Spool
from tvmx.measure._tasks import (
    CompareTask,
    DescribeTask,
    DoneEvent,
    FailedEvent,
    Link,
    MeasureTask,
    NetworkSpec,
    RunTask,
    Task,
)
from tvmx.measure._timing import TimingPolicy
from tvmx.measure._tracker import require_key

Recover = Callable[[int | None, Status], bool]
"""Called after a failure with the port of the server in use and the failure's status: makes the
device usable again. Returns True when the server itself had died: not the candidate's fault."""

_STACK_BYTES = 64 << 20
_REGISTER_SECONDS = 3.0  # a server whose last client broke off may be gone for a moment


class RpcRunner(Runner):
    """Measures on the devices registered under ``address``.

    ``threads`` are the threads kernels run with (0: the device's default). ``arch`` is the
    target's architecture, such as ``aarch64``: libraries for another one fail as ``load``
    before they travel. ``parallel`` jobs are measured at a time, on as many devices.
    ``recover`` repairs servers the caller owns (see :class:`tvmx.measure.LocalFarm`).

    Raises :class:`tvmx.errors.TrackerError` or :class:`tvmx.errors.UnknownKeyError` at once
    when the device cannot be there.
    """

    def __init__(
        self,
        address: DeviceAddress,
        *,
        threads: int = 1,
        timeouts: Timeouts | None = None,
        arch: str | None = None,
        parallel: int = 1,
        recover: Recover | None = None,
    ) -> None:
        if threads < 0 or parallel < 1:
            raise UsageError(f"threads={threads}, parallel={parallel}: both must be positive")
        require_key(address, patience=_REGISTER_SECONDS)
        self.address = address
        self.timeouts = timeouts or Timeouts()
        self._threads = threads
        self._arch = arch
        self._recover = recover
        link = Link(address, threads, self.timeouts)
        self._sessions = [Session(link) for _ in range(parallel)]
        self._blocked_until = 0.0
        self._closed = False

    @property
    def key(self) -> str:
        """The key under which the device is registered."""
        return self.address.key

    @property
    def identity(self) -> str:
        """What the device says it is; connects if nothing has connected yet."""
        self._require_open()
        session = self._sessions[0]
        if session.connected is None:
            event = self._call(session, lambda _: DescribeTask(self._queue_seconds()))
            if isinstance(event, FailedEvent):
                raise MeasureError(f"device {self.address} cannot be used: {event.message}")
        assert session.connected is not None
        return session.connected.identity

    def measure(
        self,
        jobs: Sequence[Job],
        policy: TimingPolicy | None = None,
        on_result: OnResult | None = None,
    ) -> list[Measurement]:
        """See :meth:`Runner.measure`. When no device is left, the rest fails at once as well."""
        self._require_open()
        batch = _Batch(jobs, policy or TimingPolicy.quick(), on_result)
        helpers = [
            threading.Thread(target=self._drain, args=(session, batch), daemon=True)
            for session in self._sessions[1 : len(jobs)]
        ]
        for helper in helpers:
            helper.start()
        try:
            self._drain(self._sessions[0], batch)
            for helper in helpers:
                helper.join()
        except BaseException:
            batch.stop()
            self._closed = True
            for session in self._sessions:
                session.kill()
            raise
        if batch.error is not None:
            raise batch.error
        return batch.ordered()

    def compare(
        self, jobs: Sequence[Job], rounds: int, policy: TimingPolicy | None = None
    ) -> list[Measurement]:
        """See :meth:`Runner.compare`."""
        self._require_open()
        policy = policy or TimingPolicy.careful()
        results: dict[int, Measurement] = {}
        for index, job in enumerate(jobs):
            problem = library_problem(job.library, self._arch)
            if problem:
                results[index] = self._failed(None, FailedEvent("load", problem))
        while left := [i for i in range(len(jobs)) if i not in results]:
            self._compare_once(jobs, left, rounds, policy, results)
        return [results[i] for i in range(len(jobs))]

    def run(
        self, job: NetworkJob, inputs: Sequence[Mapping[str, Array]]
    ) -> list[tuple[Array, ...]]:
        """See :meth:`Runner.run`. Inputs travel in stacks of at most 64 MB."""
        self._require_open()
        problem = library_problem(job.library, self._arch)
        if problem:
            raise MeasureError(f"{job.name}: {problem}")
        for number, sample in enumerate(inputs):
            check_sample(job, number, sample)
        size = max(1, sum(a.nbytes for a in job.inputs.values()))
        step = max(1, _STACK_BYTES // size)
        outputs: list[tuple[Array, ...]] = []
        for start in range(0, len(inputs), step):
            outputs += self._run_stack(job, inputs[start : start + step])
        return outputs

    def close(self) -> None:
        """End the workers; the device is free again."""
        self._closed = True
        for session in self._sessions:
            session.close()

    def _require_open(self) -> None:
        if self._closed:
            raise MeasureError(f"the runner for {self.address} is closed")

    def _queue_seconds(self) -> float:
        # A candidate that hung keeps a board busy until the server ends the session by itself.
        return self.timeouts.queue + max(0.0, self._blocked_until - time.monotonic())

    def _call(self, session: Session, make: Callable[[Spool], Task]) -> DoneEvent | FailedEvent:
        """One task; tried again once when the device failed, or died under the candidate."""
        event = session.call(make)
        if isinstance(event, DoneEvent):
            self._blocked_until = 0.0
            return event
        if not self._repair(session, event):
            return event
        again = session.call(make)
        if isinstance(again, FailedEvent):
            self._repair(session, again)
        return again

    def _repair(self, session: Session, event: FailedEvent) -> bool:
        """Make the device usable after a failure; whether the task deserves another try."""
        if event.status not in DEVICE_FAULTS | {"timeout", "crash"}:
            return False
        if self._recover is None:
            if event.status == "timeout":
                self._blocked_until = time.monotonic() + self.timeouts.session
            return event.status == "connect"
        port = session.connected.port if session.connected else None
        try:
            server_died = self._recover(port, event.status)
        except DeviceError:
            return False  # the next job finds no device and says so
        return server_died or event.status in DEVICE_FAULTS

    def _drain(self, session: Session, batch: _Batch) -> None:
        while (index := batch.take()) is not None:
            try:
                result = self._one(session, batch, index)
                batch.done(index, result)
            except BaseException as err:
                batch.fail(err)
                if not isinstance(err, Exception):
                    raise

    def _one(self, session: Session, batch: _Batch, index: int) -> Measurement:
        job = batch.jobs[index]
        problem = library_problem(job.library, self._arch)
        if problem:
            return self._failed(session, FailedEvent("load", problem))
        if batch.device_lost is not None:
            return self._failed(session, batch.device_lost)

        def make(spool: Spool) -> Task:
            return MeasureTask(spool.spec(job), batch.policy, self._queue_seconds())

        event = self._call(session, make)
        if isinstance(event, FailedEvent):
            if event.status in DEVICE_FAULTS and len(self._sessions) == 1:
                batch.device_lost = event
            return self._failed(session, event)
        timed = event.timed[0]
        return self._succeeded(session, timed.latencies_us, timed.max_error)

    def _compare_once(
        self,
        jobs: Sequence[Job],
        left: list[int],
        rounds: int,
        policy: TimingPolicy,
        results: dict[int, Measurement],
    ) -> None:
        session = self._sessions[0]

        def make(spool: Spool) -> Task:
            specs = tuple(spool.spec(jobs[i]) for i in left)
            return CompareTask(specs, rounds, policy, self._queue_seconds())

        event = self._call(session, make)
        if isinstance(event, DoneEvent):
            for i, timed in zip(left, event.timed, strict=True):
                results[i] = self._succeeded(session, timed.latencies_us, timed.max_error)
        elif event.status in DEVICE_FAULTS:
            results.update({i: self._failed(session, event) for i in left})
        else:
            results[left[event.subject]] = self._failed(session, event)

    def _run_stack(
        self, job: NetworkJob, samples: Sequence[Mapping[str, Array]]
    ) -> list[tuple[Array, ...]]:
        session = self._sessions[0]

        def make(spool: Spool) -> Task:
            spec = spool.spec(job)
            assert isinstance(spec, NetworkSpec)
            stacks = tuple(spool.put(np.stack([s[n] for s in samples])) for n in job.inputs)
            folder = str(session.folder)
            return RunTask(spec, stacks, len(samples), folder, self._queue_seconds())

        event = self._call(session, make)
        if isinstance(event, FailedEvent):
            raise MeasureError(
                f"{job.name} failed on {self.address}, input {event.subject}: {event.message}"
            )
        columns = [np.load(Path(path), allow_pickle=False) for path in event.outputs]
        return [tuple(column[i] for column in columns) for i in range(len(samples))]

    def _succeeded(
        self, session: Session, latencies: tuple[float, ...], error: float | None
    ) -> Measurement:
        connected = session.connected
        return Measurement.success(
            latencies,
            max_error=error,
            device=self.key,
            identity=connected.identity if connected else "",
            threads=connected.threads if connected else self._threads,
        )

    def _failed(self, session: Session | None, event: FailedEvent) -> Measurement:
        connected = session.connected if session else None
        return Measurement.failure(
            event.status,
            event.message,
            max_error=event.max_error,
            device=self.key,
            identity=connected.identity if connected else "",
            threads=connected.threads if connected else self._threads,
        )


class _Batch:
    """Jobs of one ``measure`` call, handed to the sessions that drain it."""

    def __init__(
        self, jobs: Sequence[Job], policy: TimingPolicy, on_result: OnResult | None
    ) -> None:
        self.jobs = jobs
        self.policy = policy
        self.device_lost: FailedEvent | None = None
        self.error: BaseException | None = None
        self._on_result = on_result
        self._lock = threading.Lock()
        self._results: dict[int, Measurement] = {}
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(jobs)):
            self._todo.put(index)

    def take(self) -> int | None:
        if self.error is not None:
            return None
        try:
            return self._todo.get_nowait()
        except queue.Empty:
            return None

    def done(self, index: int, result: Measurement) -> None:
        with self._lock:
            self._results[index] = result
            if self._on_result is not None and self.error is None:
                self._on_result(index, result)

    def fail(self, error: BaseException) -> None:
        self.error = self.error or error

    def stop(self) -> None:
        self.error = self.error or KeyboardInterrupt()

    def ordered(self) -> list[Measurement]:
        return [self._results[i] for i in range(len(self.jobs))]
