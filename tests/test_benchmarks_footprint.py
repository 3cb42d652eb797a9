"""Memory of a candidate: measured in a process of its own, above that with nothing loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks._folder import Folder
from benchmarks._footprint import measure_footprint
from benchmarks._results import Footprint, NetworkResult, Quantised
from benchmarks._tables import _memory_table
from tvmx.build import build_network
from tvmx.errors import MeasureError
from tvmx.frontends import load_model
from tvmx.passes import baseline_plan, extract_layers, lower
from tvmx.targets import load_target
from tvmx.templates import Registry
from tvmx.testing.models import graph_model, onnx_reference

WIDE = 2000  # one weight of 16 MB


def prepare(path: Path) -> tuple[Folder, int]:
    """A network of one large matrix product in its folder, and the bytes of the weight."""
    from onnx import helper

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((WIDE, WIDE)).astype(np.float32)
    proto = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"x": (1, WIDE)}, {"y": None},
        {"w": weight},
    )  # fmt: skip
    folder = Folder(path / "net")
    folder.path.mkdir()
    folder.onnx.write_bytes(proto.SerializeToString())
    x = rng.standard_normal((1, WIDE)).astype(np.float32)
    folder.save_golden({"x": x}, onnx_reference(proto, {"x": x}))
    registry, target = Registry(), load_target("host")
    registry.load_builtin()
    network = extract_layers(load_model(folder.onnx))
    mod = lower(network, baseline_plan(network, registry, target), registry, target).mod
    build_network(mod, target, folder.library("defaults"))
    return folder, weight.nbytes


def test_weights_are_counted_once(tmp_path: Path) -> None:
    folder, weights = prepare(tmp_path)
    found = measure_footprint(folder, "defaults", folder.library("defaults"), None)
    assert found.name == "defaults"
    assert found.loaded_kib * 1024 < 0.5 * weights  # they stay in the file until they are read
    assert 0.95 * weights < found.peak_kib * 1024 < 1.4 * weights
    assert found.after_kib <= found.peak_kib
    assert found.baseline_kib > 20_000  # a Python process with NumPy
    other = measure_footprint(folder, "onnxruntime", folder.onnx, None)
    assert other.peak_kib * 1024 > 0.95 * weights


def test_a_wrong_output_has_no_figure(tmp_path: Path) -> None:
    folder, _ = prepare(tmp_path)
    inputs, floats = folder.load_golden()
    folder.save_golden(inputs, [floats[0] + 1.0])
    with pytest.raises(MeasureError, match=r"memory of defaults.*output off by"):
        measure_footprint(folder, "defaults", folder.library("defaults"), None)


def test_the_table_compares_with_ncnn() -> None:
    sizes = {"defaults": 1000, "ncnn": 4000}
    memory = tuple(
        Footprint(name=n, baseline_kib=9, loaded_kib=1, peak_kib=k, after_kib=1)
        for n, k in sizes.items()
    )
    result = NetworkResult(
        network="n", machine="m", versions={}, weights_bytes=8_000_000, arena_bytes=2_600_000,
        quantised=Quantised(layers={}, method="minmax", weights_bytes=2_100_000), memory=memory,
    )  # fmt: skip
    cells = [next(iter(column.cells)) for column in _memory_table([result]).columns]
    assert cells == [
        "n",
        "8.0 / 2.1",
        "2.6 / -",
        "1",
        "-",
        "-",
        "-",
        "4",
        "-",
        "-",
        "-",
        "-",
        "0.25",
    ]
    empty = NetworkResult(network="n", machine="m", versions={})
    assert list(_memory_table([empty]).columns[-1].cells) == ["-"]
