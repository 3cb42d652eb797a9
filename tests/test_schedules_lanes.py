"""Kernels for other vector lengths than this machine's: 4 and 8 lanes, and code for Arm."""

from __future__ import annotations

import random
import re

import pytest

from tests.disassembly import inner_loop
from tvmx import _tvm
from tvmx._resources import schedules_dir
from tvmx.ir import Config, Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import Target, load_target
from tvmx.templates import ScheduleTemplate, _float_tile, load_template
from tvmx.testing.templates import evaluate_template, odd_workloads

NAMES = [
    "conv2d_direct", "conv2d_winograd", "conv2d_im2col", "depthwise_nchwc", "dense_packed",
]  # fmt: skip
BY_LANE = ["conv2d_direct", "conv2d_winograd", "dense_packed"]
RELU = Epilogue(bias=True, clip_min=0.0)
DEFAULTS = {
    "conv2d_direct": Conv2dWorkload(
        batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3),
        padding=(1, 1, 1, 1), epilogue=RELU,
    ),
    "conv2d_winograd": Conv2dWorkload(
        batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3),
        padding=(1, 1, 1, 1), epilogue=RELU,
    ),
    "conv2d_im2col": Conv2dWorkload(
        batch=1, in_channels=32, height=28, width=28, out_channels=64, kernel=(1, 1), epilogue=RELU
    ),
    "depthwise_nchwc": Conv2dWorkload(
        batch=1, in_channels=32, height=28, width=28, out_channels=32, kernel=(3, 3),
        padding=(1, 1, 1, 1), groups=32, epilogue=RELU,
    ),
    "dense_packed": DenseWorkload(batch=4, in_features=256, out_features=64, epilogue=RELU),
}  # fmt: skip


def load(name: str) -> ScheduleTemplate:
    return load_template(name, schedules_dir() / f"{name}.py")


def assembly(template: ScheduleTemplate, workload: object, config: Config, target: Target) -> str:
    func = template.build(workload, config, target).func.with_attr("global_symbol", "kernel")
    module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": func}), target)
    return str(module.inspect_source("asm"))


@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("name", NAMES)
def test_shorter_vectors_are_right_too(name: str, bits: int) -> None:
    target = load_target("host").model_copy(
        update={"vector_bits": bits, "vector_registers": 32 if bits == 128 else 16}
    )
    template = load(name)
    cases = [w for w in odd_workloads(template.op) if template.supports(w, target) is None]
    for workload in random.Random(bits).sample(cases, min(5, len(cases))):
        assert evaluate_template(template, workload, target).relative < 1e-5, workload.describe()


@pytest.mark.parametrize("name", BY_LANE)
def test_the_form_by_lanes_is_right_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Arm multiplies by; that this machine would not choose it does not matter."""
    monkeypatch.setattr(_float_tile, "is_x86", lambda target: False)
    target = load_target("host").model_copy(update={"vector_bits": 128, "vector_registers": 32})
    template = load(name)
    cases = [w for w in odd_workloads(template.op) if template.supports(w, target) is None]
    first = [w for w in cases if w.op == "conv2d" and w.in_channels < 4 and w.strides[1] == 2]
    assert bool(first) == (name == "conv2d_direct")
    for workload in cases:
        assert evaluate_template(template, workload, target).relative < 1e-5, workload.describe()


@pytest.mark.parametrize("name", BY_LANE)
def test_arm_multiplies_by_lanes(name: str) -> None:
    template, target, workload = load(name), load_target("rpi3b+"), DEFAULTS[name]
    text = assembly(template, workload, template.space(workload, target).default, target)
    by_lane = len(re.findall(r"\bfmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[[0-3]\]", text))
    assert by_lane >= 4 * 14, "one step of the reduction"
    assert not re.search(r"\bld1r\b", text)


@pytest.mark.parametrize("core", ["rpi3b+", "rpi4"])
@pytest.mark.parametrize("name", NAMES)
def test_arm_code_is_vectorised_and_does_not_spill_its_accumulators(name: str, core: str) -> None:
    template, target, workload = load(name), load_target(core), DEFAULTS[name]
    text = assembly(template, workload, template.space(workload, target).default, target)
    assert re.search(r"\bfmla\s+v\d+\.4s", text)
    multiply_adds = len(re.findall(r"\bfmla\b", text))
    stack = len(re.findall(r"\b(?:str|ldr|stp|ldp)\s+q\d+.*\[sp", text))
    assert stack <= multiply_adds / 2, f"{stack} stack accesses to {multiply_adds} fmla"


@pytest.mark.parametrize("core", ["rpi3b+", "rpi4"])
def test_one_row_of_a_matrix_product_streams_its_weights(core: str) -> None:
    """Each vector of weights is loaded once, and multiplied by a lane."""
    template, target = load("dense_packed"), load_target(core)
    workload = DenseWorkload(batch=1, in_features=1024, out_features=1000, epilogue=RELU)
    text = assembly(template, workload, template.space(workload, target).default, target)
    loop = inner_loop(text, "fmla")
    by_lane = [x for x in loop if re.search(r"\bfmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[", x)]
    loads = [x for x in loop if re.search(r"\bldr\s+q", x)]
    pairs = [x for x in loop if re.search(r"\bldp\s+q", x)]
    vectors = len(by_lane) // 4
    assert len(by_lane) >= 16
    assert len(by_lane) <= len(loads) + 2 * len(pairs) <= len(by_lane) + vectors


def test_a_tile_that_is_too_large_does_spill_on_arm() -> None:
    # Guards the check above: were the pattern wrong, nothing would ever count as a spill.
    template, target = load("conv2d_direct"), load_target("rpi4")
    wide = target.model_copy(update={"vector_registers": 96})
    workload = DEFAULTS["conv2d_direct"]
    default = template.space(workload, wide).default
    assert default.int("oc_tile") * default.int("ow_tile") > 24
    text = assembly(template, workload, default, wide)
    assert len(re.findall(r"\b(?:str|ldr|stp|ldp)\s+q\d+.*\[sp", text)) > 40
