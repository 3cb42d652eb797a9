"""A pool of killable worker processes that build kernels."""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from pebble import ProcessExpired, ProcessPool

from tvmx.build import _worker_entry
from tvmx.build._job import BuildFailure, BuildResult, FailureKind, KernelBuild
from tvmx.errors import UsageError

_CHECK_POOL_AFTER_DEATH = 1  # how often a job is given to a new pool when the pool itself broke


class BuildPool:
    """Builds kernels in ``workers`` processes, each job bounded by ``timeout_s`` seconds.

    Workers import TVM once, from the moment the pool is made; a worker that crashes, is
    killed or runs into the timeout is replaced and costs only its own job. They end with
    the process that made the pool, however that ends. ``memory_limit_bytes`` bounds the
    data segment of each worker. Use as a context manager, or :meth:`close` it.

    Workers are forked from a clean server process (``forkserver``): a script that makes a
    pool needs the usual ``if __name__ == "__main__":``.
    """

    def __init__(
        self, workers: int = 2, timeout_s: float = 60.0, *, memory_limit_bytes: int | None = None
    ) -> None:
        if workers < 1 or timeout_s <= 0:
            raise UsageError(
                f"a build pool needs at least one worker and a positive timeout,"
                f" got {workers} and {timeout_s} s"
            )
        self.workers = workers
        self.timeout_s = timeout_s
        self._memory_limit = memory_limit_bytes
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tvmx.build._worker"])
        self._lock = threading.Lock()
        self._closed = False
        self._pending: dict[Future[BuildResult], KernelBuild] = {}
        self._waiting: list[tuple[bool, int, KernelBuild, Future[BuildResult]]] = []
        self._numbers = itertools.count()
        self._started = 0  # jobs that pebble has: one a worker, so that what waits can be ordered
        self._pool = self._new_pool()
        threading.Thread(target=self._warm, args=(self._pool,), daemon=True).start()

    def submit(self, job: KernelBuild) -> Future[BuildResult]:
        """Queue one job; those that only describe go first.

        The future's result is a BuildResult in every case; it never raises.
        """
        outer: Future[BuildResult] = Future()
        outer.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                outer.set_result(_failure("cancelled", job, "the build pool is closed"))
                return outer
            self._pending[outer] = job
            heapq.heappush(self._waiting, (not job.describe_only, next(self._numbers), job, outer))
        self._start_waiting()
        return outer

    def build(self, jobs: Iterable[KernelBuild]) -> Iterator[tuple[int, BuildResult]]:
        """Queue all jobs at once and yield (index in ``jobs``, result) as they finish."""
        futures = {self.submit(job): index for index, job in enumerate(jobs)}
        return ((futures[future], future.result()) for future in as_completed(futures))

    def close(self) -> None:
        """Kill the workers. Unfinished jobs end as ``cancelled``. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            pool = self._pool
        _discard(pool)
        # Pebble leaves the futures of running jobs open.
        for outer, job in list(self._pending.items()):
            self._deliver(outer, _failure("cancelled", job, "the build pool was closed"))

    def __enter__(self) -> BuildPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self.workers,
            initializer=_worker_entry.initialise,
            initargs=(self._memory_limit,),
            context=self._context,
        )

    def _warm(self, pool: ProcessPool) -> None:
        """Start the workers ahead of the first job: ``schedule`` blocks for TVM's import."""
        with self._lock:
            if self._closed:
                return
        try:
            pool.schedule(_worker_entry.ready)
        except RuntimeError:
            # Closed meanwhile: nothing to warm.
            return

    def _start_waiting(self) -> None:
        while True:
            with self._lock:
                if self._closed or not self._waiting or self._started >= self.workers:
                    return
                *_, job, outer = heapq.heappop(self._waiting)
                self._started += 1
            self._schedule(job, outer, retries=_CHECK_POOL_AFTER_DEATH)

    def _schedule(self, job: KernelBuild, outer: Future[BuildResult], retries: int) -> None:
        pool = self._pool
        try:
            inner = pool.schedule(_worker_entry.build_kernel, args=(job,), timeout=self.timeout_s)
        except RuntimeError as err:
            self._pool_broke(job, outer, retries, pool, err)
            return
        inner.add_done_callback(lambda done: self._finish(job, outer, retries, pool, done))

    def _finish(
        self,
        job: KernelBuild,
        outer: Future[BuildResult],
        retries: int,
        pool: ProcessPool,
        inner: Any,
    ) -> None:
        try:
            result: BuildResult = inner.result()
        except BrokenProcessPool as err:
            self._pool_broke(job, outer, retries, pool, err)
            return
        except CancelledError:
            result = _failure("cancelled", job, "the build pool was closed")
        except TimeoutError:
            result = _failure("timeout", job, f"not built within {self.timeout_s:g} s")
        except ProcessExpired as err:
            result = _failure("crash", job, f"the build worker died (exit code {err.exitcode})")
        except Exception as err:
            result = _failure("build", job, f"{type(err).__name__}: {err}")
        self._deliver(outer, result)

    def _pool_broke(
        self,
        job: KernelBuild,
        outer: Future[BuildResult],
        retries: int,
        pool: ProcessPool,
        err: Exception,
    ) -> None:
        """An idle worker died, which pebble takes for the end of the pool: go on with a new one."""
        with self._lock:
            closed = self._closed
            if not closed and retries > 0 and self._pool is pool:
                self._pool = self._new_pool()
                threading.Thread(target=_discard, args=(pool,), daemon=True).start()
        if closed:
            self._deliver(outer, _failure("cancelled", job, "the build pool was closed"))
        elif retries > 0:
            # Not in pebble's thread: starting workers blocks, and this is its message loop.
            retry = threading.Thread(
                target=self._schedule, args=(job, outer, retries - 1), daemon=True
            )
            retry.start()
        else:
            text = f"the build workers do not start: {err or 'they all died'}"
            self._deliver(outer, _failure("crash", job, text))

    def _deliver(self, outer: Future[BuildResult], result: BuildResult) -> None:
        with self._lock:
            if self._pending.pop(outer, None) is None:
                return
            self._started -= 1
        outer.set_result(result)
        self._start_waiting()


def _discard(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _failure(kind: FailureKind, job: KernelBuild, text: str) -> BuildResult:
    return BuildResult(error=BuildFailure(kind, f"{job.describe()}: {text}"))
