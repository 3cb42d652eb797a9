"""FakeRunner: a runner without a device, for tests of everything that uses one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tvmx.errors import MeasureError
from tvmx.measure._base import OnResult, Runner
from tvmx.measure._jobs import Array, Job, NetworkJob, check_sample
from tvmx.measure._measurement import Measurement, Status
from tvmx.measure._roster import DeviceReport
from tvmx.measure._timing import TimingPolicy

Outcome = float | Status
Script = Callable[[Job], Outcome]


class FakeRunner(Runner):
    """Answers from a script: ``script(job)`` is a latency in us, or the status of a failure.

    ``noise`` is the relative standard deviation of the latencies, drawn from ``seed``; repeats
    are made as the policy has it. ``network(job, inputs)`` gives the outputs for :meth:`run`.
    ``temperature_c`` and ``drift`` go to every measurement, ``waited_s`` is what the runner
    says it has waited. ``calls`` records every job measured, in order. Libraries are neither
    read nor needed.
    """

    def __init__(
        self,
        script: Script,
        *,
        network: Callable[[NetworkJob, Mapping[str, Array]], tuple[Array, ...]] | None = None,
        noise: float = 0.0,
        seed: int = 0,
        key: str = "fake",
        threads: int = 1,
        temperature_c: float | None = None,
        drift: float | None = None,
        waited_s: float = 0.0,
    ) -> None:
        self._script = script
        self._network = network
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._key = key
        self._threads = threads
        self._temperature_c = temperature_c
        self._drift = drift
        self._waited_s = waited_s
        self._measured = 0
        self._closed = False
        self.calls: list[Job] = []

    @property
    def key(self) -> str:
        """The key given."""
        return self._key

    @property
    def identity(self) -> str:
        """Always the same."""
        self._require_open()
        return f"fake device {self._key}"

    @property
    def devices(self) -> tuple[DeviceReport, ...]:
        """The one there is."""
        report = DeviceReport(
            self._server,
            f"fake device {self._key}",
            temperature_c=self._temperature_c,
            drift=self._drift,
            measured=self._measured,
        )
        return (report,)

    @property
    def waited_s(self) -> float:
        """What was given."""
        return self._waited_s

    @property
    def _server(self) -> str:
        return f"{self._key}:0"

    def measure(
        self,
        jobs: Sequence[Job],
        policy: TimingPolicy | None = None,
        on_result: OnResult | None = None,
    ) -> list[Measurement]:
        """See :meth:`Runner.measure`."""
        self._require_open()
        policy = policy or TimingPolicy.quick()
        results = []
        for index, job in enumerate(jobs):
            result = self._measurement(
                job, lambda us: policy.collect(us, lambda repeat: self._draw(us, repeat))
            )
            self._measured += result.ok
            results.append(result)
            if on_result is not None:
                on_result(index, result)
        return results

    def compare(
        self, jobs: Sequence[Job], rounds: int, policy: TimingPolicy | None = None
    ) -> list[Measurement]:
        """See :meth:`Runner.compare`."""
        self._require_open()
        return [self._measurement(job, lambda us: self._draw(us, rounds)) for job in jobs]

    def run(
        self, job: NetworkJob, inputs: Sequence[Mapping[str, Array]]
    ) -> list[tuple[Array, ...]]:
        """See :meth:`Runner.run`."""
        self._require_open()
        for number, sample in enumerate(inputs):
            check_sample(job, number, sample)
        outcome = self._script(job)
        if isinstance(outcome, str):
            raise MeasureError(f"{job.name} failed on {self._key}: scripted {outcome}")
        if self._network is None:
            raise MeasureError(f"{job.name}: this FakeRunner was given no network function")
        return [self._network(job, sample) for sample in inputs]

    def close(self) -> None:
        """See :meth:`Runner.close`."""
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise MeasureError(f"the runner for {self._key} is closed")

    def _draw(self, latency_us: float, count: int) -> list[float]:
        factors = 1.0 + self._noise * np.abs(self._random.standard_normal(count))
        return [latency_us * float(f) for f in factors]

    def _measurement(self, job: Job, draw: Callable[[float], Sequence[float]]) -> Measurement:
        self.calls.append(job)
        outcome = self._script(job)
        if isinstance(outcome, str):
            return Measurement.failure(
                outcome,
                f"scripted {outcome} of {job.name}",
                device=self._key,
                server=self._server,
                identity=self.identity,
                threads=self._threads,
            )
        return Measurement.success(
            draw(outcome),
            max_error=None if job.expected is None else 0.0,
            device=self._key,
            server=self._server,
            identity=self.identity,
            threads=self._threads,
            temperature_c=self._temperature_c,
            drift=self._drift,
        )
