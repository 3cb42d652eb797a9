"""Messages between a runner and its worker process: plain data, arrays by file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvmx.measure._address import DeviceAddress, join_host_port
from tvmx.measure._cores import Cores
from tvmx.measure._deadlines import Deadlines
from tvmx.measure._measurement import Status
from tvmx.measure._probe import ProbeFigures, ProbeLibrary
from tvmx.measure._simulated import SimulatedRun
from tvmx.measure._timing import TimingPolicy

Phase = Literal["start", "queue", "connect", "cool", "upload", "load", "run"]


@dataclass(frozen=True)
class ArrayRef:
    """An array in the spool: an .npy file, named by the digest of its contents."""

    path: str
    digest: str
    nbytes: int


@dataclass(frozen=True)
class KernelSpec:
    """A KernelJob with its arrays in the spool."""

    name: str
    library: str
    symbol: str
    inputs: tuple[ArrayRef, ...]
    out_shape: tuple[int, ...]
    out_dtype: str
    expected: ArrayRef | None
    layout: str
    channels: int | None
    rtol: float


@dataclass(frozen=True)
class NetworkSpec:
    """A NetworkJob with its arrays in the spool."""

    name: str
    library: str
    inputs: tuple[ArrayRef, ...]
    expected: tuple[ArrayRef, ...] | None
    rtol: float


Spec = KernelSpec | NetworkSpec


def upload_bytes(spec: Spec) -> int:
    """Bytes of a job that travel to the device."""
    return Path(spec.library).stat().st_size + sum(ref.nbytes for ref in spec.inputs)


def library_bytes(spec: Spec) -> int:
    """Bytes of a job's library."""
    return Path(spec.library).stat().st_size


@dataclass(frozen=True)
class Link:
    """How the worker reaches its device and treats it.

    ``probe`` is timed when a session opens, and now and then, to see drift. Above
    ``max_temperature`` (degrees Celsius) the device is left to cool before the next job.
    """

    address: DeviceAddress
    cores: Cores
    deadlines: Deadlines
    probe: ProbeLibrary | None = None
    max_temperature: float | None = None


@dataclass(frozen=True)
class MeasureTask:
    """Check one job and time it."""

    spec: Spec
    policy: TimingPolicy
    queue_seconds: float


@dataclass(frozen=True)
class CompareTask:
    """Load and check all jobs, then time them in turns."""

    specs: tuple[Spec, ...]
    rounds: int
    policy: TimingPolicy
    queue_seconds: float


@dataclass(frozen=True)
class RunTask:
    """Run a network on ``count`` inputs; each of ``stacks`` holds all values of one input."""

    spec: NetworkSpec
    stacks: tuple[ArrayRef, ...]
    count: int
    folder: str
    queue_seconds: float


@dataclass(frozen=True)
class DescribeTask:
    """Connect, and say what the device is."""

    queue_seconds: float


@dataclass(frozen=True)
class InspectTask:
    """Connect and read what TVM's own functions show of the device; the doctor's task.

    With a probe in the link: run it instead, and read what only the probe's functions reach.
    What is found comes as :class:`Fact` events, so that it outlives a crash.
    """

    queue_seconds: float


@dataclass(frozen=True)
class LinkTask:
    """Go on with another link (other deadlines); an open session stays."""

    link: Link


Task = MeasureTask | CompareTask | RunTask | DescribeTask | InspectTask | LinkTask


@dataclass(frozen=True)
class PhaseEvent:
    """The worker enters a phase that may last ``seconds``; ``subject`` is the job's index."""

    phase: Phase
    seconds: float
    subject: int = 0


@dataclass(frozen=True)
class TicketEvent:
    """The tracker handed out this server; nothing has connected to it yet."""

    host: str
    port: int

    @property
    def server(self) -> str:
        """``host:port`` of the server."""
        return join_host_port(self.host, self.port)


@dataclass(frozen=True)
class ConnectedEvent:
    """A session is open: to which server, what it is, and the threads it really uses.

    The server ends the session by itself after ``seconds``. A simulated board tells its facts
    (a JSON object) in ``simulated``.
    """

    host: str
    port: int
    identity: str
    threads: int
    seconds: float = 0.0
    simulated: str = ""

    @property
    def server(self) -> str:
        """``host:port`` of the server, which tells devices of one key apart."""
        return join_host_port(self.host, self.port)


@dataclass(frozen=True)
class ProbedEvent:
    """The probe was run on the connected device."""

    figures: ProbeFigures
    temperature_c: float | None = None


@dataclass(frozen=True)
class CoolingEvent:
    """The device is too warm to measure on and is left alone for a while."""

    temperature_c: float
    seconds_left: float


@dataclass(frozen=True)
class Fact:
    """One thing the doctor found out: see :mod:`tvmx.measure._inspect` for the names.

    ``value`` is text, empty where it cannot be read; ``note`` says more for people.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Timed:
    """Latencies of one job in microseconds, its numeric error, and the device's temperature.

    ``wall_s`` is what checking it took on this side's clock; ``simulated`` what a simulated
    board counted.
    """

    latencies_us: tuple[float, ...]
    max_error: float | None
    temperature_c: float | None = None
    wall_s: float = 0.0
    simulated: SimulatedRun | None = None


@dataclass(frozen=True)
class DoneEvent:
    """The task succeeded: one entry per job, or paths of stacked outputs for a RunTask."""

    timed: tuple[Timed, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailedEvent:
    """The task failed at job ``subject``. ``hopeless``: it will again, however long one waits."""

    status: Status
    message: str
    subject: int = 0
    max_error: float | None = None
    hopeless: bool = False


Event = (
    PhaseEvent | TicketEvent | ConnectedEvent | ProbedEvent | CoolingEvent | Fact | DoneEvent
    | FailedEvent
)  # fmt: skip
