"""FakeRunner: a runner without a device, for tests of everything that uses one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tvmx.errors import MeasureError
from tvmx.measure._base import OnResult, Runner
from tvmx.measure._jobs import Array, Job, NetworkJob, check_sample
from tvmx.measure._measurement import Measurement, Status
from tvmx.measure._timing import TimingPolicy

Outcome = float | Status
Script = Callable[[Job], Outcome]


class FakeRunner(Runner):
    """Answers from a script: ``script(job)`` is a latency in us, or the status of a failure.

    ``noise`` is the relative standard deviation of the latencies, drawn from ``seed``.
    ``network(job, inputs)`` gives the outputs for :meth:`run`. ``calls`` records every job
    measured, in order. Libraries are neither read nor needed.
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
    ) -> None:
        self._script = script
        self._network = network
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._key = key
        self._threads = threads
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
            results.append(self._measurement(job, policy.repeats))
            if on_result is not None:
                on_result(index, results[-1])
        return results

    def compare(
        self, jobs: Sequence[Job], rounds: int, policy: TimingPolicy | None = None
    ) -> list[Measurement]:
        """See :meth:`Runner.compare`."""
        self._require_open()
        return [self._measurement(job, rounds) for job in jobs]

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

    def _measurement(self, job: Job, count: int) -> Measurement:
        self.calls.append(job)
        outcome = self._script(job)
        if isinstance(outcome, str):
            return Measurement.failure(
                outcome,
                f"scripted {outcome} of {job.name}",
                device=self._key,
                identity=self.identity,
                threads=self._threads,
            )
        factors = 1.0 + self._noise * np.abs(self._random.standard_normal(count))
        return Measurement.success(
            [outcome * float(f) for f in factors],
            max_error=None if job.expected is None else 0.0,
            device=self._key,
            identity=self.identity,
            threads=self._threads,
        )
