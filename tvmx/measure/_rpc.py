"""RpcRunner: measures over TVM's RPC, on any device that a tracker knows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tvmx.errors import DeviceError, MeasureError, UsageError
from tvmx.measure._address import DeviceAddress
from tvmx.measure._base import OnResult, Runner
from tvmx.measure._batch import Batch, Suspicion, Unrest
from tvmx.measure._cores import Cores
from tvmx.measure._crew import Crew, Patience, Slot
from tvmx.measure._deadlines import Deadlines
from tvmx.measure._elf import library_problem
from tvmx.measure._jobs import Array, Job, NetworkJob, check_sample
from tvmx.measure._measurement import DEVICE_FAULTS, Measurement, Status
from tvmx.measure._observer import Observer, Unobserved
from tvmx.measure._probe import ProbeLibrary
from tvmx.measure._roster import DeviceReport, Roster
from tvmx.measure._session import Session
from tvmx.measure._spool import Spool
from tvmx.measure._tasks import (
    CompareTask,
    ConnectedEvent,
    CoolingEvent,
    DescribeTask,
    DoneEvent,
    Event,
    FailedEvent,
    Link,
    MeasureTask,
    NetworkSpec,
    PhaseEvent,
    ProbedEvent,
    RunTask,
    Task,
    TicketEvent,
    Timed,
)
from tvmx.measure._timing import TimingPolicy
from tvmx.measure._tracker import require_key

Recover = Callable[[int | None, Status], bool]
"""Called after a failure with the port of the server in use and the failure's status: makes the
device usable again. Returns True when the server itself had died: not the candidate's fault."""

_STACK_BYTES = 64 << 20
_REGISTER_SECONDS = 3.0  # a server whose last client broke off may be gone for a moment
_TRIES = 2  # on a device that fails, before the slot rests
_EARLY_S = 3.0  # a server free so long before its session's end was not stuck in it


class RpcRunner(Runner):
    """Measures on the devices registered under ``address``, all at once.

    ``cores`` are the cores kernels run on (0 threads: the device's default). ``arch`` is the
    target's architecture, such as ``aarch64``: libraries for another one fail as ``load``
    before they travel. ``parallel`` jobs are measured at a time; None: one on each server the
    tracker lists, as they come and go. When no device is left, work pauses for ``patience_s``
    seconds at most; ``observer`` is told. ``recover`` repairs servers the caller owns (see
    :class:`tvmx.measure.LocalFarm`). With ``probe`` each device shows its figures first: one
    that drifts or differs from its siblings is flagged. Above ``max_temperature`` (degrees
    Celsius) a device is left to cool.

    What crashed or hung is tried again before the candidate is blamed: a killed server and a
    crashing kernel look alike. Raises :class:`tvmx.errors.TrackerError` or
    :class:`tvmx.errors.UnknownKeyError` at once when the device cannot be there.
    """

    def __init__(
        self,
        address: DeviceAddress,
        *,
        cores: Cores | None = None,
        deadlines: Deadlines | None = None,
        arch: str | None = None,
        parallel: int | None = 1,
        patience_s: float = 0.0,
        observer: Observer | None = None,
        recover: Recover | None = None,
        probe: ProbeLibrary | None = None,
        max_temperature: float | None = None,
    ) -> None:
        if parallel is not None and parallel < 1:
            raise UsageError(f"parallel={parallel} must be positive")
        require_key(address, patience=_REGISTER_SECONDS)
        self.address = address
        self.cores = cores or Cores()
        self._arch = arch
        self._recover = recover
        self._observer = observer or Unobserved()
        link = Link(address, self.cores, deadlines or Deadlines(), probe, max_temperature)
        self._link = link
        self._roster = Roster(address, self._observer)
        self._patience = Patience(patience_s, self._observer)
        self._crew = Crew(self._make_slot, parallel, self._roster, self._patience)
        self._unrest = Unrest()
        self._stuck: dict[str, tuple[float, Suspicion]] = {}
        self._blocked_until = 0.0
        self._cooling: set[str] = set()
        self._slowest_s = 0.0
        self._simulated = ""
        self._closed = False

    @property
    def key(self) -> str:
        """The key under which the device is registered."""
        return self.address.key

    @property
    def identity(self) -> str:
        """What the device says it is; connects if nothing has connected yet."""
        self._require_open()
        session = self._crew.slots[0].session
        if session.connected is None:
            event = self._persist(lambda _: DescribeTask(self._queue_seconds()))
            if isinstance(event, FailedEvent):
                raise MeasureError(f"device {self.address} cannot be used: {event.message}")
        assert session.connected is not None
        return session.connected.identity

    @property
    def devices(self) -> tuple[DeviceReport, ...]:
        """What is known of each device met so far."""
        return self._roster.reports()

    @property
    def waited_s(self) -> float:
        """Seconds lost so far because no device was there or free."""
        return self._patience.waited_s

    @property
    def slowest_s(self) -> float:
        """See :attr:`Runner.slowest_s`."""
        return self._slowest_s

    @property
    def simulated(self) -> str:
        """See :attr:`Runner.simulated`."""
        return self._simulated

    @property
    def deadlines(self) -> Deadlines:
        """What each phase may take; setting it holds for the tasks that start afterwards."""
        return self._link.deadlines

    @deadlines.setter
    def deadlines(self, deadlines: Deadlines) -> None:
        self._link = replace(self._link, deadlines=deadlines)
        for slot in self._crew.slots:
            slot.session.link = self._link

    def measure(
        self,
        jobs: Sequence[Job],
        policy: TimingPolicy | None = None,
        on_result: OnResult | None = None,
    ) -> list[Measurement]:
        """See :meth:`Runner.measure`. When no device is left, the rest fails at once as well."""
        self._require_open()
        batch = Batch(jobs, policy or TimingPolicy.quick(), on_result)
        self._patience.well()
        try:
            self._crew.work(batch, self._drain)
        except BaseException:
            self._closed = True
            self._crew.kill()
            raise
        if batch.error is not None:
            raise batch.error
        self._fail_rest(batch)
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
        self._crew.close()

    def _make_slot(self) -> Slot:
        return Slot(Session(self._link, self._heard))

    def _require_open(self) -> None:
        if self._closed:
            raise MeasureError(f"the runner for {self.address} is closed")

    def _heard(self, session: Session, event: Event) -> None:
        """What a worker says of its device, from the thread that waits for it."""
        server = session.connected.server if session.connected else ""
        if isinstance(event, TicketEvent):
            ends, suspicion = self._stuck.pop(event.server, (0.0, None))
            if suspicion is not None and time.monotonic() < ends - _EARLY_S:
                suspicion.early += 1
        elif isinstance(event, ConnectedEvent):
            self._roster.connected(event)
        elif isinstance(event, ProbedEvent):
            self._roster.probed(server, event)
        elif isinstance(event, CoolingEvent):
            self._cooling.add(server)
            self._observer.waiting(
                f"device {self.key} on {server} is at {event.temperature_c:.0f} °C: cooling",
                event.seconds_left,
            )
        elif isinstance(event, PhaseEvent) and server in self._cooling:
            self._cooling.discard(server)
            self._observer.waiting("", None)

    def _queue_seconds(self) -> float:
        # A candidate that hung keeps a board busy until the server ends the session by itself.
        return self._link.deadlines.queue + max(0.0, self._blocked_until - time.monotonic())

    def _call(
        self, slot: Slot, make: Callable[[Spool], Task], suspicion_of: Callable[[int], Suspicion]
    ) -> DoneEvent | FailedEvent:
        """One task until there is a verdict on it, or its device has failed twice in a row.

        ``suspicion_of`` is asked by the job's index in the task.
        """
        suspected = suspicion_of(0).any
        while True:
            event = slot.session.call(make)
            if slot.session.retired:
                return event
            if isinstance(event, FailedEvent) and event.status in DEVICE_FAULTS:
                slot.fault(event.status)
                self._patience.fault()
                self._repair(slot.session, event)
                if event.hopeless or slot.faults % _TRIES == 0:
                    return event
                continue
            if isinstance(event, FailedEvent) and event.status in ("crash", "timeout"):
                suspected = True
                if self._convicted(slot.session, event, suspicion_of(event.subject)):
                    return event
                continue
            if isinstance(event, DoneEvent):
                self._blocked_until = 0.0
            if suspected:
                self._unrest.false_alarm()
            slot.well()
            self._patience.well()
            return event

    def _convicted(self, session: Session, event: FailedEvent, suspicion: Suspicion) -> bool:
        """Whether a crash or a time limit is the candidate's doing."""
        died, doubts = self._repair(session, event), self._unrest.doubts
        if died:
            return suspicion.server_died(doubts)
        if died is None and event.status == "timeout" and session.ticket is not None:
            self._stuck[session.ticket.server] = (session.ends, suspicion)
            self._blocked_until = session.ends
        return suspicion.convicts(event.status, vouched=died is False, doubts=doubts)

    def _repair(self, session: Session, event: FailedEvent) -> bool | None:
        """Make the device usable after a failure; whether its server had died, if one can tell."""
        if self._recover is None:
            return None
        port = session.ticket.port if session.ticket else None
        try:
            return self._recover(port, event.status)
        except DeviceError:
            return True  # the next try finds no device and says so

    def _persist(self, make: Callable[[Spool], Task]) -> DoneEvent | FailedEvent:
        """A task on the first slot, through pauses without a device."""
        slot, suspicions = self._crew.slots[0], defaultdict[int, Suspicion](Suspicion)
        self._patience.well()
        while True:
            event = self._call(slot, make, suspicions.__getitem__)
            if isinstance(event, DoneEvent) or event.status not in DEVICE_FAULTS:
                return event
            if not self._crew.await_device(event):
                return event

    def _drain(self, slot: Slot, batch: Batch) -> None:
        """Measure jobs of the batch until none is open or the slot's device fails.

        The device comes first: a job in hand would wait for it, though others could take it.
        """
        try:
            if len(self._crew.slots) > 1 and (fault := self._missing(slot)) is not None:
                batch.fault(fault)
                return
            while not self._crew.surplus and (index := batch.take()) is not None:
                result = self._one(slot, batch, index)
                if isinstance(result, FailedEvent):
                    batch.give_back(index, result)
                    return
                batch.done(index, result)
        except BaseException as err:
            batch.fail(err)

    def _missing(self, slot: Slot) -> FailedEvent | None:
        """Why the slot has no device; None when it has one."""
        found = self._call(
            slot, lambda _: DescribeTask(self._queue_seconds()), lambda _: Suspicion()
        )
        return found if isinstance(found, FailedEvent) else None

    def _one(self, slot: Slot, batch: Batch, index: int) -> Measurement | FailedEvent:
        """A job's measurement; the event when the device is to blame."""
        job, session = batch.jobs[index], slot.session
        problem = library_problem(job.library, self._arch)
        if problem:
            return self._failed(session, FailedEvent("load", problem))

        def make(spool: Spool) -> Task:
            return MeasureTask(spool.spec(job), batch.policy, self._queue_seconds())

        event = self._call(slot, make, lambda _: batch.suspicion(index))
        if isinstance(event, FailedEvent):
            return event if event.status in DEVICE_FAULTS else self._failed(session, event)
        if session.connected is not None:
            self._roster.measured(session.connected.server)
        return self._succeeded(session, event.timed[0])

    def _fail_rest(self, batch: Batch) -> None:
        """What no device was left for."""
        while (index := batch.take()) is not None:
            fault = batch.last_fault or FailedEvent("queue", f"no device {self.address}")
            batch.done(index, self._failed(self._crew.slots[0].session, fault))

    def _compare_once(
        self,
        jobs: Sequence[Job],
        left: list[int],
        rounds: int,
        policy: TimingPolicy,
        results: dict[int, Measurement],
    ) -> None:
        session = self._crew.slots[0].session

        def make(spool: Spool) -> Task:
            specs = tuple(spool.spec(jobs[i]) for i in left)
            return CompareTask(specs, rounds, policy, self._queue_seconds())

        event = self._persist(make)
        if isinstance(event, DoneEvent):
            for i, timed in zip(left, event.timed, strict=True):
                results[i] = self._succeeded(session, timed)
        elif event.status in DEVICE_FAULTS:
            results.update({i: self._failed(session, event) for i in left})
        else:
            results[left[event.subject]] = self._failed(session, event)

    def _run_stack(
        self, job: NetworkJob, samples: Sequence[Mapping[str, Array]]
    ) -> list[tuple[Array, ...]]:
        session = self._crew.slots[0].session

        def make(spool: Spool) -> Task:
            spec = spool.spec(job)
            assert isinstance(spec, NetworkSpec)
            stacks = tuple(spool.put(np.stack([s[n] for s in samples])) for n in job.inputs)
            folder = str(session.folder)
            return RunTask(spec, stacks, len(samples), folder, self._queue_seconds())

        event = self._persist(make)
        if isinstance(event, FailedEvent):
            raise MeasureError(
                f"{job.name} failed on {self.address}, input {event.subject}: {event.message}"
            )
        columns = [np.load(Path(path), allow_pickle=False) for path in event.outputs]
        return [tuple(column[i] for column in columns) for i in range(len(samples))]

    def _succeeded(self, session: Session, timed: Timed) -> Measurement:
        connected = session.connected
        self._slowest_s = max(self._slowest_s, timed.wall_s)
        if connected is not None:
            self._simulated = connected.simulated
        server = connected.server if connected else ""
        return Measurement.success(
            timed.latencies_us,
            max_error=timed.max_error,
            device=self.key,
            server=server,
            identity=connected.identity if connected else "",
            threads=connected.threads if connected else self.cores.threads,
            temperature_c=timed.temperature_c,
            drift=self._roster.drift(server),
            simulated=timed.simulated,
        )

    def _failed(self, session: Session | None, event: FailedEvent) -> Measurement:
        connected = session.connected if session else None
        ticket = session.ticket if session else None
        return Measurement.failure(
            event.status,
            event.message,
            max_error=event.max_error,
            device=self.key,
            server=ticket.server if ticket else "",
            identity=connected.identity if connected else "",
            threads=connected.threads if connected else self.cores.threads,
        )
