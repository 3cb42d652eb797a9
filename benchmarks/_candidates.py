"""Things that run a network in this process: ONNX Runtime and libraries for TVM's VM."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._results import OF_THE_RANGE, Rounds, Series
from tvmx.errors import MeasureError

Array = npt.NDArray[Any]

ONE_THREAD = {
    "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}  # fmt: skip
"""Environment a measuring process must be started with."""

_ROUND_S = 0.1  # each candidate's share of a round lasts at least this long
_MOST_CALLS = 50


@dataclass(frozen=True)
class Candidate:
    """One way to run the network: ``run`` is one inference, ``outputs`` reads the last one's."""

    name: str
    run: Callable[[], object]
    outputs: Callable[[], list[Array]]


def onnxruntime_candidate(name: str, model: Path, inputs: dict[str, Array]) -> Candidate:
    """ONNX Runtime with all its optimisations, 1 thread, inputs and outputs bound once."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for key, array in inputs.items():
        binding.bind_cpu_input(key, array)
    results = []
    for output in session.get_outputs():
        value = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
        binding.bind_ortvalue_output(output.name, value)
        results.append(value)
    return Candidate(
        name,
        lambda: session.run_with_iobinding(binding),
        lambda: [np.array(value.numpy()) for value in results],
    )


def vm_candidate(name: str, built: Any, inputs: Sequence[Array]) -> Candidate:
    """A library (path) or an executable of ``relax.build`` in TVM's VM, 1 thread."""
    from tvmx._tvm import tvm

    machine = load_machine(built, inputs)

    def outputs() -> list[Array]:
        got = machine.get_outputs("main")
        tensors = [got] if isinstance(got, tvm.runtime.Tensor) else list(got)
        return [t.numpy() for t in tensors]

    return Candidate(name, lambda: machine.invoke_stateful("main"), outputs)


def load_machine(built: Any, inputs: Sequence[Array]) -> Any:
    """A ``relax.VirtualMachine`` with its inputs set."""
    from tvmx._tvm import relax, tvm

    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    loaded = tvm.runtime.load_module(str(built)) if isinstance(built, Path) else built
    machine = relax.VirtualMachine(loaded, tvm.cpu())
    machine.set_input("main", *(tvm.runtime.tensor(array) for array in inputs))
    return machine


def verify(candidate: Candidate, expected: Sequence[Array]) -> float:
    """Run once and compare; returns the largest error over the range of the reference.

    Raises:
        MeasureError: an output is wrong, so its latency would mean nothing.
    """
    candidate.run()
    worst = 0.0
    for got, want in zip(candidate.outputs(), expected, strict=True):
        if got.shape != want.shape or not np.isfinite(got).all():
            raise MeasureError(f"{candidate.name}: output of shape {got.shape} is not finite "
                               f"or not of shape {want.shape}")  # fmt: skip
        worst = max(worst, float(np.abs(got - want).max() / (np.ptp(want) or 1.0)))
    if worst > OF_THE_RANGE:
        raise MeasureError(f"{candidate.name}: output off by {worst:.1e} of the range")
    return worst


def measure_rounds(
    candidates: Sequence[Candidate], expected: Sequence[Array], rounds: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Rounds:  # fmt: skip
    """Verify all, then ``rounds`` times each in turn, every second round in reverse order."""
    errors = [verify(candidate, expected) for candidate in candidates]
    calls = [_calls(candidate) for candidate in candidates]
    wall: list[list[float]] = [[] for _ in candidates]
    cpu: list[list[float]] = [[] for _ in candidates]
    before = os.getloadavg()[0]
    for index in range(rounds):
        order = range(len(candidates))
        for i in order if index % 2 == 0 else reversed(order):
            seconds, running = _time(candidates[i].run, calls[i])
            wall[i].append(seconds * 1e3)
            cpu[i].append(running * 1e3)
        progress(index + 1)
    series = tuple(
        Series(name=c.name, wall_ms=tuple(w), cpu_ms=tuple(p), max_error=e)
        for c, w, p, e in zip(candidates, wall, cpu, errors, strict=True)
    )
    return Rounds(series=series, load_before=before, load_after=os.getloadavg()[0])


def _calls(candidate: Candidate) -> int:
    seconds, _ = _time(candidate.run, 1)
    return max(1, min(_MOST_CALLS, round(_ROUND_S / seconds)))


def _time(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """Wall and CPU seconds per call, after one call that brings the caches over."""
    if calls > 1:
        run()
    started, running = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        run()
    cpu = time.thread_time() - running
    return (time.perf_counter() - started) / calls, cpu / calls
