"""Templates of Arm's matrix product of bytes (i8mm): exact, in the code, and chosen where it pays.

Here every shape runs with the instruction spelt out in plain arithmetic, on this machine; in
``test_schedules_emulated.py`` some do with the instruction itself, on an emulated core.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.disassembly import inner_loop
from tests.network_plans import narrow
from tests.test_disassembly_int8 import count, spills
from tvmx import _tvm
from tvmx._resources import schedules_dir
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import Target, load_target
from tvmx.templates import (
    Registry,
    ScheduleTemplate,
    in_squares,
    load_template,
    pack_mmla_weight,
)
from tvmx.testing.templates import TemplateTestCase, evaluate_template

EVERYTHING = Epilogue(bias=True, residual=True, clip_min=0.0, clip_max=6.0)
RELU = Epilogue(bias=True, clip_min=0.0)
BOARD = "orion-o6"
Workload = Conv2dWorkload | DenseWorkload


def load(name: str) -> ScheduleTemplate:
    return load_template(name, schedules_dir() / f"{name}.py")


def conv(**fields: object) -> Conv2dWorkload:
    base = {
        "batch": 1, "in_channels": 24, "height": 9, "width": 9, "out_channels": 20,
        "kernel": (3, 3), "padding": (1, 1, 1, 1), "epilogue": EVERYTHING, "dtype": "int8",
    }  # fmt: skip
    return Conv2dWorkload.model_validate({**base, **fields})


def pointwise(inputs: int, outputs: int, size: int, **fields: object) -> Conv2dWorkload:
    return conv(
        in_channels=inputs, out_channels=outputs, height=size, width=size, kernel=(1, 1),
        padding=(0, 0, 0, 0), **fields,
    )  # fmt: skip


def dense(batch: int, inputs: int, outputs: int, epilogue: Epilogue = EVERYTHING) -> DenseWorkload:
    return DenseWorkload(
        batch=batch, in_features=inputs, out_features=outputs, epilogue=epilogue, dtype="int8"
    )


ODD = [
    conv(in_channels=13, out_channels=10, padding=(0, 2, 1, 3)),
    conv(strides=(2, 2), batch=2, width=12),
    conv(strides=(2, 2), padding=(0, 1, 1, 0), in_channels=5),  # split rows, uneven padding
    conv(strides=(3, 3), height=14, width=14),
    conv(kernel=(5, 5), padding=(2, 2, 2, 2), dilation=(2, 2), height=11, width=13),
    conv(height=1, width=1),  # one pixel, mostly zero points
    conv(height=7, width=7, in_channels=64, out_channels=32, groups=2, batch=2),
    conv(kernel=(1, 5), padding=(0, 2, 0, 2), strides=(2, 1)),
    pointwise(20, 17, 9, epilogue=RELU),
    pointwise(40, 24, 1),
    pointwise(24, 40, 5, strides=(2, 2), batch=2),
    pointwise(16, 32, 7, epilogue=Epilogue(bias=True, clip_min=0.0, clip_max=6.0)),
]
DENSE = [dense(2, 8, 4), dense(3, 65, 17), dense(7, 33, 129, RELU), dense(9, 130, 33)]


def spelt_out(sums: Any, pixels: Any, outputs: Any) -> Any:
    """What the Arm manual says of SMMLA, product by product."""
    tirx = _tvm.tirx

    def lanes(vector: Any, chosen: list[int]) -> Any:
        return tirx.Shuffle([vector], [tirx.const(i, "int32") for i in chosen]).astype("int32x4")

    for k in range(8):
        sums = sums + lanes(pixels, [k, k, 8 + k, 8 + k]) * lanes(outputs, [k, 8 + k, k, 8 + k])
    return sums


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Target:
    """This machine, as if it had the instruction."""
    for name in ("conv2d_smmla", "dense_smmla"):
        names: dict[str, Any] = type(load(name)).supports.__globals__  # those of its file
        monkeypatch.setitem(names, "smmla", spelt_out)
        monkeypatch.setitem(names, "has_mmla", lambda _: True)
    return narrow()


@pytest.mark.usefixtures("here")
class _Contract(TemplateTestCase):
    random_configs = 1

    @property
    def target(self) -> Target:  # type: ignore[override]
        return narrow()


class TestConv2dSmmla(_Contract):
    template = load("conv2d_smmla")


class TestDenseSmmla(_Contract):
    template = load("dense_smmla")


@pytest.mark.parametrize("workload", [*ODD, *DENSE], ids=lambda w: w.describe())
def test_exact_at_the_default_and_at_other_configs(workload: Workload, here: Target) -> None:
    template = load(f"{workload.op}_smmla")
    space = template.space(workload, here)
    points = space.points()
    for config in [
        space.default,
        *random.Random(workload.digest).sample(points, min(2, len(points))),
    ]:
        assert evaluate_template(template, workload, here, config).absolute == 0, config


def test_packing_puts_two_outputs_of_eight_channels_together() -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (10, 13, 2, 3), np.int8)
    packed = pack_mmla_weight(weight)
    assert packed.shape == (3, 2, 2, 3, 2, 16)
    for o, i, y, x in np.ndindex(12, 16, 2, 3):
        wanted = weight[o, i, y, x] if o < 10 and i < 13 else 0
        place = (o % 2) * 8 + i % 8
        assert packed[o // 4, i // 8, y, x, o % 4 // 2, place] == wanted


def test_order_of_squares_is_its_own_inverse() -> None:
    order = in_squares(4)
    assert sorted(order) == list(range(16))
    assert [order[i] for i in order] == list(range(16))
    assert order[:8] == [0, 1, 4, 5, 2, 3, 6, 7]  # two outputs of two pixels, then the other two


LOOPS: dict[str, Workload] = {
    "3x3": conv(in_channels=64, out_channels=64, height=28, width=28, epilogue=RELU),
    "3x3 stride 2": conv(
        in_channels=64, out_channels=64, height=28, width=28, strides=(2, 2), epilogue=RELU
    ),
    "1x1": pointwise(256, 64, 28, epilogue=RELU),
    "7x7 image": conv(in_channels=512, out_channels=512, height=7, width=7, epilogue=RELU),
    "dense": dense(16, 512, 512, RELU),
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_instruction_is_in_the_inner_loop_and_nothing_spills_there(name: str) -> None:
    workload, target = LOOPS[name], load_target(BOARD)
    template = load(f"{workload.op}_smmla")
    config = template.space(workload, target).default
    func = template.build(workload, config, target).func.with_attr("global_symbol", "kernel")
    module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": func}), target)
    body = inner_loop(str(module.inspect_source("asm")), "smmla")
    text = "\n".join(body)
    assert count("smmla", text) >= 14
    assert count("sdot", text) == 0
    assert spills(body) == 0
    assert not re.search(r"\sz\d+\.", text), "SVE registers have no fixed length"
    # One operand of pixels or outputs serves several products.
    loads = len(re.findall(r"^\s+ldr?\s+q|^\s+ldp\s+q", text, re.M))
    assert loads < count("smmla", text)


@pytest.mark.parametrize("board", ["rpi4", "rpi5", "odroid-c4", "host"])
def test_cores_without_it_are_refused(board: str) -> None:
    target = load_target(board)
    assert "i8mm" not in " ".join(target.features)
    assert load("conv2d_smmla").supports(conv(), target) == "needs a core with i8mm"
    assert load("dense_smmla").supports(dense(4, 64, 64), target) == "needs a core with i8mm"


def test_reasons_for_what_they_do_not_compute() -> None:
    target = load_target(BOARD)
    refused: list[tuple[Workload, str]] = [
        (conv(dtype="float32"), "float32"),
        (conv(in_channels=3), "3 input channels"),
        (conv(groups=4), "channels per group (6, 5)"),
        (dense(4, 64, 64), "dense"),
    ]
    for workload, reason in refused:
        assert reason in str(load("conv2d_smmla").supports(workload, target))
    refused = [
        (dense(1, 64, 64), "one row"),
        (dense(4, 7, 64), "8 inputs"),
        (dense(4, 64, 3), "4 outputs"),
        (dense(4, 64, 64).variant("float32"), "float32"),
        (conv(), "conv2d"),
    ]
    for workload, reason in refused:
        assert reason in str(load("dense_smmla").supports(workload, target))


@pytest.mark.parametrize(
    ("workload", "first"),
    [
        (conv(), "conv2d_smmla"),
        (pointwise(64, 8, 28), "conv2d_smmla"),
        (pointwise(64, 4, 28), "conv2d_int8"),
        (pointwise(64, 32, 1), "conv2d_int8"),
        (conv(in_channels=3), "conv2d_int8"),
        (dense(2, 64, 64), "dense_smmla"),
        (dense(1, 64, 64), "dense_int8"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.describe(),
)
def test_chosen_where_it_pays(workload: Workload, first: str) -> None:
    registry, target = Registry(), load_target(BOARD)
    registry.load_builtin()
    stated = registry.default(workload, target)
    assert stated is not None and stated.name == first
    offered = registry.implementations(workload.variant("float32"), target)
    assert next(i.template for _, i in offered if i.precision == "int8") == first
    for entry, implementation in offered:
        if entry.name.endswith("_smmla"):  # no layer border between it and sdot's template
            other = registry.get(f"{workload.op}_int8").implementation(workload, target)
            assert implementation.layout == other.layout
            assert implementation.data_layout == other.data_layout


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("conv2d_smmla", conv(in_channels=16, out_channels=8, epilogue=EVERYTHING)),
        ("dense_smmla", dense(3, 24, 16, RELU)),
    ],
)
def test_scheduled_code(name: str, workload: Workload, golden: Callable[[str, str], None]) -> None:
    template, target = load(name), load_target(BOARD)
    default = template.space(workload, target).default
    func = template.build(workload, default, target).func
    header = f"# {name}: {workload.describe()}, {target.name}, {default!r}\n"
    golden(f"{name}.txt", header + func.script() + "\n")
