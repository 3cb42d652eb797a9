"""Picklable entry points of ``tvmx.build._worker``, which the parent must not import (TVM)."""

from __future__ import annotations

from tvmx.build._job import BuildResult, KernelBuild


def initialise(memory_limit_bytes: int | None) -> None:
    """Prepare a new worker process; see ``_worker.initialise``."""
    from tvmx.build import _worker

    _worker.initialise(memory_limit_bytes)


def ready() -> int:
    """Scheduled to start the workers ahead of the first job; returns the process id."""
    from tvmx.build import _worker

    return _worker.ready()


def build_kernel(job: KernelBuild) -> BuildResult:
    """Build one kernel in this process; never raises for a bad job."""
    from tvmx.build import _worker

    return _worker.build_kernel(job)
