"""int8 operators between layers: TE computes, NumPy and exact arithmetic agree to the bit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.network_plans import execute, host, narrow
from tvmx._tvm import build_module, relax, te, tvm
from tvmx.errors import BuildError
from tvmx.ir import block_of, dtype_of, physical_shape, to_logical, to_physical
from tvmx.numerics import (
    Pool2d,
    QuantParams,
    add_int8,
    avg_pool_int8,
    clip_int8,
    concat_int8,
    dequantise,
    max_pool_int8,
    mean_int8,
    quantise,
)
from tvmx.passes import _int8_ops as ops
from tvmx.passes import finish_relax
from tvmx.passes._default_schedule import default_schedule

Array = np.ndarray[Any, Any]
A, B, OUT = QuantParams(0.05, 3), QuantParams(0.021, -70), QuantParams(0.06, 117)
EXTREME = QuantParams(2.0**-40, -128)
SHAPES = [(2, 11, 9, 7), (1, 16, 5, 5), (2, 5, 1, 1)]
FORMS = ["NCHW/s8", "NCHW4c/s8", "NCHW16c/s8"]


def any_int8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)


def stored(logical: Array, form: str) -> Array:
    """In memory as ``form``, padding lanes full of rubbish."""
    v = block_of(form)
    if v is None or logical.shape[1] % v == 0:
        return to_physical(logical, form)
    rubbish = np.full((logical.shape[0], v, *logical.shape[2:]), 77, logical.dtype)
    filled = np.concatenate([logical, rubbish], axis=1)
    return to_physical(filled, form)[:, : -(-logical.shape[1] // v)]


def run(compute: Callable[..., Any], arrays: Sequence[Array]) -> Array:
    """The compute under tvmx's default schedule for vectors of four floats."""
    inputs = [te.placeholder(a.shape, str(a.dtype), f"x{i}") for i, a in enumerate(arrays)]
    out = compute(*inputs)
    func = default_schedule(te.create_prim_func([*inputs, out]), 4)
    compiled = build_module(tvm.IRModule({"f": func.with_attr("global_symbol", "f")}), narrow())
    got = tvm.runtime.tensor(np.zeros([int(d) for d in out.shape], str(out.dtype)))
    compiled["f"](*map(tvm.runtime.tensor, arrays), got)
    result: Array = got.numpy()
    return result


def same(got: Array, expected: Array, form: str = "NCHW/s8") -> None:
    """``got`` in ``form`` equals the logical ``expected``; padding lanes do not count."""
    logical = to_logical(got, form, expected.shape[1])
    assert logical.dtype == expected.dtype
    np.testing.assert_array_equal(logical, expected)


# element-wise


@pytest.mark.parametrize("shape", [(2, 11, 9, 7), (3, 13), (1, 2, 4, 4, 16)])
@pytest.mark.parametrize("params", [A, B, EXTREME])
def test_quantise_and_dequantise(shape: tuple[int, ...], params: QuantParams) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x *= np.float32(params.scale * 90)
    x.reshape(-1)[:5] = np.float32(params.scale) * np.array([0.5, 1.5, -0.5, 1e6, -1e6])
    np.testing.assert_array_equal(
        run(lambda t: ops.quantise_te(t, params), [x]), quantise(x, params)
    )
    q = any_int8(*shape)
    np.testing.assert_array_equal(
        run(lambda t: ops.dequantise_te(t, params), [q]), dequantise(q, params)
    )


LAYOUTS = ["NCHW", "NCHW4c", "NCHW16c"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("source", "destination"), list(itertools.product(LAYOUTS, LAYOUTS)))
@pytest.mark.parametrize("types", ["s8 to f32", "f32 to s8", "s8 to s8"])
def test_convert(source: str, destination: str, types: str, shape: tuple[int, ...]) -> None:
    q = any_int8(*shape)
    if types == "s8 to f32":
        source, x, expected = f"{source}/s8", q, dequantise(q, A)
    elif types == "f32 to s8":
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * np.float32(4)
        destination, expected = f"{destination}/s8", quantise(x, A)
    else:
        source, destination, x, expected = f"{source}/s8", f"{destination}/s8", q, q
    got = run(lambda t: ops.convert(t, shape, source, destination, A), [stored(x, source)])
    assert str(got.dtype) == dtype_of(destination)
    np.testing.assert_array_equal(to_logical(got, destination, shape[1]), expected)


@pytest.mark.parametrize("destination", ["NCHW16c", "NCHW16c/s8"])
def test_convert_never_reads_past_the_tensor(destination: str) -> None:
    """The simplifier once proved the bound away: lanes without a channel read what lay behind."""
    shape = (1, 3, 64, 64)
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    got = run(lambda t: ops.convert(t, shape, "NCHW", destination, A), [x])
    last = quantise(x[:, 2], A) if destination.endswith("s8") else x[:, 2]
    for lane in range(3, 16):
        np.testing.assert_array_equal(got[:, 0, :, :, lane], last)


def test_convert_of_matrices() -> None:
    x = np.random.default_rng(0).standard_normal((3, 13)).astype(np.float32)
    got = run(lambda t: ops.convert(t, x.shape, "NC", "NC/s8", A), [x])
    np.testing.assert_array_equal(got, quantise(x, A))


def test_convert_without_a_scale_is_refused() -> None:
    x = te.placeholder((1, 4, 2, 2), "float32")
    with pytest.raises(BuildError, match="needs a scale"):
        ops.convert(x, (1, 4, 2, 2), "NCHW", "NCHW4c/s8", None)


@pytest.mark.parametrize("params", [(A, B, OUT), (A, A, A), (EXTREME, A, EXTREME), (A, B, EXTREME)])
@pytest.mark.parametrize("bounds", [(-128, 127), (-3, 40)])
def test_add(params: tuple[QuantParams, ...], bounds: tuple[int, int]) -> None:
    a, b, out = params
    x = np.repeat(np.arange(-128, 128, dtype=np.int8), 256).reshape(1, 16, 64, 64)
    y = np.tile(np.arange(-128, 128, dtype=np.int8), 256).reshape(1, 16, 64, 64)
    expected = add_int8(x, a, y, b, out, *bounds)
    got = run(lambda s, t: ops.add_te(s, a, t, b, out, *bounds), [x, y])
    np.testing.assert_array_equal(got, expected)
    for i in range(0, x.size, 997):
        p, q = int(x.flat[i]), int(y.flat[i])
        real = (p - a.zero_point) * Fraction(a.scale) + (q - b.zero_point) * Fraction(b.scale)
        exact = real / Fraction(out.scale) + out.zero_point
        # Half a step, half of 2**-8 twice, and the factors' float32 rounding.
        near = Fraction(1, 2) + Fraction(1, 2**8) + abs(exact) * Fraction(1, 2**22)
        bounded = min(max(exact, bounds[0]), bounds[1])
        assert abs(int(expected.flat[i]) - bounded) <= near


def test_clip() -> None:
    x = any_int8(2, 3, 5, 7)
    expected = np.array([min(max(int(v), -9), 30) for v in x.flat]).reshape(x.shape)
    np.testing.assert_array_equal(clip_int8(x, -9, 30), expected)
    same(run(lambda t: ops.clip_te(t, -9, 30), [x]), clip_int8(x, -9, 30))


# concat


@pytest.mark.parametrize(
    ("form", "channels"),
    [("NCHW/s8", (3, 11, 1)), ("NCHW4c/s8", (4, 12, 8)), ("NCHW16c/s8", (32, 16, 16))],
)
def test_concat(form: str, channels: tuple[int, ...]) -> None:
    parts = [any_int8(2, c, 5, 7, seed=c) for c in channels]
    params = [A, OUT, B]
    expected = concat_int8(parts, params, OUT)
    got = run(lambda *t: ops.concat_te(t, params, OUT, form), [stored(p, form) for p in parts])
    same(got, expected, form)
    start = 0
    for part, how in zip(parts, params, strict=True):
        real = (part.astype(np.float64) - how.zero_point) * how.scale
        exact = np.clip(real / OUT.scale + OUT.zero_point, -128, 127)
        assert np.abs(expected[:, start : start + part.shape[1]] - exact).max() <= 0.5 + 1e-4
        start += part.shape[1]
    np.testing.assert_array_equal(expected[:, channels[0] : sum(channels[:2])], parts[1])


# pools


POOLS = [
    Pool2d((3, 3), (2, 2), (1, 1, 1, 1)),
    Pool2d((3, 2), (1, 2), (1, 0, 2, 1), count_include_pad=True),
    Pool2d((3, 3), (2, 2), (0, 0, 0, 0), ceil_mode=True),
    Pool2d((2, 3), (3, 2), (0, 1, 1, 0), ceil_mode=True, count_include_pad=True),
    Pool2d((2, 3), (1, 1), (1, 3, 0, 2), dilation=(2, 3)),
    Pool2d((1, 1), (2, 2), (0, 0, 0, 0)),
    Pool2d((1, 1), (3, 3), (1, 1, 1, 1), ceil_mode=True),  # windows of padding alone
]
IMAGES = [(2, 11, 9, 7), (1, 4, 8, 8)]


Pixels = list[tuple[int, int]]


def windows(pool: Pool2d, size: tuple[int, int]) -> list[list[tuple[Pixels, int]]]:
    """For each output position the pixels of the image under its window, and how many taps
    fall on the image and its padding; in plain loops."""
    rows, columns = pool.out_size(*size)
    top, left, bottom, right = pool.padding

    def window(y: int, x: int) -> tuple[Pixels, int]:
        taps = itertools.product(range(pool.kernel[0]), range(pool.kernel[1]))
        met = [
            (y * pool.strides[0] - top + i * pool.dilation[0],
             x * pool.strides[1] - left + j * pool.dilation[1]) for i, j in taps
        ]  # fmt: skip
        padded = [p for p in met if p[0] < size[0] + bottom and p[1] < size[1] + right]
        return [p for p in met if 0 <= p[0] < size[0] and 0 <= p[1] < size[1]], len(padded)

    return [[window(y, x) for x in range(columns)] for y in range(rows)]


def slow_max(data: Array, pool: Pool2d) -> Array:
    grid = windows(pool, data.shape[2:])
    return np.array(
        [[[[max((int(c[p]) for p in w), default=-128) for w, _ in row] for row in grid]
          for c in n] for n in data], np.int8
    )  # fmt: skip


def slow_average(data: Array, params: QuantParams, pool: Pool2d) -> Array:
    """Exact rational averages, rounded half to even by Python."""
    zero = params.zero_point

    def one(channel: Array, pixels: Pixels, padded: int) -> int:
        count = max(padded if pool.count_include_pad else len(pixels), 1)
        mean = round(Fraction(sum(int(channel[p]) - zero for p in pixels), count))
        return min(max(mean + zero, -128), 127)

    grid = windows(pool, data.shape[2:])
    return np.array(
        [[[[one(c, *w) for w in row] for row in grid] for c in n] for n in data], np.int8
    )


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_numpy_pools_equal_plain_loops(pool: Pool2d, shape: tuple[int, ...]) -> None:
    data = any_int8(*shape)
    np.testing.assert_array_equal(max_pool_int8(data, pool), slow_max(data, pool))
    for params in (A, B):
        np.testing.assert_array_equal(
            avg_pool_int8(data, params, pool), slow_average(data, params, pool)
        )


def test_numpy_pools_equal_pytorch() -> None:
    import torch
    from torch.nn import functional

    data = any_int8(2, 5, 13, 11)
    real = torch.from_numpy(data.astype(np.float32))
    pool = Pool2d((3, 3), (2, 2), (1, 1, 1, 1))
    expected = functional.max_pool2d(real, 3, 2, 1).numpy().astype(np.int8)
    np.testing.assert_array_equal(max_pool_int8(data, pool), expected)
    ceil = Pool2d((3, 3), (2, 2), ceil_mode=True)
    expected = functional.max_pool2d(real[..., :12, :10], 3, 2, ceil_mode=True).numpy()
    np.testing.assert_array_equal(max_pool_int8(data[..., :12, :10], ceil), expected)
    for include, up in itertools.product((False, True), (False, True)):
        how = Pool2d((3, 3), (3, 3), (1, 1, 1, 1), ceil_mode=up, count_include_pad=include)
        mean = functional.avg_pool2d(real - A.zero_point, 3, 3, 1, up, include)
        expected = np.clip(np.rint(mean.numpy()) + A.zero_point, -128, 127).astype(np.int8)
        np.testing.assert_array_equal(avg_pool_int8(data, A, how), expected)


def float_pool(data: Array, pool: Pool2d, kind: str) -> Array:
    """TVM's own pooling of floats, which layers outside int8 go through."""
    from tvmx._tvm import topi

    return run(
        lambda t: topi.nn.pool2d(
            t, list(pool.kernel), list(pool.strides), list(pool.dilation), list(pool.padding),
            kind, pool.ceil_mode, "NCHW", pool.count_include_pad,
        ),
        [data.astype(np.float32)],
    )  # fmt: skip


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_geometry_is_that_of_float_pools(pool: Pool2d) -> None:
    data = any_int8(2, 4, 9, 7)
    expected = np.maximum(float_pool(data, pool, "max"), -128)
    np.testing.assert_array_equal(max_pool_int8(data, pool), expected)
    zero = QuantParams(1.0, 0)
    expected = np.rint(float_pool(data, pool, "avg"))
    np.testing.assert_array_equal(avg_pool_int8(data, zero, pool), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools(pool: Pool2d, form: str) -> None:
    data = any_int8(*IMAGES[0])
    physical = stored(data, form)
    same(run(lambda t: ops.max_pool_te(t, pool), [physical]), max_pool_int8(data, pool), form)
    got = run(lambda t: ops.avg_pool_te(t, B, pool, B), [physical])
    same(got, avg_pool_int8(data, B, pool), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mean(shape: tuple[int, ...], form: str) -> None:
    data = any_int8(*shape)
    expected = mean_int8(data, A)
    same(run(lambda t: ops.mean_te(t, A, A), [stored(data, form)]), expected, form)
    count = shape[2] * shape[3]
    for n, c in itertools.product(range(shape[0]), range(shape[1])):
        exact = Fraction(int(data[n, c].astype(np.int64).sum()) - count * A.zero_point, count)
        assert expected[n, c, 0, 0] == round(exact) + A.zero_point


def test_averages_round_half_to_even() -> None:
    data = np.array([[[[1, 2], [3, 4]], [[-1, -2], [-3, -4]], [[0, 1], [1, 0]]]], np.int8)
    zero = QuantParams(1.0, 0)
    expected = np.array([2, -2, 0], np.int8).reshape(1, 3, 1, 1)  # of 2.5, -2.5 and 0.5
    np.testing.assert_array_equal(mean_int8(data, zero), expected)
    np.testing.assert_array_equal(avg_pool_int8(data, zero, Pool2d((2, 2))), expected)
    same(run(lambda t: ops.mean_te(t, zero, zero), [data]), expected)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    flags=st.tuples(st.booleans(), st.booleans()),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    zero=st.integers(-128, 127),
)
def test_any_pool_equals_plain_loops(
    kernel: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int, int, int],
    dilation: tuple[int, int], flags: tuple[bool, bool], size: tuple[int, int], zero: int,
) -> None:  # fmt: skip
    pool = Pool2d(kernel, strides, padding, dilation, *flags)
    if min(pool.out_size(*size)) < 1:
        return
    data = any_int8(1, 2, *size, seed=zero + 128)
    params = QuantParams(0.1, zero)
    np.testing.assert_array_equal(max_pool_int8(data, pool), slow_max(data, pool))
    np.testing.assert_array_equal(
        avg_pool_int8(data, params, pool), slow_average(data, params, pool)
    )


# as the lowering uses them


def test_chain_through_relax_fusion() -> None:
    pool = Pool2d((3, 3), (2, 2), (1, 1, 1, 1))
    form, shape = "NCHW16c/s8", (1, 32, 12, 12)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    bb = relax.BlockBuilder()
    var = relax.Var("x", relax.TensorType(shape, "float32"))

    def emit(compute: Callable[..., Any], *args: Any) -> Any:
        return bb.emit(bb.call_te(compute, *args))

    with bb.function("main", [var]):
        with bb.dataflow():
            q = emit(lambda t: ops.convert(t, shape, "NCHW", form, A), var)
            m = emit(lambda t: ops.max_pool_te(t, pool), q)
            a = emit(lambda t: ops.avg_pool_te(t, A, pool, A), q)
            s = emit(lambda t, u: ops.add_te(t, A, u, A, B), m, a)
            c = emit(lambda t, u: ops.concat_te([t, u], [B, A], OUT, form), s, m)
            k = emit(lambda t: ops.clip_te(t, 10, 120), c)
            g = emit(lambda t: ops.mean_te(t, OUT, OUT), k)
            f = emit(lambda t: ops.convert(t, (1, 64, 1, 1), form, "NCHW", OUT), g)
            out = bb.emit_output(f)
        bb.emit_func_output(out)
    (got,) = execute(finish_relax(bb.finalize(), host()), host(), [x])
    q = quantise(x, A)
    m, a = max_pool_int8(q, pool), avg_pool_int8(q, A, pool)
    c = concat_int8([add_int8(m, A, a, A, B), m], [B, A], OUT)
    expected = dequantise(mean_int8(clip_int8(c, 10, 120), OUT), OUT)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("operator", ["quantise", "add", "rescale", "average"])
def test_rounding_stays_in_vectors(operator: str) -> None:
    """TVM scalarises a whole vector loop around a call it does not know."""
    shape = physical_shape((1, 32, 8, 8), "NCHW4c/s8")
    x = te.placeholder(shape, "float32" if operator == "quantise" else "int8", "x")
    out = {
        "quantise": lambda: ops.quantise_te(x, A),
        "add": lambda: ops.add_te(x, A, x, B, OUT),
        "rescale": lambda: ops.concat_te([x, x], [A, B], OUT, "NCHW4c/s8"),
        "average": lambda: ops.avg_pool_te(x, A, Pool2d((2, 2), (2, 2)), A),
    }[operator]()
    func = default_schedule(te.create_prim_func([x, out]), 4).with_attr("global_symbol", "f")
    code = build_module(tvm.IRModule({"f": func}), narrow()).inspect_source("ll")
    rounder = r"fadd (float|<\d+ x float>) .*, (?:splat \(float )?0x4168000000000000"
    assert set(re.findall(rounder, code)) == {"<4 x float>"}
