"""int8 arithmetic against exact rationals, PyTorch and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.numerics import (
    LayerParams,
    QuantParams,
    Requantise,
    clip_to,
    dequantise,
    layer_constants,
    quantise,
    quantise_weight,
    requantise,
    rescale,
    rescale_add,
)

Array = np.ndarray[Any, Any]
EVERY = np.arange(-128, 128, dtype=np.int8)
FLOAT32 = Fraction(1, 2**24)
"""Half a unit in the last place: the relative error of one float32 rounding."""

zero_points = st.integers(-128, 127)
scales = st.floats(2.0**-60, 2.0**60, width=32)
params = st.builds(QuantParams, scales, zero_points)
ratios = st.floats(2.0**-20, 2.0**20, width=32)


def scaled(like: QuantParams, ratio: float, zero: int) -> QuantParams:
    return QuantParams(like.scale * ratio, zero)


def saturated(value: Fraction, low: int = -128, high: int = 127) -> Fraction:
    return min(max(value, Fraction(low)), Fraction(high))


def near(
    got: int, exact: Fraction, zero: int, roundings: int, more: Fraction = Fraction(0)
) -> None:
    """``got`` is ``exact`` (zero point included) rounded, after some float32 roundings."""
    slack = roundings * FLOAT32 * min(abs(exact - zero), 2**10) * 2 + more
    assert abs(got - saturated(exact)) <= Fraction(1, 2) + slack


# parameters


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6))
def test_parameters_of_a_range_hold_it_and_zero(low: float, span: float) -> None:
    high = low + span
    p = QuantParams.from_range(low, high)
    assert dequantise(np.array([p.zero_point]), p)[0] == 0
    assert quantise(np.zeros(1, np.float32), p)[0] == p.zero_point
    wide_low, wide_high = min(low, 0.0), max(high, 0.0)
    reach = [float(v) for v in dequantise(np.array([-128, 127]), p)]
    # The zero point is rounded, which moves the ends by up to half a step.
    assert reach[0] <= wide_low + 0.51 * p.scale and reach[1] >= wide_high - 0.51 * p.scale
    assert p.scale <= (wide_high - wide_low) / 255 * (1 + 1e-6)


def test_parameters_of_an_empty_range_are_usable() -> None:
    p = QuantParams.from_range(0.0, 0.0)
    assert quantise(np.array([0.0]), p)[0] == p.zero_point and np.isfinite(p.inverse)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-45])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        QuantParams(scale, 0)


@pytest.mark.parametrize("zero", [-129, 128])
def test_a_zero_point_outside_s8_is_refused(zero: int) -> None:
    with pytest.raises(ValueError, match="zero point"):
        QuantParams(1.0, zero)


def test_scales_are_float32_values() -> None:
    p = QuantParams(0.1, 0)
    assert p.scale == float(np.float32(0.1)) != 0.1
    assert p == QuantParams(np.float32(0.1), 0)


# quantise, dequantise


@given(p=params, steps=st.lists(st.floats(-400, 400), min_size=1, max_size=30))
def test_quantise_is_within_half_a_step(p: QuantParams, steps: list[float]) -> None:
    x = (np.array(steps) * p.scale).astype(np.float32)
    for got, real in zip(quantise(x, p), x, strict=True):
        exact = Fraction(float(real)) / Fraction(p.scale) + p.zero_point
        near(int(got), exact, p.zero_point, roundings=2)


@given(zero=zero_points, power=st.integers(-40, 40))
def test_ties_round_to_even(zero: int, power: int) -> None:
    p = QuantParams(2.0**power, zero)
    halves = np.arange(-300, 300) + 0.5
    got = quantise((halves * p.scale).astype(np.float32), p)
    expected = [saturated(Fraction(round(h) + zero)) for h in halves.tolist()]
    assert got.tolist() == expected


@given(p=params)
def test_every_s8_value_survives_a_round_trip(p: QuantParams) -> None:
    np.testing.assert_array_equal(quantise(dequantise(EVERY, p), p), EVERY)


@given(p=params)
def test_dequantise_is_the_nearest_float(p: QuantParams) -> None:
    exact = [np.float32((int(q) - p.zero_point) * p.scale) for q in EVERY]
    np.testing.assert_array_equal(dequantise(EVERY, p), np.array(exact, np.float32))


@given(p=params)
def test_quantise_is_monotone_and_saturates(p: QuantParams) -> None:
    x = np.sort(np.random.default_rng(0).uniform(-600, 600, 500)).astype(np.float32)
    got = quantise(x * np.float32(p.scale), p)
    assert (np.diff(got.astype(int)) >= 0).all()
    ends = quantise(np.array([-3e38, 3e38, -np.inf, np.inf], np.float32), p)
    assert ends.tolist() == [-128, 127, -128, 127]


@pytest.mark.parametrize(("scale", "zero"), [(0.05, 3), (0.25, -128), (3.7e-4, 127), (1e6, 0)])
def test_quantise_equals_pytorch(scale: float, zero: int) -> None:
    import torch

    p = QuantParams(scale, zero)
    x = np.random.default_rng(0).uniform(-150, 150, 20_000).astype(np.float32) * np.float32(scale)
    tensor = torch.from_numpy(x)
    fake = torch.fake_quantize_per_tensor_affine(tensor, p.scale, zero, -128, 127).numpy()
    np.testing.assert_array_equal(dequantise(quantise(x, p), p), fake)


# weights


@given(channels=st.integers(1, 5), inner=st.integers(1, 40), power=st.integers(-60, 60))
def test_weights_are_symmetric_and_within_half_a_step(
    channels: int, inner: int, power: int
) -> None:
    rng = np.random.default_rng(channels * 100 + inner)
    weight = (rng.standard_normal((channels, inner)) * 2.0**power).astype(np.float32)
    quantised, scale = quantise_weight(weight)
    assert quantised.dtype == np.int8 and np.abs(quantised.astype(int)).max() == 127
    assert (np.abs(quantised.astype(int)).max(axis=1) == 127).all()
    error = np.abs(weight - quantised * scale[:, None].astype(np.float64))
    assert (error <= scale[:, None] * (0.5 + 1e-4)).all()
    negated, same = quantise_weight(-weight)
    np.testing.assert_array_equal(negated, -quantised)
    np.testing.assert_array_equal(same, scale)


def test_weights_of_zero_and_of_almost_nothing() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[1], weight[2, 0] = 1e-40, 5.0
    quantised, scale = quantise_weight(weight)
    assert quantised[0].max() == 0 and scale[0] == 1
    assert np.abs(quantised[1].astype(int)).max() <= 127 and np.isfinite(scale).all()
    assert quantised[2, 0, 0, 0] == 127


# rescale


@given(source=params, ratio=ratios, zero=zero_points)
def test_rescale_is_within_half_a_step(source: QuantParams, ratio: float, zero: int) -> None:
    out = scaled(source, ratio, zero)
    for q, got in zip(EVERY.tolist(), rescale(EVERY, source, out).tolist(), strict=True):
        exact = (q - source.zero_point) * Fraction(source.scale) / Fraction(out.scale) + zero
        near(got, exact, zero, roundings=2)


@given(p=params)
def test_rescale_to_the_same_parameters_changes_nothing(p: QuantParams) -> None:
    np.testing.assert_array_equal(rescale(EVERY, p, p), EVERY)


@given(p=params, shift=st.integers(-3, 3))
def test_rescale_by_powers_of_two_rounds_half_to_even(p: QuantParams, shift: int) -> None:
    out = scaled(p, 2.0**shift, 0)
    got = rescale(EVERY, p, out)
    exact = [Fraction(int(q) - p.zero_point) * Fraction(2) ** -shift for q in EVERY]
    if p != out:
        assert got.tolist() == [saturated(Fraction(round(e))) for e in exact]


@given(a=params, ra=ratios, ro=ratios, zeros=st.tuples(zero_points, zero_points),
       seed=st.integers(0, 1000))  # fmt: skip
def test_rescaled_sum_is_within_half_a_step(
    a: QuantParams, ra: float, ro: float, zeros: tuple[int, int], seed: int
) -> None:
    b, out = scaled(a, ra, zeros[0]), scaled(a, ro, zeros[1])
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-128, 128, 20, dtype=np.int8) for _ in range(2))
    for p, q, got in zip(x, y, rescale_add(x, a, y, b, out), strict=True):
        left = (int(p) - a.zero_point) * Fraction(a.scale) / Fraction(out.scale)
        right = (int(q) - b.zero_point) * Fraction(b.scale) / Fraction(out.scale)
        # Factors, the zero points' offset and two sums are rounded to float32.
        zeros_at = abs(a.zero_point * Fraction(a.scale) / Fraction(out.scale)) + abs(
            b.zero_point * Fraction(b.scale) / Fraction(out.scale)
        )
        slack = 6 * FLOAT32 * (abs(left) + abs(right) + 2 * zeros_at + 256)
        exact = saturated(left + right + out.zero_point)
        assert abs(int(got) - exact) <= Fraction(1, 2) + slack


def test_equal_parameters_add_as_integers() -> None:
    p = QuantParams(0.3, 11)
    x, y = np.repeat(EVERY, 256), np.tile(EVERY, 256)
    expected = np.clip(x.astype(int) + y.astype(int) - 11, -128, 127)
    np.testing.assert_array_equal(rescale_add(x, p, y, p, p), expected)


def test_opposite_numbers_cancel_at_any_likely_scale() -> None:
    tiny, large, out = QuantParams(2.0**-60, 0), QuantParams(2.0**10, 0), QuantParams(1.0, -5)
    x = EVERY[1:]
    assert (rescale_add(x, large, -x, large, out) == -5).all()
    assert (rescale_add(x, tiny, x, tiny, out) == -5).all()


# accumulators


def how(multiplier: Sequence[float], **fields: Any) -> Requantise:
    defaults = {"data_zero_point": 0, "out_zero_point": 0, "low": -128, "high": 127}
    return Requantise(multiplier=np.array(multiplier, np.float32), **{**defaults, **fields})


@given(
    multiplier=st.floats(2.0**-31, 1.0, width=32), zero=zero_points,
    accumulators=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=30),
    bounds=st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
)  # fmt: skip
def test_requantised_accumulators_are_within_half_a_step(
    multiplier: float, zero: int, accumulators: list[int], bounds: tuple[int, int]
) -> None:
    low, high = sorted(bounds)
    got = requantise(
        np.array(accumulators).reshape(-1, 1),
        how([multiplier], out_zero_point=zero, low=low, high=high),
    )
    for value, out in zip(accumulators, got[:, 0].tolist(), strict=True):
        exact = value * Fraction(multiplier) + zero
        # The accumulator and the product are rounded to float32 once each.
        slack = 4 * FLOAT32 * min(abs(exact - zero), 2**10)
        assert abs(out - saturated(exact, low, high)) <= Fraction(1, 2) + slack


@given(
    multiplier=st.floats(2.0**-24, 0.25, width=32), factor=st.floats(2.0**-8, 2.0**12, width=32),
    zeros=st.tuples(zero_points, zero_points), seed=st.integers(0, 1000),
)  # fmt: skip
def test_requantised_sums_with_a_residual(
    multiplier: float, factor: float, zeros: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sums = rng.integers(-(2**20), 2**20, (20, 1))
    residual = rng.integers(-128, 128, (20, 1), dtype=np.int8)
    offset = np.float32(zeros[0]) - np.float32(factor) * np.float32(zeros[1])
    record = how([multiplier], out_zero_point=zeros[0], residual_offset=float(offset),
                 residual_factor=float(np.float32(factor)), low=-100, high=90)  # fmt: skip
    results = requantise(sums, record, residual)[:, 0]
    for total, other, got in zip(sums[:, 0], residual[:, 0], results, strict=True):
        main = int(total) * Fraction(multiplier)
        more = (int(other) - zeros[1]) * Fraction(record.residual_factor)
        slack = 6 * FLOAT32 * (abs(main) + abs(more) + 300 * Fraction(factor) + 300)
        exact = saturated(main + more + zeros[0], -100, 90)
        assert abs(int(got) - exact) <= Fraction(1, 2) + slack


def test_channels_have_their_own_multipliers() -> None:
    sums = np.full((2, 3, 2, 2), 1000)
    got = requantise(sums, how([0.001, 0.01, 0.1], out_zero_point=2))
    assert got[:, 0].ravel().tolist() == [3] * 8 and got[:, 1].ravel().tolist() == [12] * 8
    assert got[:, 2].ravel().tolist() == [102] * 8


def test_requantising_ties_to_even_and_saturates() -> None:
    sums = np.array([1, 3, 5, -1, -3, 10**9, -(10**9)]).reshape(-1, 1)
    assert requantise(sums, how([0.5]))[:, 0].tolist() == [0, 2, 2, 0, -2, 127, -128]


# layers


def dense(**epilogue: Any) -> DenseWorkload:
    return DenseWorkload(batch=3, in_features=20, out_features=7, epilogue=Epilogue(**epilogue))


def constants_of(workload: Any, params: LayerParams, seed: int = 0) -> tuple[Any, Array, Array]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(workload.weight_shape).astype(np.float32)
    bias = rng.standard_normal(workload.weight_shape[0]).astype(np.float32)
    return layer_constants(workload, weight, bias, params), weight, bias


@given(data=params, ratio=st.floats(0.01, 100), zero=zero_points)
def test_folded_bias_makes_raw_sums_real(data: QuantParams, ratio: float, zero: int) -> None:
    """sum of q * w + bias is (sum of real x * real w + real bias) in units of the sum's scale."""
    layer, _, bias = constants_of(dense(bias=True), LayerParams(data, scaled(data, ratio, zero)))
    q = np.random.default_rng(1).integers(-128, 128, 20)
    assert layer.bias is not None
    raw = layer.weight.astype(int) @ q + layer.bias
    step = data.scale * quantise_weight(constants_of(dense(), LayerParams(data, data))[1])[1]
    centred = layer.weight.astype(int) @ (q - data.zero_point)
    exact = centred + bias / step.astype(np.float64)
    inside = np.abs(bias / step.astype(np.float64)) < 2**30
    assert (np.abs(raw - exact)[inside] <= 0.5 + 1e-6 * np.abs(exact)[inside]).all()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_no_sum_of_a_layer_can_overflow(scale: float) -> None:
    data = QuantParams(scale, -128)
    workload = DenseWorkload(
        batch=1, in_features=4096, out_features=3, epilogue=Epilogue(bias=True)
    )
    weight = np.full(workload.weight_shape, 1.0, np.float32)
    bias = np.array([3e30, -3e30, 0], np.float32)
    layer = layer_constants(workload, weight, bias, LayerParams(data, data))
    assert layer.bias is not None and layer.bias.dtype == np.int32
    reach = 128 * np.abs(layer.weight.astype(np.int64)).sum(axis=1)
    assert (np.abs(layer.bias.astype(np.int64)) + reach < 2**31).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(None, None, (-128, 127)), (0.0, None, (10, 127)), (0.0, 6.0, (10, 70)),
     (-1.0, 1.0, (0, 20)), (0.0, 1e30, (10, 127)), (-1e30, 0.0, (-128, 10)),
     (3.0, None, (40, 127))],
)  # fmt: skip
def test_clip_bounds(low: float | None, high: float | None, expected: tuple[int, int]) -> None:
    assert clip_to(low, high, QuantParams(0.1, 10)) == expected


def test_layer_multiplier_is_the_ratio_of_scales() -> None:
    params = LayerParams(QuantParams(0.02, 4), QuantParams(0.3, -9), QuantParams(0.06, 5))
    layer, weight, _ = constants_of(dense(bias=True, residual=True), params)
    assert layer.requantise is not None
    _, scale = quantise_weight(weight)
    exact = params.data.scale * scale.astype(np.float64) / params.out.scale
    np.testing.assert_allclose(layer.requantise.multiplier, exact, rtol=2**-23)
    ratio = params.residual.scale / params.out.scale if params.residual else 0
    assert layer.requantise.residual_factor == pytest.approx(ratio, rel=2**-22)
    assert layer.requantise.residual_offset == pytest.approx(-9 - ratio * 5, rel=2**-20)


def test_quantised_layer_is_near_the_float_layer() -> None:
    """End to end: the error of an int8 convolution is of the order of its roundings."""
    from torch import from_numpy
    from torch.nn import functional

    workload = Conv2dWorkload(
        batch=2, in_channels=6, height=9, width=7, out_channels=5, kernel=(3, 3),
        padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True, clip_min=0.0),
    )  # fmt: skip
    params = LayerParams(QuantParams.from_range(-3, 3), QuantParams.from_range(0, 20))
    layer, weight, bias = constants_of(workload, params)
    q = np.random.default_rng(1).integers(-128, 128, workload.data_shape, dtype=np.int8)
    got = dequantise(integer_convolution(q, layer, 1), params.out)
    real = functional.conv2d(
        from_numpy(dequantise(q, params.data)), from_numpy(weight), from_numpy(bias), padding=1
    )
    expected = np.clip(real.numpy(), 0, 20)
    # 54 weights, each half a step of max |w| / 127 off, met by data below 3.
    bound = 0.5 * params.out.scale + 0.5 * 54 * 3 * np.abs(weight).max() / 127
    assert np.abs(got - expected).max() <= bound
    assert np.abs(got - expected).mean() <= params.out.scale


def integer_convolution(q: Array, layer: Any, padding: int) -> Array:
    """The accumulators of a stride-1 convolution in int64, by loops over the kernel; s8 out."""
    record = layer.requantise
    widths = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    image = np.pad(q.astype(np.int64), widths, constant_values=record.data_zero_point)
    o, _, kh, kw = layer.weight.shape
    rows, columns = image.shape[2] - kh + 1, image.shape[3] - kw + 1
    sums = np.zeros((len(q), o, rows, columns), np.int64) + layer.bias.reshape(1, -1, 1, 1)
    for y in range(kh):
        for x in range(kw):
            part = image[:, :, y : y + rows, x : x + columns]
            sums += np.einsum("nchw,oc->nohw", part, layer.weight[:, :, y, x].astype(np.int64))
    return requantise(sums, record)


# ONNX Runtime


def onnx_run(nodes: list[Any], feeds: dict[str, Array], constants: dict[str, Array]) -> Array:
    runtime = pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    output = helper.make_empty_tensor_value_info("y")
    initializers = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, feeds)[0]
    return result


def onnx_params(name: str, p: QuantParams) -> dict[str, Array]:
    return {f"{name}_s": np.float32(p.scale), f"{name}_z": np.int8(p.zero_point)}  # type: ignore[dict-item]


@pytest.mark.parametrize("p", [QuantParams(0.037, 5), QuantParams(0.5, -128)])
def test_quantise_and_dequantise_equal_onnx_runtime(p: QuantParams) -> None:
    from onnx import helper

    x = np.random.default_rng(0).uniform(-200, 200, 5000).astype(np.float32) * np.float32(p.scale)
    constants = onnx_params("p", p)
    node = helper.make_node("QuantizeLinear", ["x", "p_s", "p_z"], ["y"])
    got = onnx_run([node], {"x": x}, constants).astype(int)
    # It divides by the scale where tvmx multiplies by the inverse: near ties they may differ.
    off = np.abs(got - quantise(x, p))
    assert off.max() <= 1 and off.mean() < 1e-3
    node = helper.make_node("DequantizeLinear", ["x", "p_s", "p_z"], ["y"])
    np.testing.assert_array_equal(onnx_run([node], {"x": EVERY}, constants), dequantise(EVERY, p))


def test_layer_equals_onnx_runtime_qlinearconv() -> None:
    from onnx import helper

    workload = Conv2dWorkload(
        batch=1, in_channels=8, height=11, width=9, out_channels=6, kernel=(3, 3),
        padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True),
    )  # fmt: skip
    params = LayerParams(QuantParams(0.03, 7), QuantParams(0.21, -20))
    layer, weight, bias = constants_of(workload, params)
    q = np.random.default_rng(1).integers(-128, 128, workload.data_shape, dtype=np.int8)
    quantised, scale = quantise_weight(weight)
    integer_bias = np.rint(bias / (np.float64(params.data.scale) * scale)).astype(np.int32)
    names = ["x", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=[1, 1, 1, 1])
    constants = {
        **onnx_params("x", params.data), **onnx_params("y", params.out), "w": quantised,
        "w_s": scale, "w_z": np.zeros(6, np.int8), "b": integer_bias,
    }  # fmt: skip
    expected = onnx_run([node], {"x": q}, constants).astype(int)
    got = integer_convolution(q, layer, 1)
    assert len(np.unique(got)) > 20 and np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 1e-2
