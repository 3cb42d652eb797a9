"""The headline on this machine: im2col with OpenBLAS and tvmx's plans, in turns in one process."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _sim_guest
from benchmarks._candidates import Candidate, Expectation, take_turns, verify, vm_candidate
from benchmarks._records import Record
from benchmarks._results import Rounds, Series
from benchmarks._sim_models import SimFolder
from benchmarks._sim_peers import build_im2col
from tvmx.targets import load_target

BLAS = "im2col+openblas"
HOST = "host"


class HostFigures(Record):
    """One network's rounds, the kernels OpenBLAS took, and the core's peak of multiply-adds.

    ``peak_gflops`` is of float32 in registers, one thread, just before the rounds.
    """

    rounds: Rounds
    kernels: str
    version: str
    peak_gflops: float


def measure_host(folder: SimFolder, plans: Sequence[str], rounds: int) -> HostFigures:
    """Verify and time all, one thread. For a process of its own, started with one thread.

    Raises MeasureError where an output is wrong.
    """
    from tvmx.testing.templates import measured_peak_gflops

    target, facts = load_target(HOST), dict[str, str]()
    library = build_im2col(target, folder.path)
    run, outputs = _sim_guest._load_im2col(Namespace(library=library, model=folder.layers), facts)
    right = Expectation(folder.load_expected("layers"), folder.load_limit("layers"))
    inputs, _ = folder.load_golden()
    place = folder.for_target(HOST)
    candidates = [Candidate(BLAS, run, outputs, right)]
    for plan in plans:
        expected = Expectation(place.load_expected(plan), place.load_limit(plan))
        candidates.append(vm_candidate(plan, place.library(plan), list(inputs.values()), expected))
    errors = [verify(candidate) for candidate in candidates]
    peak, before = measured_peak_gflops(target), os.getloadavg()[0]
    wall, cpu = take_turns(candidates, rounds)
    series = tuple(
        Series(name=c.name, wall_ms=tuple(w), cpu_ms=tuple(p), max_error=e, limit=c.expected.limit)
        for c, w, p, e in zip(candidates, wall, cpu, errors, strict=True)
    )
    found = Rounds(series=series, load_before=before, load_after=os.getloadavg()[0])
    return HostFigures(
        rounds=found, kernels=facts["kernels"], version=facts["version"], peak_gflops=peak
    )


def host_path(folder: SimFolder) -> Path:
    """Where :class:`HostFigures` are kept."""
    return folder.path / "host.json"
