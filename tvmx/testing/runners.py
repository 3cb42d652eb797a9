# ruff: noqa: D102 -- the names of the tests are their documentation
"""RunnerTestCase: what every runner must do. Subclass it for yours.

::

    class TestMyRunner(RunnerTestCase):
        def make_runner(self): return MyRunner(...)
        def good_job(self): ...
        def bad_jobs(self): ...
        def good_network(self): ...

Needs nothing but a test runner that collects methods named ``test_*``, such as pytest.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tvmx.errors import DataError, MeasureError
from tvmx.measure import Job, KernelJob, Measurement, NetworkJob, Runner, TimingPolicy


class RunnerTestCase:
    """The contract of :class:`tvmx.measure.Runner` as tests.

    ``patience`` is the longest any call of these tests may take, in seconds: the runner's own
    deadlines plus two seconds.
    """

    patience: float = 30.0

    def make_runner(self) -> Runner:
        """A fresh runner; the tests close it."""
        raise NotImplementedError

    def good_job(self) -> KernelJob:
        """A kernel that is right, with its reference."""
        raise NotImplementedError

    def bad_jobs(self) -> Mapping[str, Job]:
        """Jobs that fail, by the status they must get. At least ``wrong-output``."""
        raise NotImplementedError

    def good_network(self) -> NetworkJob:
        """A network that is right, with its reference."""
        raise NotImplementedError

    def test_a_good_kernel_gets_figures_and_identity(self) -> None:
        with self.make_runner() as runner:
            identity = runner.identity
            (result,) = runner.measure([self.good_job()])
        assert identity.strip()
        assert result.identity == identity
        assert result.device == runner.key
        assert result.threads >= 1
        self.check_ok(result)

    def test_nothing_to_measure(self) -> None:
        with self.make_runner() as runner:
            assert runner.measure([]) == []
            assert runner.compare([], rounds=3) == []

    def test_bad_jobs_are_typed_and_the_others_measured(self) -> None:
        bad = self.bad_jobs()
        assert "wrong-output" in bad
        jobs: list[Job] = [self.good_job()]
        expected = ["ok"]
        for status, job in bad.items():
            jobs += [job, self.good_job()]
            expected += [status, "ok"]
        start = time.monotonic()
        with self.make_runner() as runner:
            results = runner.measure(jobs)
        assert [r.status for r in results] == expected, [r.message for r in results]
        assert time.monotonic() - start < self.patience
        for result in results:
            if result.ok:
                self.check_ok(result)
            else:
                assert result.message and "\n" not in result.message
                assert result.median_us is None and result.latencies_us == ()

    def test_results_are_reported_once_each(self) -> None:
        seen: list[tuple[int, Measurement]] = []
        jobs = [self.good_job(), self.bad_jobs()["wrong-output"], self.good_job()]
        with self.make_runner() as runner:
            results = runner.measure(jobs, on_result=lambda i, m: seen.append((i, m)))
        assert sorted(i for i, _ in seen) == [0, 1, 2]
        assert all(results[i] == m for i, m in seen)

    def test_an_error_of_the_callback_reaches_the_caller(self) -> None:
        def full_disk(index: int, result: Measurement) -> None:
            raise OSError("no space left")

        with self.make_runner() as runner:
            try:
                runner.measure([self.good_job()] * 3, on_result=full_disk)
            except OSError as err:
                assert "no space" in str(err)
            else:
                raise AssertionError("the exception was swallowed")

    def test_the_policy_sets_the_repeats(self) -> None:
        policy = TimingPolicy(min_repeat_ms=0.1, repeats=4, max_total_ms=1e6)
        with self.make_runner() as runner:
            (result,) = runner.measure([self.good_job()], policy)
        assert len(result.latencies_us) == 4

    def test_deadlines_can_be_set_between_jobs(self) -> None:
        with self.make_runner() as runner:
            longer = replace(runner.deadlines, run=runner.deadlines.run + 1)
            before = runner.measure([self.good_job()])
            runner.deadlines = longer
            assert runner.deadlines == longer
            after = runner.measure([self.good_job()])
        self.check_ok(before[0])
        self.check_ok(after[0])

    def test_devices_are_told_apart(self) -> None:
        jobs: list[Job] = [self.good_job(), self.bad_jobs()["wrong-output"], self.good_job()]
        with self.make_runner() as runner:
            assert runner.waited_s == 0
            results = runner.measure(jobs)
            devices = {report.server: report for report in runner.devices}
            assert runner.waited_s >= 0
        assert {r.server for r in results} <= devices.keys() | {""}
        for result in results:
            if result.server:
                assert devices[result.server].identity == result.identity
        if devices:
            assert sum(report.measured for report in devices.values()) == 2

    def test_comparison_is_paired(self) -> None:
        policy = TimingPolicy(min_repeat_ms=0.1)
        jobs: list[Job] = [self.good_job(), self.good_network(), self.good_job()]
        with self.make_runner() as runner:
            results = runner.compare(jobs, rounds=3, policy=policy)
        assert [len(r.latencies_us) for r in results] == [3, 3, 3]
        for result in results:
            self.check_ok(result)

    def test_comparison_leaves_bad_jobs_out(self) -> None:
        bad = self.bad_jobs()
        jobs: list[Job] = [self.good_job(), *bad.values(), self.good_job()]
        with self.make_runner() as runner:
            results = runner.compare(jobs, rounds=2, policy=TimingPolicy(min_repeat_ms=0.1))
        assert [r.status for r in results] == ["ok", *bad, "ok"]
        assert [len(r.latencies_us) for r in results] == [2] + [0] * len(bad) + [2]

    def test_a_network_is_measured_and_run(self) -> None:
        job = self.good_network()
        assert job.expected is not None
        with self.make_runner() as runner:
            (result,) = runner.measure([job])
            outputs = runner.run(job, [job.inputs] * 3)
            assert runner.run(job, []) == []
        self.check_ok(result)
        assert len(outputs) == 3
        for sample in outputs:
            for got, want in zip(sample, job.expected, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)

    def test_run_refuses_other_inputs(self) -> None:
        job = self.good_network()
        name = next(iter(job.inputs))
        wrong = dict(job.inputs) | {name: np.zeros((1, 2, 3), np.float32)}
        missing = {k: v for k, v in job.inputs.items() if k != name}
        with self.make_runner() as runner:
            for sample in (wrong, missing):
                try:
                    runner.run(job, [sample])
                except DataError as err:
                    assert name in str(err)
                else:
                    raise AssertionError("wrong inputs were accepted")

    def test_a_closed_runner_says_so(self) -> None:
        runner = self.make_runner()
        runner.close()
        runner.close()
        try:
            runner.measure([self.good_job()])
        except MeasureError as err:
            assert "closed" in str(err)
        else:
            raise AssertionError("a closed runner measured")

    def check_ok(self, result: Measurement) -> None:
        """An ok measurement has consistent, positive, JSON-able figures."""
        assert result.ok, (result.status, result.message)
        assert result.latencies_us and all(math.isfinite(v) and v > 0 for v in result.latencies_us)
        assert result.median_us is not None and result.spread_us is not None
        assert min(result.latencies_us) <= result.median_us <= max(result.latencies_us)
        if len(result.latencies_us) < 6:
            assert result.interval_us is None
        else:
            assert result.interval_us is not None
            low, high = result.interval_us
            assert min(result.latencies_us) <= low <= result.median_us <= high
            assert high <= max(result.latencies_us)
        assert result.max_error is not None and 0 <= result.max_error <= 1e-3
        text = result.model_dump_json()
        assert Measurement.model_validate_json(text) == result
        assert json.loads(text)["status"] == "ok"
