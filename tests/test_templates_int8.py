"""Dot forms: which target gets which, how weights are packed, and the arithmetic of smlal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tvmx import _tvm
from tvmx.ir import Epilogue
from tvmx.numerics import LayerConstants, Requantise, requantise
from tvmx.targets import Target, load_target
from tvmx.templates import (
    PARAMS,
    DotForm,
    dot_form,
    epilogue_constants,
    load,
    pack_dot_weight,
    requantised,
    store,
)

SMLAL = DotForm("smlal", 4, 4)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("rpi3b+", "smlal"), ("rpi4", "smlal"), ("jetson-nano", "smlal"), ("rk3399", "smlal"),
        ("aarch64", "smlal"), ("rpi5", "sdot"), ("odroid-c4", "sdot"),
        ("orion-o6", "sdot"),
    ],
)  # fmt: skip
def test_form_of_the_boards(name: str, form: str) -> None:
    target = load_target(name)
    assert target.int8_dot == form
    assert dot_form(target) == DotForm(form, 4, 4)


@pytest.mark.parametrize(
    ("bits", "features", "form", "step"),
    [
        (512, ("+avx512vnni",), "vnni512", 4),
        (512, (), "pmadd", 2),
        (256, ("+avxvnni",), "vnni256", 4),
        (256, ("+avx512vnni",), "pmadd", 2),  # 512-bit code was not asked for
        (128, ("+avx512vnni", "+avxvnni"), "pmadd", 2),
        (64, (), "none", 1),
    ],
)
def test_form_of_x86(bits: int, features: tuple[str, ...], form: str, step: int) -> None:
    target = _x86(bits, features)
    assert target.int8_dot == form
    assert dot_form(target) == DotForm(form, bits // 32, step)


def test_other_architectures_get_the_plain_form() -> None:
    target = load_target("rpi4").model_copy(update={"triple": "riscv64-linux-gnu"})
    assert dot_form(target) == DotForm("none", 4, 1)


def _x86(bits: int, features: tuple[str, ...]) -> Target:
    return load_target("rpi4").model_copy(
        update={"triple": "x86_64-linux-gnu", "vector_bits": bits, "features": features}
    )


@pytest.mark.parametrize("form", [SMLAL, DotForm("vnni512", 16, 4), DotForm("pmadd", 8, 2)])
@pytest.mark.parametrize(("o", "i", "block"), [(5, 7, 16), (16, 16, 8), (33, 4, 4)])
def test_packing_puts_each_weight_where_the_loops_look(
    form: DotForm, o: int, i: int, block: int
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (o, i, 3, 2), dtype=np.int8)
    packed = pack_dot_weight(weight, form, block)
    v, step = form.lanes, form.step
    assert packed.shape == (-(-o // v), -(-i // block), 3, 2, block // step, v * step)
    assert packed.dtype == np.int8
    for _ in range(50):
        a, b, y, x = (int(rng.integers(n)) for n in (o, i, 3, 2))
        lane = packed[a // v, b // block, y, x, b % block // step]
        assert lane.reshape(v, step)[a % v, b % step] == weight[a, b, y, x]
    assert np.abs(packed.astype(np.int64)).sum() == np.abs(weight.astype(np.int64)).sum()


def test_only_vnni_corrects_the_bias() -> None:
    weight = np.full((2, 3, 5, 5), -127, np.int8)
    correction = DotForm("vnni512", 16, 4).weight_correction(weight)
    assert correction is not None
    np.testing.assert_array_equal(correction, [128 * -127 * 75] * 2)
    assert all(DotForm(n, 4, 4).weight_correction(weight) is None for n in ("sdot", "smlal"))


def smlal_in_numpy(
    words: list[npt.NDArray[Any]], weights: list[npt.NDArray[Any]]
) -> npt.NDArray[np.int32]:
    """What ``smull``, ``smlal``, ``sadalp`` and ``addp`` make of two words, in their own widths."""
    halves = []
    for half in (slice(0, 8), slice(8, 16)):
        products = np.zeros(8, np.int16)
        for word, weight in zip(words, weights, strict=True):
            repeated = np.tile(word, 4)[half].astype(np.int16)
            products = products + repeated * weight[half].astype(np.int16)  # wraps in 16 bits
        halves.append(products.astype(np.int32).reshape(4, 2).sum(axis=1, dtype=np.int32))
    sums: npt.NDArray[np.int32] = np.concatenate(halves).reshape(4, 2).sum(axis=1, dtype=np.int32)
    return sums


@pytest.mark.parametrize("extreme", [-127, 127, None])
def test_two_products_of_smlal_fit_16_bits(extreme: int | None) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        weight = rng.integers(-127, 128, (4, 8, 1, 1), dtype=np.int8)
        data = rng.integers(-128, 128, 8, dtype=np.int8)
        if extreme is not None:
            weight[:], data[:] = extreme, -128
        packed = pack_dot_weight(weight, SMLAL, 4)[0, :, 0, 0, 0]
        got = smlal_in_numpy([data[:4], data[4:]], list(packed))
        want = weight[:, :, 0, 0].astype(np.int64) @ data.astype(np.int64)
        np.testing.assert_array_equal(got, want)


def test_a_weight_of_minus_128_would_overflow_smlal() -> None:
    # Guards the test above, and says why weights end at -127.
    weight, data = np.full((4, 8), -128, np.int8), np.full(8, -128, np.int8)
    packed = pack_dot_weight(weight[:, :, None, None], SMLAL, 4)[0, :, 0, 0, 0]
    with np.errstate(over="ignore"):
        got = smlal_in_numpy([data[:4], data[4:]], list(packed))
    assert (got != weight.astype(np.int64) @ data.astype(np.int64)).all()


@pytest.mark.parametrize("form", ["host", "rpi4"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("zero", [-128, -3, 0, 4, 127])
def test_requantisation_is_half_to_even_on_both_sides_of_the_zero_point(
    form: str, residual: bool, zero: int
) -> None:
    """Both forms, the one for Arm too, run on this machine; sums reach the ends of int32."""
    huge = [-(2**31), -(2**31) + 1, -(2**24) - 1, 2**24 + 1, 2**31 - 2, 2**31 - 1, 2**30, -(2**30)]
    sums = np.array([*range(-640, 640), *huge * 2], np.int32)
    other = np.arange(len(sums)).astype(np.int8)
    how = Requantise(
        multiplier=np.full(16, 0.5, np.float32), low=max(-100, zero), high=127,
        out_zero_point=zero, data_zero_point=0, residual_factor=0.5, residual_offset=1.0,
    )  # fmt: skip
    layer = LayerConstants(
        weight=np.zeros((16, 1), np.int8), bias=np.zeros(16, np.int32), requantise=how
    )
    params = epilogue_constants(layer, Epilogue(bias=True, residual=residual), 16)[2]
    out = _tvm.tvm.runtime.tensor(np.full(len(sums), 0x5B, np.int8))
    _requantising(len(sums), load_target(form), residual)(
        *map(_tvm.tvm.runtime.tensor, (sums, other, params)), out
    )
    expected = requantise(
        sums.reshape(-1, 16, 1, 1), how, other.reshape(-1, 16, 1, 1) if residual else None
    )
    assert np.array_equal(out.numpy(), expected.reshape(-1))


def _requantising(size: int, form: Target, residual: bool) -> Any:
    """``requantised`` in the form for a target, of every element, with the multiplier 0.5."""
    builder, tirx = _tvm.builder, _tvm.tirx
    with _tvm.IRBuilder() as ir, builder.prim_func(s_tir=True):
        builder.func_name("kernel")
        builder.func_attr({"tirx.is_scheduled": True, "global_symbol": "kernel"})
        sums = builder.arg("sums", builder.buffer((size,), "int32"))
        other = builder.arg("other", builder.buffer((size,), "int8"))
        params = builder.arg("params", builder.buffer((PARAMS,), "float32"))
        out = builder.arg("out", builder.buffer((size,), "int8"))
        with builder.serial(0, size // 16) as i:
            half = tirx.Broadcast(tirx.const(0.5, "float32"), 16)
            total = load(sums, i * 16, lanes=16)
            added = load(other, i * 16, lanes=16) if residual else None
            found = requantised(total, half, params, form, added, 16)
            store(out, found, i * 16, lanes=16)
    module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": ir.get()}), load_target("host"))
    return module["kernel"]
