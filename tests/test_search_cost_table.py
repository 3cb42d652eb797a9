"""CostTable: JSON, sums, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search_tables import random_table
from tvmx.errors import StoreError
from tvmx.ir import Implementation
from tvmx.ir._cost_table import CostTable, LayerCosts, transition_key

IMPLEMENTATION = Implementation(template="t", layout="NCHW", data_layout="NCHW")


def layer(**changes: object) -> LayerCosts:
    fields = {
        "layer": "conv", "workload": "w", "implementations": (IMPLEMENTATION,) * 2,
        "latency_us": (2.0, None), "weights_bytes": (8, 16), "baseline": 0, **changes,
    }  # fmt: skip
    return LayerCosts.model_validate(fields)


@given(st.integers(0, 1000))
def test_json_round_trip_is_exact(seed: int) -> None:
    table = random_table(seed, failing=0.3)
    assert CostTable.model_validate_json(table.model_dump_json()) == table


def test_save_and_load(tmp_path: Path) -> None:
    table = random_table(1, failing=0.3)
    table.save(tmp_path / "costs.json")
    assert CostTable.load(tmp_path / "costs.json") == table


def test_sums() -> None:
    table = CostTable(layers=(layer(), layer(latency_us=(3.0, 4.0))))
    assert table.layers_us((0, 1)) == 6.0
    assert table.weights_bytes((0, 1)) == 24
    assert table.baseline == (0, 0)
    assert table.layers[0].legal == (0,)
    assert table.accuracy_drop((0, 1)) == 0.0
    with pytest.raises(StoreError, match="'conv' has no latency for t NCHW f32"):
        table.layers_us((1, 0))


def test_accuracy_drops_add_up_without_rounding_noise() -> None:
    rows = [layer(accuracy_drop=(0.0, drop), latency_us=(1.0, 1.0)) for drop in (0.1, 0.2, 0.3)]
    table = CostTable(layers=(*rows, layer()))
    assert table.accuracy_drop((0, 0, 0, 0)) == 0.0
    assert table.accuracy_drop((1, 1, 0, 0)) == 0.3
    assert table.accuracy_drop((1, 1, 1, 0)) == 0.6


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy_drop": (0.0,)},
        {"accuracy_drop": (0.0, -0.1)},
        {"accuracy_drop": (0.0, float("nan"))},
        {"latency_us": (1.0,)},
        {"weights_bytes": (1,)},
        {"baseline": 1},
        {"baseline": 2},
        {"latency_us": (float("nan"), 1.0)},
        {"latency_us": (0.0, 1.0)},
        {"latency_us": (float("inf"), 1.0)},
        {"implementations": ()},
    ],
)
def test_inconsistent_layers_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        layer(**changes)


def test_workload_under_a_wrong_digest_is_refused() -> None:
    table = random_table(1)
    (load,) = table.workloads.values()
    with pytest.raises(ValidationError, match="is filed under 'other'"):
        CostTable(layers=table.layers, workloads={"other": load})


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    with pytest.raises(StoreError, match=r"costs\.json"):
        CostTable.load(path)
    path.write_text('{"layers": []}')
    with pytest.raises(StoreError, match="not a tvmx cost table"):
        CostTable.load(path)
    text = random_table(1).model_dump_json()
    path.write_text(text.replace('"schema_version":2', '"schema_version":7'))
    with pytest.raises(StoreError, match="schema 7"):
        CostTable.load(path)


@pytest.mark.parametrize(
    ("shape", "source", "destination", "key"),
    [
        ((1, 64, 56, 56), "NCHW", "NCHW16c", "1x64x56x56:NCHW>NCHW16c"),
        ((1, 64, 56, 56), "NCHW16c", "NCHW16c/s8", "1x64x56x56:NCHW16c>NCHW16c/s8"),
        ((1, 64, 1, 1), "NCHW16c", "NC/s8", "1x64x1x1:NCHW16c>NCHW/s8"),
        ((1, 10), "NCHW", "NCHW/s8", "1x10:NC>NC/s8"),
    ],
)
def test_transition_key(shape: tuple[int, ...], source: str, destination: str, key: str) -> None:
    assert transition_key(shape, source, destination) == key
