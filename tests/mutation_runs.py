"""Judging many damaged files in a process of its own: what becomes of each, and the bad ones."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pebble import ProcessExpired, ProcessPool

MEMORY = 2 << 30
SECONDS = 10.0  # of a processor (the machine may be loaded): to import, and again to build and run
_DEADLINE = 3600.0  # for what waits for ever


class Damaged(Protocol):
    """One damaged file, or several that belong together."""

    def save(self, folder: Path, name: str) -> None:
        """Keep it for a closer look."""

    def judge(self, whole: bool) -> str:
        """What became of it, in a word; ``whole``: what imports is built, run and compared.

        Raises what is no error of tvmx, and AssertionError for wrong figures.
        """


def start_worker() -> None:
    """Bound the memory, and load what every job needs."""
    import tvmx.build._network
    import tvmx.frontends._onnx_import
    import tvmx.frontends.relay._import
    import tvmx.passes  # noqa: F401

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def wind_clock() -> None:
    """What follows has the whole time again. Without a clock (in a test) it does nothing."""
    if signal.getitimer(signal.ITIMER_PROF)[0]:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)


def judge_in_time(damaged: Damaged, whole: bool) -> str:
    """What became of it; ends the process where it computes for too long."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return damaged.judge(whole)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def judge_many(mutant: Callable[[int, int], Damaged], group: int) -> int:
    """The command line: judge many, print what became of them, save those judged badly.

    ``mutant`` makes one of a number and a seed; of ``group`` numbers on end each is of another
    network. Returns the exit code.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-each", type=int, default=1, help="build one in so many")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the bad ones")
    given = parser.parse_args()
    seen: Counter[str] = Counter()
    bad = 0
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPool(1, initializer=start_worker, context=context) as pool:
        for number in range(given.first, given.first + given.count):
            damaged = mutant(number, given.seed)
            problem, whole = "", number // group % given.run_each == 0
            try:
                job = pool.schedule(judge_in_time, args=[damaged, whole], timeout=_DEADLINE)
                seen[job.result()] += 1
            except TimeoutError:
                problem = "hangs"
            except ProcessExpired as err:
                slow = err.exitcode == -signal.SIGPROF
                problem = f"computes for {SECONDS:.0f} s" if slow else f"crashes: {err}"
            except Exception as err:
                problem = f"{type(err).__name__}: {str(err)[:300]}"
            if problem:
                bad += 1
                print(f"{number}: {problem}", flush=True)
                if given.keep:
                    given.keep.mkdir(exist_ok=True)
                    damaged.save(given.keep, f"{given.seed}_{number}")
    for kind, count in seen.most_common():
        print(f"{count:6} {kind}")
    print(f"{given.count} files, {bad} bad, {time.monotonic() - started:.0f} s")
    return bool(bad)
