"""Block-sparse int8 kernels against integers: odd shapes, empty and full rows, every rounding."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.network_plans import host, narrow
from tests.test_schedules_bsr import EVERYTHING, PLAIN_SUM, RELU, Sparse, conv, dense, load
from tvmx import _tvm
from tvmx.ir import (
    BlockSparsity,
    Conv2dWorkload,
    DenseWorkload,
    Epilogue,
    Rounding,
    to_logical,
)
from tvmx.numerics import requantise
from tvmx.targets import Target, load_target
from tvmx.templates import Kernel, Operands, ScheduleTemplate, make_operands
from tvmx.testing.templates import kernel_arrays

Array = npt.NDArray[Any]
Layer = Conv2dWorkload | DenseWorkload
NAMES = ["conv1x1_bsr_int8", "dense_bsr_int8"]


class TestConv1x1BsrInt8(Sparse):
    template = load("conv1x1_bsr_int8")


class TestDenseBsrInt8(Sparse):
    template = load("dense_bsr_int8")


LAYERS: dict[str, list[Layer]] = {
    "conv1x1_bsr_int8": [
        conv(20, 37, 5, 7),
        conv(33, 18, 6, 3, EVERYTHING, batch=2),
        conv(64, 32, 1, 1, PLAIN_SUM),
        conv(19, 70, 9, 10, EVERYTHING, batch=2, strides=(2, 2)),
        conv(24, 21, 1, 5, strides=(1, 2)),
    ],
    "dense_bsr_int8": [
        dense(1, 70, 37, EVERYTHING),
        dense(1, 64, 7, PLAIN_SUM),
        dense(2, 33, 48),
        dense(13, 50, 35, EVERYTHING),
        dense(32, 48, 64),
    ],
}


def sparse(template: ScheduleTemplate, layer: Layer, target: Target, level: int) -> Layer:
    """The int8 variant with the template's blocks, ``level`` percent of them dropped."""
    found = BlockSparsity.parse(template.sparsities(layer, target)[0])
    assert found is not None
    return layer.variant("int8", str(replace(found, level=level)))


def integers(layer: Layer, operands: Operands) -> Array:
    """The layer in int64, by matrix products over the pruned weight."""
    data, weight = operands.data.astype(np.int64), operands.constants.weight.astype(np.int64)
    if isinstance(layer, Conv2dWorkload):
        data = data[:, :, :: layer.strides[0], :: layer.strides[1]]
    sums = np.einsum("oi,ni...->no...", weight.reshape(layer.weight_shape[:2]), data)
    assert operands.constants.bias is not None and operands.constants.requantise is not None
    bias = operands.constants.bias.astype(np.int64)
    sums += bias.reshape(1, -1, *[1] * (sums.ndim - 2))
    return requantise(sums, operands.constants.requantise, operands.residual)


def run(
    template: ScheduleTemplate, layer: Layer, target: Target, operands: Operands, config: Any = None
) -> Array:
    """The logical output of the kernel, compiled for this machine."""
    kernel = template.build(layer, config or template.space(layer, target).default, target)
    return compute(template, kernel, layer, target, operands)


def compute(
    template: ScheduleTemplate, kernel: Kernel, layer: Layer, target: Target, operands: Operands
) -> Array:
    """The logical output of a kernel that ``template`` built."""
    arrays = kernel_arrays(template, kernel, layer, target, operands)
    func = kernel.func.with_attr("global_symbol", "kernel")
    module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": func}), target)
    arguments = [_tvm.tvm.runtime.tensor(a) for a in arrays]
    module["kernel"](*arguments)
    out = arguments[-1].numpy()
    return to_logical(out, template.layouts(layer, target)[1], layer.out_shape[1])


@pytest.mark.parametrize("short", [False, True], ids=["host", "narrow"])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_levels_and_configs_are_exact(name: str, short: bool) -> None:
    template, target = load(name), narrow() if short else host()
    for number, layer in enumerate(LAYERS[name]):
        for level, default in ((50, True), (90, False)):
            variant = sparse(template, layer, target, level)
            space = template.space(variant, target)
            config = space.default if default else random.Random(number).choice(space.points())
            operands = make_operands(variant)
            np.testing.assert_array_equal(
                run(template, variant, target, operands, config), integers(variant, operands),
                err_msg=f"{variant.describe()} {config!r}",
            )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rounding", ["upward", "tonearest", "gemmlowp"])
def test_fixed_point_roundings_are_exact(name: str, rounding: Rounding) -> None:
    template, target = load(name), host()
    epilogue = Epilogue(bias=True, clip_min=0.0, rounding=rounding)
    layer = dense(3, 40, 37, epilogue) if "dense" in name else conv(40, 37, 3, 5, epilogue)
    variant = sparse(template, layer, target, 70)
    operands = make_operands(variant)
    got = run(template, variant, target, operands)
    np.testing.assert_array_equal(got, integers(variant, operands))


@pytest.mark.parametrize("name", NAMES)
def test_float_outputs(name: str) -> None:
    template, target = load(name), host()
    layer = dense(3, 40, 37, EVERYTHING) if "dense" in name else conv(40, 37, 3, 5, EVERYTHING)
    found = sparse(template, layer, target, 70)
    variant = layer.variant("int8", found.sparsity, float_out=True)
    assert template.supports(variant, target) is None
    operands = make_operands(variant)
    got = run(template, variant, target, operands)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, operands.expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [1, 99], ids=["nearly all blocks", "few blocks"])
def test_full_empty_and_single_blocks(name: str, level: int) -> None:
    template, target = load(name), host()
    layer = dense(5, 96, 80, EVERYTHING) if "dense" in name else conv(96, 80, 5, 5, EVERYTHING)
    variant = sparse(template, layer, target, level)
    operands = make_operands(variant)
    weight = operands.constants.weight.copy()
    if level == 99:  # one block left, all other rows empty
        first = np.argwhere(weight.reshape(len(weight), -1))[0]
        blocks = BlockSparsity.parse(variant.sparsity)
        assert blocks is not None
        row, column = first[0] // blocks.rows, first[1] // blocks.columns
        mask = np.zeros_like(weight)
        mask[
            row * blocks.rows : (row + 1) * blocks.rows,
            column * blocks.columns : (column + 1) * blocks.columns,
        ] = 1
        weight *= mask
        assert np.count_nonzero(weight)
    changed = replace(operands, constants=replace(operands.constants, weight=weight))
    for unroll in (1, 4):
        config = template.space(variant, target).default
        config = type(config)({**config, "unroll": unroll})
        got = run(template, variant, target, changed, config)
        np.testing.assert_array_equal(got, integers(variant, changed))


@pytest.mark.parametrize(("board", "blocks"), [("rpi4", "4x4"), ("rpi5", "4x4"), ("rpi3b+", "4x4")])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_a_dot_product(name: str, board: str, blocks: str) -> None:
    template, target = load(name), load_target(board)
    layer = dense(1, 64, 64) if "dense" in name else conv(64, 64, 4, 4)
    assert {s.partition("@")[0] for s in template.sparsities(layer, target)} == {blocks}
    assert "float32" in str(template.supports(layer.variant("float32", f"{blocks}@50"), target))
    assert "4x1" in str(template.supports(layer.variant("int8", "4x1@50"), target))


def test_images_of_few_channels_are_refused() -> None:
    template, target = load("conv1x1_bsr_int8"), load_target("rpi4")
    tiny = conv(3, 64, 8, 8, RELU)
    assert template.sparsities(tiny, target) == ()
    assert "channels" in str(template.supports(tiny.variant("int8", "4x4@50"), target))
