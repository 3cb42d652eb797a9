"""Relay's quantised dialect: exact integers, against Python's own and against real Relay."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.network_plans import execute, host, registry
from tests.relay_files import Array, call, check, constant, load, module_json, var
from tvmx.errors import ModelError
from tvmx.frontends.relay._graph import Expr, Tuple
from tvmx.passes import baseline_plan, extract_layers, lower

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (1, 4, 5, 6)).astype(np.uint8)
Y = RNG.integers(0, 256, (1, 4, 5, 6)).astype(np.uint8)
x, y = var("x", X), var("y", Y)


def fixed_point(ratio: float) -> Fraction:
    """The 31-bit number Relay multiplies by instead of ``ratio``."""
    exponent = 0
    value = Fraction(ratio)
    while value >= 1:
        value, exponent = value / 2, exponent + 1
    while value < Fraction(1, 2):
        value, exponent = value * 2, exponent - 1
    whole = int(value * 2**31 + Fraction(1, 2))
    return Fraction(whole, 2**31) * Fraction(2) ** exponent


def rescaled(value: int, source: float, target: float, rounding: str = "UPWARD") -> int:
    if np.float32(source) == np.float32(target):
        return value
    exact = value * fixed_point(float(np.float32(source)) / float(np.float32(target)))
    if rounding == "TONEAREST" and exact < 0:
        return -int(-exact + Fraction(1, 2))
    return (exact + Fraction(1, 2)).__floor__()


def requantize(
    q: Array, scale: Any, zero: int, out_scale: float, out_zero: int, dtype: str, rounding: str = ""
) -> Array:
    """Element by element, with channels on axis 1 where there are several scales."""
    limits = np.iinfo(dtype)
    out = np.empty(q.shape, np.int64)
    for index, value in np.ndenumerate(q):
        one = float(np.ravel(scale)[index[1] if np.size(scale) > 1 else 0])
        out[index] = rescaled(int(value) - zero, one, out_scale, rounding or "UPWARD") + out_zero
    return out.clip(limits.min, limits.max).astype(dtype)


def int_conv(q: Array, zero: int, w: Array, w_zero: int, pad: int) -> Array:
    data = np.pad(q.astype(np.int64) - zero, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    weight = w.astype(np.int64) - w_zero
    rows, columns = data.shape[2] - w.shape[2] + 1, data.shape[3] - w.shape[3] + 1
    out = np.zeros((data.shape[0], w.shape[0], rows, columns), np.int64)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            part = data[:, :, i : i + rows, j : j + columns]
            out += np.einsum("nchw,oc->nohw", part, weight[:, :, i, j])
    return out.astype(np.int32)


def int_transposed(
    q: Array, zero: int, w: Array, w_zero: int, strides: tuple[int, int],
    padding: tuple[int, int, int, int], more: tuple[int, int], groups: int = 1,
) -> Array:  # fmt: skip
    """Every pixel adds the kernel (in, out, height, width) at its place; then the edges go."""
    data, weight = q.astype(np.int64) - zero, w.astype(np.int64) - w_zero
    _, _, height, width = data.shape
    parts = []
    for x, k in zip(np.split(data, groups, 1), np.split(weight, groups, 0), strict=True):
        rows, columns = (
            (size - 1) * s + kernel + m
            for size, s, kernel, m in zip((height, width), strides, k.shape[2:], more, strict=True)
        )
        out = np.zeros((len(q), k.shape[1], rows, columns), np.int64)
        for y in range(height):
            for z in range(width):
                top, left = y * strides[0], z * strides[1]
                added = np.einsum("nc,cohw->nohw", x[:, :, y, z], k)
                out[:, :, top : top + k.shape[2], left : left + k.shape[3]] += added
        parts.append(out)
    whole = np.concatenate(parts, 1)
    top, left, bottom, right = padding
    return whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]


@pytest.mark.parametrize("rounding", ["UPWARD", "TONEAREST"])
def test_requantize(rounding: str) -> None:
    q = RNG.integers(-(2**20), 2**20, (1, 4, 3, 50)).astype(np.int32)
    ties = np.arange(-100, 100, dtype=np.int32).reshape(1, 4, 5, 10)
    v, halves = var("q", q), var("ties", ties)
    scales = np.array([0.01, 0.5, 3e-5, 1.7], np.float32)
    same: dict[str, Any] = {"rounding": rounding, "axis": 1, "compute_dtype": "None"}
    check(
        {"q": q, "ties": ties},
        [
            (call("qnn.requantize", v, 0.0003, 0, 0.07, 120, out_dtype="uint8", **same),
             requantize(q, 0.0003, 0, 0.07, 120, "uint8", rounding)),
            (call("qnn.requantize", v, scales, 5, 40.0, -7, out_dtype="int8", **same),
             requantize(q, scales, 5, 40.0, -7, "int8", rounding)),
            (call("qnn.requantize", v, 0.5, 0, 0.5, 0, out_dtype="int32", **same), q),
            # Powers of two, where halves occur.
            (call("qnn.requantize", halves, 0.25, 0, 0.5, 3, out_dtype="int8", **same),
             requantize(ties, 0.25, 0, 0.5, 3, "int8", rounding)),
            (call("qnn.requantize", halves, 2.0, 1, 0.5, 0, out_dtype="int32", **same),
             requantize(ties, 2.0, 1, 0.5, 0, "int32", rounding)),
        ],
    )  # fmt: skip


def test_quantize_and_dequantize() -> None:
    data = np.array(
        [[0.05, 0.15, -0.05, -0.15, 9.0, -9.0, 0.149], [1, 2, 3, 4, 5, 6, 7]], np.float32
    )
    v = var("f", data)
    scales = np.array([0.1, 2.0], np.float32)
    want = np.sign(data) * np.floor(np.abs(data / np.float32(0.1)) + np.float32(0.5))
    channel = np.sign(data) * np.floor(np.abs(data / scales[:, None]) + np.float32(0.5))
    zeros = np.array([10, -3], np.int32)
    q = RNG.integers(-128, 128, (2, 7)).astype(np.int8)
    vq = var("q", q)
    check(
        {"f": data, "q": q},
        [
            (call("qnn.quantize", v, np.float32(0.1), 12, out_dtype="uint8", axis=-1),
             (want + 12).clip(0, 255).astype(np.uint8)),
            (call("qnn.quantize", v, scales, zeros, out_dtype="int8", axis=0),
             (channel + zeros[:, None]).clip(-128, 127).astype(np.int8)),
            (call("qnn.dequantize", vq, np.float32(0.1), 12, axis=-1, out_dtype="float32"),
             (q.astype(np.int32) - 12).astype(np.float32) * np.float32(0.1)),
            (call("qnn.dequantize", call("copy", vq), scales, zeros, axis=0,
                  out_dtype="float32"),
             (q.astype(np.int32) - zeros[:, None]).astype(np.float32) * scales[:, None]),
        ],
        tol=0,
    )  # fmt: skip


def test_convolutions_and_products() -> None:
    w = RNG.integers(-128, 128, (3, 4, 3, 3)).astype(np.int8)
    want = int_conv(X, 7, w, -2, 1)
    conv: dict[str, Any] = {"padding": (1, 1, 1, 1), "channels": 3, "kernel_size": (3, 3),
                            "out_dtype": "int32"}  # fmt: skip
    flat, dense = X.reshape(4, 30), RNG.integers(-128, 128, (5, 30)).astype(np.int8)
    zeros = np.array([1, 0, -1, 5, 3], np.int32)
    product = (flat.astype(np.int64) - 7) @ (dense.astype(np.int64) - zeros[:, None]).T
    up = RNG.integers(-9, 9, (4, 2, 2, 2)).astype(np.int8)
    wide = np.zeros((1, 2, 10, 12), np.int64)
    for i in range(2):
        for j in range(2):
            wide[:, :, i::2, j::2] = np.einsum(
                "nchw,co->nohw", X.astype(np.int64) - 7, up[:, :, i, j].astype(np.int64)
            )
    reshaped = call("reshape", x, newshape=(4, 30))
    check(
        {"x": X},
        [
            (call("qnn.conv2d", x, w, 7, -2, 0.1, 0.2, **conv), want),
            (call("qnn.conv2d", call("transpose", x, axes=(0, 2, 3, 1)),
                  w.transpose(2, 3, 1, 0).copy(), 7, -2, 0.1, 0.2, **conv, data_layout="NHWC",
                  kernel_layout="HWIO"), want.transpose(0, 2, 3, 1)),
            (call("qnn.dense", reshaped, dense, 7, zeros, 0.1, 0.2, units=5, out_dtype="int32"),
             product.astype(np.int32)),
            (call("qnn.conv2d_transpose", x, up, 7, 0, 0.1, 0.2, strides=(2, 2), padding=(0, 0),
                  kernel_layout="IOHW", out_dtype="int32"), wide.astype(np.int32)),
        ],
    )  # fmt: skip


def transposed(data: Expr, w: Array, w_zero: int, **attrs: Any) -> Expr:
    """qnn.conv2d_transpose of uint8 data with zero point 7."""
    return call("qnn.conv2d_transpose", data, w, 7, w_zero, 0.1, 0.2, out_dtype="int32", **attrs)


def test_transposed_convolutions() -> None:
    """Strides, paddings on each side, rests, groups, zero points, both layouts."""
    w = RNG.integers(-128, 128, (4, 3, 3, 4)).astype(np.int8)
    one = RNG.integers(-128, 128, (4, 1, 3, 3)).astype(np.int8)
    plain: dict[str, Any] = {"strides": (1, 1), "padding": (2, 3, 2, 3)}
    uneven: dict[str, Any] = {"strides": (3, 2), "padding": (0, 1, 2, 1)}
    grouped: dict[str, Any] = {"strides": (2, 2), "padding": (1, 1, 1, 1)}
    nhwc = {"data_layout": "NHWC", "kernel_layout": "HWOI"}
    channels_last = call("transpose", x, axes=(0, 2, 3, 1))
    want = int_transposed(X, 7, w, -5, (3, 2), (0, 1, 2, 1), (2, 1)).astype(np.int32)
    check(
        {"x": X},
        [
            (transposed(x, w, 0, **plain, output_padding=(0, 0), kernel_layout="IOHW"),
             int_transposed(X, 7, w, 0, (1, 1), (2, 3, 2, 3), (0, 0)).astype(np.int32)),
            (transposed(x, w, -5, **uneven, output_padding=(2, 1), kernel_layout="IOHW"), want),
            # What TVM before 0.9 calls OIHW.
            (transposed(x, w, -5, **uneven, output_padding=(2, 1)), want),
            (transposed(channels_last, w.transpose(2, 3, 1, 0).copy(), -5, **uneven, **nhwc,
                        output_padding=(2, 1)), want.transpose(0, 2, 3, 1)),
            (transposed(x, one, 3, **grouped, groups=4, output_padding=(1, 1),
                        kernel_layout="IOHW"),
             int_transposed(X, 7, one, 3, (2, 2), (1, 1, 1, 1), (1, 1), 4).astype(np.int32)),
        ],
    )  # fmt: skip


def test_transposed_convolutions_are_int8_layers() -> None:
    """Between two convolutions, and with uneven strides, edges cut off and one in NHWC."""
    first, last = (RNG.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8) for _ in range(2))
    up = RNG.integers(-127, 128, (4, 4, 4, 4)).astype(np.int8)
    odd = RNG.integers(-127, 128, (4, 6, 2, 3)).astype(np.int8)
    same: dict[str, Any] = {"padding": (1, 1, 1, 1), "channels": 4, "kernel_size": (3, 3),
                            "out_dtype": "int32"}  # fmt: skip
    half: dict[str, Any] = {"strides": (2, 2), "padding": (1, 1, 1, 1), "output_padding": (0, 0)}
    uneven: dict[str, Any] = {"strides": (3, 1), "padding": (2, 0, 3, 1), "output_padding": (1, 0)}

    def bytes_of(sums: Expr, source: float, axis: int = 1, rounding: str = "UPWARD") -> Expr:
        return call("qnn.requantize", sums, source, 0, 1.0, 7, axis=axis, out_dtype="uint8",
                    rounding=rounding)  # fmt: skip

    def expected(sums: Array, source: float, rounding: str = "UPWARD") -> Array:
        return requantize(sums, source, 0, 1.0, 7, "uint8", rounding)

    a = bytes_of(call("qnn.conv2d", x, first, 7, 0, 0.1, 0.2, **same), 0.003)
    b = bytes_of(transposed(a, up, 0, **half, kernel_layout="IOHW"), 0.002)
    c = bytes_of(call("qnn.conv2d", b, last, 7, 0, 0.1, 0.2, **same), 0.004)
    nhwc = {"data_layout": "NHWC", "kernel_layout": "HWOI"}
    channels_last = call("transpose", x, axes=(0, 2, 3, 1))
    # 1 / 64: halves occur.
    d = bytes_of(transposed(channels_last, odd.transpose(2, 3, 1, 0).copy(), 0, **uneven, **nhwc),
                 2.0**-6, 3, "TONEAREST")  # fmt: skip
    want = expected(int_conv(X, 7, first, 0, 1), 0.003)
    want = expected(int_transposed(want, 7, up, 0, (2, 2), (1, 1, 1, 1), (0, 0)), 0.002)
    want = expected(int_conv(want, 7, last, 0, 1), 0.004)
    other = int_transposed(X, 7, odd, 0, (3, 1), (2, 0, 3, 1), (1, 0))
    other = expected(other, 2.0**-6, "TONEAREST").transpose(0, 2, 3, 1)
    network = extract_layers(load(module_json([x], Tuple((c, d)))))
    assert [layer.workload.dtype for layer in network.graph.layers] == ["int8"] * 4
    plan = baseline_plan(network, registry(), host())
    got = execute(lower(network, plan, registry(), host()).mod, host(), [X])
    for ours, theirs in zip(got, (want, other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.unique(theirs).size > 50


def test_sums_products_and_concatenations() -> None:
    sides = (0.05, 3, 0.07, 120, 0.09, 100)

    def at_output(q: Array, scale: float, zero: int) -> Array:
        return requantize(q, scale, zero, 0.09, 100, "int32").astype(np.int64)

    left, right = at_output(X, 0.05, 3), at_output(Y, 0.07, 120)
    product = (X.astype(np.int32) - 3) * (Y.astype(np.int32) - 120)
    scale = float(np.float32(0.05) * np.float32(0.07))
    joined = [requantize(q, s, z, 0.09, 100, "uint8") for q, s, z in ((X, 0.05, 3), (Y, 0.07, 120))]
    axes = {"lhs_axis": -1, "rhs_axis": -1}
    scales, zeros = (Tuple(tuple(map(constant, values))) for values in ((0.05, 0.07), (3, 120)))
    cases: list[tuple[Expr, Array]] = [
        (call("qnn.add", x, y, *sides, **axes), (left + right - 100).clip(0, 255).astype(np.uint8)),
        (call("qnn.subtract", x, y, *sides, **axes),
         (left - right + 100).clip(0, 255).astype(np.uint8)),
        (call("qnn.mul", x, y, *sides, **axes), requantize(product, scale, 0, 0.09, 100, "uint8")),
        (call("qnn.add", x, y, 0.05, 3, 0.05, 3, 0.05, 3, **axes),
         (X.astype(int) + Y - 3).clip(0, 255).astype(np.uint8)),
        (call("qnn.concatenate", Tuple((x, y)), scales, zeros, 0.09, 100, axis=1),
         np.concatenate(joined, 1)),
    ]  # fmt: skip
    check({"x": X, "y": Y}, cases)


def test_pools_and_clips_between_quantised_layers() -> None:
    box: dict[str, Any] = {"pool_size": (2, 2), "strides": (1, 2), "padding": (0, 0)}
    windows = np.stack([X[:, :, i : i + 4, j : j + 5 : 2] for i in (0, 1) for j in (0, 1)])
    signed = np.arange(-60, 60, dtype=np.int32).reshape(X.shape)
    blocks = np.stack([signed[:, :, i : i + 4, j : j + 5 : 2] for i in (0, 1) for j in (0, 1)])
    whole = np.trunc(signed.sum((2, 3), keepdims=True) / 30).astype(np.int32)
    s = var("s", signed)
    check(
        {"x": X, "s": signed},
        [
            (call("nn.max_pool2d", x, **box), windows.max(0)),
            (call("clip", x, a_min=3.0, a_max=200.0), X.clip(3, 200)),
            (call("nn.avg_pool2d", s, **box), np.trunc(blocks.sum(0) / 4).astype(np.int32)),
            (call("nn.global_avg_pool2d", s), whole),
        ],
    )


@pytest.mark.parametrize(
    "expr, part",
    [
        (call("qnn.requantize", x, 0.1, 0, 0.0, 0, out_dtype="int8"), "output scale"),
        (call("qnn.requantize", x, 1e30, 0, 1e-30, 0, out_dtype="int8"), "ratio of scales"),
        (call("qnn.requantize", x, 0.1, 0, 0.2, 0, out_dtype="int8", rounding="DOWN"), "rounding"),
        (call("qnn.requantize", x, 0.1, 0, 0.2, 0, compute_dtype="float32"), "compute_dtype"),
        (call("qnn.requantize", x, 0.1, 0, 0.2, 0, out_dtype="float32"), "quantised type"),
        (call("qnn.quantize", x, call("exp", 1.0), 0, out_dtype="int8"), "computed"),
    ],
)
def test_what_cannot_be_exact_is_refused(expr: Expr, part: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(module_json([x], expr))
    assert part in caught.value.message
