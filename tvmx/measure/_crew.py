"""The crew: one slot per device, what each is doing, and waiting when no device is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tvmx.measure._batch import Batch
from tvmx.measure._measurement import Status
from tvmx.measure._observer import Observer
from tvmx.measure._roster import Roster
from tvmx.measure._session import Session
from tvmx.measure._tasks import FailedEvent

_POLL_S = 1.0
_TICK_S = 0.1
_FIRST_REST_S = 1.0
_LONGEST_REST_S = 15.0
_QUEUE_SHOWN_S = 3.0
MOST_SLOTS = 64


@dataclass(eq=False)
class Slot:
    """A session, and how it fared. After a fault of its device it rests, longer each time."""

    session: Session
    faults: int = 0
    rest_until: float = 0.0

    def well(self) -> None:
        """Its device did what it was asked."""
        self.faults = 0
        self.rest_until = 0.0

    def fault(self, status: Status) -> None:
        """Its device failed, or (``queue``) there was none: that is no reason to rest longer."""
        rest = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0**self.faults)
        if status == "queue":
            rest = _FIRST_REST_S
        self.faults += 1
        self.rest_until = time.monotonic() + rest


class Patience:
    """How long to go on without any device: from the first trouble since one worked."""

    def __init__(self, seconds: float, observer: Observer) -> None:
        self._seconds = seconds
        self._observer = observer
        self._trouble: float | None = None
        self._said = 0.0
        self._since: float | None = None
        self.waited_s = 0.0

    @property
    def none(self) -> bool:
        """Whether nobody wants to wait at all."""
        return self._seconds <= 0

    @property
    def left_s(self) -> float:
        """Seconds until it is over."""
        trouble = self._trouble
        return self._seconds - (0.0 if trouble is None else time.monotonic() - trouble)

    def well(self) -> None:
        """A device worked."""
        self._trouble = None

    def fault(self) -> None:
        """A device failed."""
        if self._trouble is None:
            self._trouble = time.monotonic()

    def waiting(self, why: str) -> bool:
        """Say so about once a second; whether to go on waiting."""
        self.fault()
        if self.left_s <= 0:
            self.resumed()
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._said >= 1.0:
            self._said = now
            self._observer.waiting(why, self.left_s)
        return True

    def resumed(self) -> None:
        """Work goes on, or was given up."""
        if self._since is not None:
            self.waited_s += time.monotonic() - self._since
            self._since = None
            self._said = 0.0
            self._observer.waiting("", None)


class Crew:
    """Drains batches with as many slots as there are devices.

    ``fixed`` slots are all used from the start; without it there is one slot for each server
    the tracker lists, more as servers come. ``drain(slot, batch)`` works in a thread until the
    batch is empty or the slot's device fails.
    """

    def __init__(
        self,
        make_slot: Callable[[], Slot],
        fixed: int | None,
        roster: Roster,
        patience: Patience,
    ) -> None:
        self._make_slot, self._fixed = make_slot, fixed
        self._roster, self._patience = roster, patience
        self.slots = [make_slot() for _ in range(fixed or 1)]
        self._active: list[Slot] = []
        self._registered: int | None = None
        self._polled = 0.0

    def work(self, batch: Batch, drain: Callable[[Slot, Batch], None]) -> None:
        """Until the batch is finished, was stopped, or no device is left for the rest."""
        threads: dict[Slot, threading.Thread] = {}
        for slot in self.slots:
            slot.rest_until = 0.0  # who asks anew wants an answer now
        try:
            while not batch.finished:
                active = [slot for slot, thread in threads.items() if thread.is_alive()]
                ready = self._ready(batch, active)
                self._active = [*active, *ready]
                for slot in ready:
                    threads[slot] = threading.Thread(target=drain, args=(slot, batch), daemon=True)
                    threads[slot].start()
                if active or ready:
                    self._show_queue(active)
                elif not self._wait(batch):
                    return
                batch.wait(_TICK_S)
        except BaseException as err:  # Ctrl-C: no worker may go on, none may start
            batch.fail(err)
            self.kill()
            raise
        finally:
            self._patience.resumed()
            for thread in threads.values():
                thread.join()

    @property
    def surplus(self) -> bool:
        """Whether more slots work than devices are left: they would only take turns."""
        if self._fixed is not None or self._registered is None:
            return False
        return len(self._active) > max(1, self._registered)

    def await_device(self, fault: FailedEvent) -> bool:
        """Wait until there may be a device again; False when patience is over (or there is none).

        Rests a second at least, because a sick device is listed like a sound one.
        """
        if self._patience.none or fault.hopeless:
            return False
        slot = self.slots[0]
        while time.monotonic() < slot.rest_until or not self._poll():
            if not self._patience.waiting(self._why(fault)):
                return False
            time.sleep(_TICK_S)
        self._patience.resumed()
        return self._patience.left_s > 0

    def kill(self) -> None:
        """End all sessions where they are, for good."""
        for slot in self.slots:
            slot.session.retire()

    def close(self) -> None:
        """Let all devices go."""
        for slot in self.slots:
            slot.session.close()

    def _poll(self) -> int:
        """Servers registered, at most a second old; 0 when the tracker is silent."""
        now = time.monotonic()
        if self._registered is None or now - self._polled >= _POLL_S:
            status = self._roster.poll()
            self._registered = 0 if status is None else status.servers
            self._polled = now
        return self._registered

    def _ready(self, batch: Batch, active: list[Slot]) -> list[Slot]:
        """Slots to start now: rested, wanted, and with a device to hope for."""
        wanted = batch.open_jobs
        if not wanted or batch.hopeless:
            return []
        now = time.monotonic()
        if self._fixed is None:
            registered = self._poll()
            while len(self.slots) < min(registered, MOST_SLOTS):
                self.slots.append(self._make_slot())
            wanted = min(wanted, registered - len(active))
        rested = [s for s in self.slots if s not in active and now >= s.rest_until]
        return rested[: max(0, wanted)]

    def _wait(self, batch: Batch) -> bool:
        """Nobody works: wait, if jobs are left and there is patience; False ends the batch."""
        if batch.finished or not batch.open_jobs:
            return True
        if self._patience.none or batch.hopeless:
            return False
        return self._patience.waiting(self._why(batch.last_fault))

    def _show_queue(self, active: list[Slot]) -> None:
        """Slots wait for the tracker: others have all devices, or they have just gone."""
        phases = {slot.session.phase for slot in active}
        if phases & {"cool", "upload", "load", "run"}:
            self._patience.resumed()
        elif phases == {"queue"} and not self._patience.none:
            waited = time.monotonic() - max(slot.session.phase_since for slot in active)
            if not self._poll():
                self._patience.waiting(self._why(None))
            elif waited > _QUEUE_SHOWN_S:
                self._patience.waiting(f"all devices at {self._roster.address} are busy")

    def _why(self, fault: FailedEvent | None) -> str:
        if not self._poll():
            return f"no device {self._roster.address} is registered"
        return fault.message if fault else f"no device {self._roster.address}"
