"""Exploration with data on a scripted device: int8 and sparse layers under limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.explorations import explored, flat, kernels, save_data, save_model, scripted
from tests.mixed_plans import neighbours
from tests.network_plans import network_of
from tvmx.deploy import load_bundle
from tvmx.errors import LimitError, UsageError
from tvmx.explore import ExploreResult, export_run
from tvmx.explore._dominance import Worth, undominated
from tvmx.explore._whole import rtol_of
from tvmx.frontends import load_model
from tvmx.ir import DENSE, Implementation, Layer, Plan
from tvmx.passes import extract_layers
from tvmx.store import Run
from tvmx.testing.models import onnx_reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder)


@pytest.fixture(scope="module")
def data(folder: Path, model: Path) -> Path:
    return save_data(folder, model, labels=True)


def int8_wins(label: str) -> float:
    """Conversions are free, int8 kernels take a quarter."""
    if label.startswith("NCHW"):
        return 0.01
    return 2.5 if " int8 by " in label else 10.0


def answers(model: Path, wrong: Callable[[str], bool] = lambda name: False) -> Any:
    """The float model's outputs; not a number for candidates that are ``wrong``."""

    def network(job: Any, sample: Any) -> tuple[Any, ...]:
        (out,) = onnx_reference(model, sample)
        return (out * np.float32(np.nan) if wrong(job.label) else out,)

    return network


def mixed(model: Path, out: Path, data: Path, wrong: Any = lambda name: False,
          us: Callable[[str], float] = int8_wins, **changes: Any) -> ExploreResult:  # fmt: skip
    """An exploration whose plans all take half of the baseline's time."""
    plans = {f"plan{i}": 50.0 + i for i in range(1, 9)}
    with scripted(kernels(us, **plans), answers(model, wrong)):
        return explored(model, out, data=data, trials=60, max_accuracy_drop=50.0, **changes)


@pytest.fixture(scope="module")
def run(folder: Path, model: Path, data: Path) -> tuple[Path, ExploreResult]:
    return folder / "run", mixed(model, folder / "run", data)


def precisions(plan: Plan) -> list[str]:
    return [c.implementation.precision for c in plan.choices]


def test_int8_is_chosen_where_it_is_faster(run: tuple[Path, ExploreResult]) -> None:
    path, result = run
    best = result.candidates[result.best]
    plan = Run.load(path).plan(best.name)
    assert precisions(plan)[:2] == ["int8", "int8"]
    assert best.layers.get("int8", 0) >= 2 and best.layers != result.candidates[0].layers
    assert "simulation" in best.checked_against
    assert plan.activations, "an int8 plan carries its scales"
    assert best.weights_bytes < result.candidates[0].weights_bytes / 2


def test_a_layer_that_int8_does_not_make_faster_stays_float(
    model: Path, data: Path, tmp_path: Path
) -> None:
    def slow(label: str) -> float:
        return 30.0 if " int8 by " in label or "@" in label.split(" by ")[0][-8:] else flat(label)

    result = mixed(model, tmp_path / "run", data, us=slow)
    for candidate in result.candidates:
        if candidate.name == result.candidates[result.best].name:
            assert precisions(Run.load(tmp_path / "run").plan(candidate.name)) == ["f32"] * 3


def test_without_data_only_exact_plans_are_legal(model: Path, tmp_path: Path) -> None:
    with scripted(kernels(int8_wins)):
        explored(model, tmp_path / "run")
    stored = Run.load(tmp_path / "run")
    assert all(stored.plan(name).exact for name in stored.plans())


def test_a_plan_past_the_drop_is_never_best(model: Path, data: Path, tmp_path: Path) -> None:
    result = mixed(
        model, tmp_path / "run", data, wrong=lambda name: name != "baseline",
    )  # fmt: skip
    assert result.best == result.baseline
    assert all(not c.meets for c in result.candidates if c.name != "baseline")
    assert result.best_memory == result.baseline


def test_sensitivities_are_kept_in_the_run(
    run: tuple[Path, ExploreResult], model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, result = run
    kept = json.loads((path / "work" / "sensitivity.json").read_text())
    assert {"first|int8|dense", "second|int8|dense"} <= set(kept["points"])
    assert kept["samples"] >= 8
    computed: list[str] = []
    from tvmx.accuracy import _sensitivity

    original = _sensitivity.drop_points
    monkeypatch.setattr(_sensitivity, "drop_points", lambda *a: computed.append("") or original(*a))
    again = mixed(model, path, data)
    assert not computed, "a resumed run simulates nothing again"
    assert [c.plan for c in again.candidates] == [c.plan for c in result.candidates]


def test_weights_limit(model: Path, data: Path, tmp_path: Path) -> None:
    free = mixed(model, tmp_path / "free", data)
    base, least = (free.candidates[i].weights_bytes for i in (0, free.best_memory))
    assert least < base
    limit = (base + least) // 2
    tight = mixed(model, tmp_path / "tight", data, max_weights=limit)
    assert tight.candidates[tight.best].weights_bytes <= limit
    assert not tight.candidates[tight.baseline].meets
    with pytest.raises(UsageError, match="weights"):
        mixed(model, tmp_path / "none", data, max_weights=100)


def test_arena_limit_that_no_plan_meets(model: Path, data: Path, tmp_path: Path) -> None:
    free = mixed(model, tmp_path / "free", data)
    least = min(c.arena_bytes for c in free.candidates)
    with pytest.raises((LimitError, UsageError), match="arena"):
        mixed(model, tmp_path / "tight", data, max_arena=least // 2)


def test_objective_weights(model: Path, data: Path, tmp_path: Path) -> None:
    result = mixed(model, tmp_path / "run", data, objective="weights")
    meeting = [c for c in result.candidates if c.meets]
    assert result.candidates[result.best].weights_bytes == min(c.weights_bytes for c in meeting)
    assert result.objective == "weights"


def test_the_memory_candidate_is_exported_and_runs(
    run: tuple[Path, ExploreResult], tmp_path: Path
) -> None:
    path, result = run
    export_run(path, tmp_path / "bundle", pick="memory")
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.plan_digest == result.candidates[result.best_memory].plan
    assert any("simulation" in note for note in manifest.notes)
    plan = Run.load(path).plan(result.candidates[result.best_memory].name)
    graph = extract_layers(load_model(Path(result.model))).graph
    assert manifest.rtol == rtol_of(plan, graph)


@pytest.mark.parametrize("target", ["rpi4", "rpi5"])
def test_an_int8_plan_is_carried_to_another_target(
    run: tuple[Path, ExploreResult], tmp_path: Path, target: str
) -> None:
    path, result = run
    summary = export_run(path, tmp_path / "bundle", target=target)
    assert not summary.measured_on_target
    plan = Plan.load(tmp_path / "bundle" / "plan.json")
    best = Run.load(path).plan(result.candidates[result.best].name)
    assert precisions(plan) == precisions(best)
    assert plan.activations == best.activations


def implementation(layout: str, precision: str = "f32", template: str = "t") -> Implementation:
    return Implementation(
        template=template,
        layout=layout,
        data_layout=layout,
        precision=precision,  # type: ignore[arg-type]
        sparsity=DENSE,
    )


def test_dominated_implementations_are_left_out() -> None:
    graph = network_of(neighbours()).graph
    blocked, plain = implementation("NCHW16c"), implementation("NCHW")
    int8 = implementation("NCHW16c", "int8")
    slow_int8 = implementation("NCHW16c", "int8", "u")
    options = {0: [blocked, plain, int8, slow_int8], 1: [blocked, plain, int8, slow_int8]}
    worth = {
        blocked: Worth(10.0, 0.0, 100), plain: Worth(12.0, 0.0, 100),
        int8: Worth(3.0, 0.0, 25), slow_int8: Worth(4.0, 0.0, 25),
    }  # fmt: skip

    def judge(layer: Layer, which: Implementation) -> Worth | None:
        return worth[which]

    kept = undominated(graph, options, judge)
    # The first layer reads the network's input, which is plain anyway; the second is inside.
    assert kept == {0: [blocked, plain, int8], 1: [blocked, int8]}
    worth[slow_int8] = Worth(4.0, 0.0, 20)  # smaller: a reason to stay
    assert slow_int8 in undominated(graph, options, judge)[1]
    worth[plain] = Worth(9.0, 0.0, 100)
    assert plain in undominated(graph, options, judge)[1]


def test_an_implementation_that_could_not_be_measured_is_left_out(model: Path) -> None:
    graph = extract_layers(load_model(model)).graph
    first, second = implementation("NCHW16c"), implementation("NCHW")
    kept = undominated(
        graph, {1: [first, second]}, lambda la, i: Worth(1.0, 0.0, 1) if i == first else None
    )
    assert kept == {1: [first]}
