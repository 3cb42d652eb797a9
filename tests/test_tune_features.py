"""Features: stable names, values recomputed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tune_spaces import CONV, DENSE, TARGET, conv_space, small_space
from tvmx.ir import Config, Space
from tvmx.tune import FeatureTable, config_features


def column(table: FeatureTable, name: str) -> float:
    return float(table.matrix[0, table.names.index(name)])


def test_values_of_one_config() -> None:
    config = Config(oc=8, ow=12, ic=16, unroll=True, order="oh")
    table = config_features(conv_space(), [config], CONV, TARGET)
    wanted = {
        "knob:oc": 8, "log2:oc": 3, "knob:unroll": 1, "is:order=oh": 1, "is:order=oc": 0,
        "prod:oc*ow": 3 + np.log2(12), "prod:oc*ic": 7,
        "fit:oc/oc": np.log2(8 / 96), "rest:oc/oc": 0, "rest:ow/ow": 36 / 28 - 1,
        "rest:oc/oc_vectors": 0, "fit:oc/oc_vectors": np.log2(8 / 24),
        "dim:oh": np.log2(28), "macs": np.log2(CONV.macs), "kernel_area": 9,
        "target:lanes": 4, "target:in_order": 0,
        "intensity": np.log2(CONV.macs / (4 * (64 * 28 * 28 + 96 * 64 * 9 + 96 * 28 * 28))),
    }  # fmt: skip
    for name, value in wanted.items():
        assert column(table, name) == pytest.approx(value, rel=1e-5), name
    assert np.isfinite(table.matrix).all()


def test_names_do_not_depend_on_sizes() -> None:
    small = CONV.model_copy(update={"in_channels": 3, "height": 224, "width": 224})
    space = conv_space()
    names = [config_features(space, space.points()[:3], w, TARGET).names for w in (CONV, small)]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])


def test_aligned_fills_missing_columns_with_zero() -> None:
    table = FeatureTable(("a", "b"), np.array([[1, 2], [3, 4]], np.float32))
    assert table.aligned(("b", "c", "a")).tolist() == [[2, 0, 1], [4, 0, 3]]


def test_varying_drops_what_is_constant() -> None:
    table = FeatureTable(("a", "b"), np.array([[1, 2], [1, 4]], np.float32))
    assert table.varying().tolist() == [[2], [4]]


def test_mixed_and_dense_spaces() -> None:
    space = Space({"mode": ["a", "b"]}, {"mode": "a"})
    table = config_features(space, space.points(), DENSE, TARGET)
    assert table.matrix[:, table.names.index("is:mode=b")].tolist() == [0, 1]
    small = small_space()
    assert "rest:tile/ic" in config_features(small, small.points(), DENSE, TARGET).names
