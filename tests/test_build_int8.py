"""Cross-compiled libraries of int8 and sparse plans: the instructions their cores have."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.disassembly import instructions
from tests.mixed_plans import params_of
from tests.network_plans import host, inputs_of, network_of, registry
from tvmx.build import build_network
from tvmx.ir import Plan
from tvmx.passes import Simulator, int8_plan, lower
from tvmx.targets import load_target
from tvmx.testing.models import graph_model

pytestmark = pytest.mark.cross


def mobile_block() -> onnx.ModelProto:
    """A first layer of 3 channels, depthwise, pointwise with a residual join, mean, dense."""
    make, rng = helper.make_node, np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        make("Conv", ["image", "w1"], ["a"], name="stem", pads=[1] * 4, strides=[2, 2]),
        make("Relu", ["a"], ["b"]),
        make("Conv", ["b", "w2"], ["c"], name="depthwise", pads=[1] * 4, group=32),
        make("Relu", ["c"], ["d"]),
        make("Conv", ["d", "w3"], ["e"], name="pointwise"),
        make("Add", ["e", "b"], ["f"]),
        make("GlobalAveragePool", ["f"], ["g"]),
        make("Flatten", ["g"], ["h"]),
        make("Gemm", ["h", "w4"], ["logits"], name="dense", transB=1),
    ]
    weights = {
        "w1": normal(32, 3, 3, 3), "w2": normal(32, 1, 3, 3), "w3": normal(32, 32, 1, 1),
        "w4": normal(16, 32),
    }  # fmt: skip
    return graph_model(nodes, {"image": (1, 3, 24, 24)}, {"logits": (1, 16)}, weights)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The all-int8 plan's library for each board."""
    folder = tmp_path_factory.mktemp("int8")
    proto = mobile_block()
    network = network_of(proto)
    params = params_of(Simulator(network, host()), list(inputs_of(proto).values()))
    built = {}
    for board in ("rpi5", "rpi4", "rpi3b+"):
        target = load_target(board)
        plan: Plan = int8_plan(network, registry(), target, params)
        assert {c.implementation.precision for c in plan.choices} == {"int8"}
        lowered = lower(network, plan, registry(), target)
        assert lowered.hits == lowered.total == 4
        built[board] = build_network(lowered.mod, target, folder / f"{board}.so").path
    return built


def mnemonics(library: Path) -> collections.Counter[str]:
    return collections.Counter(mnemonic for mnemonic, _ in instructions(library))


def test_the_library_for_a76_has_sdot(libraries: dict[str, Path]) -> None:
    assert mnemonics(libraries["rpi5"])["sdot"] >= 16


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4"])
def test_libraries_for_cores_without_dot_products_have_none(
    libraries: dict[str, Path], board: str
) -> None:
    found = mnemonics(libraries[board])
    assert not {"sdot", "udot", "usdot", "smmla", "ummla"} & set(found)
    assert found["smull"] + found["smlal"] + found["smlal2"] + found["smull2"] >= 16
    assert found["sadalp"] >= 8
