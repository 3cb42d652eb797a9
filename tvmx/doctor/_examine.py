"""The examination: every free device under a key at once, each in a session of its own."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from tvmx.build import host_arch
from tvmx.doctor._build import build_probe
from tvmx.doctor._diagnosis import Diagnosis, Finding, Section, broken, hint, ok
from tvmx.doctor._failures import explain_failure, incomplete_upload
from tvmx.doctor._features import target_of_model
from tvmx.doctor._judge import judge_inside, judge_outside
from tvmx.doctor._way import Way, check_way
from tvmx.errors import BuildError
from tvmx.measure import (
    SIBLINGS,
    Cores,
    Deadlines,
    DeviceAddress,
    LocalFarm,
    ProbeFigures,
    ProbeLibrary,
    Visit,
    unlike_siblings,
)
from tvmx.targets import Target, load_target

DEADLINES = Deadlines(queue=5.0, connect=8.0, upload=10.0, load=8.0, run=10.0)
"""What each step of an examination may take: a healthy device needs a tenth of it."""

_STAY_S = 1.0
OnStage = Callable[[str], None]


def examine(
    address: DeviceAddress | None,
    target: Target | None = None,
    *,
    cores: Cores | None = None,
    deadlines: Deadlines = DEADLINES,
    on_stage: OnStage = lambda _: None,
) -> Diagnosis:
    """Examine the way to the devices at ``address``, and each that is free; None: this machine.

    ``target`` is what they are held against; None: what the first of them is. Never raises for
    what is wrong there, and never waits past ``deadlines``. ``on_stage`` is told what happens.
    Raises :class:`tvmx.errors.DeviceError` when no server starts on this machine.
    """
    start = time.monotonic()
    cores = cores or Cores()
    if address is None:
        on_stage("starting a tracker and a server on this machine")
        with LocalFarm(key="this-machine") as farm:
            return _Examination(farm.address, target, cores, deadlines, on_stage, True).run(start)
    return _Examination(address, target, cores, deadlines, on_stage, False).run(start)


class _Examination:
    """State of one call of :func:`examine`."""

    def __init__(
        self,
        address: DeviceAddress,
        target: Target | None,
        cores: Cores,
        deadlines: Deadlines,
        on_stage: OnStage,
        local: bool,
    ) -> None:
        self._address, self._target = address, target
        self._why = "" if target is None else "as asked for"
        self._cores, self._deadlines = cores, deadlines
        self._on_stage, self._local = on_stage, local
        self._probe: Future[ProbeLibrary | None] = Future()
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._build_error: BuildError | None = None

    def run(self, start: float) -> Diagnosis:
        self._on_stage(f"asking the tracker at {self._address.tracker}")
        way = check_way(self._address)
        sections = [Section(title=f"tracker {self._address.tracker}", findings=way.findings)]
        if way.free:
            visits = self._visit_all(way.free)
            sections += self._sections(way, visits)
        return Diagnosis(
            sections=tuple(sections),
            seconds=time.monotonic() - start,
            target=self._target.name if self._target else None,
            why=self._why,
        )

    def _visit_all(self, count: int) -> list[Visit]:
        self._on_stage(f"connecting to {count} device{'s' if count > 1 else ''}")
        visits = [Visit(self._address, self._cores, self._deadlines) for _ in range(count)]
        with ThreadPoolExecutor(2 * count) as pool, tempfile.TemporaryDirectory() as folder:
            try:
                looks = {pool.submit(visit.look): visit for visit in visits}
                whole = [pool.submit(self._finish, look, visit) for look, visit in looks.items()]
                self._choose_target(looks)
                self._probe.set_result(self._build(Path(folder)))
                if self._probe.result() is not None:
                    self._on_stage("running the probe")
                for future in whole:
                    future.result()
            except BaseException:  # Ctrl-C: the threads end when their sessions do
                if not self._probe.done():
                    self._probe.set_result(None)
                for visit in visits:
                    visit.retire()
                raise
            finally:
                for visit in visits:
                    visit.close()
        return visits

    def _finish(self, look: Future[None], visit: Visit) -> None:
        """The second half of a visit: wait for the probe, and for one's turn, and run it."""
        look.result()
        self._pause(visit, lambda: _waited(self._probe))
        probe = self._probe.result()
        if probe is None or visit.failure or not self._fits(visit):
            return
        # Servers on one machine would measure each other.
        turn = self._turns[visit.server.rpartition(":")[0]]
        self._pause(visit, lambda: turn.acquire(timeout=_STAY_S))
        try:
            visit.examine(probe)
        finally:
            turn.release()

    def _pause(self, visit: Visit, over: Callable[[], bool]) -> None:
        """Wait, without letting the device go."""
        while not over():
            visit.stay()

    def _choose_target(self, looks: dict[Future[None], Visit]) -> None:
        """From the first device that says what it is."""
        if self._target is not None:
            return
        for look in as_completed(looks):
            look.result()
            visit = looks[look]
            if (machine := visit.facts.get("machine")) is None:
                continue
            self._target, self._why = self._target_for(machine.value.split(), visit.identity)
            if self._target is not None:
                return

    def _target_for(self, machines: list[str], identity: str) -> tuple[Target | None, str]:
        """The target for a device, and why."""
        arm = "aarch64" in machines
        if arm and (board := target_of_model(identity)) is not None:
            return board, f"the device is {identity}"
        if self._local or (not arm and host_arch() in machines):
            return load_target("host"), f"the device is {host_arch()}"
        if arm:
            return load_target("aarch64"), "it holds for any AArch64 device"
        return None, ""

    def _build(self, folder: Path) -> ProbeLibrary | None:
        if self._target is None:
            return None
        self._on_stage(f"building the probe for target {self._target.name}")
        try:
            return build_probe(self._target, folder)
        except BuildError as err:
            self._build_error = err
            return None

    def _fits(self, visit: Visit) -> bool:
        """Whether there is any point in sending the probe."""
        return not any(
            finding.level == "broken" for finding in judge_outside(visit.facts, self._target)
        )

    def _sections(self, way: Way, visits: Sequence[Visit]) -> list[Section]:
        met = {visit.server for visit in visits}
        busy = [server for server in way.servers if server not in met]
        sections = [self._section(visit) for visit in sorted(visits, key=lambda v: v.server)]
        sections += [
            Section(title=f"device {server}", findings=(hint("connection", "busy: not examined"),))
            for server in busy
        ]
        siblings = compare_siblings({v.server: f for v in visits if (f := v.figures())})
        return [*sections, *siblings]

    def _section(self, visit: Visit) -> Section:
        identity = f" ({visit.identity})" if visit.identity else ""
        return Section(
            title=f"device {visit.server or 'under the key'}{identity}",
            findings=tuple(self._findings(visit)),
            facts={name: fact.value for name, fact in visit.facts.items()},
        )

    def _findings(self, visit: Visit) -> list[Finding]:
        address = None if self._local else self._address
        findings: list[Finding] = []
        if "machine" in visit.facts:
            findings += judge_outside(visit.facts, self._target)
        if self._target is not None:
            findings += judge_inside(visit.facts, self._target)
        if visit.failure is not None:
            findings.append(explain_failure(visit.failure, visit.facts, address, self._target))
        elif "sent" in visit.facts and visit.facts["sent"].value != "all":
            findings.append(incomplete_upload(visit.facts))
        if self._build_error is not None:
            todo = filter(None, [self._build_error.hint])
            findings.append(broken("probe", self._build_error.message, *todo))
        return findings


def compare_siblings(figures: dict[str, ProbeFigures]) -> list[Section]:
    """The section on devices that differ from the others; none where there is only one."""
    if len(figures) < 2:
        return []
    findings = [
        hint(
            "siblings",
            f"{server}: {deviation} than the others'",
            "compare their clocks, cooling and power supplies; measurements on unlike"
            " devices do not compare",
        )
        for server, deviation in unlike_siblings(figures).items()
        if deviation
    ]
    alike = f"all {len(figures)} within {SIBLINGS:.0%} of each other"
    return [Section(title="siblings", findings=tuple(findings) or (ok("siblings", alike),))]


def _waited(probe: Future[ProbeLibrary | None]) -> bool:
    """Whether the probe is there, after a moment at most."""
    try:
        probe.result(_STAY_S)
    except TimeoutError:
        return False
    return True
