"""The benchmark's figures: pairing, spread, verification, what a later start finds again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks._candidates import Candidate, measure_rounds, onnxruntime_candidate, verify
from benchmarks._results import NetworkResult, Rounds, Series
from tvmx.errors import MeasureError
from tvmx.testing.models import onnx_reference, residual_model


def series(name: str, wall: tuple[float, ...]) -> Series:
    return Series(name=name, wall_ms=wall, cpu_ms=tuple(w / 2 for w in wall), max_error=0.0)


def fake(name: str, output: np.ndarray, calls: list[str]) -> Candidate:
    return Candidate(name, lambda: calls.append(name), lambda: [output])


def test_ratios_are_paired() -> None:
    both = (series("a", (2.0, 20.0, 200.0)), series("b", (1.0, 5.0, 100.0)))
    rounds = Rounds(series=both, load_before=0, load_after=0)
    assert rounds.ratio("a", "b") == rounds.cpu_ratio("a", "b") == 2.0
    assert rounds.ratio("a", "missing") is None
    assert both[0].median_ms == 20.0
    assert both[0].busy == 0.5


def test_spread_is_the_interquartile_range() -> None:
    assert series("a", (1.0, 2.0, 3.0, 4.0, 100.0)).spread_ms == 2.0
    assert series("a", (1.0, 4.0)).spread_ms == 3.0


@pytest.mark.parametrize(
    "output", [[[1.0, 2.1]], [[1.0, np.nan]], [[1.0]]], ids=["wrong", "nan", "shape"]
)
def test_a_wrong_output_is_never_timed(output: list[list[float]]) -> None:
    calls: list[str] = []
    good = fake("good", np.array([[1.0, 2.0]]), calls)
    bad = fake("bad", np.array(output), calls)
    with pytest.raises(MeasureError, match="bad"):
        measure_rounds([good, bad], [np.array([[1.0, 2.0]])], 3)
    assert calls == ["good", "bad"]


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    outputs = np.array([[0.0, 1.0]])
    found = measure_rounds([fake(n, outputs, calls) for n in "ab"], [outputs], 3)
    turns = "".join(n for i, n in enumerate(calls) if i == 0 or n != calls[i - 1])
    # Verified a b, estimated a b, then a b, b a, a b: equal neighbours count once.
    assert turns == "abababab"
    assert [len(s.wall_ms) for s in found.series] == [3, 3]


def test_onnxruntime_is_bound_to_its_buffers(tmp_path: Path) -> None:
    model = residual_model()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    candidate = onnxruntime_candidate("onnxruntime", path, {"x": x})
    assert verify(candidate, onnx_reference(model, {"x": x})) < 1e-5


def test_results_survive(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert NetworkResult.load(path) is None
    rounds = Rounds(series=(series("a", (1.0, 2.0)),), load_before=0.1, load_after=0.2)
    result = NetworkResult(network="n", machine="m", versions={}, main=rounds)
    result.save(path)
    assert NetworkResult.load(path) == result
    path.write_text(path.read_text()[:-20])
    assert NetworkResult.load(path) is None
