"""Winograd's matrices against the definition, and how much its kernels err."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import correlate2d

from tvmx._resources import schedules_dir
from tvmx.ir import Config, Conv2dWorkload
from tvmx.targets import load_target
from tvmx.templates import Winograd, load_template
from tvmx.testing.templates import evaluate_template

TEMPLATE = load_template("conv2d_winograd", schedules_dir() / "conv2d_winograd.py")


def conv(channels: int, size: int, **changes: object) -> Conv2dWorkload:
    settings: dict[str, object] = {
        "batch": 1, "in_channels": channels, "height": size, "width": size,
        "out_channels": channels, "kernel": (3, 3), "padding": (1, 1, 1, 1),
    }  # fmt: skip
    return Conv2dWorkload(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("m", [2, 4, 6])
def test_matrices_are_those_of_the_definition(m: int) -> None:
    """In two dimensions, against scipy's correlation in float64."""
    rng = np.random.default_rng(m)
    image, filters = rng.standard_normal((m + 2, m + 2)), rng.standard_normal((1, 1, 3, 3))
    f = Winograd.of(m)
    products = (f.g @ filters[0, 0] @ f.g.T) * (f.b @ image @ f.b.T)
    wanted = correlate2d(image, filters[0, 0], mode="valid")
    np.testing.assert_allclose(f.a @ products @ f.a.T, wanted, atol=1e-12)
    weights = f.weights(filters.astype(np.float32))
    assert weights.shape == (1, 1, m + 2, m + 2) and weights.dtype == np.float32


@pytest.mark.parametrize("m", [2, 6])
def test_matrices_are_exact_in_rational_numbers(m: int) -> None:
    """Those with rational points compute any small integers without an error at all."""
    f = Winograd.of(m)
    d, g = list(range(3, m + 5)), [2, -1, 5]
    rows = [[Fraction(x).limit_denominator(10**6) for x in row] for row in f.b.tolist()]
    filters = [[Fraction(x).limit_denominator(10**6) for x in row] for row in f.g.tolist()]
    inverse = [[Fraction(x).limit_denominator(10**6) for x in row] for row in f.a.tolist()]
    products = [
        sum(a * b for a, b in zip(row, g, strict=True))
        * sum(a * b for a, b in zip(other, d, strict=True))
        for row, other in zip(filters, rows, strict=True)
    ]
    found = [sum(a * b for a, b in zip(row, products, strict=True)) for row in inverse]
    assert found == [sum(d[k + i] * g[i] for i in range(3)) for k in range(m)]


@pytest.mark.parametrize(("m", "bound"), [(2, 1e-6), (4, 2e-6), (6, 1e-5)])
def test_errors_are_bounded(m: int, bound: float) -> None:
    """Relative to the output's range, 128 input channels; a direct kernel errs 2e-7."""
    target = load_target("host")
    workload = conv(128, 18)
    default = TEMPLATE.space(workload, target).default
    config = Config({**default.to_dict(), "m": m, "p_tile": 3, "chunk": 1, "oc_chunk": 1})
    assert evaluate_template(TEMPLATE, workload, target, config).relative < bound


@pytest.mark.parametrize("board", ["rpi3b+", "rpi4", "rpi5"])
def test_it_is_preferred_where_it_pays(board: str) -> None:
    target = load_target(board)
    assert TEMPLATE.preference(conv(64, 56), target) < 10, "before conv2d_direct"
    assert TEMPLATE.preference(conv(16, 3), target) > 10, "tiles mostly beyond the image"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernel": (5, 5)}, "3x3"),
        ({"strides": (2, 2)}, "stride"),
        ({"groups": 2}, "ungrouped"),
        ({"in_channels": 3}, "whole vectors"),
        ({"dtype": "int8"}, "float32"),
    ],
)
def test_it_says_why_not(changes: dict[str, object], reason: str) -> None:
    assert reason in str(TEMPLATE.supports(conv(16, 8, **changes), load_target("rpi4")))
