"""The benchmark of kernels: its layers, its records, and both ways to fill them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import kernels
from benchmarks._kernel_layers import LAYERS, chosen_layers, write_onnx
from benchmarks._kernel_results import (
    ORT,
    PEAK,
    READ,
    TORCH,
    KernelFigures,
    LayerFigures,
    Simulated,
)
from benchmarks._kernel_runs import measure_layer, templates_of
from benchmarks._kernel_simulated import simulate_layers
from benchmarks._kernel_tables import print_kernels
from benchmarks._results import Rounds, Series
from benchmarks._stages import alone
from tests.simulated import guest_or_skip
from tvmx.errors import UsageError
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.measure import SimulatedCounts
from tvmx.targets import load_target
from tvmx.templates import make_operands
from tvmx.testing.models import onnx_reference

RELU = Epilogue(bias=True, clip_min=0.0)
DEPTHWISE = Conv2dWorkload(
    batch=1, in_channels=20, height=9, width=7, out_channels=20, kernel=(3, 3), strides=(2, 2),
    padding=(1, 0, 1, 1), groups=20, epilogue=RELU,
)  # fmt: skip
DENSE = DenseWorkload(batch=1, in_features=300, out_features=70, epilogue=RELU)
GROUPED = Conv2dWorkload(**(DEPTHWISE.model_dump() | {"groups": 5}))


def figures(**medians: tuple[float, ...]) -> LayerFigures:
    series = tuple(
        Series(name=name, wall_ms=ms, cpu_ms=ms, max_error=0.0) for name, ms in medians.items()
    )
    return LayerFigures(
        layer="l", workload="w", gflop=3.0, templates={"t": "1 Config()"}, peak_gflop=2.0,
        rounds=Rounds(series=series, load_before=0, load_after=0),
    )  # fmt: skip


def test_shares_are_paired_round_by_round() -> None:
    # Twice the clock in the second round: the share is the same in both.
    layer = figures(peak=(1.0, 0.5), read=(3.0, 1.5), t=(6.0, 3.0))
    assert layer.peak_share("t") == pytest.approx(0.25)
    assert layer.read_share("t") == pytest.approx(0.5)
    assert layer.read_share("other") is None


def test_a_layer_is_measured_again_when_a_template_has_changed(tmp_path: Path) -> None:
    empty = KernelFigures(target="host", machine="m", threads=1, versions={"tvmx": "1"})
    layer = figures(peak=(1.0,), t=(2.0,))
    empty.having(figures(t=(9.0,))).having(layer).save(tmp_path / "f.json")
    found = empty.resumed(tmp_path / "f.json")
    assert found.layers == (layer,)
    assert found.find("l", "w", {"t": "1 Config()"}) == layer
    assert found.find("l", "w", {"t": "2 Config()"}) is None
    assert found.find("l", "another", {"t": "1 Config()"}) is None
    other = empty.model_copy(update={"machine": "n"})
    assert other.resumed(tmp_path / "f.json") == other


def test_layers_are_chosen_by_parts_of_their_names() -> None:
    assert chosen_layers("") == LAYERS
    assert list(chosen_layers("dense 16, first")) == ["resnet first 7x7", "dense 16x1024x1024"]
    with pytest.raises(UsageError, match=r"no layer 'lstm'; there are resnet first 7x7, "):
        chosen_layers("dense,lstm")


def test_every_float_template_has_a_layer() -> None:
    found = {name for w in LAYERS.values() for name in templates_of(w, load_target("host"))}
    assert found >= {
        "conv2d_direct", "conv2d_im2col", "conv2d_winograd", "dense_packed", "depthwise_nchwc",
    }  # fmt: skip


@pytest.mark.parametrize("workload", [DEPTHWISE, GROUPED, DENSE])
def test_the_onnx_file_computes_the_layer(workload: Any, tmp_path: Path) -> None:
    operands = make_operands(workload)
    write_onnx(workload, operands.constants.weight, operands.constants.bias, tmp_path / "l.onnx")
    (got,) = onnx_reference(onnx.load(tmp_path / "l.onnx"), {"x": operands.data})
    np.testing.assert_allclose(got, operands.expected, atol=1e-5)


def both() -> list[LayerFigures]:
    """In a process of its own: TVM's threads are set there."""
    layers = {"depthwise": DEPTHWISE, "dense": DENSE}
    return [measure_layer(name, workload, 2, 1, True) for name, workload in layers.items()]


def test_all_that_compute_a_layer_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    depthwise, dense = alone(both)
    assert depthwise.rounds is not None
    assert dense.rounds is not None
    measured = [s.name for s in depthwise.rounds.series]
    assert measured == [PEAK, "depthwise_nchwc", "conv2d_im2col", TORCH, ORT]
    assert {s.name for s in dense.rounds.series} == {PEAK, "dense_packed", READ, TORCH, ORT}
    for series in (*depthwise.rounds.series, *dense.rounds.series):
        assert len(series.wall_ms) == 2
        assert series.max_error <= series.limit
    assert set(depthwise.templates) == {"depthwise_nchwc", "conv2d_im2col"}
    share = dense.peak_share("dense_packed")
    assert share is not None
    assert 0 < share < 1
    found = KernelFigures(target="host", machine="m", threads=1, versions={})
    print_kernels(found.having(dense).having(depthwise), ["dense"])
    shown = capsys.readouterr().out
    assert "dense_packed" in shown
    assert "im2col" not in shown


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def fake(function: Any, layer: str, workload: Any, *rest: object) -> LayerFigures:
        assert function is measure_layer
        measured.append(layer)
        if layer == "b" and measured.count("b") == 1:
            raise KeyboardInterrupt
        templates = templates_of(workload, load_target("host"))
        return figures(t=(1.0,)).model_copy(
            update={"layer": layer, "workload": workload.canonical(), "templates": templates}
        )

    monkeypatch.setattr(kernels, "alone", fake)
    layers = {"a": DEPTHWISE, "b": DENSE}

    def measure(fresh: bool) -> KernelFigures:
        found, path = kernels._measure(tmp_path, layers, 1, 1, fresh, with_torch=False)
        assert path == tmp_path / "kernels-1.json"
        return found

    with pytest.raises(KeyboardInterrupt):
        measure(False)
    assert {f.layer for f in measure(False).layers} == {"a", "b"}
    assert measured == ["a", "b", "b"]
    measure(False)
    assert measured == ["a", "b", "b"]
    measure(True)
    assert measured == ["a", "b", "b", "a", "b"]


@pytest.mark.rpc
def test_cycles_of_a_simulated_core() -> None:
    guest_or_skip()
    target, told = load_target("rpi4"), []
    simulate_layers({"dense": (DENSE, templates_of(DENSE, target))}, target, told.append)
    (layer,) = told
    (one,) = layer.simulated
    assert one.template == "dense_packed"
    # A vector of weights is loaded for each multiply-add of four: at most one a cycle.
    assert one.counts.core_cycles > DENSE.macs / 4
    assert one.cycles == one.counts.core_cycles + one.counts.memory_cycles


def test_simulated_figures_are_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    counts = dict.fromkeys(SimulatedCounts.model_fields, 0) | {"core_cycles": 5e8}
    one = Simulated(template="t", config="Config(a=1)", counts=counts, cycles=5e8)
    layer = figures().model_copy(update={"rounds": None, "simulated": (one,)})
    found = KernelFigures(target="board", machine="model", threads=1, versions={}).having(layer)
    print_kernels(found, ["l"])
    shown = capsys.readouterr().out
    assert "500.00" in shown
    assert "3.00" in shown  # multiply-adds a cycle
