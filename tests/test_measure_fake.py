from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tvmx.errors import MeasureError
from tvmx.measure import Deadlines, FakeRunner, Job, KernelJob, NetworkJob, Runner
from tvmx.measure._fake import Outcome
from tvmx.testing.runners import RunnerTestCase

X = np.arange(6, dtype=np.float32).reshape(1, 6)


def script(job: Job) -> Outcome:
    return job.label if job.label in ("crash", "timeout", "wrong-output") else 12.5  # type: ignore


def kernel(label: str) -> KernelJob:
    return KernelJob(Path("none.so"), "k", (X,), X.shape, expected=X, label=label)


class TestFakeRunner(RunnerTestCase):
    def make_runner(self) -> Runner:
        return FakeRunner(script, network=lambda job, inputs: (inputs["x"] + 1,), noise=0.05)

    def good_job(self) -> KernelJob:
        return kernel("good")

    def bad_jobs(self) -> Mapping[str, Job]:
        return {name: kernel(name) for name in ("crash", "timeout", "wrong-output")}

    def good_network(self) -> NetworkJob:
        return NetworkJob(Path("none.so"), {"x": X}, (X + 1,), label="network")


def test_noise_is_seeded() -> None:
    def medians(seed: int) -> list[float | None]:
        with FakeRunner(script, noise=0.1, seed=seed) as runner:
            return [m.median_us for m in runner.measure([kernel("a"), kernel("b")])]

    assert medians(1) == medians(1) != medians(2)


def test_calls_are_recorded_in_order() -> None:
    runner = FakeRunner(script)
    runner.measure([kernel("a"), kernel("b")])
    assert [job.label for job in runner.calls] == ["a", "b"]


def test_a_scripted_failure_of_a_network_raises() -> None:
    runner = FakeRunner(lambda job: "crash", network=lambda job, inputs: ())
    with pytest.raises(MeasureError, match="net failed on fake: scripted crash"):
        runner.run(NetworkJob(Path("none.so"), {"x": X}, label="net"), [{"x": X}])


def test_what_is_said_of_the_device_is_in_every_measurement() -> None:
    with FakeRunner(script, key="k", temperature_c=61.5, drift=0.04, waited_s=7.0) as runner:
        good, bad = runner.measure([kernel("a"), kernel("crash")])
        (report,) = runner.devices
        assert runner.waited_s == 7.0
    assert (good.server, good.temperature_c, good.drift) == ("k:0", 61.5, 0.04)
    assert (bad.server, bad.temperature_c) == ("k:0", None)
    assert (report.server, report.identity, report.measured) == ("k:0", good.identity, 1)


def test_repeats_end_when_they_agree() -> None:
    """Without noise all repeats are equal; with much of it all are made."""
    for noise, repeats in ((0.0, 6), (0.5, 15)):
        with FakeRunner(script, noise=noise) as runner:
            assert len(runner.measure([kernel("a")])[0].latencies_us) == repeats
            assert len(runner.compare([kernel("a")], 9)[0].latencies_us) == 9


def test_deadlines_are_of_the_runner_they_are_set_on() -> None:
    with FakeRunner(script) as one, FakeRunner(script) as other:
        one.deadlines = Deadlines(run=2.0)
        assert (one.deadlines.run, other.deadlines) == (2.0, Deadlines())
