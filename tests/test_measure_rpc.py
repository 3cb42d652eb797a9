"""Runners against real trackers and servers, with real faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.measure_libraries import Libraries
from tvmx.errors import MeasureError, UnknownKeyError
from tvmx.measure import (
    Cores,
    Deadlines,
    DeviceAddress,
    Job,
    KernelJob,
    LocalFarm,
    NetworkJob,
    RpcRunner,
    Runner,
    TimingPolicy,
)
from tvmx.testing.runners import RunnerTestCase

pytestmark = pytest.mark.rpc

FAST = TimingPolicy(min_repeat_ms=0.1, repeats=2)
SHORT = Deadlines(queue=5, connect=2, upload=5, load=5, run=1.5)


@pytest.fixture(scope="module")
def farm() -> Iterator[LocalFarm]:
    with LocalFarm(threads=2) as farm:
        yield farm


class Conformance(RunnerTestCase):
    @pytest.fixture(autouse=True)
    def _use(self, libraries: Libraries) -> None:
        self.libraries = libraries

    def good_job(self) -> KernelJob:
        return self.libraries.kernel("good")

    def good_network(self) -> NetworkJob:
        return self.libraries.network()


class TestRpcRunner(Conformance):
    @pytest.fixture(autouse=True)
    def _use_farm(self, farm: LocalFarm) -> None:
        self.farm = farm

    def make_runner(self) -> Runner:
        return self.farm.runner(deadlines=SHORT)

    def bad_jobs(self) -> Mapping[str, Job]:
        return {
            "wrong-output": self.libraries.wrong(),
            "crash": self.libraries.kernel("crash"),
            "timeout": self.libraries.kernel("loop"),
            "load": self.libraries.kernel("missing"),
            "run": self.libraries.kernel("good", out_shape=(7,), expected=None),
        }


def test_everything_over_the_wire(libraries: Libraries) -> None:
    """A server with TVM's own functions only, and a runner that cannot repair it."""
    good, network = libraries.kernel("good"), libraries.network()
    bad = {"wrong-output": libraries.wrong(), "crash": libraries.kernel("crash")}
    jobs = [good, bad["wrong-output"], network, bad["crash"], good]
    with (
        LocalFarm(share_files=False) as farm,
        RpcRunner(farm.address, deadlines=SHORT) as runner,
    ):
        results = runner.measure(jobs, FAST)
        assert [r.status for r in results] == ["ok", "wrong-output", "ok", "crash", "ok"]
        compared = runner.compare([good, network], rounds=2, policy=FAST)
        assert [len(r.latencies_us) for r in compared] == [2, 2]
        (outputs,) = runner.run(network, [libraries.network_inputs])
    np.testing.assert_allclose(outputs[0], libraries.network_outputs[0], rtol=1e-4)
    np.testing.assert_array_equal(outputs[1], libraries.network_outputs[1])


def test_an_unwritten_output_is_wrong_even_after_a_right_one(
    farm: LocalFarm, libraries: Libraries
) -> None:
    jobs = [libraries.kernel("good"), libraries.kernel("idle"), libraries.kernel("good")]
    with farm.runner(deadlines=SHORT) as runner:
        results = runner.measure(jobs, FAST)
    assert [r.status for r in results] == ["ok", "wrong-output", "ok"]
    assert [r.threads for r in results] == [2, 2, 2]  # what the device says it uses
    assert "unwritten" in results[1].message


def test_a_timeout_is_on_time(farm: LocalFarm, libraries: Libraries) -> None:
    times: list[float] = []
    with farm.runner(deadlines=SHORT) as runner:
        runner.measure([libraries.kernel("good")], FAST)
        start = time.monotonic()
        runner.measure(
            [libraries.kernel("loop"), libraries.kernel("good")],
            FAST,
            on_result=lambda i, m: times.append(time.monotonic() - start),
        )
    assert SHORT.run <= times[0] < SHORT.run + 2
    assert times[1] - times[0] < 4


def test_the_latency_is_the_kernels(farm: LocalFarm, libraries: Libraries) -> None:
    job = libraries.kernel("sleep", expected=None, out_dtype="int32")
    with farm.runner(deadlines=SHORT) as runner:
        (result,) = runner.measure([job], TimingPolicy(min_repeat_ms=1, repeats=3))
    assert result.status == "ok", result.message
    assert result.median_us is not None and 5000 <= result.median_us < 15000


def test_a_library_for_another_machine_does_not_travel(
    farm: LocalFarm, libraries: Libraries
) -> None:
    with farm.runner(deadlines=SHORT, arch="aarch64") as runner:
        (result,) = runner.measure([libraries.kernel("good")])
        assert (result.status, "aarch64" in result.message) == ("load", True)
        with pytest.raises(MeasureError, match="aarch64"):
            runner.run(libraries.network(), [libraries.network_inputs])


def test_unknown_key_is_refused_at_once(farm: LocalFarm) -> None:
    address = DeviceAddress(farm.address.host, farm.address.port, "nobody")
    start = time.monotonic()
    with pytest.raises(UnknownKeyError, match="known: host"):
        RpcRunner(address)
    assert time.monotonic() - start < 5


def test_too_many_threads_are_refused(farm: LocalFarm, libraries: Libraries) -> None:
    with RpcRunner(farm.address, cores=Cores(threads=64), deadlines=SHORT) as runner:
        (result,) = runner.measure([libraries.kernel("good")])
    assert result.status == "connect"
    few = (os.cpu_count() or 1) < 64
    assert ("give --cores big:" if few else "TVM_NUM_THREADS=64") in result.message


def test_a_hopeless_choice_of_cores_is_not_waited_for(
    farm: LocalFarm, libraries: Libraries
) -> None:
    """A device does not grow cores while one waits."""
    start = time.monotonic()
    with RpcRunner(
        farm.address, cores=Cores(threads=1000), deadlines=SHORT, parallel=None, patience_s=600
    ) as runner:
        results = runner.measure([libraries.kernel("good")] * 3)
        compared = runner.compare([libraries.kernel("good")], 2)
    assert [r.status for r in [*results, *compared]] == ["connect"] * 4
    assert time.monotonic() - start < 20


def test_two_clients_share_one_device(farm: LocalFarm, libraries: Libraries) -> None:
    """Also when one of them never pauses: it lets the other in between two jobs."""
    jobs = [libraries.kernel("good")] * 4
    finished: dict[str, float] = {}
    stop = threading.Event()

    def greedy() -> None:
        with farm.runner(deadlines=SHORT) as runner:
            while not stop.is_set():
                assert all(r.ok for r in runner.measure(jobs, FAST))

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        time.sleep(1.5)
        with farm.runner(deadlines=SHORT) as runner:
            results = runner.measure(jobs, FAST)
        finished["second"] = time.monotonic()
    finally:
        stop.set()
        thread.join()
    assert [r.status for r in results] == ["ok"] * 4


def test_run_on_many_inputs_keeps_the_order(farm: LocalFarm, libraries: Libraries) -> None:
    rng = np.random.default_rng(3)
    samples = [
        {n: rng.random(a.shape, a.dtype) for n, a in libraries.network_inputs.items()}
        for _ in range(20)
    ]
    with farm.runner(deadlines=SHORT) as runner:
        outputs = runner.run(libraries.network(), samples)
        # The inputs cached on the device were overwritten: a later job must not use them.
        (result,) = runner.measure([libraries.network()], FAST)
    assert result.ok, result.message
    for sample, (_, total) in zip(samples, outputs, strict=True):
        np.testing.assert_array_equal(total, sample["x"] + sample["y"])


def test_run_says_why_it_failed(farm: LocalFarm, libraries: Libraries) -> None:
    job = NetworkJob(libraries.folder / "good.so", libraries.network_inputs, label="a kernel")
    with farm.runner(deadlines=SHORT) as runner, pytest.raises(MeasureError, match="a kernel fail"):
        runner.run(job, [libraries.network_inputs])


Fault = Callable[[LocalFarm], None]


def _kill_server(farm: LocalFarm) -> None:
    os.kill(_pid(farm, "server"), signal.SIGKILL)


def _stop_server(farm: LocalFarm) -> None:
    server = psutil.Process(_pid(farm, "server"))
    for process in [*server.children(recursive=True), server]:
        process.suspend()


def _kill_tracker(farm: LocalFarm) -> None:
    os.kill(_pid(farm, "tracker"), signal.SIGKILL)


def _kill_listener_child(farm: LocalFarm) -> None:
    for process in psutil.Process(_pid(farm, "server")).children(recursive=True):
        process.kill()


def _pid(farm: LocalFarm, what: str) -> int:
    return next(pid for name, pid in farm.processes.items() if name.startswith(what))


@pytest.mark.parametrize("fault", [_kill_server, _stop_server, _kill_tracker, _kill_listener_child])
def test_faults_between_jobs_cost_no_job(
    fault: Fault, farm: LocalFarm, libraries: Libraries
) -> None:
    with farm.runner(deadlines=SHORT) as runner:
        assert runner.measure([libraries.kernel("good")], FAST)[0].ok
        fault(farm)
        start = time.monotonic()
        results = runner.measure([libraries.kernel("good")] * 3, FAST)
        assert [r.status for r in results] == ["ok"] * 3, [r.message for r in results]
        assert time.monotonic() - start < 2 * (SHORT.connect + SHORT.queue) + 2


def test_a_server_killed_while_it_runs_is_not_the_candidates_fault(
    farm: LocalFarm, libraries: Libraries
) -> None:
    slow = libraries.kernel("sleep", expected=None, out_dtype="int32")
    policy = TimingPolicy(number=200, repeats=1, min_repeats=1)
    with farm.runner(deadlines=SHORT) as runner:
        runner.measure([libraries.kernel("good")], FAST)
        killer = threading.Timer(0.5, _kill_server, [farm])
        killer.start()
        results = runner.measure([slow, libraries.kernel("good")], policy)
        killer.join()
    assert [r.status for r in results] == ["ok", "ok"], [r.message for r in results]


def test_a_board_that_is_gone_fails_the_batch_within_the_deadline(
    farm: LocalFarm, libraries: Libraries
) -> None:
    deadlines = Deadlines(queue=1.5, connect=3, upload=3, load=3, run=3)
    farm.ensure()
    with RpcRunner(farm.address, deadlines=deadlines) as runner:
        assert runner.measure([libraries.kernel("good")], FAST)[0].ok
        _kill_server(farm)
        time.sleep(0.5)  # until its guard has ended the process that serves us
        start = time.monotonic()
        results = runner.measure([libraries.kernel("good")] * 5, FAST)
        took = time.monotonic() - start
        assert [r.status for r in results] == ["queue"] * 5
        assert "none is registered" in results[0].message
        assert took < 2 * deadlines.queue + 2
        farm.ensure()  # it comes back
        assert runner.measure([libraries.kernel("good")], FAST)[0].ok


def test_two_servers_work_at_once(libraries: Libraries) -> None:
    job = libraries.kernel("sleep", expected=None, out_dtype="int32")
    policy = TimingPolicy(number=40, repeats=1, min_repeats=1)  # 0.2 s asleep
    with LocalFarm(servers=2) as farm, farm.runner(deadlines=SHORT) as runner:
        runner.measure([libraries.kernel("good")] * 4, FAST)  # both workers are up
        start = time.monotonic()
        results = runner.measure([job] * 8, policy)
        took = time.monotonic() - start
        jobs: list[Job] = [libraries.kernel("good"), libraries.kernel("loop")] * 2
        broken = runner.measure(jobs, FAST)
    assert all(r.ok for r in results)
    assert took < 8 * 0.2 / 1.4
    assert [r.status for r in broken] == ["ok", "timeout"] * 2


PARENT = """
import sys, time
from pathlib import Path
import numpy as np
from tvmx.measure import KernelJob, LocalFarm
farm = LocalFarm().__enter__()
runner = farm.runner()
print(runner.identity, flush=True)
x = np.zeros(3, np.float32)
print(*farm.processes.values(), flush=True)
runner.measure([KernelJob(Path(sys.argv[1]), "k", (x,), x.shape)])
"""


def test_nothing_survives_a_killed_parent(libraries: Libraries, tmp_path: Path) -> None:
    """The parent is killed while a kernel runs for ever; its children and folders go too."""
    root = Path(__file__).resolve().parents[1]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(libraries.folder / "loop.so")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)},
    )
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        working = [int(pid) for pid in parent.stdout.readline().split()]
        family = psutil.Process(parent.pid).children(recursive=True)
        assert {p.pid for p in family} >= set(working)
        time.sleep(0.5)  # the kernel runs now
        family = psutil.Process(parent.pid).children(recursive=True)
        assert list(tmp_path.iterdir())
        parent.kill()
    _, alive = psutil.wait_procs(family, timeout=3)
    assert alive == []
    end = time.monotonic() + 3
    while list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_closing_leaves_nothing(libraries: Libraries) -> None:
    before = set(psutil.Process().children(recursive=True))
    with LocalFarm() as farm, farm.runner(deadlines=SHORT) as runner:
        runner.measure([libraries.kernel("good")], FAST)
        mine = set(psutil.Process().children(recursive=True)) - before
        assert len(mine) >= 7  # tracker, server and worker, their guards, the serving process
    _, alive = psutil.wait_procs(list(mine), timeout=3)
    assert alive == []
