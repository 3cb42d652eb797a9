"""Features of knobs: stable names, values recomputed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tune_spaces import CONV, DENSE, TARGET, conv_space, small_space
from tvmx.ir import Config, Space
from tvmx.tune import knob_features


def test_values_of_one_config() -> None:
    config = Config(oc=8, ow=12, ic=16, unroll=True, order="oh")
    other = Config(oc=2, ow=7, ic=4, unroll=False, order="oc")
    names, matrix = knob_features(conv_space(), [config, other], CONV, TARGET)
    wanted = {
        "knob:oc": 8, "log2:oc": 3, "knob:unroll": 1, "is:order=oh": 1, "is:order=oc": 0,
        "prod:oc*ow": 3 + np.log2(12), "prod:oc*ic": 7,
        "fit:oc/oc": np.log2(8 / 96), "rest:ow/ow": 36 / 28 - 1,
        "fit:oc/oc_vectors": np.log2(8 / 24),
    }  # fmt: skip
    for name, value in wanted.items():
        assert matrix[0, names.index(name)] == pytest.approx(value, rel=1e-5), name
    assert np.isfinite(matrix).all() and matrix.shape == (2, len(names))
    assert "rest:oc/oc" not in names  # 8 and 2 both divide 96


def test_names_do_not_repeat_and_constant_columns_are_left_out() -> None:
    space = conv_space()
    names, matrix = knob_features(space, space.points(), CONV, TARGET)
    assert len(set(names)) == len(names)
    assert (matrix != matrix[0]).any(axis=0).all()
    assert knob_features(space, space.points()[:1], CONV, TARGET)[0] == ()


def test_mixed_and_dense_spaces() -> None:
    space = Space({"mode": ["a", "b"]}, {"mode": "a"})
    names, matrix = knob_features(space, space.points(), DENSE, TARGET)
    assert matrix[:, names.index("is:mode=b")].tolist() == [0, 1]
    small = small_space()
    assert "rest:tile/ic" in knob_features(small, small.points(), DENSE, TARGET)[0]
