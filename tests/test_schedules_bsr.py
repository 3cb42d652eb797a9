"""Block-sparse kernels against NumPy: every level, odd shapes, empty rows, short vectors, Arm."""

from __future__ import annotations

import functools
import random
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.disassembly import inner_loop
from tests.network_plans import execute, host, narrow
from tvmx import _tvm
from tvmx._resources import schedules_dir
from tvmx.ir import (
    DENSE,
    LEVELS,
    BlockSparsity,
    Conv2dWorkload,
    DenseWorkload,
    Epilogue,
    physical_shape,
    to_logical,
    to_physical,
)
from tvmx.numerics import LayerConstants, prune
from tvmx.targets import Target, load_target
from tvmx.templates import Operands, ScheduleTemplate, load_template
from tvmx.testing.templates import AnyWorkload, TemplateTestCase, kernel_arrays

Array = npt.NDArray[Any]
Layer = Conv2dWorkload | DenseWorkload
PLAIN_SUM = Epilogue()
RELU = Epilogue(bias=True, clip_min=0.0)
EVERYTHING = Epilogue(bias=True, residual=True, clip_min=-0.5, clip_max=1.0)
CONVOLUTIONS = ["conv1x1_bsr", "conv1x1_bsr_nchw"]


def load(name: str) -> ScheduleTemplate:
    return load_template(name, schedules_dir() / f"{name}.py")


class Sparse(TemplateTestCase):
    """Each layer at one of the levels, in turn; all of them in the tests below."""

    random_configs = 1

    @functools.cached_property
    def cases(self) -> list[AnyWorkload]:
        every: dict[str, list[AnyWorkload]] = {}
        for layer in super().cases:
            every.setdefault(layer.model_copy(update={"sparsity": DENSE}).digest, []).append(layer)
        return [found[number % len(found)] for number, found in enumerate(every.values())]


class TestDenseBsr(Sparse):
    template = load("dense_bsr")


class TestConv1x1Bsr(Sparse):
    template = load("conv1x1_bsr")


class TestConv3x3Bsr(Sparse):
    template = load("conv3x3_bsr")


class TestConv1x1BsrNchw(Sparse):
    template = load("conv1x1_bsr_nchw")


def conv(
    inner: int, outer: int, height: int, width: int, epilogue: Epilogue = RELU, **fields: Any
) -> Conv2dWorkload:
    return Conv2dWorkload(
        **{"batch": 1, **fields}, in_channels=inner, height=height, width=width,
        out_channels=outer, kernel=(1, 1), epilogue=epilogue,
    )  # fmt: skip


def dense(batch: int, inner: int, outer: int, epilogue: Epilogue = RELU) -> DenseWorkload:
    return DenseWorkload(batch=batch, in_features=inner, out_features=outer, epilogue=epilogue)


CONV_LAYERS = [
    conv(20, 37, 5, 7),
    conv(33, 18, 6, 3, EVERYTHING, batch=2),
    conv(64, 32, 1, 1, PLAIN_SUM),
    conv(19, 70, 9, 10, EVERYTHING, batch=2, strides=(2, 2)),
    conv(24, 21, 1, 5, strides=(1, 2)),
    conv(7, 3, 8, 1, PLAIN_SUM, strides=(2, 1)),
    conv(128, 20, 24, 25, RELU),  # offsets beyond 16 bits in the blocked layout of 16 lanes
]
DENSE_LAYERS = [
    dense(1, 70, 37, EVERYTHING),
    dense(1, 64, 7, PLAIN_SUM),
    dense(2, 33, 48),
    dense(13, 50, 35, EVERYTHING),
    dense(32, 48, 64),
]


def numpy_answer(layer: Layer, operands: Operands) -> Array:
    """The layer's output in float64, by matrix products over the pruned weight."""
    data = operands.data.astype(np.float64)
    matrix = operands.constants.weight.astype(np.float64).reshape(layer.weight_shape[:2])
    if isinstance(layer, Conv2dWorkload):
        data = data[:, :, :: layer.strides[0], :: layer.strides[1]]
    out = np.einsum("oi,ni...->no...", matrix, data)
    if operands.constants.bias is not None:
        out += operands.constants.bias.reshape(1, -1, *[1] * (out.ndim - 2))
    if operands.residual is not None:
        out += operands.residual
    return np.clip(out, layer.epilogue.clip_min, layer.epilogue.clip_max)


def operands_of(layer: Layer, seed: int, spoil: bool = False) -> Operands:
    """Random operands with a pruned weight; ``spoil`` prunes every second block row whole."""
    rng = np.random.default_rng(seed)
    sparsity = BlockSparsity.parse(layer.sparsity)
    assert sparsity is not None
    weight = rng.standard_normal(layer.weight_shape).astype(np.float32)
    if spoil:
        rows = np.arange(len(weight)) // sparsity.rows
        weight[rows % 2 == 0] *= 1e-3
    weight = prune(weight, sparsity)
    has = layer.epilogue
    bias = rng.standard_normal(len(weight)).astype(np.float32) if has.bias else None
    residual = rng.standard_normal(layer.out_shape).astype(np.float32) if has.residual else None
    data = rng.standard_normal(layer.data_shape).astype(np.float32)
    constants = LayerConstants(weight, bias)
    return Operands(data, constants, residual, np.empty(0))


def run(
    template: ScheduleTemplate, layer: Layer, target: Target, operands: Operands, config: Any = None
) -> Array:
    """The logical output of the kernel, compiled for this machine."""
    kernel = template.build(layer, config or template.space(layer, target).default, target)
    kernel = kernel.of(operands.constants)
    arrays = kernel_arrays(template, kernel, layer, target, operands)
    module = _tvm.build_module(
        _tvm.tvm.IRModule({"kernel": kernel.func.with_attr("global_symbol", "kernel")}), target
    )
    arguments = [_tvm.tvm.runtime.tensor(a) for a in arrays]
    module["kernel"](*arguments)
    out = arguments[-1].numpy()
    return to_logical(out, template.layouts(layer, target)[1], layer.out_shape[1])


def variants(template: ScheduleTemplate, layer: Layer, target: Target) -> list[Layer]:
    return [layer.variant("float32", s) for s in template.sparsities(layer, target)]


@pytest.mark.parametrize("short", [False, True], ids=["host", "narrow"])
@pytest.mark.parametrize("name", ["dense_bsr", *CONVOLUTIONS])
def test_levels_shapes_and_configs_agree_with_numpy(name: str, short: bool) -> None:
    template, target = load(name), narrow() if short else host()
    layers = DENSE_LAYERS if name == "dense_bsr" else CONV_LAYERS
    for number, layer in enumerate(layers):
        found = variants(template, layer, target)
        if name == "conv1x1_bsr" and layer.data_shape[1] < target.lanes():
            assert found == []
            continue
        assert len(found) == len(LEVELS)
        points = template.space(found[0], target).points()
        other = random.Random(number).choice(points)
        for variant, config in ((found[number % 4], None), (found[(number + 2) % 4], other)):
            operands = operands_of(variant, number)
            np.testing.assert_allclose(
                run(template, variant, target, operands, config),
                numpy_answer(variant, operands), rtol=1e-4, atol=1e-4,
                err_msg=f"{variant.describe()} {config!r}",
            )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("dense_bsr", dense(1, 40, 96)),
        ("dense_bsr", dense(5, 40, 96, EVERYTHING)),
        ("conv1x1_bsr", conv(40, 96, 5, 5, EVERYTHING)),
        ("conv1x1_bsr_nchw", conv(40, 24, 5, 5, EVERYTHING)),
    ],
)
def test_block_rows_without_any_block(name: str, layer: Layer) -> None:
    template, target = load(name), host()
    for variant in variants(template, layer, target):
        operands = operands_of(variant, 3, spoil=True)
        sparsity = BlockSparsity.parse(variant.sparsity)
        assert sparsity is not None
        rows = operands.constants.weight.reshape(-1, sparsity.rows * layer.weight_shape[1])
        assert (~rows.any(axis=1)).sum() >= len(rows) // 2
        for unroll in (1, 4):
            default = template.space(variant, target).default
            config = type(default)({**default, "unroll": unroll})
            np.testing.assert_allclose(
                run(template, variant, target, operands, config),
                numpy_answer(variant, operands), rtol=1e-4, atol=1e-4,
            )  # fmt: skip


def test_lanes_behind_the_last_channel_reach_no_result() -> None:
    template, target = load("conv1x1_bsr"), host()
    layer = variants(template, conv(20, 37, 3, 5), target)[1]
    kernel = template.build(layer, template.space(layer, target).default, target)
    operands = operands_of(layer, 0)
    arrays = kernel_arrays(template, kernel, layer, target, operands)
    arrays[0][:, -1, :, :, 20 % target.lanes() :] = np.nan
    module = _tvm.build_module(
        _tvm.tvm.IRModule({"kernel": kernel.func.with_attr("global_symbol", "kernel")}), target
    )
    arguments = [_tvm.tvm.runtime.tensor(a) for a in arrays]
    module["kernel"](*arguments)
    out = arguments[-1].numpy()
    assert np.isfinite(out).all()
    got = to_logical(out, template.layouts(layer, target)[1], 37)
    np.testing.assert_allclose(got, numpy_answer(layer, operands), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dense_bsr", *CONVOLUTIONS])
def test_constants_keep_the_contract(name: str) -> None:
    template, target = load(name), host()
    layer = dense(1, 256, 130) if name == "dense_bsr" else conv(256, 130, 14, 14)
    for variant in variants(template, layer, target):
        sparsity = BlockSparsity.parse(variant.sparsity)
        assert sparsity is not None
        kernel = template.build(variant, template.space(variant, target).default, target)
        weight, indices, indptr, splits, bias = kernel.constants(operands_of(variant, 1).constants)
        kept, rows = sparsity.kept(130, 256), sparsity.blocks(130, 256)[0]
        assert weight.shape == (kept, sparsity.rows) and weight.dtype == np.float32
        assert indices.shape == (kept,) and indices.dtype == np.uint16
        assert indptr.shape == (rows + 1,) and indptr.dtype == np.int32
        assert splits[0] == 0 and splits[-1] == rows and (np.diff(splits) >= 0).all()
        assert bias.shape == (rows, sparsity.rows) and not bias.reshape(-1)[130:].any()
        dense_bytes = 4 * 256 * 130
        assert weight.nbytes + indices.nbytes < (1.15 - sparsity.level / 100) * 1.15 * dense_bytes


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (3, 3)}, "1x1"),
        ({"padding": (1, 1, 1, 1)}, "unpadded"),
        ({"strides": (3, 3)}, "strides"),
        ({"groups": 4}, "group"),
    ],
)
def test_refused_convolutions(name: str, change: dict[str, Any], reason: str) -> None:
    template, target = load(name), host()
    good = conv(64, 64, 8, 8)
    sparsity = template.sparsities(good, target)[0]
    assert template.supports(good.variant("float32", sparsity), target) is None
    bad = good.model_copy(update=change)
    assert template.sparsities(bad, target) == ()
    assert reason in str(template.supports(bad.variant("float32", sparsity), target))


@pytest.mark.parametrize("name", ["dense_bsr", *CONVOLUTIONS])
def test_refused_variants_and_tiny_layers(name: str) -> None:
    template, target = load(name), host()
    is_dense = name == "dense_bsr"
    layer: Layer = dense(1, 64, 64) if is_dense else conv(64, 64, 4, 4)
    tiny: Layer = dense(1, 3, 4) if is_dense else conv(3, 4, 4, 4)
    assert template.sparsities(tiny, target) == ()
    assert "dense" in str(template.supports(layer, target))
    assert "2x2" in str(template.supports(layer.variant("float32", "2x2@80"), target))
    sparsity = template.sparsities(layer, target)[0]
    assert "int8" in str(template.supports(layer.variant("int8", sparsity), target))


ARM = {
    "dense_bsr": [dense(1, 512, 256), dense(16, 512, 256)],
    "conv1x1_bsr": [conv(128, 128, 28, 28), conv(128, 128, 28, 28, strides=(2, 2))],
    "conv1x1_bsr_nchw": [conv(128, 128, 28, 28), conv(128, 128, 28, 28, strides=(2, 2))],
}


@pytest.mark.parametrize("core", ["rpi3b+", "rpi4"])
@pytest.mark.parametrize("name", ARM)
def test_arm_code_multiplies_in_registers(name: str, core: str) -> None:
    template, target = load(name), load_target(core)
    for layer in ARM[name]:
        variant = variants(template, layer, target)[2]
        kernel = template.build(variant, template.space(variant, target).default, target)
        func = kernel.func.with_attr("global_symbol", "kernel")
        module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": func}), target)
        text = str(module.inspect_source("asm"))
        multiply_adds = len(re.findall(r"\bfmla\s+v\d+\.4s", text))
        body = "\n".join(inner_loop(text, "fmla"))
        stack = len(re.findall(r"\b(?:str|ldr|stp|ldp)\s+q\d+.*\[sp", body))
        assert multiply_adds >= 4 and stack == 0, (multiply_adds, stack)
        copied = name == "dense_bsr" and layer.data_shape[0] > 1
        gathered = name == "conv1x1_bsr_nchw" and layer.strides != (1, 1)  # type: ignore[union-attr]
        image = name == "conv1x1_bsr"
        assert ("AllocWorkspace" in text) == (copied or gathered or image)


def test_kernel_runs_in_a_network() -> None:
    # The constants, uint16 among them, go through Relax's memory planning and virtual machine.
    from tvmx._tvm import relax

    template, target = load("conv1x1_bsr"), host()
    layer = variants(template, conv(32, 64, 6, 7, EVERYTHING), target)[3]
    operands = operands_of(layer, 5)
    assert operands.residual is not None
    kernel = template.build(layer, template.space(layer, target).default, target)
    read, written = template.layouts(layer, target)
    bb = relax.BlockBuilder()
    inputs = [
        relax.Var(n, relax.TensorType(physical_shape(s, layout), "float32"))
        for n, s, layout in (("x", layer.data_shape, read), ("r", layer.out_shape, written))
    ]
    func = bb.add_func(kernel.func.without_attr("global_symbol"), "bsr")
    constants = [relax.const(c) for c in kernel.constants(operands.constants)]
    result = relax.TensorType(physical_shape(layer.out_shape, written), "float32")
    with bb.function("main", inputs):
        with bb.dataflow():
            call = relax.call_tir(func, [inputs[0], *constants, inputs[1]], result)
            out = bb.emit_output(bb.emit(call))
        bb.emit_func_output(out)
    arrays = [to_physical(operands.data, read), to_physical(operands.residual, written)]
    got = to_logical(execute(bb.finalize(), target, arrays)[0], written, 64)
    np.testing.assert_allclose(got, numpy_answer(layer, operands), rtol=1e-4, atol=1e-4)
