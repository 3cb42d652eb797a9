"""Real simulated boards: the guest, its RPC server, and candidates that break it.

They take about 100 s on two cores, a third of it Python starting in the emulator.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from tests.guest_libraries import build
from tests.measure_libraries import Libraries
from tests.simulated import board_or_skip, guest_or_skip
from tests.test_cli_farm import interrupt, running
from tvmx.deploy import load_bundle
from tvmx.explore import build_bundle
from tvmx.measure import (
    Deadlines,
    DeviceAddress,
    Job,
    KernelJob,
    NetworkJob,
    RpcRunner,
    Runner,
    TimingPolicy,
)
from tvmx.measure import _server_functions as functions
from tvmx.simulate import Guest, PlainEmulation, SimulatedBoard, guest_server
from tvmx.simulate._overlay import board_root
from tvmx.targets import Target, load_target
from tvmx.testing.models import residual_model
from tvmx.testing.runners import RunnerTestCase

pytestmark = [pytest.mark.rpc, pytest.mark.cross, pytest.mark.emulated]

SHORT = Deadlines(queue=20, connect=10, upload=10, load=10, run=4)
# Whatever else a simulated board does: these tests are about the guest.
A72, A76 = (PlainEmulation(core, core) for core in ("cortex-a72", "cortex-a76"))


@pytest.fixture(scope="module")
def guest() -> Guest:
    return guest_or_skip()


@pytest.fixture(scope="module")
def rpi4() -> Target:
    return load_target("rpi4")


@pytest.fixture(scope="module")
def libraries(guest: Guest, rpi4: Target, tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    del guest
    return build(tmp_path_factory.mktemp("arm64"), rpi4)


@pytest.fixture(scope="module")
def board(guest: Guest, rpi4: Target) -> Iterator[SimulatedBoard]:
    del guest
    with SimulatedBoard(rpi4, emulation=A72) as board:
        yield board


def ask(address: DeviceAddress, *names: str) -> list[Any]:
    """JSON answers of functions, by TVM's own client in another process."""
    script = (
        "import sys; from tvm import rpc; "
        "remote = rpc.connect_tracker(sys.argv[1], int(sys.argv[2])).request(sys.argv[3]); "
        "[print(remote.get_function(name)()) for name in sys.argv[4:]]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, address.host, str(address.port), address.key, *names],
        check=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def servers(board: SimulatedBoard) -> dict[int, int]:
    """Pid of each server by its port."""
    return {
        int(name.removeprefix("server:")): pid
        for name, pid in board.processes.items()
        if name != "tracker"
    }


class TestConformance(RunnerTestCase):
    @pytest.fixture(autouse=True)
    def _use(self, libraries: Libraries, board: SimulatedBoard) -> None:
        self.libraries, self.board = libraries, board

    def make_runner(self) -> Runner:
        return self.board.runner(deadlines=SHORT, arch="aarch64")

    def good_job(self) -> KernelJob:
        return self.libraries.kernel("good")

    def good_network(self) -> NetworkJob:
        return self.libraries.network()

    def bad_jobs(self) -> Mapping[str, Job]:
        return {
            "wrong-output": self.libraries.wrong(),
            "crash": self.libraries.kernel("crash"),
            "timeout": self.libraries.kernel("loop"),
            "load": self.libraries.kernel("missing"),
            "run": self.libraries.kernel("good", out_shape=(7,), expected=None),
        }


def test_the_guest_is_an_arm64_machine_with_the_board_s_core(guest: Guest, rpi4: Target) -> None:
    script = (
        "import platform, os, tvm_ffi, numpy; print(platform.machine());"
        "print(open('/proc/cpuinfo').read()); print(sorted(os.listdir('/sys/devices/system/cpu')))"
    )
    done = subprocess.run(
        [*A72.command(board_root(guest, rpi4)), guest.python, "-c", script],
        check=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, **guest.environment()},
    )  # fmt: skip
    machine, _, rest = done.stdout.partition("\n")
    assert machine == "aarch64"
    assert "CPU part\t: 0xd08" in rest
    assert "asimddp" not in rest
    assert "cpu0" in rest
    assert "cpu1" not in rest


def test_it_says_that_it_is_simulated(board: SimulatedBoard) -> None:
    facts, counters = ask(board.address, guest_server.SIMULATED, guest_server.SIMULATED_COUNTERS)
    assert facts == {"board": "rpi4", **A72.facts}
    assert "simulates no clock" in counters["missing"]
    with board.runner() as runner:
        assert runner.identity.startswith("simulated rpi4: cortex-a72")
        assert functions.identity() in runner.identity


def test_the_host_s_temperature_is_not_the_board_s(
    board: SimulatedBoard, libraries: Libraries
) -> None:
    with board.runner(deadlines=SHORT, max_temperature=20.0) as runner:
        (result,) = runner.measure([libraries.kernel("good")])
    assert result.ok, result.message
    assert result.temperature_c is None


def test_dot_products_kill_an_a72_and_run_on_an_a76(
    guest: Guest, board: SimulatedBoard, libraries: Libraries
) -> None:
    del guest
    dot, good = libraries.kernel("sdot", expected=None), libraries.kernel("good")
    pids = servers(board)
    with board.runner(deadlines=SHORT) as runner:
        results = runner.measure([good, dot, good])
    assert [r.status for r in results] == ["ok", "crash", "ok"], [r.message for r in results]
    assert "SIGILL" in str(results[1].message)
    assert "illegal instruction" in str(results[1].message)
    assert "cortex-a72" in str(results[1].message)
    assert servers(board) == pids, "a crash of a candidate must not cost a restart"
    idle = libraries.kernel("idle", expected=None, out_dtype="int32")
    dot = libraries.kernel("sdot", expected=None, out_dtype="int32")
    with SimulatedBoard(load_target("rpi5"), emulation=A76) as newer:
        with newer.runner(deadlines=SHORT) as runner:
            results = runner.measure([idle, dot])
        assert [r.status for r in results] == ["ok", "ok"], [r.message for r in results]


def test_a_lost_server_is_replaced(board: SimulatedBoard, libraries: Libraries) -> None:
    (pid,) = servers(board).values()
    with board.runner(deadlines=replace(SHORT, queue=2)) as runner:
        before = runner.measure([libraries.kernel("good")])
        os.kill(pid, signal.SIGKILL)
        after = runner.measure([libraries.kernel("good"), libraries.kernel("good")])
    assert [r.status for r in before + after] == ["ok"] * 3, [r.message for r in after]
    assert pid not in servers(board).values()


def test_a_stopped_server_is_replaced(board: SimulatedBoard) -> None:
    """It stays registered in the tracker, and nobody would ever resume it."""
    (pid,) = servers(board).values()
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    assert board.ensure()
    assert not psutil.pid_exists(pid)
    assert not board.ensure()


def test_a_network_of_templates_gives_the_right_output(
    board: SimulatedBoard, tmp_path: Path
) -> None:
    """Convolutions, a depthwise one and a dense layer, by the wire as well as by file."""
    onnx.save(residual_model(), tmp_path / "residual.onnx")
    build_bundle(tmp_path / "residual.onnx", "rpi4", tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    inputs, expected = bundle.golden_inputs(), tuple(bundle.golden_outputs())
    (library,) = (tmp_path / "bundle").glob("*.so")
    job = NetworkJob(library, dict(inputs), expected, label="residual")
    with board.runner() as runner:
        (result,) = runner.measure([job])
        ((output,),) = runner.run(job, [inputs])
    assert result.ok, result.message
    np.testing.assert_allclose(output, expected[0], rtol=1e-3, atol=1e-4)


def test_boards_come_with_the_command_and_leave_with_it(guest: Guest, libraries: Libraries) -> None:
    """Two at once at a tracker of somebody else's, without shared temporary files left."""
    del guest
    with (
        running("tracker", "--port", "28390") as (_, tracker),
        running(
            "simulate", "rpi4", "--tracker", tracker["tracker"], "--key", "sim", "--count", "2"
        ) as (process, data),
    ):
        assert data["key"] == "sim"
        assert data["tracker"] == tracker["tracker"]
        assert data["simulated"]["board"] == "rpi4"
        assert len(set(data["servers"])) == 2
        address = DeviceAddress.parse(tracker["tracker"], "sim")
        with RpcRunner(address, arch="aarch64", parallel=None, deadlines=SHORT) as runner:
            results = runner.measure([libraries.kernel("good")] * 6)
            assert {report.server for report in runner.devices} == set(data["servers"])
        assert all(r.ok for r in results), [r.message for r in results]
        guards = [
            child.cmdline()
            for child in psutil.Process(process.pid).children()
            if "tvmx.simulate._launch" in child.cmdline()
        ]
        scratch = [Path(words[words.index("--scratch") + 1]) for words in guards]
        assert len(scratch) == 2
        assert all(path.is_dir() for path in scratch)
        assert "has left the tracker" in interrupt(process)
        deadline = time.monotonic() + 5
        while any(path.exists() for path in scratch) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(path.exists() for path in scratch)


TIMED = """
import json, sys
import numpy as np
from tvm import rpc, runtime
host, port, key, library = sys.argv[1:]
remote = rpc.connect_tracker(host, int(port)).request(key, session_timeout=120)
remote.upload(library)
kernel, device = remote.load_module("good.so"), remote.cpu()
data = runtime.tensor(np.ones((1, 3, 5, 7, 4), np.float32), device=device)
out = runtime.empty((1, 3, 5, 7, 4), "float32", device=device)
time = kernel.time_evaluator("k", device, number=10, repeat=1)
counters = remote.get_function("tvmx.simulated_counters")
for _ in range(3):
    print(json.dumps([time(data, out).results[0], json.loads(counters())]))
assert (out.numpy() == 3).all()
"""


def test_cold_caches_cost_memory_cycles(libraries: Libraries) -> None:
    """Flushing is seen by the model: the same core cycles, and lines from memory."""
    with board_or_skip("rpi4") as board, board.runner(arch="aarch64") as runner:
        job = libraries.kernel("good")
        (warm,) = runner.measure([job], TimingPolicy())
        (cold,) = runner.measure([job], TimingPolicy().cold(4 << 20))
    assert warm.simulated is not None and cold.simulated is not None, cold.message
    assert cold.simulated.core_cycles == warm.simulated.core_cycles
    assert cold.simulated.l2_misses > warm.simulated.l2_misses + 10, "1.6 KB of operands"
    assert min(cold.latencies_us) > max(warm.latencies_us)


def test_a_time_evaluator_sees_simulated_time(libraries: Libraries, tmp_path: Path) -> None:
    """By TVM's plain client: the clock is the target's, and the counters are those of the run."""
    with board_or_skip("rpi4") as board:
        assert board.facts["clock_mhz"] == load_target("rpi4").big.clock_mhz
        (tmp_path / "timed.py").write_text(TIMED)
        where = [board.address.host, str(board.address.port), board.address.key]
        done = subprocess.run(
            [sys.executable, tmp_path / "timed.py", *where, libraries.folder / "good.so"],
            capture_output=True, text=True, timeout=150,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == 3
    for seconds, counters in runs:
        assert seconds * 10 == pytest.approx(counters["nanoseconds"] * 1e-9)
        cycles = counters["core_cycles"] + counters["memory_cycles"]
        assert counters["nanoseconds"] == pytest.approx(cycles / 1.5, abs=1)
        assert counters["looks"] >= 2
        # 105 vectors, each loaded, computed and stored, and a call around them.
        assert 10 * 105 < counters["instructions"] < 10 * 105 * 20
    assert len({counters["core_cycles"] for _, counters in runs}) == 1
