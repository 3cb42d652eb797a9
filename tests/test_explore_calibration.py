"""explore with equalisation, bias correction and data from a function: what plans and runs keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.explorations import explored, kernels, save_data, save_model, scripted
from tests.test_explore_mixed import answers, int8_wins, mixed
from tvmx._tvm import relax, tvm
from tvmx.deploy import load_bundle
from tvmx.errors import RunMismatchError
from tvmx.explore import ExploreResult, build_bundle, export_run
from tvmx.ir import Plan
from tvmx.store import Run

OPTIONS = {"calibration": "mse", "equalise": True, "bias_correction": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder)


@pytest.fixture(scope="module")
def data(folder: Path, model: Path) -> Path:
    """A function that returns the arrays of an npz."""
    file = save_data(folder, model, labels=True)
    (folder / "mine.py").write_text(
        f"import numpy as np\ndef arrays():\n    return dict(np.load({str(file)!r}))\n"
    )
    return Path(f"{folder}/mine.py:arrays")


@pytest.fixture(scope="module")
def run(folder: Path, model: Path, data: Path) -> tuple[Path, ExploreResult]:
    return folder / "run", mixed(model, folder / "run", data, **OPTIONS)


def executed(library: Path, inputs: list[Any]) -> list[Any]:
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    out = machine["main"](*(tvm.runtime.tensor(x) for x in inputs))
    return [t.numpy() for t in ([out] if isinstance(out, tvm.runtime.Tensor) else out)]


def best_plan(run: tuple[Path, ExploreResult]) -> Plan:
    path, result = run
    return Run.load(path).plan(result.candidates[result.best].name)


def test_a_plan_keeps_what_its_constants_depend_on(run: tuple[Path, ExploreResult]) -> None:
    plan = best_plan(run)
    int8 = [c.layer for c in plan.choices if c.implementation.precision == "int8"]
    assert len(int8) >= 2
    assert [c.layer for c in plan.corrections] == int8
    assert {c.layer for c in plan.equalisation} == {"first", "second"}
    assert all(len(c.array) == 20 for c in plan.equalisation)
    assert "the channels of 2 of 3 layers equalised" in run[1].notes
    assert "the biases of 3 of 3 layers corrected for int8" in run[1].notes
    baseline = Run.load(run[0]).plan("baseline")
    assert not (baseline.equalisation or baseline.corrections or baseline.activations)


def test_the_run_keeps_how_it_was_asked(run: tuple[Path, ExploreResult], data: Path) -> None:
    settings = Run.load(run[0]).settings
    assert (settings.calibration, settings.equalise, settings.bias_correction) == (
        "mse", True, True,
    )  # fmt: skip
    assert settings.data_source is not None
    assert settings.data_path == str(data)
    assert settings.data_source.kind == "callable"
    assert settings.data_source.name == "mine.py:arrays"
    assert settings.data_source.digest == settings.data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"equalise": False}, "equalise: True there, False now"),
        ({"bias_correction": False}, "bias correction: True there, False now"),
        ({"calibration": "kl"}, "calibration: mse there, kl now"),
    ],
)
def test_another_calibration_is_another_run(
    run: tuple[Path, ExploreResult], model: Path, data: Path, changes: dict[str, object],
    message: str,
) -> None:  # fmt: skip
    with (
        scripted(kernels(int8_wins), answers(model)),
        pytest.raises(RunMismatchError, match=message),
    ):
        explored(model, run[0], data=data, trials=60, max_accuracy_drop=50.0, **OPTIONS | changes)


def test_a_plan_rebuilds_the_same_library(
    run: tuple[Path, ExploreResult], model: Path, tmp_path: Path
) -> None:
    """From the run and from the plan's file alone: the same golden outputs and weights."""
    plan = best_plan(run)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    export_run(run[0], tmp_path / "exported")
    build_bundle(model, "host", tmp_path / "built", plan=tmp_path / "plan.json")
    exported, built = load_bundle(tmp_path / "exported"), load_bundle(tmp_path / "built")
    assert exported.manifest.plan_digest == built.manifest.plan_digest == plan.digest
    assert exported.manifest.sizes.weights_bytes == built.manifest.sizes.weights_bytes
    assert exported.manifest.data == Run.load(run[0]).settings.data_source
    assert built.manifest.data is None
    plain = plan.model_copy(update={"equalisation": (), "corrections": ()})
    assert plain.digest != plan.digest
    inputs = [exported.golden_inputs()[spec.name] for spec in exported.manifest.inputs]
    (wanted,) = exported.golden_outputs()
    for bundle in (exported, built):
        (found,) = executed(bundle.path / "model.so", inputs)
        assert np.array_equal(found, wanted), bundle.path.name


def test_plans_of_the_schema_before_still_load(tmp_path: Path) -> None:
    """Written by tvmx before equalisation; its digest names libraries that exist."""
    text = (Path(__file__).parent / "data" / "plan_schema_2.json").read_text()
    (tmp_path / "plan.json").write_text(text)
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.schema_version == 2
    assert plan.equalisation == plan.corrections == ()
    assert plan.digest == "06118308f855b18a"
