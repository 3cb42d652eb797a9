"""One layer in a process of its own: every template's kernel, ONNX Runtime, PyTorch, the peaks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._candidates import (
    Array,
    Candidate,
    Expectation,
    onnxruntime_candidate,
    take_turns,
    verify,
)
from benchmarks._kernel_layers import Workload, write_onnx
from benchmarks._kernel_results import ORT, PEAK, READ, TORCH, LayerFigures
from benchmarks._results import Rounds, Series
from tvmx.ir import Conv2dWorkload, DenseWorkload
from tvmx.targets import Target, load_target

_STREAMS = 4  # of the reading kernel, a thread: what prefetchers like
_SUMS = 2  # of a stream


def templates_of(workload: Workload, target: Target) -> dict[str, str]:
    """The float templates that compute a layer: file digest and default config, by name."""
    from tvmx.templates import Registry

    return {
        entry.name: f"{entry.fingerprint} {entry.template.space(workload, target).default!r}"
        for entry in Registry.with_builtin().legal(workload, target)
    }


def measure_layer(
    layer: str, workload: Workload, rounds: int, threads: int, with_torch: bool
) -> LayerFigures:
    """Verify and time all that compute a layer, in turns.

    Raises:
        MeasureError: an output is wrong.
    """
    from tvmx._tvm import tvm
    from tvmx.templates import Registry, make_operands

    target = load_target("host")
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    operands = make_operands(workload)
    right = Expectation([operands.expected])
    weight, bias = operands.constants.weight, operands.constants.bias
    peak, peak_gflop = _peak(target)
    entries = Registry.with_builtin().legal(workload, target)
    candidates = [peak, *(_template(entry, workload, operands, target) for entry in entries)]
    if isinstance(workload, DenseWorkload) and workload.batch == 1:
        candidates.append(_read(target, weight.size, threads))
    if with_torch:
        candidates.append(_torch(workload, operands.data, weight, bias, right, threads))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "layer.onnx"
        write_onnx(workload, weight, bias, model)
        candidates.append(onnxruntime_candidate(ORT, model, [operands.data], right))
    return LayerFigures(
        layer=layer,
        workload=workload.canonical(),
        gflop=2 * workload.macs / 1e9,
        templates=templates_of(workload, target),
        peak_gflop=threads * peak_gflop,
        rounds=_rounds(candidates, rounds),
    )


def _rounds(candidates: Sequence[Candidate], rounds: int) -> Rounds:
    errors = [verify(candidate) for candidate in candidates]
    before = os.getloadavg()[0]
    wall, cpu = take_turns(candidates, rounds)
    series = tuple(
        Series(name=c.name, wall_ms=tuple(w), cpu_ms=tuple(p), max_error=e, limit=c.expected.limit)
        for c, w, p, e in zip(candidates, wall, cpu, errors, strict=True)
    )
    return Rounds(series=series, load_before=before, load_after=os.getloadavg()[0])


def _compiled(func: Any, target: Target, arrays: Sequence[Array]) -> tuple[Any, list[Any]]:
    """A function to call with tensors, and those."""
    from tvmx import _tvm

    module = _tvm.build_module(
        _tvm.tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")}), target
    )
    return module["kernel"], [_tvm.tvm.runtime.tensor(array) for array in arrays]


def _template(entry: Any, workload: Workload, operands: Any, target: Target) -> Candidate:
    """A template's kernel at its default config, data and output in its own layouts."""
    from tvmx.ir import to_logical
    from tvmx.testing.templates import kernel_arrays

    template = entry.template
    kernel = template.build(workload, template.space(workload, target).default, target)
    arrays = kernel_arrays(template, kernel, workload, target, operands)
    call, tensors = _compiled(kernel.func, target, arrays)
    layout = template.layouts(workload, target)[1]
    return Candidate(
        entry.name,
        lambda: call(*tensors),
        lambda: [to_logical(tensors[-1].numpy(), layout, workload.out_shape[1])],
        Expectation([operands.expected]),
    )


def _torch(
    workload: Workload, data: Array, weight: Array, bias: Array, right: Expectation, threads: int
) -> Candidate:
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    x, w, b = (torch.from_numpy(array) for array in (data, weight, bias))
    last: list[Any] = []

    def run() -> None:
        with torch.inference_mode():
            if isinstance(workload, Conv2dWorkload):
                top, left = workload.padding[:2]
                value = functional.conv2d(
                    x, w, b, workload.strides, (top, left), workload.dilation, workload.groups
                )
            else:
                value = functional.linear(x, w, b)
            last[:] = [value.relu_()]

    return Candidate(TORCH, run, lambda: [last[0].numpy()], right)


def _peak(target: Target) -> tuple[Candidate, float]:
    """Multiply-adds in registers on one thread, and how many GFLOP a call does."""
    from tvmx.doctor import peak_kernel

    func, probe = peak_kernel(target)
    call, tensors = _compiled(func, target, [np.ones(probe.size, probe.dtype)])
    # What it computes is the doctor's business: here it is but a measure.
    return Candidate(PEAK, lambda: call(*tensors), list, Expectation([])), probe.work / 1e9


def _read(target: Target, size: int, threads: int) -> Candidate:
    """As many floats as a layer has weights, read and added up."""
    lanes = target.lanes("float32")
    steps = size // (threads * _STREAMS * _SUMS * lanes)
    shape = (threads, _STREAMS, steps, _SUMS, lanes)
    # Zeros and ones: their sums are exact.
    data = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
    out = np.zeros((threads, lanes), np.float32)
    call, tensors = _compiled(_read_kernel(shape), target, [data.reshape(-1), out])
    return Candidate(
        READ,
        lambda: call(*tensors),
        lambda: [tensors[1].numpy()],
        Expectation([data.sum(axis=(1, 2, 3), dtype=np.float64)]),
    )


def _read_kernel(shape: tuple[int, ...]) -> Any:
    """``out[thread][lane]`` = the sum of (threads, streams, steps, sums, lanes) of them."""
    from tvmx._tvm import IRBuilder, builder
    from tvmx.templates import Accumulators, flat, load, store

    threads, streams, steps, count, lanes = shape
    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        builder.func_name("main")
        builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        size = threads * streams * steps * count * lanes
        data = builder.arg("data", builder.buffer((size,), "float32"))
        out = flat(builder.arg("out", builder.buffer((threads, lanes), "float32")))
        with builder.parallel(0, threads) as thread:
            sums = Accumulators(streams * count, lanes)
            with builder.serial(0, steps) as step:
                for number in range(streams * count):
                    stream, which = divmod(number, count)
                    at = (((thread * streams + stream) * steps + step) * count + which) * lanes
                    sums.add(number, load(data, at, lanes=lanes))
            total = sums.total(0)
            for number in range(1, streams * count):
                total = total + sums.total(number)
            store(out, total, thread * lanes, lanes=lanes)
    return ir.get()
