"""SQNR, effects of layers and clipping against plain NumPy, and against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_accuracy_sensitivity import LAYERS, Case, fake_quantised, implementation, model
from tvmx.accuracy import (
    Judge,
    _batches,
    _sqnr,
    clipped_shares,
    layer_effects,
    plan_effects,
    sensitivities,
    sqnr,
)
from tvmx.errors import DataError
from tvmx.numerics import QuantParams, dequantise, quantise

Array = Any
INT8 = {index: implementation(layer) for index, layer in enumerate(LAYERS)}


def plain_db(reference: Array, changed: Array) -> float:
    reference, changed = np.float64(reference), np.float64(changed)
    return float(20 * np.log10(np.linalg.norm(reference) / np.linalg.norm(changed - reference)))


def judge_of(case: Case) -> Judge:
    return Judge(case.simulator, case.samples, case.specs, case.metric, case.params)


def simulated(case: Case, *layers: int) -> tuple[Any, Any]:
    """All values of the float network and of the one with those layers int8, samples in front."""
    batch = case.specs["x"].shape[0]
    feeds = [feed.arrays["x"] for feed in case.samples.feeds(case.specs)]
    before = case.simulator.run([np.stack(feeds)])
    after = case.simulator.rerun(before, {at: INT8[at] for at in layers}, case.params)
    assert batch * len(feeds) >= len(case.samples)

    def flat(values: Any) -> Any:
        return {v: a.reshape(-1, *a.shape[2:])[: len(case.samples)] for v, a in values.items()}

    return flat(before), flat(after)


def test_sqnr_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((50, 7)).astype(np.float32)
    for size in (1e-4, 0.1, 3.0):
        noisy = signal + (size * rng.standard_normal(signal.shape)).astype(np.float32)
        assert sqnr(signal, noisy) == pytest.approx(plain_db(signal, noisy), abs=1e-6)
    tenth = signal + np.float32(0.1) * signal
    assert sqnr(signal, tenth) == pytest.approx(20.0, abs=1e-3)


def test_sqnr_is_bounded() -> None:
    signal = np.ones((2, 3), np.float32)
    zeros = np.zeros_like(signal)
    assert sqnr(signal, signal) == sqnr(zeros, zeros) == 200.0
    assert sqnr(zeros, signal) == -200.0
    assert sqnr(signal, np.full_like(signal, np.nan)) == -200.0
    assert sqnr(signal, np.full_like(signal, 3e38)) > -1000
    assert sqnr(np.array([1, 2]), np.array([1, 4])) == pytest.approx(10 * np.log10(5 / 4))


@pytest.mark.parametrize("batch", [1, 3])  # 40 samples: the last call of three has filler rows
def test_layers_alone(batch: int) -> None:
    case = Case(model(batch))
    done: list[int] = []
    found = layer_effects(judge_of(case), INT8, done.append)
    nodes = {n.layer: n for n in case.simulator.network.graph.nodes if n.layer is not None}
    (output,) = case.simulator.network.graph.outputs
    labels = case.samples.labels
    for at in INT8:
        before, after = simulated(case, at)
        own = nodes[at].output
        assert found[at].own_db == pytest.approx(plain_db(before[own], after[own]), abs=1e-3)
        wanted = plain_db(before[output], after[output])
        assert found[at].output_db == pytest.approx(wanted, abs=1e-3)
        right = [float(np.mean(v[output].argmax(1) == labels)) for v in (before, after)]
        assert found[at].drop == pytest.approx(100 * (right[0] - right[1]))
        assert found[at].score.percent == pytest.approx(100 * right[1])
    assert done == list(INT8)
    known = sensitivities(
        case.simulator, case.samples, case.specs, case.metric, case.params,
        {at: [how] for at, how in INT8.items()}, budget_s=600.0,
    ).points  # fmt: skip
    assert {at: e.points for at, e in found.items()} == pytest.approx(
        {at: known[f"{layer}|int8|dense"] for at, layer in enumerate(LAYERS)}
    )


@pytest.mark.parametrize("layer", ["one", "three"])
def test_a_layer_against_fake_quantisation_in_onnx_runtime(layer: str) -> None:
    case = Case(model())
    at = LAYERS.index(layer)
    found = layer_effects(judge_of(case), {at: INT8[at]})[at]
    changed = fake_quantised(layer, case)
    assert found.output_db == pytest.approx(plain_db(case.reference, changed), abs=0.5)
    assert 20 < found.output_db < 60


def test_whole_plans() -> None:
    case = Case(model())
    nothing, pair, every = plan_effects(judge_of(case), [{}, {0: INT8[0], 2: INT8[2]}, INT8])
    assert (nothing.drop, nothing.output_db, nothing.points) == (0.0, 200.0, 0.0)
    assert nothing.own_db is None
    (output,) = case.simulator.network.graph.outputs
    for effect, layers in ((pair, (0, 2)), (every, (0, 1, 2))):
        before, after = simulated(case, *layers)
        assert effect.output_db == pytest.approx(plain_db(before[output], after[output]), abs=1e-3)


def test_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(model(3))
    whole = layer_effects(judge_of(case), INT8)
    monkeypatch.setattr(_batches, "CHUNK_BYTES", 1)  # one call at a time
    runs: list[int] = []
    original = case.simulator.run
    monkeypatch.setattr(case.simulator, "run", lambda x: runs.append(1) or original(x))
    for held, groups in ((1, 3), (10**9, 1)):  # every layer apart, and all in one go
        monkeypatch.setattr(_sqnr, "_HELD_BYTES", held)
        runs.clear()
        parts = layer_effects(judge_of(case), INT8)
        assert len(runs) == (1 + groups) * -(-len(case.samples) // 3)
        for at, effect in whole.items():
            assert parts[at].own_db == pytest.approx(effect.own_db, abs=1e-3)
            assert parts[at].output_db == pytest.approx(effect.output_db, abs=1e-3)
            assert parts[at].drop == effect.drop


def test_outputs_that_cannot_be_scored() -> None:
    case = Case(model(classes=1), labelled=False)
    with pytest.raises(DataError, match="no classes to decide between"):
        layer_effects(judge_of(case), INT8)


@pytest.mark.parametrize("batch", [1, 3])
def test_clipped_shares(batch: int) -> None:
    """An element is clipped where its int8 number is further off than half a step."""
    case = Case(model(batch))
    before, _ = simulated(case)
    ends = {v: dequantise(np.array([-128, 127]), p) for v, p in case.params.items()}
    narrow = {v: QuantParams.from_range(0.6 * low, 0.4 * high) for v, (low, high) in ends.items()}
    found = clipped_shares(case.simulator, case.samples, case.specs, narrow)
    assert set(found) == set(narrow)
    for value, how in narrow.items():
        error = np.abs(dequantise(quantise(before[value], how), how) - before[value])
        assert found[value] == pytest.approx(np.mean(error > 0.501 * how.scale), abs=1e-3)
    assert max(found.values()) > 0.02
    wide = {v: QuantParams.from_range(-1e4, 1e4) for v in case.params}
    assert set(clipped_shares(case.simulator, case.samples, case.specs, wide).values()) == {0.0}
