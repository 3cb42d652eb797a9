"""Packed constants, element by element against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmx.templates import (
    pack_conv_weight,
    pack_depthwise_weight,
    pack_matrix,
    pack_vector,
    pad_axis,
)

SIZES = st.integers(1, 9)
BLOCKS = st.integers(1, 4)


def numbered(*shape: int) -> np.ndarray:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


@settings(max_examples=40, deadline=None)
@given(o=SIZES, i=SIZES, block=BLOCKS, in_block=BLOCKS, extra=st.integers(0, 2))
def test_conv_weight(o: int, i: int, block: int, in_block: int, extra: int) -> None:
    weight = numbered(o, i, 2, 3)
    blocks = -(-o // block) + extra
    packed = pack_conv_weight(weight, block, blocks, in_block)
    assert packed.shape == (blocks, -(-i // in_block), 2, 3, in_block, block)
    assert packed.flags.c_contiguous
    for (bo, bi, y, x, ci, co), value in np.ndenumerate(packed):
        oc, ic = bo * block + co, bi * in_block + ci
        assert value == (weight[oc, ic, y, x] if oc < o and ic < i else 0)


def test_conv_weight_with_plain_input_channels() -> None:
    weight = numbered(5, 3, 1, 2)
    packed = pack_conv_weight(weight, 4, 2, None)
    assert packed.shape == (2, 3, 1, 2, 1, 4)
    assert packed[1, 2, 0, 1, 0, 0] == weight[4, 2, 0, 1]
    assert not packed[1, ..., 1:].any()


@settings(max_examples=30, deadline=None)
@given(c=SIZES, block=st.integers(1, 4))
def test_depthwise_weight(c: int, block: int) -> None:
    weight = numbered(c, 1, 3, 2)
    packed = pack_depthwise_weight(weight, block)
    assert packed.shape == (-(-c // block), 3, 2, block)
    for (b, y, x, lane), value in np.ndenumerate(packed):
        channel = b * block + lane
        assert value == (weight[channel, 0, y, x] if channel < c else 0)


@settings(max_examples=30, deadline=None)
@given(n=SIZES, k=SIZES, block=st.integers(1, 4))
def test_matrix_and_vector(n: int, k: int, block: int) -> None:
    weight, bias = numbered(n, k), numbered(n)
    packed, packed_bias = pack_matrix(weight, block), pack_vector(bias, block)
    assert packed.shape == (-(-n // block), k, block)
    for (b, kk, lane), value in np.ndenumerate(packed):
        row = b * block + lane
        assert value == (weight[row, kk] if row < n else 0)
    np.testing.assert_array_equal(packed_bias.reshape(-1)[:n], bias)
    assert not packed_bias.reshape(-1)[n:].any()


def test_pad_axis_refuses_to_shrink() -> None:
    with pytest.raises(ValueError, match="negative"):
        pad_axis(numbered(3), 0, 2)
