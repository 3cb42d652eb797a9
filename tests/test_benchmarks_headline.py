"""The headline: plans and their sizes, what im2col needs, ceilings, and a run on this machine.

They take some 20 s.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import _headline_simulated as on_boards
from benchmarks._headline_host import BLAS, measure_host
from benchmarks._headline_peaks import float_macs_per_cycle, int8_macs_per_cycle
from benchmarks._headline_plans import FLOAT, INT8, Layers, Sizes, Wanted, build_plans, sizes_path
from benchmarks._headline_results import (
    Headline,
    PlanFigures,
    Row,
    geometric_mean,
    print_headline,
)
from benchmarks._sim_cells import Cell, Cells, Counts
from benchmarks._sim_models import SimFolder, write_layers
from tvmx.simulate._core import simulated_core
from tvmx.targets import load_target
from tvmx.testing.models import onnx_reference

HOST = "host"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SimFolder:
    """Two convolutions and a dense layer, with golden arrays and operands."""
    folder = SimFolder(tmp_path_factory.mktemp("headline") / "small")
    folder.path.mkdir()
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        array = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
        return numpy_helper.from_array(array, name)

    weights = [weight("w0", 16, 3, 3, 3), weight("b0", 16), weight("w1", 32, 16, 1, 1),
               weight("w2", 10, 32 * 8 * 8), weight("b2", 10)]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["data", "w0", "b0"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1],
                         kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], kernel_shape=[1, 1]),
        helper.make_node("Flatten", ["c1"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["out"], transB=1),
    ]  # fmt: skip
    shapes = {"data": [1, 3, 16, 16], "out": [1, 10]}
    data, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    graph = helper.make_graph(nodes, "small", [data], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder.onnx)
    given = {"data": rng.standard_normal(shapes["data"], dtype=np.float32)}
    folder.save_golden(given, onnx_reference(model, given))
    write_layers(folder)
    return folder


def test_what_im2col_needs_of_a_network(folder: SimFolder) -> None:
    layers = Layers.of(folder)
    assert layers.macs == 16 * 27 * 64 + 32 * 16 * 64 + 10 * 2048
    assert layers.weights_bytes == 4 * (16 * 27 + 16 + 32 * 16 + 32 + 10 * 2048 + 10)
    assert layers.column_bytes == 4 * 27 * 64  # the 1x1 convolution and the dense layer need none


def test_plans_with_their_sizes_and_times_on_this_machine(
    folder: SimFolder, tmp_path: Path
) -> None:
    copied = SimFolder(tmp_path / folder.network)
    shutil.copytree(folder.path, copied.path)
    build_plans(copied, [Wanted(HOST, FLOAT), Wanted(HOST, INT8)])
    place = copied.for_target(HOST)
    sizes = {plan: Sizes.load(sizes_path(place, plan)) for plan in (FLOAT, INT8)}
    less = sizes[FLOAT].weights_bytes / sizes[INT8].weights_bytes
    assert 2.5 < less < 4.5, sizes  # padding and scales apart, a quarter
    assert sizes[FLOAT].arena_bytes >= 4 * (16 * 64 + 32 * 64)
    found = measure_host(copied, [FLOAT, INT8], 4)
    assert [series.name for series in found.rounds.series] == [BLAS, FLOAT, INT8]
    assert all(len(series.wall_ms) == 4 for series in found.rounds.series)
    assert found.kernels and found.peak_gflops > 1


@pytest.mark.parametrize(
    ("board", "float32", "int8"), [("rpi3b+", 4, None), ("rpi4", 4, 8), ("rpi5", 8, 32)]
)
def test_ceilings_of_cores(board: str, float32: float, int8: float | None) -> None:
    """A72: one 128-bit multiply-add a cycle; A76: two, and two dot products of 16."""
    if not any(shutil.which(f"llvm-mca-{n}") for n in range(20, 30)):
        pytest.skip("needs llvm-mca")
    target = load_target(board)
    core = simulated_core(target)
    assert float_macs_per_cycle(core) == pytest.approx(float32, rel=0.1)
    found = int8_macs_per_cycle(target, core)
    assert found == pytest.approx(int8, rel=0.1) if int8 else found > 1


def test_the_fastest_kernels_of_openblas_count(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "simulated.json")
    cycles = {"CORTEXA53": (9e6, 1e6), "CORTEXA57": (8e6, 9e6), "ARMV8": (8.5e6, 0.0)}
    for kernels, (core, memory) in cycles.items():
        runner = on_boards.blas_runner(kernels)
        counts = Counts(
            core_cycles=core, memory_cycles=memory, instructions=1, unmodelled_instructions=0,
            l1_misses=0, l2_hits=0, prefetched_lines=0, l2_misses=0,
        )  # fmt: skip
        cells.add(
            Cell(
                network="n", size=224, target="rpi3b+", runner=runner.name, version="1", model="m",
                counts=counts, max_error=0.0, limit=1e-3, seconds={},
            )
        )  # fmt: skip
    # On the A53 the core alone counts.
    assert on_boards.mcycles(on_boards.fastest_blas(cells, "n", "rpi3b+")) == 8.0


def row(network: str, blas: float, times: dict[str, float], total: int) -> Row:
    plans = tuple(
        PlanFigures(
            plan=plan, time=time, speed=blas / time,
            sizes=Sizes(weights_bytes=total // 2, arena_bytes=total // 2, scratch_bytes=0),
        )
        for plan, time in times.items()
    )  # fmt: skip
    return Row(
        network=network, device="a72", unit="Mcycles", blas=blas, kernels="k", ceiling=9.0,
        float_ceiling=2.0, blas_bytes=8_000_000, plans=plans,
    )  # fmt: skip


def test_ratios_and_their_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    rows = (
        row("a", 100.0, {FLOAT: 50.0, INT8: 25.0}, 4_000_000),
        row("b", 90.0, {FLOAT: 10.0, INT8: 45.0}, 1_000_000),
    )
    assert rows[1].best.plan == FLOAT and rows[1].memory(rows[1].best) == 8.0
    print_headline(Headline(machine="m", versions={}, rows=rows))
    shown = capsys.readouterr().out
    assert "best plan, geometric mean (range) of 2: speed 6.00 (4.00 to 9.00)" in shown
    assert "int8, geometric mean (range) of 2: speed 2.83 (2.00 to 4.00)" in shown
    assert "memory 4.00 (2.00 to 8.00)" in shown
    assert "| a | 100.0 | 50.0 (2.00) | 25.0 (4.00) | - | 9.0 | 8.0 |" in shown
