"""Builds and rollouts on a local Ray cluster; workers that die lose nothing."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.explorations import explored, flat, kernels, save_model, scripted
from tests.search_tables import random_table
from tvmx.build import BuildPool, KernelBuild, RayCluster, RayPool
from tvmx.errors import DeviceError, MissingExtraError, UsageError
from tvmx.explore._rollouts import Rollout, play_rollout, spread_out
from tvmx.ir import DenseWorkload
from tvmx.search import Budgets
from tvmx.targets import load_target
from tvmx.templates import Registry, load_template

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Ray leaves a process unwaited for where starting it took too long.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster("local", 2) as made:
        yield made


def jobs(folder: Path, count: int = 4) -> list[KernelBuild]:
    """The default and other configs of a small dense layer."""
    target, registry = load_target("host"), Registry.with_builtin()
    work = DenseWorkload(batch=1, in_features=32, out_features=48)
    entry = registry.default(work, target)
    assert entry is not None
    space = entry.template.space(work, target)
    configs = [space.default, *(c for c in space.points() if c != space.default)][:count]
    return [KernelBuild.of(work, entry.name, entry.path, c, target, folder) for c in configs]


def test_kernels_are_those_that_the_own_pool_builds(cluster: RayCluster, tmp_path: Path) -> None:
    mine, theirs = jobs(tmp_path / "mine"), jobs(tmp_path / "theirs")
    with BuildPool(1) as pool:
        expected = [pool.submit(job).result() for job in mine]
    with RayPool(cluster) as ray:
        got = dict(ray.build(theirs))
    for index, job in enumerate(theirs):
        assert got[index].ok and got[index].library == job.library
        assert got[index].digest == expected[index].digest
        assert got[index].features == expected[index].features
        assert job.library.read_bytes()[:4] == b"\x7fELF"


def test_a_template_that_the_worker_has_not_is_sent(cluster: RayCluster, tmp_path: Path) -> None:
    (job,) = jobs(tmp_path / "out", 1)
    source = Path(job.template_path)
    other = tmp_path / source.name
    other.write_text(source.read_text() + "\n# changed\n")
    with RayPool(cluster) as pool:
        moved = dataclasses.replace(job, template_path=str(other))
        assert pool.submit(moved).result().ok
        gone = dataclasses.replace(job, template_path=str(tmp_path / "none.py"))
        error = pool.submit(gone).result().error
    assert error is not None and error.kind == "template" and "none.py" in error.message


TEMPLATE = """
import importlib.util
import os
import time
from pathlib import Path

_spec = importlib.util.spec_from_file_location("real", {real!r})
_real = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_real)

class Killing(_real.{name}):
    name = {template!r}
    def build(self, workload, config, target):
        marks = Path({marks!r})
        with (marks / "pids").open("a") as stream:
            stream.write(f"{{os.getpid()}}\\n")
        {act}
        return super().build(workload, config, target)
"""


def wrapped(job: KernelBuild, folder: Path, act: str) -> KernelBuild:
    """The job with a template whose ``build`` first does ``act``; it notes the worker's pid."""
    real = load_template(job.template, Path(job.template_path))
    folder.mkdir(exist_ok=True)
    path = folder / "wrapped.py"
    path.write_text(
        TEMPLATE.format(
            real=job.template_path, name=type(real).__name__, template=job.template,
            marks=str(folder), act=act,
        )
    )  # fmt: skip
    return dataclasses.replace(job, template_path=str(path))


def pids(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "pids").read_text().split()]


def test_the_job_of_a_worker_that_is_killed_is_done_by_another(
    cluster: RayCluster, tmp_path: Path
) -> None:
    first, *others = jobs(tmp_path / "out", 3)
    slow = wrapped(first, tmp_path / "marks", "time.sleep(0 if (marks / 'go').exists() else 60)")
    with RayPool(cluster) as pool:
        hanging = pool.submit(slow)
        end = time.monotonic() + 100
        while not (tmp_path / "marks" / "pids").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        (tmp_path / "marks" / "go").touch()
        os.kill(pids(tmp_path / "marks")[0], signal.SIGKILL)
        rest = [pool.submit(job).result() for job in others]
        assert hanging.result(100).ok, hanging.result()
    assert all(result.ok for result in rest)
    assert len(set(pids(tmp_path / "marks"))) == 2


def test_what_kills_every_worker_fails_and_nothing_else(
    cluster: RayCluster, tmp_path: Path
) -> None:
    first, other = jobs(tmp_path / "out", 2)
    deadly = wrapped(first, tmp_path / "marks", "os._exit(1)")
    with RayPool(cluster) as pool:
        died, well = pool.submit(deadly), pool.submit(other)
        error = died.result(200).error
        assert error is not None and error.kind == "crash"
        assert well.result(100).ok
    assert len(set(pids(tmp_path / "marks"))) == 2


def test_jobs_that_hang_are_ended(cluster: RayCluster, tmp_path: Path) -> None:
    first, other = jobs(tmp_path / "out", 2)
    endless = wrapped(first, tmp_path / "marks", "time.sleep(600)")
    with RayPool(cluster, timeout_s=4) as pool:  # the worker's start does not count
        error = pool.submit(endless).result(100).error
        assert error is not None and error.kind == "timeout"
        assert len(pids(tmp_path / "marks")) == 1
        pool.timeout_s = 100
        assert pool.submit(other).result(100).ok
        waiting = pool.submit(endless)
    error = waiting.result(0).error
    assert error is not None and error.kind == "cancelled"
    error = pool.submit(other).result(0).error
    assert error is not None and error.kind == "cancelled"


def rollout(agent: str = "annealing") -> Rollout:
    table = random_table(5, layers=10)
    return Rollout(table, agent, None, 60, 3, 4, "latency", Budgets(), Sum())


class Sum:
    def __call__(self, assignment: tuple[int, ...]) -> int:
        return sum(assignment)


def test_rollouts_are_the_same_wherever_they_are_played(cluster: RayCluster) -> None:
    here, there = spread_out(rollout(), 4, None), spread_out(rollout(), 4, cluster)
    assert here == there and len(here) == 4
    assert here[0].total >= play_rollout(rollout())[0].total


def fatal_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return "done"


def test_a_task_whose_worker_dies_is_done_again(cluster: RayCluster, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "ab"]
    assert cluster.map(fatal_once, paths) == ["done", "done"]
    with pytest.raises(UsageError, match="unknown agent"):
        cluster.map(play_rollout, [rollout("none")])


def test_a_second_cluster_is_refused(cluster: RayCluster) -> None:
    with pytest.raises(UsageError, match="connected to a Ray cluster already"):
        RayCluster("local")


def test_the_agent_of_an_exploration_plays_on_the_cluster(
    tmp_path: Path, cluster: RayCluster
) -> None:
    class Borrowed:
        """Gives the module's cluster, which an exploration must not close."""

        LOCAL = RayCluster.LOCAL
        require = RayCluster.require

        def __init__(self, address: str, most: int | None) -> None:
            assert address == "local" and most is not None

        def __enter__(self) -> RayCluster:
            return cluster

        def __exit__(self, *_: object) -> None:
            return None

    with pytest.MonkeyPatch.context() as patch, scripted(kernels(flat)):
        patch.setattr("tvmx.explore._explore.RayCluster", Borrowed)
        result = explored(save_model(tmp_path), tmp_path / "run", agent="annealing", ray="local")
    assert any("(from 8 seeds)" in note for note in result.notes)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_no_cluster_at_an_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    with pytest.raises(DeviceError, match=f"--ray {address}: no Ray cluster answers") as caught:
        RayCluster(address)
    assert "ray start --head" in str(caught.value.hint)
    assert time.monotonic() - started < 10
    with pytest.raises(UsageError, match="is no address"):
        RayCluster("host:port")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="Ray, which is not installed") as caught:
        RayCluster("local")
    assert caught.value.hint == "pip install 'tvmx[ray]'"
