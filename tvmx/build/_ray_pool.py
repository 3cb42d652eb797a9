"""A pool of build workers on a Ray cluster, in the place of one on this machine."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, as_completed
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from tvmx.build._job import BuildFailure, BuildResult, FailureKind, KernelBuild
from tvmx.build._ray_cluster import RayActor, RayCluster, WorkerDiedError
from tvmx.build._ray_worker import Builder, Shipped
from tvmx.errors import DeviceError

_TRIES = 2  # of a job whose worker died: it may have been the machine's fault

Waiting = tuple[bool, int, KernelBuild, Future[BuildResult]]


class RayPool:
    """As :class:`tvmx.build.BuildPool`, with the cluster's workers.

    Every job is bounded by ``timeout_s``, and a worker that runs into it is killed. The job of a
    worker that dies is given to another one, once: only what kills two workers fails. Libraries
    come back as bytes, so the machines need no common file system.
    """

    def __init__(self, cluster: RayCluster, timeout_s: float = 60.0) -> None:
        self.workers, self.timeout_s = cluster.workers, timeout_s
        self._cluster = cluster
        self._closed = threading.Event()
        self._numbers = itertools.count()
        self._waiting: queue.PriorityQueue[Waiting] = queue.PriorityQueue()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(
                target=self._serve, args=(RayActor(cluster, Builder, self._closed),), daemon=True
            )
            for _ in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: KernelBuild) -> Future[BuildResult]:
        """Queue one job; those that only describe go first.

        The future raises DeviceError where the cluster, and not the job, is at fault.
        """
        outer: Future[BuildResult] = Future()
        outer.set_running_or_notify_cancel()
        with self._lock:
            if self._closed.is_set():
                outer.set_result(_failure("cancelled", job, "the build pool is closed"))
            else:
                self._waiting.put((not job.describe_only, next(self._numbers), job, outer))
        return outer

    def build(self, jobs: Iterable[KernelBuild]) -> Iterator[tuple[int, BuildResult]]:
        """Queue all jobs at once and yield (index in ``jobs``, result) as they finish."""
        futures = {self.submit(job): index for index, job in enumerate(jobs)}
        return ((futures[future], future.result()) for future in as_completed(futures))

    def close(self) -> None:
        """Kill the workers. Unfinished jobs end as ``cancelled``. Idempotent."""
        with self._lock:
            self._closed.set()
        for thread in self._threads:
            thread.join()
        while True:
            try:
                *_, job, outer = self._waiting.get_nowait()
            except queue.Empty:
                return
            outer.set_result(_failure("cancelled", job, "the build pool was closed"))

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, actor: RayActor) -> None:
        while not self._closed.is_set():
            try:
                *_, job, outer = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                outer.set_result(self._done(actor, job))
            except DeviceError as err:
                outer.set_exception(err)
        actor.kill()

    def _done(self, actor: RayActor, job: KernelBuild) -> BuildResult:
        try:
            text = Path(job.template_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            return _failure("template", job, f"{job.template_path}: {err}")
        died = ""
        for _ in range(_TRIES):
            try:
                return _kept(job, actor.call("build", job, text, timeout_s=self.timeout_s))
            except InterruptedError:
                return _failure("cancelled", job, "the build pool was closed")
            except TimeoutError:
                return _failure("timeout", job, f"not built within {self.timeout_s:g} s")
            except WorkerDiedError as err:
                died = str(err)
                self._cluster.require_alive()
            except DeviceError:
                raise
            except Exception as err:
                return _failure("build", job, f"{type(err).__name__}: {err}")
        return _failure("crash", job, f"{_TRIES} build workers died of it: {died}")


def _kept(job: KernelBuild, shipped: Shipped) -> BuildResult:
    """The result with its library where the job wants it."""
    if shipped.library is None:
        return shipped.result
    job.library.parent.mkdir(parents=True, exist_ok=True)
    job.library.write_bytes(shipped.library)
    job.library.chmod(0o755)
    return replace(shipped.result, library=job.library)


def _failure(kind: FailureKind, job: KernelBuild, text: str) -> BuildResult:
    return BuildResult(error=BuildFailure(kind, f"{job.describe()}: {text}"))
