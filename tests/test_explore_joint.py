"""A network of which either half may be pruned, but not both: the sum of losses says it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.explorations import explored, kernels, scripted
from tvmx.explore import ExploreResult
from tvmx.ir import DENSE, CostTable, Plan
from tvmx.store import Run
from tvmx.testing.models import graph_model, onnx_reference

CHANNELS, CLASSES = 32, 4
LIMIT = 5.0  # points; a half alone costs less than two by its error, and flips nothing
HALVES = ("left", "right")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two equal 1x1 convolutions of the same input are added up.

    Half of their input channels are always zero and have the largest weights: pruning to 50 %
    keeps those, and nothing of what the convolution computes. The other half still decides.
    """
    make, rng = helper.make_node, np.random.default_rng(0)
    weights = rng.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
    weights[:, ::2] = 100 + rng.random((CHANNELS, CHANNELS // 2, 1, 1))
    nodes = [
        make("Conv", ["image", "w1"], ["a"], name="left"),
        make("Conv", ["image", "w2"], ["b"], name="right"),
        make("Relu", ["a"], ["c"]),
        make("Relu", ["b"], ["d"]),
        make("Add", ["c", "d"], ["e"]),
        make("GlobalAveragePool", ["e"], ["f"]),
        make("Flatten", ["f"], ["g"]),
        make("Gemm", ["g", "w3"], ["logits"], name="fc", transB=1),
    ]
    last = rng.standard_normal((CLASSES, CHANNELS)).astype(np.float32)
    folder = tmp_path_factory.mktemp("joint")
    path = folder / "halves.onnx"
    shapes = {"image": (1, CHANNELS, 6, 6)}, {"logits": (1, CLASSES)}
    built = graph_model(nodes, *shapes, {"w1": weights, "w2": weights.copy(), "w3": last})
    path.write_bytes(built.SerializeToString())
    return path


@pytest.fixture(scope="module")
def data(model: Path) -> Path:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((48, CHANNELS, 6, 6)).astype(np.float32)
    inputs += rng.standard_normal((48, CHANNELS, 1, 1)).astype(np.float32)  # clear decisions
    inputs[:, ::2] = 0
    labels = [onnx_reference(model, {"image": x[None]})[0].argmax() for x in inputs]
    path = model.with_name("data.npz")
    np.savez(path, calibration=inputs[:8], inputs=inputs, labels=np.array(labels))
    return path


def sparse(plan: Plan) -> set[str]:
    return {c.layer for c in plan.choices if c.implementation.sparsity != DENSE}


def sparse_wins(label: str) -> float:
    if label.startswith("NCHW"):
        return 0.01
    return 2.0 if "@50" in label.split(" by ")[0] else 10.0


@pytest.fixture(scope="module")
def run(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"

    def network(job: Any, sample: Any) -> tuple[Any, ...]:
        (logits,) = onnx_reference(model, sample)
        plan = Run.load(out).plan(job.label)
        return (logits if not set(HALVES) <= sparse(plan) else np.zeros_like(logits),)

    plans = {f"plan{i}": 60.0 - i for i in range(1, 14)}
    with scripted(kernels(sparse_wins, **plans), network):
        explored(model, out, data=data, trials=60, max_accuracy_drop=LIMIT)
    return out


def test_the_sum_of_losses_would_prune_both_halves(run: Path) -> None:
    table = CostTable.load(run / "work" / "cost_table.json")
    both = []
    for costs in table.layers:
        like = [i for i, how in enumerate(costs.implementations) if "@50" in how.sparsity]
        both.append(like[0] if costs.layer in HALVES else costs.baseline)
        assert costs.layer not in HALVES or like, "no sparse implementation to choose"
    assert table.accuracy_drop(both) <= LIMIT


def test_the_limit_holds_for_what_layers_lose_together(run: Path) -> None:
    result = ExploreResult.model_validate(Run.load(run).result())
    best = result.candidates[result.best]
    assert best.accuracy_drop is not None and best.accuracy_drop <= LIMIT
    assert len(sparse(Run.load(run).plan(best.name)) & set(HALVES)) == 1, "one half is free"
    assert any("lose more together than alone" in note for note in result.notes)
    for candidate in result.candidates:
        if set(HALVES) <= sparse(Run.load(run).plan(candidate.name)):
            assert not candidate.meets
