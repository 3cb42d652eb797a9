"""The stages of one network, each run in a fresh process so that none disturbs the next."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks._build import build_untuned
from benchmarks._candidates import (
    Candidate,
    Expectation,
    measure_rounds,
    onnxruntime_candidate,
    vm_candidate,
)
from benchmarks._folder import Folder
from benchmarks._footprint import measure_footprint
from benchmarks._peers import OPENVINO_INT8, PEERS, peer_candidates
from benchmarks._quantised import INT8, plan_expectation
from benchmarks._results import INT8_OF_THE_RANGE, OPENVINO_OF_THE_RANGE, Footprint, Rounds
from tvmx.errors import MeasureError

UNTUNED, DEFAULTS, EXPLORED = "untuned", "defaults", "explored"
ORT, ORT_INT8 = "onnxruntime", "onnxruntime int8"

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


def build_ort_int8(folder: Folder) -> dict[str, int]:
    """Quantise the ONNX file unless that is done; returns what ONNX Runtime makes of it.

    The expected outputs are those of the quantised model without optimisations: float operators
    between quantisations, no integer kernel.
    """
    import onnx

    from benchmarks._models import calibration_samples
    from benchmarks._ort_int8 import optimised_nodes, quantise_model
    from tvmx.testing.models import onnx_reference

    inputs, _ = folder.load_golden()
    arrays = list(inputs.values())
    if not folder.onnx_int8.is_file():
        quantise_model(folder.onnx, folder.onnx_int8, calibration_samples(arrays))
    graph = onnx.load(folder.onnx_int8).graph
    feeds = dict(zip([value.name for value in graph.input], arrays, strict=True))
    folder.save_expected(ORT_INT8, onnx_reference(folder.onnx_int8, feeds), INT8_OF_THE_RANGE)
    return optimised_nodes(folder.onnx_int8)


def measure_main(folder: Folder, rounds: int, explored: bool, peers: Path | None = None) -> Rounds:
    """ONNX Runtime, its int8, defaults, int8, explored and the peers, side by side.

    ``peers`` is the folder of their wheels.
    """
    inputs, floats = folder.load_golden()
    arrays, right = list(inputs.values()), Expectation(floats)
    ort_int8 = Expectation(folder.load_expected(ORT_INT8), folder.load_limit(ORT_INT8))
    candidates: list[Candidate] = [
        onnxruntime_candidate(ORT, folder.onnx, arrays, right),
        onnxruntime_candidate(ORT_INT8, folder.onnx_int8, arrays, ort_int8),
        vm_candidate(DEFAULTS, folder.library(DEFAULTS), arrays, right),
        vm_candidate(INT8, folder.library(INT8), arrays, plan_expectation(folder, INT8)),
    ]
    if explored:
        candidates.append(vm_candidate(EXPLORED, folder.library(EXPLORED), arrays, right))
    failed: dict[str, str] = {}
    if peers is not None:
        found, failed = peer_candidates(
            folder, peers, arrays, right, Expectation(ort_int8.outputs, OPENVINO_OF_THE_RANGE)
        )
        candidates += found
    return measure_rounds(candidates, floats, rounds).model_copy(update={"failed": failed})


def measure_memory(
    folder: Folder, explored: bool, peers: Path | None, failed: Collection[str]
) -> tuple[Footprint, ...]:
    """The memory of every candidate of :func:`measure_main`, each in a process of its own.

    ``failed`` are the peers that cannot run the network.
    """
    models = {
        DEFAULTS: folder.library(DEFAULTS), ORT: folder.onnx, INT8: folder.library(INT8),
        ORT_INT8: folder.onnx_int8,
    }  # fmt: skip
    if explored:
        models[EXPLORED] = folder.library(EXPLORED)
    if peers is not None:
        models |= {name: folder.onnx for name in PEERS if name not in failed}
        models[OPENVINO_INT8] = folder.onnx_int8
    return tuple(measure_footprint(folder, name, path, peers) for name, path in models.items())


def measure_untuned(folder: Folder, rounds: int) -> Rounds:
    """Untuned TVM and the defaults, side by side; building is not timed."""
    inputs, floats = folder.load_golden()
    arrays, right = list(inputs.values()), Expectation(floats)
    candidates = [
        vm_candidate(DEFAULTS, folder.library(DEFAULTS), arrays, right),
        vm_candidate(UNTUNED, build_untuned(folder), arrays, right),
    ]
    return measure_rounds(candidates, floats, rounds)
