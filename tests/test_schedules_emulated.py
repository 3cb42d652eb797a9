"""int8 kernels in the instructions of boards, run on an emulated core: exact to the bit.

One emulated core runs them all, whatever board they are compiled for: it has every instruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.simulated import board_or_skip
from tests.test_schedules_rounding import cases, named
from tests.test_schedules_smmla import DENSE, ODD
from tvmx import _tvm
from tvmx.build import link
from tvmx.ir import Conv2dWorkload, DenseWorkload, to_physical
from tvmx.measure import KernelJob, Measurement, TimingPolicy
from tvmx.simulate import SimulatedBoard
from tvmx.targets import Target, load_target
from tvmx.templates import make_operands

Workload = Conv2dWorkload | DenseWorkload
pytestmark = [pytest.mark.rpc, pytest.mark.slow, pytest.mark.emulated]

INT8 = ("conv2d_int8", "dense_int8", "depthwise_int8")
SMMLA = ("conv2d_smmla", "dense_smmla")


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    """QEMU has no such core, and emulates one that has everything."""
    with board_or_skip("orion-o6") as board:
        yield board


def compiled(
    kernels: Sequence[tuple[str, Workload]], target: Target, path: Path
) -> list[KernelJob]:
    """Jobs that check default configs to the bit, all in the library at ``path``."""
    functions, jobs = {}, []
    for number, (name, workload) in enumerate(kernels):
        template, symbol = named(name), f"kernel{number}"
        kernel = template.build(workload, template.space(workload, target).default, target)
        functions[symbol] = kernel.func.with_attr("global_symbol", symbol)
        operands, (read, written) = make_operands(workload), template.layouts(workload, target)
        inputs = [to_physical(operands.data, read), *kernel.constants(operands.constants)]
        if operands.residual is not None:
            inputs.append(to_physical(operands.residual, written))
        expected = to_physical(operands.expected, written)
        jobs.append(KernelJob(
            library=path, symbol=symbol, inputs=tuple(inputs), out_shape=expected.shape,
            out_dtype=str(expected.dtype), expected=expected, layout=written,
            channels=workload.out_shape[1], label=workload.describe(),
        ))  # fmt: skip
    code = path.with_suffix(".o")
    _tvm.build_module(_tvm.tvm.IRModule(functions), target).write_to_file(str(code))
    link([code], path, target)
    return jobs


def measured(board: SimulatedBoard, jobs: Sequence[KernelJob]) -> list[Measurement]:
    once = TimingPolicy(repeats=1, min_repeats=1, warmup=0, number=1)
    with board.runner(arch="aarch64") as runner:
        return runner.measure(jobs, once)


def test_fixed_point_roundings(board: SimulatedBoard, tmp_path: Path) -> None:
    jobs = []
    for name, templates in (("rpi4", INT8), ("rpi5", INT8), ("orion-o6", SMMLA)):
        target = load_target(name)
        kernels = [(t, w) for t in templates for w in cases(t, target, 2)]
        jobs += compiled(kernels, target, tmp_path / f"{name}.so")
    assert len(jobs) == 16
    assert [r.message for r in measured(board, jobs) if not r.ok] == []


def test_matrix_products_of_bytes(board: SimulatedBoard, tmp_path: Path) -> None:
    kernels = [(f"{w.op}_smmla", w) for w in [*ODD[::2], *DENSE[::2]]]
    jobs = compiled(kernels, load_target("orion-o6"), tmp_path / "smmla.so")
    results = measured(board, jobs)
    assert [r.message for r in results if not r.ok] == []
    assert all(r.simulated is not None for r in results)
