"""The benchmark's figures: pairing, spread, verification, what a later start finds again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks._candidates import (
    Candidate,
    Expectation,
    measure_rounds,
    onnxruntime_candidate,
    relative_l2,
    started_with,
    thread_count,
    verify,
)
from benchmarks._results import Mixed, NetworkResult, Rounds, Series
from benchmarks._tables import _best_peer, _means, _threaded_table
from tvmx.errors import MeasureError
from tvmx.testing.models import onnx_reference, residual_model


def series(name: str, wall: tuple[float, ...]) -> Series:
    return Series(name=name, wall_ms=wall, cpu_ms=tuple(w / 2 for w in wall), max_error=0.0)


def fake(
    name: str, output: np.ndarray, calls: list[str], expected: Expectation | None = None
) -> Candidate:
    right = expected or Expectation([np.array([[1.0, 2.0]])])
    return Candidate(name, lambda: calls.append(name), lambda: [output], right)


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


def test_the_best_peer_is_the_fastest_float_one_of_each_network() -> None:
    """And the mean over networks is of ratios to it."""

    def result(name: str, **medians: float) -> NetworkResult:
        both = tuple(series(candidate, (ms,)) for candidate, ms in medians.items())
        main = Rounds(series=both, load_before=0, load_after=0)
        return NetworkResult(network=name, machine="m", versions={}, main=main)

    results = [
        result("a", defaults=2.0, onnxruntime=4.0, ncnn=1.0, **{"onnxruntime int8": 0.1}),
        result("b", defaults=2.0, onnxruntime=1.0, ncnn=4.0),
    ]
    assert [_best_peer(r.main) for r in results] == ["ncnn", "onnxruntime"]
    one = "defaults / best peer, 1 thread, geometric mean of 2: 2.000, worst 2.00"
    assert _means(results) == [one]
    faster = Rounds(
        series=(series("defaults", (1.0,)), series("mnn", (2.0,))), load_before=0, load_after=0
    )
    threaded = [results[0].model_copy(update={"threaded": {2: faster}}), results[1]]
    two = "defaults / best peer, 2 threads, geometric mean of 1: 0.500, worst 0.50"
    assert _means(threaded) == [one, two]
    assert "2 threads" in (_threaded_table(threaded, 2).title or "")


def test_processes_are_started_with_the_threads_asked_for() -> None:
    before = dict(os.environ)
    with started_with(3):
        assert thread_count() == 3 and os.environ["OMP_NUM_THREADS"] == "3"
    assert dict(os.environ) == before


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


def test_every_candidate_has_its_own_expectation() -> None:
    floats, int8 = np.array([[0.0, 2.0]]), np.array([[0.0, 1.9]])
    near = np.array([[0.0, 1.92]])  # 1 % of the range from int8, 4 % from the floats
    assert verify(fake("int8", near, [], Expectation([int8], 0.03))) == pytest.approx(0.02 / 1.9)
    with pytest.raises(MeasureError, match="int8"):
        verify(fake("int8", near, [], Expectation([floats], 0.03)))
    with pytest.raises(MeasureError, match="float"):
        verify(fake("float", near, [], Expectation([int8])))


def test_deviation_is_recorded_and_bounds_nothing() -> None:
    int8 = np.array([[1.0, 3.0]])
    candidate = fake("int8", int8, [], Expectation([int8], 0.03))
    (found,) = measure_rounds([candidate], [np.array([[1.0, 2.0]])], 1).series
    assert found.deviation == pytest.approx(1 / np.sqrt(5))
    assert (found.max_error, found.limit) == (0.0, 0.03)


def test_relative_l2_is_over_all_outputs() -> None:
    rng = np.random.default_rng(0)
    floats = [rng.standard_normal(7).astype(np.float32), rng.standard_normal((2, 3))]
    got = [a + rng.standard_normal(a.shape) for a in floats]
    flat, other = (np.concatenate([a.ravel() for a in arrays]) for arrays in (floats, got))
    want = np.linalg.norm(other - flat) / np.linalg.norm(flat)
    assert relative_l2(got, floats) == pytest.approx(want)


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    outputs = np.array([[1.0, 2.0]])
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
    expected = Expectation(onnx_reference(model, {"x": x}))
    assert verify(onnxruntime_candidate("onnxruntime", path, [x], expected)) < 1e-5


def test_mixed_layers_are_counted_by_kind() -> None:
    layers = {"f32 NCHW": 1, "f32 NCHW16c": 2, "f32 16x1@50 NCHW16c": 4, "int8 NCHW": 8}
    mixed = Mixed(seed=0, layers=layers, max_error=0.0, limit=0.03, deviation=0.0)
    assert mixed.kinds == {"float": 3, "int8": 8, "sparse": 4}


def test_results_survive(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert NetworkResult.load(path) is None
    rounds = Rounds(series=(series("a", (1.0, 2.0)),), load_before=0.1, load_after=0.2)
    mixed = Mixed(seed=0, layers={"int8 NCHW": 2}, max_error=1e-3, limit=0.03, deviation=0.5)
    result = NetworkResult(network="n", machine="m", versions={}, main=rounds, mixed=mixed)
    result.save(path)
    assert NetworkResult.load(path) == result
    path.write_text(path.read_text()[:-20])
    assert NetworkResult.load(path) is None
