"""The instructions int8 kernels are made of, in the object code's disassembly."""

from __future__ import annotations

import re

import pytest

from tests.disassembly import inner_loop
from tvmx import _tvm
from tvmx._resources import schedules_dir
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.targets import Target, load_target
from tvmx.templates import ScheduleTemplate, load_template

RELU = Epilogue(bias=True, clip_min=0.0)
WORKLOADS: dict[str, Conv2dWorkload | DenseWorkload] = {
    "3x3": Conv2dWorkload(
        batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3),
        padding=(1, 1, 1, 1), epilogue=RELU, dtype="int8",
    ),
    "1x1": Conv2dWorkload(
        batch=1, in_channels=256, height=28, width=28, out_channels=64, kernel=(1, 1),
        epilogue=RELU, dtype="int8",
    ),
    "first": Conv2dWorkload(
        batch=1, in_channels=3, height=56, width=56, out_channels=32, kernel=(7, 7),
        strides=(2, 2), padding=(3, 3, 3, 3), epilogue=RELU, dtype="int8",
    ),
    "dense": DenseWorkload(
        batch=1, in_features=512, out_features=100, epilogue=RELU, dtype="int8"
    ),
}  # fmt: skip
DEPTHWISE = Conv2dWorkload(
    batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3), groups=64,
    padding=(1, 1, 1, 1), epilogue=RELU, dtype="int8",
)  # fmt: skip


def template_for(workload: Conv2dWorkload | DenseWorkload) -> ScheduleTemplate:
    depthwise = isinstance(workload, Conv2dWorkload) and workload.is_depthwise
    name = "depthwise_int8" if depthwise else f"{workload.op}_int8"
    return load_template(name, schedules_dir() / f"{name}.py")


def assembly(workload: Conv2dWorkload | DenseWorkload, target: Target) -> str:
    template = template_for(workload)
    config = template.space(workload, target).default
    func = template.build(workload, config, target).func.with_attr("global_symbol", "kernel")
    module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": func}), target)
    return str(module.inspect_source("asm"))


def spills(lines: list[str]) -> int:
    return len([x for x in lines if re.search(r"\b(?:str|ldr|stp|ldp)\s+q\d+.*\[sp", x)])


def count(instruction: str, text: str) -> int:
    return len(re.findall(rf"^\s+{instruction}\s", text, re.M))


@pytest.mark.parametrize("board", ["rpi5", "odroid-c4"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_sdot_where_the_core_has_it(name: str, board: str) -> None:
    text = assembly(WORKLOADS[name], load_target(board))
    assert count("sdot", text) >= 8
    assert count("smull2?", text) == 0
    assert spills(inner_loop(text, "sdot")) == 0


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4", "jetson-nano"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_smlal_and_sadalp_where_it_has_not(name: str, board: str) -> None:
    text = assembly(WORKLOADS[name], load_target(board))
    assert count("sdot", text) == 0
    for instruction in ("smull2?", "smlal2?", "sadalp"):
        assert count(instruction, text) >= 4, instruction
    body = inner_loop(text, "sadalp")
    assert spills(body) <= len(body) / 20


@pytest.mark.parametrize("board", ["rpi5", "odroid-c4"])
def test_words_of_neighbouring_pixels_are_operands_by_element(board: str) -> None:
    for name in ("3x3", "1x1"):
        body = "\n".join(inner_loop(assembly(WORKLOADS[name], load_target(board)), "sdot"))
        by_element = len(re.findall(r"sdot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[\d\]", body))
        assert by_element == count("sdot", body) >= 14


@pytest.mark.parametrize("board", ["rpi4", "rpi5"])
@pytest.mark.parametrize("name", ["3x3", "1x1", "depthwise"])
def test_requantisation_on_arm_is_bounds_and_an_addition(name: str, board: str) -> None:
    text = assembly(WORKLOADS.get(name, DEPTHWISE), load_target(board))
    vector = r"\s+v\d+\.4s"
    assert count(f"fminnm{vector},", text) == count(f"fmaxnm{vector},", text) >= 7
    assert count(f"fadd{vector},", text) >= 7
    for slow in ("fcmgt", "bif", "bit", "frintx", "fcvtzs", "fcvtns"):
        assert count(f"{slow}{vector},", text) == 0, slow


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4", "rpi5"])
@pytest.mark.parametrize("name", ["3x3", "1x1", "dense", "depthwise"])
def test_float_outputs_on_arm_are_a_multiply_add_in_the_tile(name: str, board: str) -> None:
    """int8 in, float out: the same inner loop, and nothing narrowed to bytes behind it."""
    usual = WORKLOADS.get(name, DEPTHWISE)
    floating = usual.model_copy(
        update={"epilogue": Epilogue(bias=True, clip_min=0.0, float_out=True)}
    )
    text = assembly(floating, load_target(board))
    vector = r"\s+v\d+\.4s"
    fused = count(f"fmla{vector},", text)
    assert fused == count(f"scvtf{vector},", text) >= 1
    for narrowing in ("sqxtn", "xtn", "uzp1", "fcvtzs", "fcvtns", "frintn"):
        assert count(rf"{narrowing}\s+v\d+\.(?:8b|16b|4h|8h)", text) == 0, narrowing
    if name != "depthwise":
        product = "sdot" if board == "rpi5" else "sadalp"
        loops = [inner_loop(each, product) for each in (assembly(usual, load_target(board)), text)]
        assert [count(product, "\n".join(loop)) for loop in loops] == [
            count(product, "\n".join(loops[0]))
        ] * 2
        assert spills(loops[1]) <= spills(loops[0])


@pytest.mark.parametrize("name", ["3x3", "1x1", "first"])
def test_vnni_without_spills(name: str) -> None:
    target = _vnni()
    body = inner_loop(assembly(WORKLOADS[name], target), "vpdpbusd")
    assert count("vpdpbusd", "\n".join(body)) >= 14
    assert not [x for x in body if re.search(r"%[xyz]mm\d+, -?\d*\(%rsp\)", x)]


def test_vnni_of_dense() -> None:
    assert count("vpdpbusd", assembly(WORKLOADS["dense"], _vnni())) >= 4


@pytest.mark.parametrize("bits", [128, 256])
def test_pmadd_where_x86_has_no_vnni(bits: int) -> None:
    target = _vnni().model_copy(
        update={"vector_bits": bits, "vector_registers": 16, "features": ()}
    )
    text = assembly(WORKLOADS["3x3"], target)
    assert count("v?pmaddwd", text) >= 8
    assert count("vpdpbusd", text) == 0


def _vnni() -> Target:
    """An x86 target with AVX-512 VNNI, whatever this machine is."""
    return load_target("rpi4").model_copy(
        update={
            "triple": "x86_64-linux-gnu", "cpu": "x86-64-v4", "features": ("+avx512vnni",),
            "vector_bits": 512,
        }
    )  # fmt: skip
