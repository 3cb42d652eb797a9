"""The jobs of one ``measure`` call, and what is still open among them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from tvmx.measure._base import OnResult
from tvmx.measure._jobs import Job
from tvmx.measure._measurement import Measurement, Status
from tvmx.measure._tasks import FailedEvent
from tvmx.measure._timing import TimingPolicy

_MOST_DEATHS = 3
_MOST_DOUBTS = 2
_REMEMBERED_S = 300.0


class Unrest:
    """How often, lately, a candidate was under suspicion and then did its work.

    Each time it was the device, or somebody who pulled its plug. Where that happens, chance may
    well strike the same candidate twice, so it takes more to blame one.
    """

    def __init__(self) -> None:
        self._alarms: deque[float] = deque(maxlen=_MOST_DOUBTS)

    def false_alarm(self) -> None:
        """A suspect turned out well."""
        self._alarms.append(time.monotonic())

    @property
    def doubts(self) -> int:
        """How many tries more than usual it takes to blame a candidate."""
        now = time.monotonic()
        return sum(now - when < _REMEMBERED_S for when in self._alarms)


@dataclass
class Suspicion:
    """How often a candidate crashed or hung where the device may be to blame.

    A killed server, a frozen board and a bad kernel look alike from here. What happens again
    on a fresh session is the candidate's doing. With ``vouched`` the farm knows that its server
    is alive, so a time limit needs no second try; a crash does, since the process that serves
    a client may have been killed from outside. ``early`` counts the servers that were free
    again before the session with a hanging candidate could have ended: an endless kernel does
    not let go, a frozen board does when it thaws.
    """

    crashes: int = 0
    timeouts: int = 0
    deaths: int = 0
    early: int = 0

    @property
    def any(self) -> bool:
        """Whether anything is held against the candidate."""
        return bool(self.crashes or self.timeouts or self.deaths)

    def convicts(self, status: Status, *, vouched: bool, doubts: int) -> bool:
        """Count one more; whether it is the candidate's fault by now."""
        if status == "timeout":
            self.timeouts += 1
            return vouched or self.timeouts >= 2 + max(doubts, min(self.early, _MOST_DOUBTS))
        self.crashes += 1
        return self.crashes >= (2 if vouched else 3) + doubts

    def server_died(self, doubts: int) -> bool:
        """Count a death of the server under the candidate; whether that is too often to chance."""
        self.deaths += 1
        return self.deaths >= _MOST_DEATHS + doubts


@dataclass
class Batch:
    """Jobs handed to the slots that drain it; all methods are safe to call from any thread."""

    jobs: Sequence[Job]
    policy: TimingPolicy
    on_result: OnResult | None
    error: BaseException | None = None
    last_fault: FailedEvent | None = None
    hopeless: bool = False
    suspicions: dict[int, Suspicion] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._todo = deque(range(len(self.jobs)))
        self._results: dict[int, Measurement] = {}

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen: all done, or stopped."""
        return self.error is not None or len(self._results) == len(self.jobs)

    @property
    def open_jobs(self) -> int:
        """Jobs nobody works on."""
        return len(self._todo)

    def wait(self, seconds: float) -> None:
        """Until something changes, or ``seconds`` have passed."""
        with self._changed:
            if not self.finished:
                self._changed.wait(seconds)

    def take(self) -> int | None:
        """The next job's index; None when there is none, or the batch was stopped."""
        with self._changed:
            return self._todo.popleft() if self._todo and self.error is None else None

    def suspicion(self, index: int) -> Suspicion:
        """What is held against a job so far."""
        return self.suspicions.setdefault(index, Suspicion())

    def give_back(self, index: int, fault: FailedEvent) -> None:
        """The device failed, not the job: somebody else may take it."""
        with self._changed:
            self._todo.appendleft(index)
            self.fault(fault)

    def fault(self, fault: FailedEvent) -> None:
        """A device failed; waiting for it is of no use when the fault is hopeless."""
        with self._changed:
            self.last_fault = fault
            self.hopeless |= fault.hopeless
            self._changed.notify_all()

    def done(self, index: int, result: Measurement) -> None:
        """Keep a result and tell the caller, from one thread at a time."""
        with self._changed:
            self._results[index] = result
            try:
                if self.on_result is not None and self.error is None:
                    self.on_result(index, result)
            finally:
                self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Stop: no further job is handed out."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def ordered(self) -> list[Measurement]:
        """All results, in the order of the jobs."""
        return [self._results[i] for i in range(len(self.jobs))]
