"""Builds, verifies and times every way to compute a layer: in this process, or simulated."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks._candidates import Candidate, Expectation, take_turns, verify
from benchmarks._kernel_layers import Workload
from benchmarks._sparse_layers import Way, ways
from benchmarks._sparse_results import LayerFigures, WayFigures
from tvmx.errors import MeasureError
from tvmx.ir import BlockSparsity, physical_shape, to_logical, to_physical
from tvmx.measure import KernelJob, Runner, TimingPolicy
from tvmx.targets import Target, load_target

_ONCE = TimingPolicy(
    repeats=1, min_repeats=1, warmup=0, number=1
)  # behind the call that is checked


def figures_of(way: Way, nbytes: int, us: float, core_us: float | None = None) -> WayFigures:
    """The record of a way."""
    sparsity = BlockSparsity.parse(way.workload.sparsity)
    return WayFigures(
        key=way.key,
        template=way.entry.name,
        precision="int8" if way.workload.dtype == "int8" else "f32",
        blocks=f"{sparsity.rows}x{sparsity.columns}" if sparsity else "",
        level=sparsity.level if sparsity else 0,
        config=repr(way.config),
        mflop=2 * way.workload.macs * way.kept / 1e6,
        bytes=nbytes,
        us=us,
        core_us=core_us,
    )


def measure_here(
    layer: str, workload: Workload, levels: Sequence[int], rounds: int, threads: int
) -> LayerFigures:
    """Verify and time all ways to compute a layer, in turns.

    Raises:
        MeasureError: an output is wrong.
    """
    from tvmx._tvm import tvm

    target = load_target("host")
    os.environ["TVM_NUM_THREADS"] = str(threads)
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    every = list(ways(workload, target, levels))
    made = [_candidate(way, target) for way in every]
    for candidate, _ in made:
        verify(candidate)
    wall, _ = take_turns([candidate for candidate, _ in made], rounds)
    return LayerFigures(
        layer=layer,
        workload=workload.canonical(),
        ways=tuple(
            figures_of(way, nbytes, float(np.median(times)) * 1e3)
            for way, (_, nbytes), times in zip(every, made, wall, strict=True)
        ),
    )


def _candidate(way: Way, target: Target) -> tuple[Candidate, int]:
    """A call that can be timed, and the bytes of its constants."""
    from tvmx import _tvm
    from tvmx.templates import make_operands
    from tvmx.testing.templates import kernel_arrays

    template, workload = way.entry.template, way.workload
    operands = make_operands(workload)
    kernel = template.build(workload, way.config, target)
    arrays = kernel_arrays(template, kernel, workload, target, operands)
    func = kernel.func.with_attr("global_symbol", "kernel")
    call = _tvm.build_module(_tvm.tvm.IRModule({"kernel": func}), target)["kernel"]
    tensors = [_tvm.tvm.runtime.tensor(array) for array in arrays]
    layout, channels = template.layouts(workload, target)[1], workload.out_shape[1]
    int8 = workload.dtype == "int8"
    right = Expectation([operands.expected.astype(np.float64)], **({"limit": 0.0} if int8 else {}))
    candidate = Candidate(
        way.name,
        lambda: call(*tensors),
        lambda: [to_logical(tensors[-1].numpy(), layout, channels).astype(np.float64)],
        right,
    )
    return candidate, sum(array.nbytes for array in arrays[1:-1])


def simulate_layer(
    layer: LayerFigures, every: Sequence[Way], target: Target, runner: Runner,
    keep: Callable[[LayerFigures], None],
) -> LayerFigures:  # fmt: skip
    """The layer with the figures of those ways it has none of; ``keep`` is told after each.

    Raises:
        MeasureError: a kernel does not build, fails or computes nonsense.
    """
    known = {figures.key for figures in layer.ways}
    for way in every:
        if way.key not in known:
            figures = _simulated(way, target, runner)
            layer = layer.model_copy(update={"ways": (*layer.ways, figures)})
            keep(layer)
    return layer


def _simulated(way: Way, target: Target, runner: Runner) -> WayFigures:
    from tvmx.build import SYMBOL, BuildPool, KernelBuild
    from tvmx.templates import make_operands
    from tvmx.testing.templates import kernel_arrays

    entry, workload = way.entry, way.workload
    operands = make_operands(workload)
    kernel = entry.template.build(workload, way.config, target)
    arrays = kernel_arrays(entry.template, kernel, workload, target, operands)
    layout = entry.template.layouts(workload, target)[1]
    with tempfile.TemporaryDirectory() as folder, BuildPool(1) as pool:
        build = KernelBuild.of(
            workload, entry.name, entry.path, way.config, target, Path(folder)
        )  # fmt: skip
        ((_, built),) = pool.build([build])
        if built.library is None:
            raise MeasureError(f"{way.name}, {workload.describe()}: {built.error}")
        job = KernelJob(
            library=built.library, symbol=SYMBOL, inputs=tuple(arrays[:-1]),
            out_shape=physical_shape(workload.out_shape, layout), out_dtype=workload.out_dtype,
            expected=to_physical(operands.expected, layout), layout=layout,
            channels=workload.out_shape[1], label=f"{way.name}, {workload.describe()}",
        )  # fmt: skip
        (measured,) = runner.measure([job], _ONCE)
    if not measured.ok or measured.simulated is None:
        raise MeasureError(f"{job.name}: {measured.status}, {measured.message}")
    core_us = measured.simulated.core_cycles / target.big.clock_mhz
    nbytes = sum(array.nbytes for array in arrays[1:-1])
    return figures_of(way, nbytes, float(min(measured.latencies_us)), core_us)
