"""import, targets, schedules, explore, build and export: what people and machines get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import tvmx.explore
from tvmx.cli._main import app
from tvmx.explore import (
    BundleSummary,
    CandidateSummary,
    DryRun,
    DryRunWorkload,
    ExploreRequest,
    ExploreResult,
    LayerSummary,
)
from tvmx.measure import Cores, DeviceAddress, Manners
from tvmx.testing.models import residual_model
from tvmx.testing.templates import CheckReport, CheckResult, Performance


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "res.onnx"
    onnx.save(residual_model(), path)
    return path


def test_import_counts_what_the_file_holds(model: Path) -> None:
    data = document(invoke("import", model, "--json"))
    proto = onnx.load(model)
    names = {node.name for node in proto.graph.node}
    anchors = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(data["layers"]) == len(anchors)
    assert {layer["name"] for layer in data["layers"]} <= names
    conv = next(layer for layer in data["layers"] if layer["op"] == "conv2d")
    outputs, inputs, height, width = conv["weight"]
    _, _, rows, columns = conv["output"]
    assert conv["macs"] == outputs * inputs * height * width * rows * columns
    assert data["macs"] == sum(layer["macs"] for layer in data["layers"])
    assert any("add" in layer["epilogue"] for layer in data["layers"])
    text = invoke("import", model).stdout
    assert all(layer["name"] in text for layer in data["layers"])
    assert f"{len(anchors)} layers" in text


def test_targets_are_listed_and_shown() -> None:
    data = document(invoke("targets", "--json"))["targets"]
    names = {target["name"] for target in data}
    wanted = {
        "rpi3b+", "rpi4", "rpi5", "jetson-nano", "rk3399", "odroid-c4", "orion-o6",
        "aarch64", "host",
    }  # fmt: skip
    assert wanted <= names
    one = document(invoke("targets", "show", "rk3399", "--json"))
    assert [c["core"] for c in one["clusters"]] == ["cortex-a72", "cortex-a53"]
    assert document(invoke("targets", "--json", "show", "rk3399")) == one
    text = invoke("targets", "show", "rpi4").stdout
    assert "cortex-a72" in text
    assert "aarch64-linux-gnu" in text


def test_schedules_say_where_they_come_from(tmp_path: Path) -> None:
    data = document(invoke("schedules", "--json"))["schedules"]
    assert {e["origin"] for e in data} == {"built-in"}
    assert "conv2d_direct" in {e["name"] for e in data}
    (tmp_path / "mine.py").write_text(
        "import importlib.util, pathlib\n"
        f"source = pathlib.Path({data[0]['path']!r}).read_text()\n"
        f"exec(source.replace({data[0]['name']!r}, 'mine'))\n"
    )
    more = document(invoke("schedules", "--schedules", tmp_path, "--json"))["schedules"]
    assert [e["origin"] for e in more if e["name"] == "mine"] == ["user file"]
    shown = invoke("schedules", "show", "mine", "--schedules", tmp_path)
    assert str(tmp_path / "mine.py") in shown.stdout
    assert invoke("schedules", "show", "mine").exit_code == 1
    assert "conv2d_direct" in invoke("schedules").stdout


def test_a_template_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\n1 / 0\n")
    result = invoke("schedules", "--schedules", tmp_path)
    assert result.exit_code == 1
    assert "broken.py:2" in result.stderr
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_check_is_exit_code_1(
    passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.py").write_text("")
    report = CheckReport(
        file="t.py",
        target="host",
        checks=(CheckResult(template="t", check="space", passed=passed, detail="why [x]"),),
        performance=(Performance(template="t", workload="w", gflops=50.0, peak_share=0.425),),
        peak_gflops=117.6,
    )
    monkeypatch.setattr("tvmx.testing.templates.check_template_file", lambda path: report)
    result = invoke("schedules", "check", tmp_path / "t.py")
    assert result.exit_code == (0 if passed else 1)
    for part in ("why [x]", f"{int(passed)} of 1 checks passed", "117.6 GFLOP/s", "42%"):
        assert part in result.stdout
    machine = invoke("schedules", "check", tmp_path / "t.py", "--json")
    assert machine.exit_code == result.exit_code
    assert json.loads(machine.stdout)["passed"] is passed


BASELINE = CandidateSummary(
    name="baseline", plan="p", latency_us=2000.0, spread_us=50.0, ratio=1.0, weights_bytes=4096,
    arena_bytes=2048, scratch_bytes=0, library_bytes=9999, accuracy=97.5, accuracy_drop=0.25,
    accuracy_kind="top-1",
)  # fmt: skip
OUTCOME = ExploreResult(
    run="r", model="m", target="host", device="host, box", threads=1, objective="latency",
    candidates=[
        BASELINE,
        BASELINE.model_copy(update={"name": "plan-1", "latency_us": 1234.0, "ratio": 0.617}),
    ],
    baseline=0, best=1,
    layers=[
        LayerSummary(
            layer="conv1", workload="w", baseline="a", baseline_us=5, best="b", best_us=4
        ),
        LayerSummary(
            layer="conv2", workload="w", baseline="a", baseline_us=None, best="a", best_us=None
        ),
    ],
    measurements=10, failures=1, seconds=75.0, reference="onnxruntime", notes=["[a] note"],
)  # fmt: skip


class Recorder:
    """Stands in for a function of tvmx.explore: keeps its arguments, answers as told."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = args, kwargs
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace(monkeypatch: pytest.MonkeyPatch, name: str, answer: Any) -> Recorder:
    recorder = Recorder(answer)
    monkeypatch.setitem(vars(tvmx.explore), name, recorder)  # setattr would load the real one
    return recorder


def test_explore_asks_for_what_the_options_say(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explore = replace(monkeypatch, "explore", OUTCOME)
    monkeypatch.setattr("tvmx.measure.require_key", lambda address: None)
    images = np.ones((4, *shape_of(model)[1:]), "float32")
    np.savez("d.npz", calibration=images, inputs=images)
    (here / "own").mkdir()
    (here / "own" / "t.py").write_text("")
    name = onnx.load(model).graph.input[0].name
    shape = ",".join(map(str, shape_of(model)))
    options = (
        f"--target rpi4 --shape {name}={shape} --tracker [::1]:9190 --key pi --data d.npz "
        "--budget 1m30s --trials 7 --max-accuracy-drop 0.5 --objective arena --threads 4 "
        "--schedules own --seed 3 --out r --fresh --json"
    )
    data = document(invoke("explore", model, *options.split()))
    assert explore.args[0] == ExploreRequest(
        model=model, target="rpi4", out=Path("r"), shapes={name: shape_of(model)},
        tracker=DeviceAddress("::1", 9190, "pi"), data=Path("d.npz"), budget_s=90.0, trials=7,
        max_accuracy_drop=0.5, objective="arena", manners=Manners(Cores(threads=4)),
        schedules=(Path("own"),), seed=3, fresh=True,
    )  # fmt: skip
    assert ExploreResult.model_validate(data) == OUTCOME


def shape_of(model: Path) -> tuple[int, ...]:
    dims = onnx.load(model).graph.input[0].type.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims)


def test_explore_defaults(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explore = replace(monkeypatch, "explore", OUTCOME)
    result = invoke("explore", model, "--target", "host")
    assert result.exit_code == 0, result.output
    assert explore.args[0] == ExploreRequest(model=model, target="host", out=Path("res-host.run"))
    for part in ("baseline", "best", "1.23 ms", "± 50.0 us", "0.617", "97.50 %", "+0.25", "top-1",
                 "4.00 KiB", "conv1", "note: [a] note", "10 kernels, 1 failed, in 1m15s",
                 "tvmx export r --out BUNDLE"):  # fmt: skip
        assert part in result.stdout


def test_explore_when_the_baseline_wins(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unscored = {"accuracy": None, "accuracy_drop": None, "accuracy_kind": ""}
    many = [BASELINE.model_copy(update=unscored)]
    many += [BASELINE.model_copy(update={"name": f"plan-{i}"}) for i in range(1, 8)]
    replace(monkeypatch, "explore", OUTCOME.model_copy(update={"candidates": many, "best": 0}))
    text = invoke("explore", model, "--target", "host").stdout
    assert "baseline and best latency" in text
    assert "plan-3" in text
    assert "plan-4" not in text
    assert "4 more candidates" in text


def test_interrupting_explore_says_what_is_kept(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(monkeypatch, "explore", KeyboardInterrupt())
    result = invoke("explore", model, "--target", "host", "--out", "r")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        "interrupted; every measurement so far is kept in r: the same command continues"
    )


def test_dry_run_needs_no_device(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = DryRunWorkload(workload="conv3x3", layers=["a", "b"], templates={"t": 12, "u": 3})
    plan = DryRun(
        model="m", target="rpi4", layers=3, covered=2, workloads=[work], conversions=4, notes=["n"]
    )
    dry_run = replace(monkeypatch, "dry_run", plan)
    result = invoke("explore", model, "--target", "rpi4", "--dry-run")
    assert result.exit_code == 0, result.output
    assert dry_run.args[0].target == "rpi4"
    for part in ("conv3x3", "t (12), u (3)", "15", "2/3", "note: n"):
        assert part in result.stdout
    assert list(here.iterdir()) == []


SUMMARY = BundleSummary(
    path="/b", target="rpi4", layers_hit=5, layers=6, library_bytes=1 << 20, weights_bytes=2048,
    arena_bytes=1024, scratch_bytes=0, measured_on_target=False, notes=["carried over"],
)  # fmt: skip


def test_build_passes_everything_on(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = replace(monkeypatch, "build_bundle", SUMMARY)
    Path("plan.json").write_text("{}")
    arguments = ("build", model, "--target", "rpi4", "--plan", "plan.json", "--out", "b")
    data = document(invoke(*arguments, "--json"))
    assert BundleSummary.model_validate(data) == SUMMARY
    assert build.args == (model, "rpi4", Path("b"))
    assert build.kwargs["plan"] == Path("plan.json")
    text = invoke(*arguments).stdout
    for part in ("5/6", "not measured on this target", "1.00 MiB", "note: carried over"):
        assert part in text


def test_export_passes_everything_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = replace(monkeypatch, "export_run", SUMMARY)
    Path("run").mkdir()
    document(invoke("export", "run", "--pick", "2", "--target", "rpi4", "--out", "b", "--json"))
    assert export.args == (Path("run"), Path("b"))
    assert (export.kwargs["pick"], export.kwargs["target"]) == ("2", "rpi4")
    document(invoke("export", "run", "--out", "b", "--json"))
    assert (export.kwargs["pick"], export.kwargs["target"]) == ("best", None)


def test_interrupting_build_and_export(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(monkeypatch, "build_bundle", KeyboardInterrupt())
    replace(monkeypatch, "export_run", KeyboardInterrupt())
    Path("run").mkdir()
    built = invoke("build", model, "--target", "host", "--out", "b")
    exported = invoke("export", "run", "--out", "b")
    assert (built.exit_code, exported.exit_code) == (130, 130)
    assert "no bundle was written to b" in built.stderr
    assert "the run is unchanged" in exported.stderr
