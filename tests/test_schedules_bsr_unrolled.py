"""Block-sparse kernels whose code holds the structure: right for its weights, no others taken."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper

from tests.network_plans import (
    assert_same,
    execute,
    host,
    inputs_of,
    narrow,
    network_of,
    registry,
)  # fmt: skip
from tests.test_schedules_bsr import (
    EVERYTHING,
    PLAIN_SUM,
    conv,
    dense,
    load,
    numpy_answer,
    operands_of,
    variants,
)
from tests.test_schedules_bsr_int8 import compute
from tvmx import _tvm
from tvmx.errors import TemplateError
from tvmx.ir import BlockSparsity, Config, Conv2dWorkload, DenseWorkload, Plan
from tvmx.numerics import prune
from tvmx.passes import choose, lower
from tvmx.targets import Target, load_target
from tvmx.templates import IN_CODE, Operands, ScheduleTemplate, linear, make_operands
from tvmx.templates._sparse_code import MOST_BLOCKS, MOST_PRODUCTS
from tvmx.testing.models import graph_model, onnx_reference

Array = npt.NDArray[Any]
Layer = Conv2dWorkload | DenseWorkload
TAPS = Conv2dWorkload(
    batch=2, in_channels=18, height=7, width=6, out_channels=20, kernel=(3, 3), strides=(2, 1),
    padding=(1, 0, 0, 1), epilogue=EVERYTHING,
)  # fmt: skip
LAYERS: list[tuple[str, Layer]] = [
    ("conv1x1_bsr", conv(33, 37, 5, 7, EVERYTHING, batch=2)),
    ("conv1x1_bsr", conv(19, 40, 9, 10, strides=(2, 2))),
    ("conv1x1_bsr", conv(64, 32, 1, 1, PLAIN_SUM)),
    ("conv3x3_bsr", TAPS),
    ("dense_bsr", dense(1, 70, 37, EVERYTHING)),
    ("dense_bsr", dense(1, 64, 7, PLAIN_SUM)),
    ("dense_bsr", dense(13, 50, 35, EVERYTHING)),
]


def in_code(template: ScheduleTemplate, layer: Layer, target: Target) -> list[Config]:
    """The configs whose structure is code."""
    points = template.space(layer, target).points()
    return [c for c in points if c["structure"] == IN_CODE]


def answer(layer: Layer, operands: Operands) -> Array:
    """In float64."""
    if isinstance(layer, DenseWorkload) or layer.kernel == (1, 1):
        return numpy_answer(layer, operands)
    weight = operands.constants.weight.astype(np.float64)
    out = linear(layer, operands.data.astype(np.float64), weight, None)
    assert operands.constants.bias is not None and operands.residual is not None
    out = out + operands.constants.bias.reshape(1, -1, 1, 1) + operands.residual
    return np.clip(out, layer.epilogue.clip_min, layer.epilogue.clip_max)


@pytest.mark.parametrize("short", [False, True], ids=["host", "narrow"])
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_other_weights_than_the_stand_in(name: str, layer: Layer, short: bool) -> None:
    template, target = load(name), narrow() if short else host()
    for variant, spoil in zip(variants(template, layer, target)[2:], (False, True), strict=True):
        found = in_code(template, variant, target)
        assert found
        operands = operands_of(variant, 7, spoil)  # spoilt: every second row keeps no block
        for config in (found[0], found[-1]):
            kernel = template.build(variant, config, target).of(operands.constants)
            got = compute(template, kernel, variant, target, operands)
            np.testing.assert_allclose(
                got, answer(variant, operands), rtol=1e-4, atol=1e-4,
                err_msg=f"{variant.describe()} {config!r}",
            )  # fmt: skip


def test_a_kernel_measured_is_for_the_operands_it_is_measured_with() -> None:
    template, target = load("conv1x1_bsr"), host()
    layer = variants(template, conv(33, 37, 5, 7), target)[2]
    kernel = template.build(layer, in_code(template, layer, target)[0], target)
    operands = make_operands(layer)
    got = compute(template, kernel, layer, target, operands)
    np.testing.assert_allclose(got, operands.expected, rtol=1e-4, atol=1e-4)
    assert kernel.of(operands.constants).structure == kernel.structure
    again = template.build(layer, in_code(template, layer, target)[0], target)
    assert again.structure == kernel.structure


def test_weights_that_keep_other_blocks_are_refused() -> None:
    template, target = load("conv1x1_bsr"), host()
    layer = variants(template, conv(33, 37, 5, 7), target)[2]
    kernel = template.build(layer, in_code(template, layer, target)[0], target)
    other = operands_of(layer, 7).constants
    with pytest.raises(TemplateError, match="keep others") as caught:
        kernel.constants(other)
    assert "Kernel.of" in str(caught.value.hint)
    assert kernel.of(other).structure != kernel.structure
    kernel.of(other).constants(other)


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4", "host"])
def test_only_small_layers_are_unrolled(board: str) -> None:
    target, template = load_target(board), load("conv1x1_bsr")
    for size in (32, 64, 128, 512):
        for layer in variants(template, conv(size, size, 28, 28), target):
            sparsity = BlockSparsity.parse(layer.sparsity)
            assert sparsity is not None
            kept, found = sparsity.kept(size, size), in_code(template, layer, target)
            assert bool(found) == (kept <= MOST_BLOCKS)
            for c in found:
                assert kept * c.int("oh_tile") * c.int("ow_tile") <= MOST_PRODUCTS
                assert c["groups"] == 1


@pytest.mark.parametrize(
    ("name", "layer"), [("conv1x1_bsr", conv(64, 64, 28, 28)), ("dense_bsr", dense(8, 64, 64))]
)
@pytest.mark.parametrize("board", ["rpi3b+", "rpi4"])
def test_arm_code_loads_no_index(name: str, layer: Layer, board: str) -> None:
    template, target = load(name), load_target(board)
    variant = variants(template, layer, target)[3]
    config = in_code(template, variant, target)[0]
    kernel = template.build(variant, config, target)
    module = _tvm.build_module(
        _tvm.tvm.IRModule({"kernel": kernel.func.with_attr("global_symbol", "kernel")}), target
    )
    text = str(module.inspect_source("asm"))
    sparsity = BlockSparsity.parse(variant.sparsity)
    assert sparsity is not None
    size = config.int("m_tile") if "m_tile" in config else (
        config.int("oh_tile") * config.int("ow_tile"))  # fmt: skip
    kept = sparsity.kept(64, 64)
    products = list(re.finditer(r"\sf(?:mla|mul)\s+v\d+\.4s", text))
    assert 0.95 * kept * size <= len(products) <= 1.05 * kept * size
    between = text[products[0].start() : products[-1].end()]
    assert not re.search(r"\sldrh\s", between), "an index is loaded"
    assert {str(b.dtype) for b in kernel.func.params} == {"float32"}


def test_layers_of_one_shape_have_code_of_their_own() -> None:
    template, target, rng = load("conv1x1_bsr"), host(), np.random.default_rng(0)
    sparsity = f"{target.lanes()}x1@70"
    first, second = (
        prune(rng.standard_normal((48, 48, 1, 1)).astype(np.float32), BlockSparsity.parse(sparsity))
        for _ in range(2)
    )
    weights = {"w0": first, "w1": second, "w2": 2 * first}  # the third keeps the first one's blocks
    proto = graph_model(
        [
            helper.make_node("Conv", [a, w], [b], name=f"layer {w}")
            for a, w, b in (("x", "w0", "a"), ("a", "w1", "b"), ("b", "w2", "y"))
        ],
        {"x": (1, 48, 5, 6)}, {"y": (1, 48, 5, 6)}, weights,
    )  # fmt: skip
    network = network_of(proto)
    choices = []
    for layer in network.graph.layers:
        variant = layer.workload.variant("float32", sparsity)
        config = in_code(template, variant, target)[0]
        how = template.implementation(variant, target)
        choices.append(choose(registry().get(template.name), layer, target, config, how))
    plan = Plan(model=network.model.digest, target=target.name, choices=tuple(choices))
    lowered = lower(network, plan, registry(), target)
    kernels = [v for v in lowered.mod.get_global_vars() if v.name_hint.startswith(template.name)]
    assert lowered.hits == 3 and len(kernels) == 2
    feeds = inputs_of(proto)
    got = execute(lowered.mod, target, list(feeds.values()))
    assert_same(got, onnx_reference(proto, feeds))
