"""Block-sparse kernels' machine code and shares of work: no spills, and threads finish together."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from tests.disassembly import inner_loop
from tests.test_schedules_bsr import conv, dense, load
from tvmx import _tvm
from tvmx.ir import BlockSparsity, Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.numerics import block_rows
from tvmx.targets import Target, load_target
from tvmx.templates import make_operands
from tvmx.templates._block_sparse import ROW_BLOCKS, even_groups

Layer = Conv2dWorkload | DenseWorkload
POINTWISE = conv(128, 128, 28, 28)
THREE = Conv2dWorkload(
    batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3),
    padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True, clip_min=0.0),
)  # fmt: skip
MATRIX = dense(16, 512, 256)


def assembly(name: str, layer: Layer, target: Target) -> str:
    template = load(name)
    sparsity = template.sparsities(layer, target)[1]
    variant = layer.variant("int8" if template.precision == "int8" else "float32", sparsity)
    config = template.space(variant, target).default
    func = template.build(variant, config, target).func.with_attr("global_symbol", "kernel")
    module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": func}), target)
    return str(module.inspect_source("asm"))


def on_the_stack(lines: list[str]) -> list[str]:
    return [x for x in lines if re.search(r"\b(?:str|ldr|stp|ldp)\s+q\d+.*\[sp", x)]


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4", "rpi5"])
@pytest.mark.parametrize(("name", "layer"), [("conv1x1_bsr", POINTWISE), ("conv3x3_bsr", THREE)])
def test_float_blocks_multiply_by_element(name: str, layer: Layer, board: str) -> None:
    body = inner_loop(assembly(name, layer, load_target(board)), "fmla")
    by_element = [x for x in body if re.search(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]", x)]
    assert len(by_element) >= 12
    assert not on_the_stack(body)
    assert not [x for x in body if "ld1r" in x], "pixels are loaded four at a time"
    # Beside the multiply-adds: the index, the weights, the pixels, the loop.
    # Tiles are smaller, and there is more of it, where the core is in order.
    assert len(body) <= 2.4 * len(by_element) + 4


@pytest.mark.parametrize("board", ["rpi5", "odroid-c4"])
@pytest.mark.parametrize(
    ("name", "layer"), [("conv1x1_bsr_int8", POINTWISE), ("dense_bsr_int8", MATRIX)]
)
def test_int8_blocks_are_dot_products_by_element(name: str, layer: Layer, board: str) -> None:
    body = inner_loop(assembly(name, layer, load_target(board)), "sdot")
    dots = [x for x in body if re.search(r"sdot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[\d\]", x)]
    assert len(dots) >= 8
    assert not on_the_stack(body)


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4"])
@pytest.mark.parametrize(
    ("name", "layer"), [("conv1x1_bsr_int8", POINTWISE), ("dense_bsr_int8", MATRIX)]
)
def test_int8_blocks_are_multiplied_in_pairs_without_dots(
    name: str, layer: Layer, board: str
) -> None:
    text = assembly(name, layer, load_target(board))
    assert "sdot" not in text
    body = inner_loop(text, "smlal2?")
    assert len([x for x in body if re.search(r"\ssadalp\s", x)]) >= 8
    # LLVM spills for the in-order core, where this tile is still the fastest one simulated.
    assert len(on_the_stack(body)) <= len(body) / (8 if board == "rpi3b+" else 20)


def test_vnni_blocks() -> None:
    target = load_target("rpi4").model_copy(
        update={
            "triple": "x86_64-linux-gnu", "cpu": "x86-64-v4", "features": ("+avx512vnni",),
            "vector_bits": 512,
        }
    )  # fmt: skip
    assert load("conv1x1_bsr_int8").sparsities(POINTWISE, target)[0] == "16x4@50"
    body = inner_loop(assembly("conv1x1_bsr_int8", POINTWISE, target), "vpdpbusd")
    assert len([x for x in body if "vpdpbusd" in x]) >= 14
    assert not [x for x in body if re.search(r"%[xyz]mm\d+, -?\d*\(%rsp\)", x)]


@pytest.mark.parametrize("groups", [1, 2, 4, 7])
def test_groups_of_rows_have_even_work(groups: int) -> None:
    rng = np.random.default_rng(groups)
    counts = rng.integers(0, 400, 200) * (np.arange(200) < 60)  # the last rows are empty
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    splits = even_groups(indptr, groups)
    assert splits.dtype == np.int32 and splits[0] == 0 and splits[-1] == 200
    work = [int(indptr[b] - indptr[a] + ROW_BLOCKS * (b - a)) for a, b in pairwise(splits)]
    assert sum(work) == indptr[-1] + ROW_BLOCKS * 200
    assert max(work) - min(work) <= counts.max() + ROW_BLOCKS, "a row more or less"


def test_more_groups_than_work_leaves_some_empty() -> None:
    splits = even_groups(np.array([0, 1000, 1000], np.int32), 4)
    assert splits[0] == 0 and splits[-1] == 2 and (np.diff(splits) >= 0).all()


def test_kernels_are_given_even_groups() -> None:
    template, target = load("conv1x1_bsr"), load_target("rpi4")
    layer = conv(128, 128, 7, 7).variant("float32", "4x1@80")
    default = template.space(layer, target).default
    config = type(default)({**default, "groups": 4})
    constants = template.build(layer, config, target).constants(make_operands(layer).constants)
    kept = block_rows(make_operands(layer).constants.weight, BlockSparsity(4, 1, 80))
    np.testing.assert_array_equal(constants[3], even_groups(kept.indptr, 4))
