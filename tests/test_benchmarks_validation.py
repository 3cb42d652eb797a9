"""The validation of the simulator: its driver, its kernels on both sides, its statistics."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks._validation_kernels import ValidationKernel, build_kernels, compile_driver
from benchmarks._validation_runs import (
    Cycles,
    KernelResult,
    Round,
    Runner,
    Validation,
    agreement,
    measure_round,
    simulate_all,
)
from tests.simulated import tools_or_skip
from tvmx.errors import MeasureError
from tvmx.simulate._core import SimulatedCore
from tvmx.simulate._emulator import Emulator
from tvmx.simulate._mca import Code

CASES = ("gemv 256x256", "triad L1", "triad beyond L2", "sum, one chain", "sum of bytes")
CORE = SimulatedCore(
    name="host", arch="x86_64", qemu_cpu="max", exact_isa=False, mca_cpu="any", mca_attrs=(),
    clock_mhz=1000, l1d_kib=32, l1d_ways=8, l2_kib=1024, l2_ways=16,
)  # fmt: skip


class Unit:
    """Every instruction takes one cycle."""

    name = "one cycle for each instruction"

    def costs(self, blocks: Sequence[Code]) -> list[int]:
        return [1000 * len(block.sizes) for block in blocks]


def require() -> None:
    if platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("compares an x86-64 machine with AVX2 with its model")
    tools_or_skip("qemu-x86_64", "setarch", "cc", "taskset")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    return tmp_path_factory.mktemp("validation")


@pytest.fixture(scope="module")
def kernels(folder: Path) -> list[ValidationKernel]:
    return build_kernels(folder, CASES)


@pytest.fixture(scope="module")
def runner(folder: Path) -> Runner:
    compile_driver(folder)
    return Runner(folder, max(os.sched_getaffinity(0)))


def empty(kernels: Sequence[ValidationKernel]) -> Validation:
    found = tuple(
        KernelResult(name=k.name, kind=k.kind, case=k.case, digest=k.digest) for k in kernels
    )
    return Validation(machine="m", qemu="q", model=Unit.name, core={}, kernels=found)


def test_every_kernel_runs_on_both_sides(
    kernels: list[ValidationKernel], runner: Runner, folder: Path, tmp_path: Path
) -> None:
    """Wrong outputs raise; what the model counts is what the code does."""
    kept: list[Validation] = []
    emulator = Emulator(CORE, simulated=False, model=Unit(), folder=folder / "costs")
    with emulator:
        found = simulate_all(empty(kernels), kernels, runner, emulator, kept.append)
        elsewhere = shutil.copytree(folder, tmp_path / "a folder of another length", symlinks=True)
        moved = Runner(elsewhere, max(os.sched_getaffinity(0)))
        again = simulate_all(empty(kernels), kernels, moved, emulator, kept.append)
    assert found == again, "the model is deterministic, wherever the files are"
    found = measure_round(found, kernels, runner, 0.0)
    assert len(kernels) == len(CASES) + 2, "a template's kernel in three configs"
    assert all(k.cycles > 100 and 0 < k.rounds[0].busy < 1.1 for k in found.kernels)
    by_name = {k.name: k.model for k in found.kernels if k.model is not None}
    for model in by_name.values():
        assert model.core == pytest.approx(model.instructions)
        assert model.l1_misses == model.l2_hits + model.prefetched + model.l2_misses
    assert by_name["triad L1"].l1_misses < 20, "the call before filled the cache"
    lines = 3 * (1 << 20) * 4 // 64
    assert by_name["triad beyond L2"].l1_misses == pytest.approx(lines, rel=0.01)
    assert by_name["sum, one chain"].instructions > 1 << 11

    resumed = empty(kernels)
    found.save(folder / "result.json")
    assert resumed.resumed(folder / "result.json") == found
    other = resumed.model_copy(update={"model": "another"})
    assert other.resumed(folder / "result.json") == other


def test_a_real_chain_of_additions_takes_its_latency(
    kernels: list[ValidationKernel], runner: Runner
) -> None:
    """Cycles are the core's: 2048 additions, each 3 to 5 cycles after the one before."""
    (chain,) = [k for k in kernels if k.name == "sum, one chain"]
    cycles = sorted(runner.native(chain).cycles for _ in range(5))
    assert 2048 * 1.9 < cycles[0] < 2048 * 5.5


def test_a_wrong_output_is_an_error(kernels: list[ValidationKernel], runner: Runner) -> None:
    (bytes_,) = [k for k in kernels if k.name == "sum of bytes"]
    with pytest.raises(MeasureError, match="sum of bytes: output off by 1"):
        runner.native(replace(bytes_, expected=bytes_.expected + 1))
    (triad,) = [k for k in kernels if k.name == "triad L1"]
    with pytest.raises(MeasureError, match="exports no missing"):
        runner.native(replace(triad, symbol="missing"))
    with pytest.raises(MeasureError, match="nan"):
        triad.verify(np.full_like(triad.arrays[-1], np.nan))


def result(name: str, case: str, real: float, core: float) -> KernelResult:
    model = Cycles(
        core=core, memory=0, instructions=1, l1_misses=0, l2_hits=0, prefetched=0, l2_misses=0
    )
    rounds = (Round(ns=1, cycles=real, busy=1),)
    return KernelResult(name=name, kind="gemm", case=case, digest="", model=model, rounds=rounds)


def test_agreement() -> None:
    """By hand: ranks 1 2 4 3 against 1 2 3 4; real over model 2, 2, 4, 1."""
    kernels = [
        result("a", "x", 20, 10), result("b", "x", 44, 22),
        result("c", "y", 200, 50), result("d", "y", 55, 55),
    ]  # fmt: skip
    found = agreement(kernels, "core")
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found.scale == pytest.approx(2)
    assert found.error == pytest.approx(2**0.5)
    assert found.worst == pytest.approx(2)
    assert (found.pairs, found.pairs_right) == (5, 1.0), "c and d are a tie of the model's"
    assert (found.rivals, found.rivals_right) == (1, 1.0)


def test_pairs_in_the_wrong_order() -> None:
    found = agreement([result("a", "x", 20, 10), result("b", "x", 10, 20)], "core+memory")
    assert (found.pairs_right, found.rivals_right) == (0.0, 0.0)
    assert found.spearman == pytest.approx(-1)


def test_rounds_are_summed_up() -> None:
    rounds = tuple(Round(ns=1, cycles=c, busy=1) for c in (100, 110, 90, 105, 400))
    kernel = result("a", "x", 1, 1).model_copy(update={"rounds": rounds})
    assert kernel.cycles == 105
    assert kernel.spread == pytest.approx(10 / 105)
