"""The build pool: real kernels, and workers that crash, hang, are killed, or lose their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tvmx.build import BuildPool, BuildResult, KernelBuild, host_arch, read_elf
from tvmx.errors import UsageError
from tvmx.ir import Config, DenseWorkload
from tvmx.targets import Cluster, Target

ROOT = Path(__file__).resolve().parents[1]

TEMPLATE = '''
import ctypes, os, time
import numpy as np
from tvmx import _tvm
from tvmx.errors import IllegalConfigError
from tvmx.ir import Space
from tvmx.templates import Kernel, ScheduleTemplate


class Scale(ScheduleTemplate):
    """out[i, j] = data[i, j] * factor, or one of the ways a template can go wrong."""

    name = "scale"
    op = "dense"

    def supports(self, workload, target):
        return None

    def layouts(self, workload, target):
        return "NC", "NC"

    def space(self, workload, target):
        return Space({"factor": [2, 3]}, {"factor": 2})

    def build(self, workload, config, target):
        way = config.get("way", "")
        if way == "illegal":
            raise IllegalConfigError("factor 99 is not in the space")
        if way == "raise":
            raise ZeroDivisionError("of the template's own")
        if way == "exit":
            raise SystemExit(3)
        if way == "segfault":
            ctypes.string_at(0)
        if way == "memory":
            bytearray(1 << 34)[:] = b"x" * (1 << 34)
        if way == "hang":
            while True:
                pass
        if way == "die":
            os.kill(os.getpid(), 9)
        te = _tvm.te
        data = te.placeholder(workload.data_shape, name="data")
        out = te.compute(workload.data_shape, lambda i, j: data[i, j] * float(config.int("factor")))
        func = te.create_prim_func([data, out])
        return Kernel(func, lambda a: a, lambda a: a)
'''

CLUSTER = Cluster(core="any", count=2, clock_mhz=1000, in_order=True, l1d_kib=32, l2_kib=512)
WORKLOAD = DenseWorkload(batch=2, in_features=8, out_features=8)


def target(arch: str) -> Target:
    cpu = {"x86_64": "x86-64", "aarch64": "cortex-a53"}[arch]
    return Target(
        name=f"test-{arch}",
        description="",
        triple=f"{arch}-linux-gnu",
        cpu=cpu,
        memory_mib=512,
        clusters=(CLUSTER,),
    )


def job(folder: Path, way: str = "", factor: int = 2, arch: str = "") -> KernelBuild:
    path = folder / "scale.py"
    if not path.exists():
        path.write_text(TEMPLATE)
    config = Config({"factor": factor, "way": way} if way else {"factor": factor})
    return KernelBuild.of(
        WORKLOAD, "scale", path, config, target(arch or host_arch()), folder / "libraries"
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[BuildPool]:
    with BuildPool(workers=2, timeout_s=20) as made:
        yield made


def kind(result: BuildResult) -> str:
    assert result.error is not None
    assert result.library is None
    return result.error.kind


def test_kernels_compute(pool: BuildPool, tmp_path: Path) -> None:
    from tvmx._tvm import tvm

    jobs = [job(tmp_path, factor=factor) for factor in (2, 3, 2)]
    results = dict(pool.build(jobs))
    assert sorted(results) == [0, 1, 2]
    data = np.arange(16, dtype=np.float32).reshape(2, 8)
    for index, factor in enumerate((2, 3, 2)):
        result = results[index]
        assert result.ok, result.error
        assert result.library == jobs[index].library
        assert result.arguments == (((2, 8), "float32"), ((2, 8), "float32"))
        assert result.scratch_bytes == 0
        assert result.seconds > 0
        out = tvm.runtime.tensor(np.zeros((2, 8), np.float32))
        library = tvm.runtime.load_module(str(result.library))
        library["kernel"](tvm.runtime.tensor(data), out)
        np.testing.assert_array_equal(out.numpy(), data * factor)
        assert {n.split(".")[0] for n in read_elf(jobs[index].library).needed} <= {"libc", "libm"}
    # Equal code, equal digest: such candidates need measuring only once.
    assert results[0].digest == results[2].digest != results[1].digest
    assert len(results[0].digest) == 64


@pytest.mark.cross
def test_cross_compiled(pool: BuildPool, tmp_path: Path) -> None:
    other = "aarch64" if host_arch() == "x86_64" else "x86_64"
    result = pool.submit(job(tmp_path, arch=other)).result(timeout=120)
    assert result.ok, result.error
    assert result.library is not None
    assert read_elf(result.library).machine == other


def test_what_a_template_raises(pool: BuildPool, tmp_path: Path) -> None:
    ways = ["illegal", "raise", "exit"]
    results = dict(pool.build([job(tmp_path, way) for way in ways]))
    assert kind(results[0]) == "illegal"
    assert kind(results[1]) == kind(results[2]) == "template"
    for index, text in enumerate(("factor 99", "ZeroDivisionError: of the", "SystemExit")):
        error = results[index].error
        assert error is not None
        assert text in error.message
        assert "scale" in error.message
        assert ways[index] in error.message


def test_template_file_gone(pool: BuildPool, tmp_path: Path) -> None:
    work = job(tmp_path)
    (tmp_path / "scale.py").unlink()
    result = pool.submit(work).result(timeout=60)
    assert kind(result) == "template"


def test_link_failure_is_typed(pool: BuildPool, tmp_path: Path) -> None:
    (tmp_path / "libraries").write_text("a file where the folder should be")
    result = pool.submit(job(tmp_path)).result(timeout=60)
    assert kind(result) == "build"
    assert result.error is not None
    assert "libraries" in result.error.message


def test_crashing_workers_cost_only_their_own_job(pool: BuildPool, tmp_path: Path) -> None:
    ways = ["segfault", "", "die", "", "segfault", "die", ""]
    jobs = [job(tmp_path, way, factor=2 + i) for i, way in enumerate(ways)]
    results = dict(pool.build(jobs))
    for index, way in enumerate(ways):
        if way:
            assert kind(results[index]) == "crash"
        else:
            assert results[index].ok, results[index].error


def test_timeout_kills_and_goes_on(tmp_path: Path) -> None:
    with BuildPool(workers=1, timeout_s=3) as pool:
        start = time.monotonic()
        hanging, following = pool.submit(job(tmp_path, "hang")), pool.submit(job(tmp_path))
        assert kind(hanging.result(timeout=30)) == "timeout"
        assert following.result(timeout=30).ok
        assert time.monotonic() - start < 25


def test_memory_limit(tmp_path: Path) -> None:
    with BuildPool(workers=1, timeout_s=30, memory_limit_bytes=2 << 30) as pool:
        error = pool.submit(job(tmp_path, "memory")).result(timeout=60).error
        assert error is not None
        assert "MemoryError" in error.message
        assert pool.submit(job(tmp_path)).result(timeout=60).ok


def workers_of(parent: psutil.Process) -> list[psutil.Process]:
    """Everything below the parent that has TVM's compiler mapped: workers and their server."""
    return [p for p in parent.children(recursive=True) if "forkserver" in " ".join(p.cmdline())]


def test_idle_workers_killed(tmp_path: Path) -> None:
    with BuildPool(workers=2, timeout_s=30) as pool:
        assert pool.submit(job(tmp_path)).result(timeout=60).ok
        me = psutil.Process()
        server_and_workers = workers_of(me)
        idle = [p for p in server_and_workers if p.ppid() != me.pid]
        assert idle
        for process in idle:
            process.kill()
        psutil.wait_procs(idle, timeout=10)
        results = dict(pool.build([job(tmp_path, factor=f) for f in (4, 5, 6)]))
        assert all(r.ok for r in results.values()), results


@pytest.mark.parametrize("running", [False, True])
def test_closed_pool(tmp_path: Path, running: bool) -> None:
    pool = BuildPool(workers=1, timeout_s=60)
    if running:
        assert pool.submit(job(tmp_path)).result(timeout=60).ok
    hanging, waiting = pool.submit(job(tmp_path, "hang")), pool.submit(job(tmp_path))
    if running:
        time.sleep(0.5)
    pool.close()
    pool.close()
    for future in (hanging, waiting, pool.submit(job(tmp_path))):
        assert kind(future.result(timeout=20)) == "cancelled"


@pytest.mark.parametrize(("workers", "timeout_s"), [(0, 1.0), (1, 0.0)])
def test_senseless_pools(workers: int, timeout_s: float) -> None:
    with pytest.raises(UsageError):
        BuildPool(workers, timeout_s)


PARENT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_build_pool import job
from tvmx.build import BuildPool

if __name__ == "__main__":
    pool = BuildPool(workers=2, timeout_s=600)
    assert pool.submit(job(Path(sys.argv[1]))).result(timeout=100).ok
    futures = [pool.submit(job(Path(sys.argv[1]), "hang")) for _ in range(3)]
    print("ready", flush=True)
    futures[0].result()
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = tmp_path / "parent.py"
    code.write_text(PARENT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    parent = subprocess.Popen(
        [sys.executable, str(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    time.sleep(0.5)
    below = psutil.Process(parent.pid).children(recursive=True)
    assert len(below) >= 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=10)
    _, alive = psutil.wait_procs(below, timeout=10)
    for process in alive:
        process.kill()
    assert not alive
