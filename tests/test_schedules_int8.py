"""int8 convolution and dense templates: the contract, and every form of dot product that runs here.

Results are compared with integers: PyTorch's sums in float64, then ``tvmx.numerics.requantise``.
"""

from __future__ import annotations

import random

import pytest

from tests.network_plans import narrow
from tvmx._resources import schedules_dir
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import Target, load_target
from tvmx.templates import ScheduleTemplate, load_template
from tvmx.testing.templates import TemplateTestCase, evaluate_template, odd_workloads

NAMES = ["conv2d_int8", "dense_int8"]
EVERYTHING = Epilogue(bias=True, residual=True, clip_min=0.0, clip_max=6.0)


def load(name: str) -> ScheduleTemplate:
    return load_template(name, schedules_dir() / f"{name}.py")


def vectors(bits: int, features: tuple[str, ...]) -> Target:
    """This machine with shorter vectors, or fewer instructions."""
    registers = 32 if bits == 512 else 16
    return load_target("host").model_copy(
        update={"vector_bits": bits, "vector_registers": registers, "features": features}
    )


class TestConv2dInt8(TemplateTestCase):
    template = load("conv2d_int8")
    random_configs = 1


class TestDenseInt8(TemplateTestCase):
    template = load("dense_int8")


def conv(**fields: object) -> Conv2dWorkload:
    base = {
        "batch": 1, "in_channels": 32, "height": 9, "width": 9, "out_channels": 32,
        "kernel": (3, 3), "padding": (1, 1, 1, 1), "epilogue": EVERYTHING, "dtype": "int8",
    }  # fmt: skip
    return Conv2dWorkload.model_validate({**base, **fields})


@pytest.mark.parametrize(
    ("form", "target"),
    [
        ("pmadd", narrow().model_copy(update={"features": ()})),
        ("pmadd", narrow()),
        ("pmadd", vectors(256, ())),
        ("none", vectors(64, ())),
    ],
    ids=["4 lanes", "narrow", "8 lanes", "plain"],
)
@pytest.mark.parametrize("name", NAMES)
def test_without_dot_product_instructions(name: str, form: str, target: Target) -> None:
    assert target.int8_dot == form
    template = load(name)
    cases = [w.variant("int8") for w in odd_workloads(template.op)]
    cases = [w for w in cases if template.supports(w, target) is None]
    assert len(cases) >= 5
    for workload in random.Random(form).sample(cases, 4):
        assert evaluate_template(template, workload, target).absolute == 0, workload.describe()


@pytest.mark.skipif(
    "+avxvnni" not in load_target("host").features, reason="this machine has no AVX-VNNI"
)
@pytest.mark.parametrize("name", NAMES)
def test_vnni_of_256_bits(name: str) -> None:
    target = vectors(256, ("+avxvnni",))
    assert target.int8_dot == "vnni256"
    template = load(name)
    for workload in [w.variant("int8") for w in odd_workloads(template.op)][:6]:
        if template.supports(workload, target) is None:
            assert evaluate_template(template, workload, target).absolute == 0, workload.describe()


@pytest.mark.parametrize(
    "workload",
    [
        conv(width=31, padding=(0, 2, 1, 3)),  # uneven padding, ragged tiles
        conv(strides=(2, 2), batch=2),
        conv(kernel=(1, 1), padding=(1, 0, 2, 1), strides=(2, 3)),  # padded and compacted
        conv(kernel=(1, 5), padding=(0, 2, 0, 2), strides=(2, 1)),
        conv(kernel=(5, 1), padding=(0, 0, 0, 0), dilation=(2, 1)),
        conv(in_channels=7, out_channels=5),
        conv(in_channels=1, height=3, width=40, strides=(1, 3)),
        conv(kernel=(3, 3), height=1, width=1, padding=(2, 2, 2, 2)),  # mostly zero points
        conv(in_channels=64, out_channels=32, groups=2, kernel=(1, 1), padding=(0, 0, 0, 0)),
    ],
    ids=lambda w: w.describe(),
)
@pytest.mark.parametrize("order", ["row", "oc"])
def test_shapes_that_meet_every_way_to_make_the_image(workload: Conv2dWorkload, order: str) -> None:
    template, target = load("conv2d_int8"), load_target("host")
    space = template.space(workload, target)
    for pad in space.knobs["pad"]:
        points = [p for p in space.points() if (p["order"], p["pad"]) == (order, pad)]
        if not points:  # a task's own image belongs to order "row"
            assert (order, pad) == ("oc", "task")
            continue
        config = random.Random(workload.digest).choice(points)
        assert evaluate_template(template, workload, target, config).absolute == 0, config


@pytest.mark.parametrize(("batch", "inputs", "outputs"), [(1, 65, 16), (3, 4, 129), (9, 130, 33)])
def test_dense_ragged_in_both_dimensions(batch: int, inputs: int, outputs: int) -> None:
    template, target = load("dense_int8"), load_target("host")
    workload = DenseWorkload(
        batch=batch, in_features=inputs, out_features=outputs, epilogue=EVERYTHING, dtype="int8"
    )
    for config in template.space(workload, target).points()[::5]:
        assert evaluate_template(template, workload, target, config).absolute == 0, config


def test_reasons_for_what_they_do_not_compute() -> None:
    template, target = load("conv2d_int8"), load_target("rpi5")
    assert "float32" in str(template.supports(conv(dtype="float32"), target))
    grouped = conv(in_channels=12, out_channels=24, groups=4)
    assert "channels per group (3, 6)" in str(template.supports(grouped, target))
    assert template.supports(conv(groups=8), target) is None
    dense = DenseWorkload(batch=1, in_features=8, out_features=8)
    assert "float32" in str(load("dense_int8").supports(dense, target))
    assert "conv2d" in str(load("dense_int8").supports(conv(), target))


def test_layouts_are_those_of_the_float_template() -> None:
    float_template, template = load("conv2d_direct"), load("conv2d_int8")
    for channels in (3, 16, 64):
        for name in ("host", "rpi5", "rpi3b+"):
            workload, target = conv(in_channels=channels), load_target(name)
            assert template.layouts(workload, target) == float_template.layouts(
                workload.variant("float32"), target
            )
