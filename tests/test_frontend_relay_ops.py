"""Relay's operators against NumPy and torch, through JSON files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as tf

from tests.relay_files import Array, call, check, load, module_json, run, var
from tvmx.errors import ModelError
from tvmx.frontends.relay._graph import Expr, Tuple, TupleGetItem
from tvmx.frontends.relay._ops import ARGUMENTS
from tvmx.frontends.relay._shape_rules import reshaped, slice_bounds


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def t(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def nhwc(array: Array) -> Array:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


X = normal(1, 6, 9, 8)
x = var("x", X)
XL = nhwc(X)
xl = var("xl", XL)


def test_every_operator_has_a_rule() -> None:
    from tvmx.frontends.relay._import import RULES

    assert set(RULES) == set(ARGUMENTS)


def test_convolutions() -> None:
    w, depth = normal(8, 6, 3, 2, seed=1), normal(12, 1, 3, 3, seed=2)
    conv: dict[str, Any] = {"strides": (2, 1), "padding": (1, 0, 2, 1), "channels": 8,
                            "kernel_size": (3, 2), "dilation": (1, 2)}  # fmt: skip
    padded = tf.pad(t(X), (0, 1, 1, 2))
    want = tf.conv2d(padded, t(w), stride=(2, 1), dilation=(1, 2)).numpy()
    grouped = {"groups": 6, "channels": 12, "padding": (1, 1)}
    want_grouped = tf.conv2d(t(X), t(depth), padding=1, groups=6).numpy()
    hwoi = depth.reshape(6, 2, 3, 3).transpose(2, 3, 0, 1)
    layouts = {"data_layout": "NHWC"}
    check(
        {"x": X, "xl": XL},
        [
            (call("nn.conv2d", x, w, **conv), want),
            (call("nn.conv2d", xl, w.transpose(2, 3, 1, 0).copy(), **conv, **layouts,
                  kernel_layout="HWIO"), nhwc(want)),
            (call("nn.conv2d", x, depth, **grouped, out_dtype=""), want_grouped),
            (call("nn.conv2d", xl, hwoi.copy(), **grouped, **layouts, kernel_layout="HWOI"),
             nhwc(want_grouped)),
        ],
    )  # fmt: skip


def test_transposed_convolutions() -> None:
    w = normal(6, 4, 3, 3, seed=1)
    attrs: dict[str, Any] = {"strides": (2, 2), "padding": (1, 1), "output_padding": (1, 0)}
    want = tf.conv_transpose2d(t(X), t(w), stride=2, padding=1, output_padding=(1, 0)).numpy()
    check(
        {"x": X, "xl": XL},
        [
            (call("nn.conv2d_transpose", x, w, **attrs, kernel_layout="IOHW"), want),
            (call("nn.conv2d_transpose", x, w, **attrs, kernel_layout="OIHW"), want),
            (call("nn.conv2d_transpose", x, w.transpose(1, 0, 2, 3).copy(), **attrs,
                  kernel_layout="OIHW"), want),
            (call("nn.conv2d_transpose", xl, w.transpose(2, 3, 1, 0).copy(), **attrs,
                  data_layout="NHWC", kernel_layout="HWOI"), nhwc(want)),
        ],
    )  # fmt: skip


def test_products() -> None:
    a, b, w = normal(3, 4, 5), normal(3, 7, 5, seed=1), normal(7, 5, seed=2)
    va, flat = var("a", a), normal(4, 5, seed=3)
    vf = var("f", flat)
    bias = normal(7, seed=4)
    check(
        {"a": a, "f": flat},
        [
            (call("nn.batch_matmul", va, b, transpose_b=1), a @ b.transpose(0, 2, 1)),
            (call("nn.batch_matmul", va, b.transpose(0, 2, 1).copy(), transpose_b=0),
             a @ b.transpose(0, 2, 1)),
            (call("nn.dense", vf, w, units=7), flat @ w.T),
            (call("nn.bias_add", call("nn.dense", vf, w), bias, axis=-1), flat @ w.T + bias),
            (call("nn.matmul", vf, w, transpose_b=1), flat @ w.T),
        ],
    )  # fmt: skip


def test_normalisations() -> None:
    g, b, mean, variance = normal(6), normal(6, seed=1), normal(6, seed=2), normal(6, seed=3) ** 2
    batch = tf.batch_norm(t(X), t(mean), t(variance), t(g), t(b), eps=1e-3).numpy()
    plain = tf.batch_norm(t(X), t(mean), t(variance), eps=1e-3).numpy()
    last = normal(8, seed=4)
    squares = np.maximum((X**2).sum(1, keepdims=True), 1e-10)
    norm: Callable[..., Expr] = lambda op, *args, **attrs: call(op, x, *args, **attrs)  # noqa: E731
    lrn = {"size": 3, "bias": 2.0, "alpha": 0.1, "beta": 0.75}
    want_lrn = tf.local_response_norm(t(X), 3, 0.1, 0.75, 2.0).numpy()
    check(
        {"x": X, "xl": XL},
        [
            (TupleGetItem(norm("nn.batch_norm", g, b, mean, variance, epsilon=1e-3, axis=1), 0),
             batch),
            (TupleGetItem(norm("nn.batch_norm", g, b, mean, variance, epsilon=1e-3, scale=0,
                               center=0), 0), plain),
            (TupleGetItem(call("nn.batch_norm", xl, g, b, mean, variance, epsilon=1e-3, axis=3), 0),
             nhwc(batch)),
            (norm("nn.layer_norm", last, last, epsilon=1e-3),
             tf.layer_norm(t(X), (8,), t(last), t(last), 1e-3).numpy()),
            (norm("nn.instance_norm", g, b, epsilon=1e-3),
             tf.instance_norm(t(X), weight=t(g), bias=t(b), eps=1e-3).numpy()),
            (norm("nn.group_norm", g, b, num_groups=3, epsilon=1e-3),
             tf.group_norm(t(X), 3, t(g), t(b), 1e-3).numpy()),
            (norm("nn.lrn", axis=1, **lrn), want_lrn),
            (call("nn.lrn", xl, axis=3, **lrn), nhwc(want_lrn)),
            (norm("nn.l2_normalize", eps=1e-10, axis=(1,)), X / np.sqrt(squares)),
        ],
        tol=1e-4,
    )  # fmt: skip


def test_activations() -> None:
    slope = normal(6, seed=1)
    check(
        {"x": X},
        [
            (call("nn.relu", x), np.maximum(X, 0)),
            (call("nn.leaky_relu", x, alpha=0.2), np.where(X > 0, X, X * np.float32(0.2))),
            (call("nn.prelu", x, slope, axis=1), tf.prelu(t(X), t(slope)).numpy()),
            (call("clip", x, a_min=-0.5, a_max=1.0), X.clip(-0.5, 1)),
            (call("nn.softmax", x, axis=1), tf.softmax(t(X), 1).numpy()),
            (call("nn.log_softmax", x, axis=-1), tf.log_softmax(t(X), -1).numpy()),
            (TupleGetItem(call("nn.dropout", x, rate=0.5), 0), X),
            (call("sigmoid", x), torch.sigmoid(t(X)).numpy()),
        ],
    )


def test_pools() -> None:
    box: dict[str, Any] = {"pool_size": (3, 2), "strides": (2, 2), "padding": (1, 0, 1, 0)}
    top = tf.max_pool2d(t(X), (3, 2), 2, (1, 0))
    mean = tf.avg_pool2d(t(X), (3, 2), 2, (1, 0), count_include_pad=False)
    counted = tf.avg_pool2d(t(X), (3, 2), 2, (1, 0), count_include_pad=True)
    ceiled = tf.max_pool2d(t(X), 2, 2, ceil_mode=True)
    check(
        {"x": X, "xl": XL},
        [
            (call("nn.max_pool2d", x, **box), top.numpy()),
            (call("nn.max_pool2d", xl, **box, layout="NHWC"), nhwc(top.numpy())),
            (call("nn.max_pool2d", x, pool_size=(2, 2), strides=(2, 2), padding=(0, 0),
                  ceil_mode=1), ceiled.numpy()),
            (call("nn.avg_pool2d", x, **box), mean.numpy()),
            (call("nn.avg_pool2d", x, **box, count_include_pad=1), counted.numpy()),
            (call("nn.global_avg_pool2d", x), X.mean((2, 3), keepdims=True)),
            (call("nn.global_max_pool2d", xl, layout="NHWC"), XL.max((1, 2), keepdims=True)),
            (call("nn.adaptive_avg_pool2d", x, output_size=(3, 3)),
             tf.adaptive_avg_pool2d(t(X), 3).numpy()),
            (call("nn.adaptive_max_pool2d", x, output_size=(3, 4)),
             tf.adaptive_max_pool2d(t(X), (3, 4)).numpy()),
        ],
    )  # fmt: skip


def test_padding_and_resizing() -> None:
    widths = ((0, 0), (0, 0), (1, 2), (3, 0))
    numpy_pad = {"edge": {}, "reflect": {}, "constant": {"constant_values": 1.5}}
    cases: list[tuple[Expr, Array]] = [
        (call("nn.pad", x, 1.5, pad_width=widths, pad_mode=mode),
         np.pad(X, widths, mode, **options))  # type: ignore[call-overload]
        for mode, options in numpy_pad.items()
    ]  # fmt: skip
    for method, theirs in (("nearest_neighbor", "nearest"), ("bilinear", "bilinear")):
        aligned = theirs == "bilinear"
        cases += [
            (call("nn.upsampling", x, scale_h=2.0, scale_w=3.0, method=method,
                  align_corners=int(aligned)),
             tf.interpolate(t(X), scale_factor=(2, 3), mode=theirs,
                            align_corners=True if aligned else None).numpy()),
        ]  # fmt: skip
    half = tf.interpolate(t(X), size=(5, 13), mode="bilinear", align_corners=False).numpy()
    resize: dict[str, Any] = {"size": (5, 13), "method": "linear",
                              "coordinate_transformation_mode": "half_pixel"}  # fmt: skip
    cases += [
        (call("image.resize2d", x, **resize), half),
        (call("image.resize2d", xl, **resize, layout="NHWC"), nhwc(half)),
    ]
    check({"x": X, "xl": XL}, cases)


def test_shapes() -> None:
    s, wide = X.shape, np.broadcast_to(X, (2, *X.shape[1:]))
    parts = call("split", x, indices_or_sections=(2, 5), axis=1)
    thirds = call("split", x, indices_or_sections=3, axis=2)
    index = np.array([[2, 0], [-1, 9]], np.int32)
    check(
        {"x": X},
        [
            (call("reshape", x, newshape=(0, -1)), X.reshape(s[0], -1)),
            (call("reshape", x, newshape=(-3, -2)), X.reshape(6, 9, 8)),
            (call("reshape", x, newshape=(0, -4, 2, -1, -2)), X.reshape(1, 2, 3, 9, 8)),
            (call("reshape_like", x, np.zeros((6, 72), np.float32)), X.reshape(6, 72)),
            (call("nn.batch_flatten", x), X.reshape(1, -1)),
            (call("transpose", x), X.transpose()),
            (call("transpose", x, axes=(0, 2, 3, -3)), X.transpose(0, 2, 3, 1)),
            (call("layout_transform", x, src_layout="NCHW", dst_layout="NHWC"), nhwc(X)),
            (call("expand_dims", x, axis=-1, num_newaxis=2), X[..., None, None]),
            (call("squeeze", x), X[0]),
            (call("squeeze", x, axis=(0,)), X[0]),
            (call("concatenate", Tuple((x, x)), axis=-1), np.concatenate([X, X], -1)),
            (call("stack", Tuple((x, x)), axis=1), np.stack([X, X], 1)),
            (TupleGetItem(parts, 1), X[:, 2:5]),
            (TupleGetItem(thirds, 2), X[:, :, 6:]),
            (call("strided_slice", x, begin=(0, 1), end=(1, 6), strides=(1, 2)), X[:, 1:6:2]),
            (call("strided_slice", x, begin=(7,), end=(2,), strides=(-2,), axes=(3,)),
             X[..., 7:2:-2]),
            (call("strided_slice", x, begin=(0, 2), end=(-1, 3), strides=(1,), slice_mode="size"),
             X[:, 2:5]),
            (call("slice_like", x, np.zeros((1, 2, 3, 4), np.float32)), X[:, :2, :3, :4]),
            (call("slice_like", x, np.zeros((1, 2, 3, 4), np.float32), axes=(2, -1)),
             X[:, :, :3, :4]),
            (call("broadcast_to", x, shape=(2, 6, 9, 8), dtype=""), wide),
            (call("tile", x, reps=(2, 1, 1, 1)), np.tile(X, (2, 1, 1, 1))),
            (call("repeat", x, repeats=2, axis=1), X.repeat(2, 1)),
            (call("reverse", x, axis=2), X[:, :, ::-1]),
            (call("take", x, index, axis=1, mode="clip", batch_dims=0),
             X.take(index, 1, mode="clip")),
            (call("take", x, 3, axis=2, mode="clip", batch_dims=0), X[:, :, 3]),
            (call("add", x, call("full", 2.5, shape=(8,), dtype="float32")), X + 2.5),
            (call("add", x, call("ones", shape=(9, 1), dtype="float32")), X + 1),
        ],
    )  # fmt: skip


def test_depth_to_space() -> None:
    data = normal(1, 8, 4, 6)
    v = var("d", data)
    want = tf.pixel_shuffle(t(data), 2).numpy()
    moved = want.reshape(1, 2, 4, 2, 6, 2).transpose(0, 3, 5, 1, 2, 4).reshape(1, 8, 4, 6)
    dcr = data.reshape(1, 2, 2, 2, 4, 6).transpose(0, 3, 4, 1, 5, 2).reshape(1, 2, 8, 12)
    up = call("nn.depth_to_space", v, block_size=2, layout="NCHW", mode="CRD")
    check(
        {"d": data},
        [
            (up, want),
            (call("nn.depth_to_space", v, block_size=2, layout="NCHW", mode="DCR"), dcr),
            (call("nn.space_to_depth", up, block_size=2, layout="NCHW"), moved),
        ],
    )


def test_reductions() -> None:
    reduce: dict[str, Any] = {"axis": (1, -1), "keepdims": 0, "exclude": 0}
    but = {**reduce, "exclude": 1, "keepdims": 1}
    check(
        {"x": X},
        [
            (call("sum", x, **reduce), X.sum((1, 3))),
            (call("mean", x, **but), X.mean((0, 2), keepdims=True)),
            (call("max", x, **reduce), X.max((1, 3))),
            (call("min", x, axis=None, keepdims=0, exclude=0), X.min()),
            (call("prod", x, axis=(2,), keepdims=1, exclude=0), X.prod(2, keepdims=True)),
            (call("argmax", x, axis=(1,), keepdims=0, exclude=0, select_last_index=0),
             X.argmax(1).astype(np.int32)),
            (call("argmin", x, axis=(1,), keepdims=1, exclude=0, select_last_index=0),
             X.argmin(1, keepdims=True).astype(np.int32)),
            (call("variance", x, call("mean", x, axis=(1,), keepdims=1, exclude=0), axis=(1,),
                  keepdims=0, exclude=0, unbiased=0), X.var(1)),
            (call("any", call("greater", x, 2.0), axis=(1,), keepdims=0, exclude=0),
             (X > 2).any(1)),
            (call("all", call("less", x, 1.0), axis=(1,), keepdims=0, exclude=0), (X < 1).all(1)),
        ],
    )  # fmt: skip


def test_elementwise() -> None:
    unary: dict[str, Callable[[Array], Array]] = {
        "exp": np.exp, "negative": np.negative, "floor": np.floor, "ceil": np.ceil,
        "trunc": np.trunc, "sign": np.sign, "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
        "abs": np.abs, "atan": np.arctan, "copy": lambda a: a,
    }  # fmt: skip
    y = normal(6, 1, 1, seed=3)
    binary: dict[str, Callable[[Array, Array], Array]] = {
        "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide,
        "maximum": np.maximum, "minimum": np.minimum, "greater": np.greater,
        "less_equal": np.less_equal, "not_equal": np.not_equal,
    }  # fmt: skip
    positive = call("abs", x)
    cases: list[tuple[Expr, Array]] = [(call(op, x), f(X)) for op, f in unary.items()]
    cases += [(call(op, x, y), f(X, y)) for op, f in binary.items()]
    cases += [
        (call("sqrt", positive), np.sqrt(np.abs(X))),
        (call("log", positive), np.log(np.abs(X))),
        (call("power", positive, 1.5), np.abs(X) ** np.float32(1.5)),
        (call("where", call("greater", x, 0.0), x, y), np.where(X > 0, X, y)),
        (call("cast", call("multiply", x, 10.0), dtype="int32"), (X * 10).astype(np.int32)),
        (call("erf", x), torch.erf(t(X)).numpy()),
    ]
    check({"x": X}, cases)


def test_halves_are_rounded_away_from_zero() -> None:
    data = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -0.49999997, 3e9], np.float32)
    want = np.array([1, 2, 3, -1, -2, -3, 0, 0, 3e9], np.float32)
    check({"x": data}, [(call("round", var("x", data)), want)], tol=0)


def test_integers_as_written() -> None:
    """What ``relay.quantize`` leaves behind: casts, clips and shifts."""
    data = np.arange(-300, 300, 7, dtype=np.int32)
    v = var("i", data)
    check(
        {"i": data},
        [
            (call("right_shift", call("add", v, 8), 4), (data + 8) >> 4),
            (call("cast", call("clip", v, a_min=-127.0, a_max=127.0), dtype="int8"),
             data.clip(-127, 127).astype(np.int8)),
            (call("nn.relu", v), data.clip(0)),
            (call("floor_divide", v, 7), data // 7),
        ],
    )  # fmt: skip


def test_attributes_of_texts_in_place_as_before_012() -> None:
    """Older versions wrote layouts into the attributes instead of into nodes."""
    text = module_json([x], call("nn.global_avg_pool2d", x, layout="NCHW"))
    node = next(i for i, n in enumerate(_nodes(text)) if n.get("repr_str") == "NCHW")
    older = text.replace(f'"layout": "{node}"', '"layout": "NCHW"')
    assert older != text
    np.testing.assert_array_equal(run(load(older), {"x": X})[0], run(load(text), {"x": X})[0])


def _nodes(text: str) -> list[dict[str, Any]]:
    import json

    nodes: list[dict[str, Any]] = json.loads(text)["nodes"]
    return nodes


@pytest.mark.parametrize(
    "shape, wanted, result",
    [
        ((2, 3, 4), (4, 0, 2), (4, 3, 2)),
        ((2, 3, 4), (2, 0, 0), (2, 3, 4)),
        ((2, 3, 4), (6, 1, -1), (6, 1, 4)),
        ((2, 3, 4), (-2,), (2, 3, 4)),
        ((2, 3, 4), (2, -2), (2, 3, 4)),
        ((2, 3, 4), (-2, 1, 1), (2, 3, 4, 1, 1)),
        ((2, 3, 4), (-3, 4), (6, 4)),
        ((2, 3, 4, 5), (-3, -3), (6, 20)),
        ((2, 3, 4), (0, -3), (2, 12)),
        ((2, 3, 4), (-3, -2), (6, 4)),
        ((2, 3, 4), (-4, 1, 2, -2), (1, 2, 3, 4)),
        ((2, 3, 4), (2, -4, -1, 3, -2), (2, 1, 3, 4)),
    ],
)
def test_reshape_rules_are_those_of_the_documentation(
    shape: tuple[int, ...], wanted: tuple[int, ...], result: tuple[int, ...]
) -> None:
    assert reshaped(shape, wanted) == result


@pytest.mark.parametrize(
    "wanted", [(-1, -1), (5, -1), (7,), (0, 0, 0, 0), (-4, 2), (-4, 5, -1, -2), (-5,), (-3, -3)]
)
def test_reshapes_that_do_not_fit_are_refused(wanted: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="newshape"):
        reshaped((2, 3, 4), wanted)


def test_slices_agree_with_numpy() -> None:
    rng = np.random.default_rng(0)
    data = np.arange(7)
    for _ in range(300):
        first, last, step = (int(v) for v in rng.integers(-9, 10, 3))
        want = data[first:last:step] if step else data[:0]
        try:
            ((_, start, stop, by),) = slice_bounds((7,), [first], [last], [step], [0], "end")
        except ValueError:
            assert want.size == 0
            continue
        np.testing.assert_array_equal(data[start:stop:by], want)


@pytest.mark.parametrize(
    "expr, part",
    [
        (call("nn.conv2d", x, normal(4, 5, 3, 3)), "nn.conv2d"),
        (call("nn.conv2d", x, normal(4, 6, 3, 3), strides=(0, 1)), "strides"),
        (call("nn.max_pool2d", x, pool_size=(0, 1)), "pool_size"),
        (call("nn.max_pool2d", x, pool_size=(40, 40)), "max_pool2d"),
        (call("transpose", x, axes=(0, 1)), "axes"),
        (call("split", x, indices_or_sections=4, axis=1), "4 parts"),
        (call("squeeze", x, axis=(1,)), "not 1"),
        (call("nn.pad", x, 0.0, pad_width=((0, 2**35),) * 4, pad_mode="constant"), "pad_width"),
        (call("tile", x, reps=(2**30, 1, 1, 1)), "too large"),
        (call("nn.upsampling", x, scale_h=1e5, scale_w=1e5), "too large"),
        (call("concatenate", Tuple((x, x)), axis=9), "axis"),
        (call("add", x, np.zeros(5, np.float32)), "add"),
        (call("cast", x, dtype="custom[posit]8"), "type"),
    ],
)
def test_what_an_operator_cannot_do_is_said_with_its_name(expr: Expr, part: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(module_json([x], expr))
    assert part in caught.value.message
    assert caught.value.hint
