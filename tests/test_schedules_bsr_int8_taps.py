"""Block-sparse int8 convolutions of several taps against integers: odd shapes, empty rows, code."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.disassembly import inner_loop
from tests.network_plans import host, narrow
from tests.test_schedules_bsr import EVERYTHING, PLAIN_SUM, RELU, Sparse, load
from tests.test_schedules_bsr_code import assembly
from tests.test_schedules_bsr_int8 import run, sparse
from tvmx.ir import BlockSparsity, Conv2dWorkload, Epilogue, Rounding
from tvmx.numerics import requantise
from tvmx.targets import load_target
from tvmx.templates import Operands, make_operands

Array = npt.NDArray[Any]
TEMPLATE = load("conv3x3_bsr_int8")


class TestConv3x3BsrInt8(Sparse):
    template = TEMPLATE


def conv(
    inner: int, outer: int, height: int, width: int, epilogue: Epilogue = RELU, **fields: Any
) -> Conv2dWorkload:
    defaults: dict[str, Any] = {"batch": 1, "kernel": (3, 3), "padding": (1, 1, 1, 1)}
    return Conv2dWorkload(
        **{**defaults, **fields}, in_channels=inner, height=height, width=width,
        out_channels=outer, epilogue=epilogue,
    )  # fmt: skip


LAYERS = {
    "padded": conv(20, 37, 5, 7),
    "ragged batch": conv(33, 18, 6, 3, EVERYTHING, batch=2),
    "one pixel": conv(64, 32, 1, 1, PLAIN_SUM),
    "stride 2": conv(19, 40, 9, 10, EVERYTHING, batch=2, strides=(2, 2)),
    "uneven padding": conv(24, 21, 6, 8, strides=(2, 1), padding=(0, 1, 2, 0)),
    "no padding": conv(17, 22, 7, 6, EVERYTHING, padding=(0, 0, 0, 0)),
    "wide kernel": conv(18, 20, 4, 9, kernel=(1, 5), padding=(0, 2, 0, 2)),
    "dilated": conv(16, 24, 8, 7, dilation=(2, 1), padding=(2, 1, 2, 1)),
}


def integers(layer: Conv2dWorkload, operands: Operands) -> Array:
    """The layer in int64, tap by tap over the pruned weight; zero points around the image."""
    how, weight = operands.constants.requantise, operands.constants.weight.astype(np.int64)
    assert how is not None and operands.constants.bias is not None
    top, left, bottom, right = layer.padding
    image = np.pad(
        operands.data.astype(np.int64), ((0, 0), (0, 0), (top, bottom), (left, right)),
        constant_values=how.data_zero_point,
    )  # fmt: skip
    sums = np.zeros(layer.out_shape, np.int64)
    (sh, sw), (dh, dw) = layer.strides, layer.dilation
    for i in range(layer.kernel[0]):
        for j in range(layer.kernel[1]):
            rows = image[:, :, i * dh :: sh, j * dw :: sw]
            seen = rows[:, :, : layer.out_height, : layer.out_width]
            sums += np.einsum("oi,niyx->noyx", weight[:, :, i, j], seen)
    sums += operands.constants.bias.astype(np.int64).reshape(1, -1, 1, 1)
    return requantise(sums, how, operands.residual)


@pytest.mark.parametrize("short", [False, True], ids=["host", "narrow"])
@pytest.mark.parametrize("name", LAYERS)
def test_shapes_levels_and_configs_are_exact(name: str, short: bool) -> None:
    target = narrow() if short else host()
    for level, default in ((50, True), (90, False)):
        variant = sparse(TEMPLATE, LAYERS[name], target, level)
        space = TEMPLATE.space(variant, target)
        config = space.default if default else random.Random(name).choice(space.points())
        operands = make_operands(variant)
        np.testing.assert_array_equal(
            run(TEMPLATE, variant, target, operands, config), integers(variant, operands),
            err_msg=f"{variant.describe()} {config!r}",
        )  # fmt: skip


@pytest.mark.parametrize("rounding", ["upward", "tonearest", "gemmlowp"])
def test_fixed_point_roundings_are_exact(rounding: Rounding) -> None:
    epilogue = Epilogue(bias=True, clip_min=0.0, rounding=rounding)
    variant = sparse(TEMPLATE, conv(40, 37, 3, 5, epilogue), host(), 70)
    operands = make_operands(variant)
    np.testing.assert_array_equal(
        run(TEMPLATE, variant, host(), operands), integers(variant, operands)
    )


def test_float_outputs() -> None:
    layer = conv(40, 37, 3, 5, EVERYTHING)
    found = sparse(TEMPLATE, layer, host(), 70)
    variant = layer.variant("int8", found.sparsity, float_out=True)
    operands = make_operands(variant)
    got = run(TEMPLATE, variant, host(), operands)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, operands.expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("unroll", [1, 2])
def test_rows_of_one_block_and_of_none(unroll: int) -> None:
    target = host()
    variant = sparse(TEMPLATE, conv(48, 80, 5, 5, EVERYTHING), target, 90)
    operands, blocks = make_operands(variant), BlockSparsity.parse(variant.sparsity)
    assert blocks is not None
    weight = operands.constants.weight.copy()
    weight[: 2 * blocks.rows] = 0
    weight[blocks.rows : 2 * blocks.rows, 4:8] = 7  # one block, or a few
    changed = replace(operands, constants=replace(operands.constants, weight=weight))
    config = TEMPLATE.space(variant, target).default
    config = type(config)({**config, "unroll": unroll})
    got = run(TEMPLATE, variant, target, changed, config)
    np.testing.assert_array_equal(got, integers(variant, changed))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (1, 1), "padding": (0, 0, 0, 0)}, "taps"),
        ({"kernel": (7, 7)}, "taps"),
        ({"groups": 4}, "group"),
        ({"in_channels": 3}, "channels"),
    ],
)
def test_what_is_refused(change: dict[str, Any], reason: str) -> None:
    target, good = load_target("rpi4"), conv(64, 64, 8, 8)
    assert TEMPLATE.sparsities(good, target)[0] == "4x36@50"
    assert TEMPLATE.supports(good.variant("int8", "4x36@50"), target) is None
    assert "4x4" in str(TEMPLATE.supports(good.variant("int8", "4x4@50"), target))
    bad = good.model_copy(update=change)
    assert TEMPLATE.sparsities(bad, target) == ()
    assert reason in str(TEMPLATE.supports(bad.variant("int8", "4x36@50"), target))


WIDE = conv(64, 64, 28, 28)


@pytest.mark.parametrize("board", ["rpi5", "odroid-c4"])
def test_taps_are_dot_products_by_element(board: str) -> None:
    body = inner_loop(assembly("conv3x3_bsr_int8", WIDE, load_target(board)), "sdot")
    dots = [x for x in body if re.search(r"sdot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[\d\]", x)]
    assert len(dots) >= 9 * 8
    assert len([x for x in body if re.search(r"\[sp\b", x)]) <= len(body) / 20


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4"])
def test_taps_are_multiplied_in_pairs_without_dots(board: str) -> None:
    text = assembly("conv3x3_bsr_int8", WIDE, load_target(board))
    assert "sdot" not in text
    body = inner_loop(text, "smlal2?")
    assert len([x for x in body if re.search(r"\ssadalp\s", x)]) >= 5 * 4
