"""The Runner contract: something that measures jobs on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from tvmx.measure._deadlines import Deadlines
from tvmx.measure._jobs import Array, Job, NetworkJob
from tvmx.measure._measurement import Measurement
from tvmx.measure._roster import DeviceReport
from tvmx.measure._timing import TimingPolicy

OnResult = Callable[[int, Measurement], None]


class Runner(ABC):
    """Measures kernels and networks on a device.

    Every output is checked before its latency counts. A bad candidate never raises: its
    failure is in the result, and the jobs after it are measured. Nothing waits past its
    deadline. Results come in the order of the jobs. Use as a context manager, or call
    :meth:`close`; afterwards every method raises :class:`tvmx.errors.MeasureError`.
    """

    _deadlines = Deadlines()

    @property
    @abstractmethod
    def key(self) -> str:
        """The device key results are recorded under."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What the device is: model, core, host name, as far as it can be read.

        Raises :class:`tvmx.errors.MeasureError` when the device cannot be reached.
        """

    @property
    def devices(self) -> tuple[DeviceReport, ...]:
        """What is known of each device met so far; empty where devices are not told apart."""
        return ()

    @property
    def waited_s(self) -> float:
        """Seconds lost so far because no device was there or free; 0 where that cannot be."""
        return 0.0

    @property
    def slowest_s(self) -> float:
        """Seconds on the wall that the longest check so far took; 0 where none is waited for."""
        return 0.0

    @property
    def simulated(self) -> str:
        """Facts of the simulated board (a JSON object) that measured last; empty: a real device."""
        return ""

    @property
    def deadlines(self) -> Deadlines:
        """What each phase of a job may take.

        Those set hold for the jobs that start afterwards. A runner that waits for nothing
        outside of itself has no use for them and only keeps them.
        """
        return self._deadlines

    @deadlines.setter
    def deadlines(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines

    @abstractmethod
    def measure(
        self,
        jobs: Sequence[Job],
        policy: TimingPolicy | None = None,
        on_result: OnResult | None = None,
    ) -> list[Measurement]:
        """Check and time each job; one measurement each, in order.

        ``policy`` is :meth:`TimingPolicy.quick` by default. ``on_result(index, measurement)``
        is called as soon as a job is done, from one thread at a time; when it raises, the
        remaining jobs are not started and the exception goes to the caller.
        """

    @abstractmethod
    def compare(
        self, jobs: Sequence[Job], rounds: int, policy: TimingPolicy | None = None
    ) -> list[Measurement]:
        """Time all jobs in turns, A B C A B C, in one session with all libraries loaded.

        ``latencies_us[r]`` of every ok measurement is from round ``r``: the values are paired.
        A job that fails is left out and the others are compared again from the first round.
        ``policy`` is :meth:`TimingPolicy.careful` by default; ``rounds`` replaces its repeats.
        """

    @abstractmethod
    def run(
        self, job: NetworkJob, inputs: Sequence[Mapping[str, Array]]
    ) -> list[tuple[Array, ...]]:
        """Outputs of the network for each set of inputs (the job's own inputs are ignored).

        Raises :class:`tvmx.errors.MeasureError` when the device or the network fails, and
        :class:`tvmx.errors.DataError` for inputs of other names, shapes or dtypes than the job's.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the device go. Calling it twice does no harm."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
