"""From which level of sparsity on a kernel is faster, out of measured latencies."""

from __future__ import annotations

from benchmarks._sparse_layers import LAYERS, ways
from benchmarks._sparse_results import Crossover, LayerFigures, WayFigures, crossover, only
from tvmx.targets import load_target

POINTS = [(1, 130.0), (50, 80.0), (70, 40.0)]


def figures(template: str, precision: str, level: int, us: float) -> WayFigures:
    return WayFigures(
        key=f"{template} {level}", template=template, precision=precision, blocks="4x1",
        level=level, config="Config()", mflop=1.0, bytes=1, us=us,
    )  # fmt: skip


def test_a_line_between_two_levels() -> None:
    assert crossover(POINTS, 60.0) == Crossover(level=60.0, known="at")
    assert str(crossover(POINTS, 60.0)) == "60"


def test_levels_that_were_not_measured() -> None:
    assert str(crossover(POINTS, 200.0)) == "<1"
    assert str(crossover(POINTS, 10.0)) == ">70"


def test_a_kernel_must_stay_faster() -> None:
    wavering = [(50, 90.0), (70, 110.0), (80, 90.0)]
    assert crossover(wavering, 100.0) == Crossover(level=75.0, known="at")


def test_the_best_kernel_of_each_kind_is_compared() -> None:
    layer = LayerFigures(
        layer="l", workload="w",
        ways=(
            figures("a", "f32", 0, 100.0), figures("b", "f32", 0, 60.0),
            figures("c", "f32", 50, 80.0), figures("c", "f32", 70, 90.0),
            figures("d", "f32", 70, 40.0),
        ),
    )  # fmt: skip
    assert layer.crossover("f32", "f32") == Crossover(level=60.0, known="at")
    assert layer.crossover("f32", "int8") is None and layer.crossover("int8", "f32") is None
    assert [w.template for w in only(layer, ["c 50", "d 70"]).ways] == ["c", "d"]


def test_every_template_at_every_level() -> None:
    found = list(ways(LAYERS["mobilenet 512-512 @14"], load_target("rpi4"), [50, 95]))
    sparse = {(w.entry.name, w.workload.sparsity) for w in found if w.workload.sparsity != "dense"}
    assert sparse == {
        (name, f"{blocks}@{level}")
        for name, blocks in (
            ("conv1x1_bsr", "4x1"), ("conv1x1_bsr_nchw", "4x1"), ("conv1x1_bsr_int8", "4x4"),
        )
        for level in (50, 95)
    }  # fmt: skip
    assert len({w.key for w in found}) == len(found)
    assert {round(w.kept, 3) for w in found} == {1.0, 0.5, 0.05}
