"""Things that run a network in this process: ONNX Runtime and libraries for TVM's VM.

Every candidate carries what it must output: int8 and sparse ones compute something else than
the float network, and are held to that exactly, not to the float outputs loosely.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._results import OF_THE_RANGE, Rounds, Series
from tvmx.errors import MeasureError

Array = npt.NDArray[Any]

ONE_THREAD = {
    "TVM_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""Environment a measuring process must be started with."""

_SETTLE_S = 0.02  # threads of the candidate before wait for work, spinning, for some milliseconds


def thread_count() -> int:
    """Threads of every candidate: what this process was started with."""
    return int(os.environ.get("TVM_NUM_THREADS", "1"))


@contextlib.contextmanager
def started_with(threads: int) -> Iterator[None]:
    """Processes started inside are for candidates of so many threads."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(ONE_THREAD, str(threads)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


_ROUND_S = 0.1  # each candidate's share of a round lasts at least this long
_MOST_CALLS = 50


@dataclass(frozen=True)
class Expectation:
    """Right outputs; ``limit`` is the largest absolute error allowed, over their range."""

    outputs: Sequence[Array]
    limit: float = OF_THE_RANGE


@dataclass(frozen=True)
class Candidate:
    """One way to run the network: ``run`` is one inference, ``outputs`` reads the last one's."""

    name: str
    run: Callable[[], object]
    outputs: Callable[[], list[Array]]
    expected: Expectation


def onnxruntime_candidate(
    name: str, model: Path, inputs: Sequence[Array], expected: Expectation
) -> Candidate:
    """ONNX Runtime with all its optimisations, inputs and outputs bound once.

    ``inputs`` are in the model's order.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for value, array in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_cpu_input(value.name, array)
    results = []
    for output in session.get_outputs():
        buffer = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
        binding.bind_ortvalue_output(output.name, buffer)
        results.append(buffer)
    return Candidate(
        name,
        lambda: session.run_with_iobinding(binding),
        lambda: [np.array(buffer.numpy()) for buffer in results],
        expected,
    )


def vm_candidate(
    name: str, built: Any, inputs: Sequence[Array], expected: Expectation
) -> Candidate:
    """A library (path) or an executable of ``relax.build`` in TVM's VM."""
    from tvmx._tvm import tvm

    machine = load_machine(built, inputs)

    def outputs() -> list[Array]:
        got = machine.get_outputs("main")
        tensors = [got] if isinstance(got, tvm.runtime.Tensor) else list(got)
        return [t.numpy() for t in tensors]

    return Candidate(name, lambda: machine.invoke_stateful("main"), outputs, expected)


def load_machine(built: Any, inputs: Sequence[Array]) -> Any:
    """A ``relax.VirtualMachine`` with its inputs set."""
    from tvmx._tvm import relax, tvm

    tvm.get_global_func("runtime.config_threadpool")(1, thread_count())
    loaded = tvm.runtime.load_module(str(built)) if isinstance(built, Path) else built
    machine = relax.VirtualMachine(loaded, tvm.cpu())
    machine.set_input("main", *(tvm.runtime.tensor(array) for array in inputs))
    return machine


def verify(candidate: Candidate) -> float:
    """Run once and compare; returns the largest error over the range of what it must output.

    Raises:
        MeasureError: an output is wrong, so its latency would mean nothing.
    """
    candidate.run()
    worst, limit = 0.0, candidate.expected.limit
    for got, want in zip(candidate.outputs(), candidate.expected.outputs, strict=True):
        if got.shape != want.shape or not np.isfinite(got).all():
            raise MeasureError(
                f"{candidate.name}: output of shape {got.shape} is not finite "
                f"or not of shape {want.shape}"
            )
        worst = max(worst, float(np.abs(got - want).max() / (np.ptp(want) or 1.0)))
    if worst > limit:
        raise MeasureError(
            f"{candidate.name}: output off by {worst:.1e} of the range, allowed {limit:g}"
        )
    return worst


def relative_l2(outputs: Sequence[Array], floats: Sequence[Array]) -> float:
    """Norm of the difference over the norm of ``floats``, all outputs together."""
    difference = sum(
        float(np.square(got.astype(np.float64) - want).sum())
        for got, want in zip(outputs, floats, strict=True)
    )
    norm = sum(float(np.square(want.astype(np.float64)).sum()) for want in floats)
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))


def measure_rounds(
    candidates: Sequence[Candidate],
    floats: Sequence[Array],
    rounds: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Rounds:
    """Verify all, then ``rounds`` times each in turn, every second round in reverse order.

    ``floats`` are the float network's outputs, from which deviations are told.
    """
    errors = [verify(candidate) for candidate in candidates]
    deviations = [relative_l2(candidate.outputs(), floats) for candidate in candidates]
    before = os.getloadavg()[0]
    wall, cpu = take_turns(candidates, rounds, progress)
    series = tuple(
        Series(
            name=c.name,
            wall_ms=tuple(w),
            cpu_ms=tuple(p),
            max_error=e,
            limit=c.expected.limit,
            deviation=d,
        )
        for c, w, p, e, d in zip(candidates, wall, cpu, errors, deviations, strict=True)
    )
    return Rounds(series=series, load_before=before, load_after=os.getloadavg()[0])


def take_turns(
    candidates: Sequence[Candidate],
    rounds: int,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[list[float]], list[list[float]]]:
    """Wall and CPU milliseconds of a call, by candidate and round; unverified."""
    calls = [_calls(candidate) for candidate in candidates]
    wall: list[list[float]] = [[] for _ in candidates]
    cpu: list[list[float]] = [[] for _ in candidates]
    for index in range(rounds):
        order = range(len(candidates))
        for i in order if index % 2 == 0 else reversed(order):
            seconds, running = _time(candidates[i].run, calls[i])
            wall[i].append(seconds * 1e3)
            cpu[i].append(running * 1e3)
        progress(index + 1)
    return wall, cpu


def _calls(candidate: Candidate) -> int:
    seconds, _ = _time(candidate.run, 1)
    return max(1, min(_MOST_CALLS, round(_ROUND_S / seconds)))


def _time(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this thread, per call.

    After one call that brings the caches over, which a long network's only call does itself, but
    for several threads: theirs must be woken.
    """
    if thread_count() > 1:
        time.sleep(_SETTLE_S)
    if calls > 1 or thread_count() > 1:
        run()
    started, running = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        run()
    cpu = time.thread_time() - running
    return (time.perf_counter() - started) / calls, cpu / calls
