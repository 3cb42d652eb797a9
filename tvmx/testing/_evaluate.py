"""Build a template's kernel for this machine, run it in this process, compare and time it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.errors import TemplateError, UsageError
from tvmx.ir import Config, Conv2dWorkload, DenseWorkload, physical_shape, to_logical, to_physical
from tvmx.targets import Target
from tvmx.templates import Kernel, Operands, ScheduleTemplate, make_operands

AnyWorkload = Conv2dWorkload | DenseWorkload


@dataclass(frozen=True)
class Evaluation:
    """Errors against PyTorch. ``relative`` is ``absolute`` over the range of the expected output.

    ``gflops`` is None unless timing was asked for; 1 thread, the fastest of the repeats.
    """

    absolute: float
    relative: float
    gflops: float | None = None


def evaluate_template(
    template: ScheduleTemplate,
    workload: AnyWorkload,
    target: Target,
    config: Config | None = None,
    *,
    timed: bool = False,
    in_place: bool = False,
) -> Evaluation:
    """Build ``config`` (the default when None), run it on random operands, compare, time it.

    ``in_place``: the output is the residual's own memory; no figure of such a run is of use.

    Raises:
        UsageError: ``target`` is not this machine's architecture.
        TemplateError: a kernel argument or the output breaks the contract: wrong shape or
            dtype, or values that are not finite.
    """
    if target.arch != platform.machine():
        raise UsageError(f"target {target.name!r} cannot run on this {platform.machine()} machine")
    kernel = template.build(workload, config or template.space(workload, target).default, target)
    operands = make_operands(workload)
    arrays = kernel_arrays(template, kernel, workload, target, operands)
    func = kernel.func.with_attr("tirx.noalias", False) if in_place else kernel.func
    run = _Loaded(func, target, arrays, in_place)
    run()
    layout = template.layouts(workload, target)[1]
    got = run.output()
    if not np.isfinite(got).all():
        raise TemplateError(f"{template.name}: {workload.describe()}: output is not all finite")
    logical = to_logical(got, layout, workload.out_shape[1]).astype(np.float64)
    error = np.abs(logical - operands.expected).max()
    span = float(np.ptp(operands.expected.astype(np.float64))) or 1.0
    gflops = 2 * workload.macs / run.seconds() / 1e9 if timed else None
    return Evaluation(absolute=float(error), relative=float(error) / span, gflops=gflops)


def kernel_arrays(
    template: ScheduleTemplate,
    kernel: Kernel,
    workload: AnyWorkload,
    target: Target,
    operands: Operands,
) -> list[npt.NDArray[Any]]:
    """The kernel's arguments in order, the output last and filled with NaN (int8: 0x5B).

    Raises :class:`TemplateError` when they do not fit the function's parameters.
    """
    data_layout, layout = template.layouts(workload, target)
    constants = kernel.constants(operands.constants)
    arrays: list[npt.NDArray[Any]] = [to_physical(operands.data, data_layout), *constants]
    if operands.residual is not None:
        arrays.append(to_physical(operands.residual, layout))
    fill, dtype = (0x5B, np.int8) if workload.out_dtype == "int8" else (np.nan, np.float32)
    arrays.append(np.full(physical_shape(workload.out_shape, layout), fill, dtype))
    wanted = [(tuple(int(n) for n in p.shape), str(p.dtype)) for p in kernel.func.params]
    given = [(a.shape, str(a.dtype)) for a in arrays]
    if wanted != given:
        raise TemplateError(
            f"{template.name}: {workload.describe()}: the function takes {wanted}, "
            f"the contract gives it {given} (data, constants, residual, output)"
        )
    return [np.ascontiguousarray(a) for a in arrays]


class _Loaded:
    """A compiled function with its arguments on the device. No linker is involved."""

    def __init__(
        self, func: Any, target: Target, arrays: list[npt.NDArray[Any]], in_place: bool = False
    ) -> None:
        from tvmx import _tvm

        module = _tvm.tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
        self._module = _tvm.build_module(module, target)
        self._arguments = [_tvm.tvm.runtime.tensor(a) for a in arrays]
        if in_place:
            self._arguments[-1] = self._arguments[-2]  # residual and output come last

    def __call__(self) -> None:
        self._module["kernel"](*self._arguments)

    def output(self) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = self._arguments[-1].numpy()
        return result

    def seconds(self) -> float:
        """Fastest of twenty repeats of about 2 ms, 1 thread."""
        from tvmx import _tvm

        device = _tvm.tvm.cpu(0)
        evaluator = self._module.time_evaluator
        with _one_thread():
            once = evaluator("kernel", device, number=1, repeat=3)(*self._arguments)
            number = max(1, int(0.002 / max(min(once.results), 1e-9)))
            timer = evaluator("kernel", device, number=number, repeat=20)
            return float(min(timer(*self._arguments).results))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """TVM's kernels on one thread.

    TVM then binds this thread to a core; what this process starts later would inherit that.
    """
    from tvmx import _tvm

    known = hasattr(os, "sched_getaffinity")
    allowed = os.sched_getaffinity(0) if known else set()
    _tvm.tvm.get_global_func("runtime.config_threadpool")(1, 1)
    try:
        yield
    finally:
        if known:
            os.sched_setaffinity(0, allowed)


@functools.lru_cache(maxsize=8)
def measured_peak_gflops(target: Target) -> float:
    """Multiply-add peak of one core of this machine in GFLOP/s, by a kernel of nothing else.

    Raises :class:`UsageError` when ``target`` is not this machine's architecture.
    """
    if target.arch != platform.machine():
        raise UsageError(f"target {target.name!r} cannot run on this {platform.machine()} machine")
    from tvmx.doctor import peak_kernel

    func, kernel = peak_kernel(target)
    run = _Loaded(func, target, [np.ones(kernel.size, kernel.dtype)])
    run()
    return kernel.work / run.seconds() / 1e9
