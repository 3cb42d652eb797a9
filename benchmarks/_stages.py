"""The stages of one network, each run in a fresh process so that none disturbs the next."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from benchmarks._build import Folder, build_untuned
from benchmarks._candidates import (
    Candidate,
    measure_rounds,
    onnxruntime_candidate,
    vm_candidate,
)
from benchmarks._results import Rounds
from tvmx.errors import MeasureError

UNTUNED, DEFAULTS, EXPLORED, ORT = "untuned", "defaults", "explored", "onnxruntime"

P = ParamSpec("P")
R = TypeVar("R")


def alone(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``function`` in a new process and return what it returns, or raise what it raises.

    Raises:
        MeasureError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as err:
            name = getattr(function, "__name__", "a stage")
            raise MeasureError(
                f"the process of {name} died", hint="was it killed, or out of memory?"
            ) from err


def say(text: str) -> None:
    """Progress goes to stderr: stdout is for the table."""
    print(f"  {text}", file=sys.stderr, flush=True)


def measure_main(folder: Folder, rounds: int, explored: bool) -> Rounds:
    """ONNX Runtime, defaults and explored, side by side."""
    inputs, expected = folder.load_golden()
    ordered = list(inputs.values())
    candidates: list[Candidate] = [
        onnxruntime_candidate(ORT, folder.model, inputs),
        vm_candidate(DEFAULTS, folder.defaults, ordered),
    ]
    if explored:
        candidates.append(vm_candidate(EXPLORED, folder.explored, ordered))
    return measure_rounds(candidates, expected, rounds)


def measure_untuned(folder: Folder, rounds: int) -> Rounds:
    """Untuned TVM and the defaults, side by side; building is not timed."""
    inputs, expected = folder.load_golden()
    ordered = list(inputs.values())
    candidates = [
        vm_candidate(DEFAULTS, folder.defaults, ordered),
        vm_candidate(UNTUNED, build_untuned(folder), ordered),
    ]
    return measure_rounds(candidates, expected, rounds)
