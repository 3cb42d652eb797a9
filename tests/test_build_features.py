"""Loop nests and their features: counted against arithmetic done by hand, for all templates."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tvmx.build import BuildPool, KernelBuild
from tvmx.build._loop_nest import UNKNOWN_EXTENT, loop_nest
from tvmx.build._nest_features import nest_features
from tvmx.ir import Config, Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import Target, load_target
from tvmx.templates import Registry
from tvmx.templates._registry import variants

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = Registry.with_builtin()
CONV = Conv2dWorkload(
    batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3),
    padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True, clip_min=0.0),
)  # fmt: skip
DEPTHWISE = Conv2dWorkload(
    batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3),
    padding=(1, 1, 1, 1), groups=64,
)  # fmt: skip
POINTWISE = Conv2dWorkload(
    batch=1, in_channels=64, height=28, width=28, out_channels=128, kernel=(1, 1)
)
DENSE = DenseWorkload(batch=8, in_features=256, out_features=256)


def kernel(template: str, workload: Any, target: Target, **knobs: Any) -> Any:
    found = REGISTRY.get(template).template
    config = Config({**found.space(workload, target).default, **knobs})
    return found.build(workload, config, target).func


def features(template: str, workload: Any, target: Target, **knobs: Any) -> dict[str, float]:
    func = kernel(template, workload, target, **knobs)
    return nest_features(func, workload.macs, workload.dtype, target)


def in_lanes(func: Any, target: Target) -> dict[str, float]:
    """How often each operation runs in all, in vectors."""
    total: dict[str, float] = {}
    for loop in loop_nest(func, target.vector_bits // 8).loops():
        for op, number in loop.ops.items():
            total[op] = total.get(op, 0.0) + number * loop.times
    return total


@pytest.mark.parametrize("board", ["rpi4", "rpi3b+"])
@pytest.mark.parametrize(
    ("template", "workload", "knobs"),
    [
        ("conv2d_direct", CONV, {"oc_tile": 2, "oh_tile": 1, "ow_tile": 7}),
        ("conv2d_direct", POINTWISE, {"oc_tile": 2, "oh_tile": 1, "ow_tile": 7, "chunk": 4}),
        ("depthwise_nchwc", DEPTHWISE, {"oh_tile": 1, "ow_tile": 7, "chunk": 28}),
        ("depthwise_nchwc", DEPTHWISE, {"oh_tile": 1, "ow_tile": 7, "chunk": 28, "unroll": True}),
    ],
)
def test_whole_tiles_multiply_as_often_as_the_layer(
    template: str, workload: Any, knobs: dict[str, Any], board: str
) -> None:
    target = load_target(board)
    lanes = target.lanes("float32")
    assert in_lanes(kernel(template, workload, target, **knobs), target)["multiply"] == (
        pytest.approx(workload.macs / lanes)
    )
    assert features(template, workload, target, **knobs)["waste"] == pytest.approx(0, abs=1e-5)


def test_a_ragged_tile_wastes_what_it_computes_twice() -> None:
    target = load_target("rpi4")
    ragged = features("conv2d_direct", CONV, target, oc_tile=2, oh_tile=1, ow_tile=5)
    assert ragged["waste"] == pytest.approx(math.log2(30 / 28), abs=1e-4)


def test_winograd_multiplies_less_and_adds_more() -> None:
    target = load_target("rpi4")
    direct = features("conv2d_direct", CONV, target)
    winograd = features("conv2d_winograd", CONV, target, m=4)
    # 36 multiplies for 16 outputs of 9 taps, and the tiles of 28 divide by 4.
    assert winograd["waste"] == pytest.approx(math.log2(36 / 144), abs=0.15)
    assert winograd["adds"] > direct["adds"]


def test_a_tile_is_described_by_its_hot_loop() -> None:
    target = load_target("rpi4")
    found = features("conv2d_direct", CONV, target, oc_tile=2, oh_tile=1, ow_tile=7)
    # One step of four channels: 2 x 7 accumulators, 7 vectors of pixels, 4 x 2 of weights.
    assert found["hot_registers"] == 14
    assert found["hot_multiplies"] == pytest.approx(math.log2(56), abs=1e-4)
    assert found["hot_loads"] == pytest.approx(15 / 56, abs=1e-4)
    assert found["hot_share"] > 0.99


def test_traffic_follows_the_order_of_the_loops() -> None:
    """1x1 on 784 KiB of data and 4 MiB of weights, with 1 MiB of L2."""
    target = load_target("rpi4")
    big = Conv2dWorkload(
        batch=1, in_channels=1024, height=14, width=14, out_channels=1024, kernel=(1, 1)
    )
    ideal = big.macs / 4
    data, weights = 4 * 1024 * 196, 4 * 1024 * 1024

    def missed(order: str, chunk: int) -> float:
        found = features(
            "conv2d_direct", big, target,
            oc_tile=2, oh_tile=1, ow_tile=7, order=order, chunk=chunk, pad="none", ic_chunk=0,
        )  # fmt: skip
        return 2.0 ** found["l2_miss"] * ideal

    # Four tiles of pixels stay while all weights pass: once for each of 7 blocks.
    assert missed("row", 4) == pytest.approx(7 * weights + 2 * data, rel=0.1)
    assert missed("row", 1) == pytest.approx(28 * weights + 2 * data, rel=0.1)
    # All pixels are too many to stay: they pass for each of 128 tiles of channels.
    assert missed("oc", 28) == pytest.approx(128 * data + weights + data, rel=0.1)


@pytest.mark.parametrize("board", ["rpi3b+", "rpi5", "host"])
def test_every_template_is_described(board: str) -> None:
    target = load_target(board)
    names: set[tuple[str, ...]] = set()
    described = 0
    for entry in REGISTRY.entries():
        for workload in (CONV, DEPTHWISE, POINTWISE, DENSE):
            if entry.template.op != workload.op:
                continue
            for variant in variants(entry.template, workload, target)[:2]:
                if entry.template.supports(variant, target):
                    continue
                config = entry.template.space(variant, target).default
                func = entry.template.build(variant, config, target).func
                found = nest_features(func, variant.macs, variant.dtype, target)
                assert all(math.isfinite(value) for value in found.values()), entry.name
                assert found["hot_multiplies"] > 0 and found["cycles"] > -4, entry.name
                names.add(tuple(found))
                described += 1
    assert described >= 10 and len(names) == 1


def test_loops_the_data_decides_count_as_a_fixed_number() -> None:
    target = load_target("rpi4")
    entry = REGISTRY.get("dense_bsr")
    variant = variants(entry.template, DENSE, target)[0]
    config = entry.template.space(variant, target).default
    func = entry.template.build(variant, config, target).func
    extents = {loop.extent for loop in loop_nest(func, 16).loops()}
    assert UNKNOWN_EXTENT in extents


def test_a_job_that_only_describes_builds_nothing(tmp_path: Path) -> None:
    target = load_target("rpi4")
    path = ROOT / "schedules" / "conv2d_direct.py"
    config = REGISTRY.get("conv2d_direct").template.space(CONV, target).default
    job = KernelBuild.of(CONV, "conv2d_direct", path, config, target, tmp_path)
    with BuildPool(1) as pool:
        built = pool.submit(job)
        later = pool.submit(replace(job, folder=str(tmp_path / "later")))
        described = pool.submit(replace(job, describe_only=True, folder=str(tmp_path / "none")))
        result = described.result(timeout=120)
        assert result.ok and result.library is None
        assert not later.done()  # asked for earlier, but descriptions go first
        assert result.features == built.result(timeout=120).features
        assert result.features == features("conv2d_direct", CONV, target)
        refused = pool.submit(replace(job, config='{"oc_tile": 99}', describe_only=True))
        error = refused.result(timeout=120).error
        assert error is not None and error.kind == "illegal"
    assert not (tmp_path / "none").exists()
