"""``python -m tvmx.measure._worker``: the process that holds the RPC session.

It talks to its parent over an inherited socket (trusted: both ends are ours), does one task at
a time and keeps the session open between tasks, but lets the device go when idle.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tvmx.errors import TrackerError
from tvmx.measure._child import without_torch
from tvmx.measure._guard import split
from tvmx.measure._inspect import inspect
from tvmx.measure._jobs import Array
from tvmx.measure._prepared import Prepared, PreparedNetwork, prepare
from tvmx.measure._probing import Probe
from tvmx.measure._remote import RemoteSession, StepError, status_of
from tvmx.measure._tasks import (
    CompareTask,
    DescribeTask,
    DoneEvent,
    FailedEvent,
    InspectTask,
    Link,
    LinkTask,
    MeasureTask,
    ProbedEvent,
    RunTask,
    Spec,
    Task,
    Timed,
    library_bytes,
    upload_bytes,
)
from tvmx.measure._thermal import is_lost
from tvmx.measure._tracker import tracker_summary

_IDLE_SECONDS = 3.0
_SHARE_SECONDS = 2.0
_COMPARE_STEP_SECONDS = 10.0
_PROBE_EVERY = 60.0


class Worker:
    """Does tasks over one session at a time."""

    def __init__(self, channel: Connection, link: Link) -> None:
        self._channel = channel
        self._link = link
        self._session: RemoteSession | None = None
        self._ask_again = 0.0
        self._probed: dict[str, float] = {}

    def serve(self) -> None:
        """Until the parent closes the channel."""
        while True:
            if not self._channel.poll(_IDLE_SECONDS):
                self._drop()  # others may want the device
            try:
                task: Task = self._channel.recv()
            except EOFError:
                self._drop()
                return
            self._channel.send(self._do(task))

    def _do(self, task: Task) -> DoneEvent | FailedEvent:
        if isinstance(task, LinkTask):
            self._link = task.link
            if self._session is not None:
                self._session.relink(task.link)
            return DoneEvent()
        try:
            if self._session is not None and self._session.simulated:
                self._drop()  # what ran before may show in where memory lies, and so in cycles
            session = self._connected(task.queue_seconds, self._needs(task))
            session.subject = 0
            if isinstance(task, InspectTask):
                inspect(session, self._link)
                return DoneEvent()
            self._probe(session)
            session.cool_down()
            if not session.lasts(self._needs(task)):  # cooling took its time
                session = self._connected(task.queue_seconds, self._needs(task))
            if isinstance(task, MeasureTask):
                return DoneEvent((prepare(session, task.spec).measure(task.policy),))
            if isinstance(task, CompareTask):
                return DoneEvent(self._compare(session, task))
            if isinstance(task, RunTask):
                return DoneEvent(outputs=self._run(session, task))
            assert isinstance(task, DescribeTask)
            return DoneEvent()
        except StepError as err:
            # After any failure the server's memory may be damaged: the next task gets a new one.
            subject = self._session.subject if self._session else 0
            self._drop()
            return FailedEvent(err.status, str(err), subject, err.max_error, err.hopeless)
        except Exception as err:
            if self._session is not None and is_lost(err):  # between two steps
                step, subject = self._session.step, self._session.subject
                self._drop()
                reason = str(err).strip().splitlines()[0]
                return FailedEvent(status_of(step, err), f"after {step}: {reason}", subject)
            traceback.print_exc()  # a defect of ours; the log has the place
            self._drop()
            return FailedEvent("run", f"internal error: {type(err).__name__}: {err}")

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None
        gc.collect()  # a remote object in a cycle would keep the device from everybody

    def _needs(self, task: Task) -> float:
        """Seconds the session must still last for the task."""
        deadlines = self._link.deadlines
        if isinstance(task, CompareTask):
            steps = task.rounds * min(deadlines.run, _COMPARE_STEP_SECONDS)
            return sum(self._job_seconds(spec) + steps for spec in task.specs)
        if isinstance(task, MeasureTask | RunTask):
            return self._job_seconds(task.spec)
        return deadlines.job()

    def _job_seconds(self, spec: Spec) -> float:
        deadlines = self._link.deadlines
        loading = deadlines.loading(library_bytes(spec))
        return deadlines.transfer(upload_bytes(spec)) + loading + deadlines.run

    def _connected(self, queue_seconds: float, seconds: float) -> RemoteSession:
        if self._session and (self._wanted_by_others() or not self._session.usable(seconds)):
            self._drop()
        if self._session is None:
            lifetime = max(seconds + 15.0, self._link.deadlines.session())
            self._session = RemoteSession(self._link, self._channel.send, queue_seconds, lifetime)
            self._ask_again = time.monotonic() + _SHARE_SECONDS
        return self._session

    def _probe(self, session: RemoteSession) -> None:
        """Run the link's probe if this device has not shown its figures for a while."""
        library = self._link.probe
        last = self._probed.get(session.server)
        now = time.monotonic()
        if library is None or session.simulated or (last is not None and now - last < _PROBE_EVERY):
            return
        figures = Probe(session, library).figures(warm=True)
        self._probed[session.server] = now
        self._channel.send(ProbedEvent(figures, session.thermometer.read()))

    def _wanted_by_others(self) -> bool:
        """Whether another client waits for a device: then it is their turn first."""
        if time.monotonic() < self._ask_again:
            return False
        self._ask_again = time.monotonic() + _SHARE_SECONDS
        address = self._link.address
        try:
            status = tracker_summary(address.host, address.port).keys.get(address.key)
        except TrackerError:
            return False  # a session needs no tracker once it is open
        return status is not None and status.pending > 0

    def _compare(self, session: RemoteSession, task: CompareTask) -> tuple[Timed, ...]:
        prepared: list[Prepared] = []
        for index, spec in enumerate(task.specs):
            session.subject = index
            prepared.append(prepare(session, spec))
            prepared[-1].check()
        if all(item.simulated is not None for item in prepared):
            return tuple(item.timed((item.estimate_us,)) for item in prepared)
        latencies: list[list[float]] = [[] for _ in prepared]
        for _ in range(task.rounds):
            for index, item in enumerate(prepared):
                session.subject = index
                number = task.policy.calls(item.estimate_us)
                latencies[index] += item.time(number, 1, task.policy)
        return tuple(
            item.timed(times, session.thermometer.read())
            for times, item in zip(latencies, prepared, strict=True)
        )

    def _run(self, session: RemoteSession, task: RunTask) -> tuple[str, ...]:
        network: PreparedNetwork | None = None
        results: list[list[Array]] = []
        for index in range(task.count):
            if network is None or not session.lasts(self._link.deadlines.run):
                network = None
                session = self._connected(task.queue_seconds, self._needs(task))
                network = PreparedNetwork(session, task.spec)
            session.subject = index
            results.append(_run_one(session, network, task, index))
        session.forget()  # the cached inputs were overwritten
        paths = []
        for number, values in enumerate(zip(*results, strict=True)):
            path = Path(task.folder) / f"output{number}.npy"
            np.save(path, np.stack(values), allow_pickle=False)
            paths.append(str(path))
        return tuple(paths)


def _run_one(
    session: RemoteSession, network: PreparedNetwork, task: RunTask, index: int
) -> list[Array]:
    # On its own so that no variable keeps a device tensor, and with it the old session.
    with session.phase("run"):
        for tensor, stack in zip(network.inputs, task.stacks, strict=True):
            session.refill(tensor, stack, index)
        return list(network.run())


def main() -> None:
    """Put the guard in place, receive the link, serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--scratch", required=True)
    args = parser.parse_args()
    split(args.parent, args.scratch)
    os.chdir(args.scratch)
    without_torch()
    import tvm.rpc  # noqa: F401  (before it says that it is ready)

    sys.stdout.write(json.dumps({"pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    os.dup2(2, 1)
    channel = Connection(args.channel)
    Worker(channel, channel.recv()).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
