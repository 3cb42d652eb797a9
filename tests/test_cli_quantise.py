"""``tvmx quantise`` and skip lists: a network with one bad layer, its cut, its plan, bad input."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import helper
from typer.testing import CliRunner, Result

from tests.test_explore_calibration import executed
from tvmx.accuracy import DEFAULT_METRIC, load_data
from tvmx.cli._main import app
from tvmx.cli._preflight import check_run
from tvmx.deploy import load_bundle
from tvmx.errors import RunMismatchError
from tvmx.explore import ExploreRequest, build_bundle
from tvmx.explore._compress import Compression
from tvmx.explore._context import Context
from tvmx.explore._cut import curve_length, find_cut
from tvmx.frontends import model_digest
from tvmx.ir import Plan
from tvmx.store import RunSettings
from tvmx.targets import load_target
from tvmx.testing.models import graph_model, onnx_reference

Array = Any
SHAPE = (3, 8, 8)
CLASSES = 6
LAYERS = ("first", "bad", "last", "fc")
COUNT = 48


def unlucky(kinds: Array) -> onnx.ModelProto:
    """Four layers that tell ``kinds`` apart; int8 weights are hopeless in ``bad``, and only there.

    Its first input channel is always 0, so that huge weights there change nothing in float; with
    one scale for all of an output channel's weights they leave no steps for the others.
    """
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) / 2)).astype(np.float32)

    make = helper.make_node
    first, bad = weight(8, 3, 3, 3), weight(8, 8, 3, 3)
    first[0], bad[:, 0] = 0, 1000
    bias = np.float32([-1e-3, *[0.1] * 7])
    nodes = [
        make("Conv", ["image", "w1", "b1"], ["a"], name="first", pads=[1] * 4),
        make("Relu", ["a"], ["b"]),
        make("Conv", ["b", "w2"], ["c"], name="bad", pads=[1] * 4),
        make("Relu", ["c"], ["d"]),
        make("Conv", ["d", "w3"], ["e"], name="last", pads=[1] * 4),
        make("Relu", ["e"], ["f"]),
        make("GlobalAveragePool", ["f"], ["g"]),
        make("Flatten", ["g"], ["h"]),
        make("Gemm", ["h", "w4", "b4"], ["logits"], name="fc", transB=1),
    ]
    weights = {"w1": first, "b1": bias, "w2": bad, "w3": weight(12, 8, 3, 3)}
    inputs = {"image": (1, *SHAPE)}
    features = answers(graph_model(nodes[:-1], inputs, {"h": None}, weights), kinds)
    centred = features - features.mean(0)
    weights["w4"] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    weights["b4"] = -weights["w4"] @ features.mean(0)
    return graph_model(nodes, inputs, {"logits": (1, CLASSES)}, weights)


def answers(model: Any, inputs: Array) -> Array:
    return np.concatenate([onnx_reference(model, {"image": x[None]})[0] for x in inputs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network; data with labels, without, with too few, and of other classes."""
    folder = tmp_path_factory.mktemp("quantise")
    path = folder / "net.onnx"
    rng = np.random.default_rng(5)
    kinds = rng.standard_normal((CLASSES, *SHAPE)).astype(np.float32)
    onnx.save(unlucky(kinds), path)
    inputs = kinds[np.arange(COUNT) % CLASSES]
    inputs += 0.05 * rng.standard_normal(inputs.shape).astype(np.float32)
    logits = answers(path, inputs)
    labels = logits.argmax(1)
    assert (labels == np.arange(COUNT) % CLASSES).all()
    arrays = {"calibration": inputs[:8], "inputs": inputs}
    np.savez(folder / "data.npz", **arrays, labels=labels)
    np.savez(folder / "plain.npz", **arrays)
    np.savez(folder / "few.npz", **arrays, labels=labels[:-1])
    np.savez(folder / "other.npz", **arrays, labels=labels + CLASSES)
    np.savez(folder / "numbered.npz", **arrays, labels=np.arange(COUNT))
    np.save(folder / "logits.npy", logits)
    (folder / "strict.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        "def metric(outputs, labels):\n"
        "    wanted = np.load(Path(__file__).parent / 'logits.npy')[labels]\n"
        "    return 100 - 1000 * float(np.abs(outputs - wanted).max())\n"
    )
    return folder


def invoke(folder: Path, *arguments: str | Path, data: str = "data.npz") -> Result:
    words = ["quantise", folder / "net.onnx", "--data", folder / data, *arguments]
    return CliRunner().invoke(app, [str(word) for word in words])


def study(folder: Path, *arguments: str | Path, data: str = "data.npz") -> Any:
    result = invoke(folder, *arguments, "--json", data=data)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    """With the plan written."""
    return study(folder, "--out", folder / "out", "--calibration", "minmax", "--bias-correction")


def layers_of(found: Any) -> dict[str, Any]:
    return {row["layer"]: row for row in found["layers"]}


def test_the_bad_layer_is_the_cut(found: Any) -> None:
    rows = layers_of(found)
    assert tuple(rows) == LAYERS
    assert rows["bad"]["rank"] == 1
    assert rows["bad"]["sqnr_db"] < 6
    assert all(rows[name]["sqnr_db"] > 25 for name in LAYERS if name != "bad")
    assert found["kept_float"] == ["bad"]
    assert {name: row["cut"] for name, row in rows.items()} == dict.fromkeys(LAYERS, "int8") | {
        "bad": "float"
    }
    points = {p["kept_float"]: p for p in found["curve"]}
    assert sorted(points) == [0, 1, 2, 3, 4]
    assert points[0]["drop"] > 10
    assert points[1]["layer"] == "bad"
    assert points[1]["drop"] <= found["max_accuracy_drop"] == 1.0
    assert points[4] == {"kept_float": 4, "layer": points[4]["layer"], "drop": 0.0,
                         "output_sqnr_db": 200.0}  # fmt: skip
    assert (found["int8"]["int8_layers"], found["cut"]["int8_layers"]) == (4, 3)
    assert found["int8"]["drop"] > 10 > found["cut"]["drop"]
    assert found["cut"]["sqnr_db"] > 20 > found["int8"]["sqnr_db"]
    assert (found["visible"], found["held_out"], found["metric"]) == (24, 24, "top-1")
    assert found["float_accuracy"] == 100.0


def test_ranges_are_those_of_the_plan(found: Any, folder: Path) -> None:
    """The classifier writes floats, which have no range."""
    plan = Plan.load(folder / "out" / "plan.json")
    activations = {a.value: a for a in plan.activations}
    assert [(v["kind"], v["name"]) for v in found["values"]] == [
        ("input", "image"), *(("layer", name) for name in LAYERS if name != "fc"),
    ]  # fmt: skip
    for row in found["values"]:
        stored = activations[row["value"]]
        assert (row["scale"], row["zero_point"]) == (stored.scale, stored.zero_point)
        assert row["low"] == pytest.approx((-128 - stored.zero_point) * stored.scale)
        assert row["high"] - row["low"] == pytest.approx(255 * stored.scale)
        assert 0 <= row["clipped"] < 0.05


def test_the_report_is_what_was_said(found: Any, folder: Path) -> None:
    written = json.loads((folder / "out" / "report.json").read_text())
    assert written == found
    assert found["plan"] == str(folder / "out" / "plan.json")
    assert found["data"]["name"] == "data.npz"
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["plan.json", "report.json"]


def test_the_plan_replays_and_computes_what_was_simulated(
    found: Any, folder: Path, tmp_path: Path
) -> None:
    plan = Plan.load(folder / "out" / "plan.json")
    precisions = {c.layer: c.implementation.precision for c in plan.choices}
    assert precisions == dict.fromkeys(LAYERS, "int8") | {"bad": "f32"}
    assert {c.layer for c in plan.corrections} == {"first", "last", "fc"}
    check_replay(folder, folder / "out" / "plan.json", tmp_path)


def test_equalisation_makes_up_for_the_bad_layer(folder: Path, tmp_path: Path) -> None:
    better = study(folder, "--out", tmp_path / "better", "--equalise")
    assert better["kept_float"] == []
    assert layers_of(better)["bad"]["sqnr_db"] > 25
    assert any("equalised" in note for note in better["notes"])
    plan = Plan.load(tmp_path / "better" / "plan.json")
    assert {c.implementation.precision for c in plan.choices} == {"int8"}
    assert {c.layer for c in plan.equalisation} >= {"first", "bad"}
    check_replay(folder, tmp_path / "better" / "plan.json", tmp_path)


def check_replay(folder: Path, file: Path, scratch: Path) -> None:
    """The built library computes what simulation says, and that is close to ONNX Runtime."""
    plan = Plan.load(file)
    build_bundle(folder / "net.onnx", "host", scratch / "bundle", plan=file)
    bundle = load_bundle(scratch / "bundle")
    assert bundle.manifest.plan_digest == plan.digest
    inputs = [bundle.golden_inputs()[spec.name] for spec in bundle.manifest.inputs]
    (out,) = executed(bundle.path / "model.so", inputs)
    (wanted,) = bundle.golden_outputs()
    assert np.abs(out - wanted).max() <= bundle.manifest.rtol * np.abs(wanted).max()
    (exact,) = onnx_reference(folder / "net.onnx", {"image": inputs[0]})
    assert 0 < np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


def test_a_skipped_layer_stays_float(folder: Path) -> None:
    rest = study(folder, "--skip", "b*d", "--samples", "12", "--out", folder / "skipped",
                 data="plain.npz")  # fmt: skip
    rows = layers_of(rest)
    assert rows["bad"] == {
        "layer": "bad", "value": rows["bad"]["value"], "workload": rows["bad"]["workload"],
        "sqnr_db": None, "output_sqnr_db": None, "drop": None, "sensitivity": None, "rank": None,
        "cut": "skipped",
    }  # fmt: skip
    assert rest["kept_float"] == []
    assert (rest["cut"]["int8_layers"], rest["visible"], rest["held_out"]) == (3, 12, 12)
    assert rest["metric"] == "agreement"
    plan = Plan.load(folder / "skipped" / "plan.json")
    assert {c.layer for c in plan.choices if c.implementation.precision == "f32"} == {"bad"}


def test_every_method_is_compared_and_the_best_one_used(folder: Path) -> None:
    all_of_them = study(folder, "--calibration", "all", "--skip", "bad", "--samples", "12")
    methods = {row["calibration"]: row for row in all_of_them["methods"]}
    assert set(methods) == {"percentile", "minmax", "average", "kl", "mse"}
    best = min(methods.values(), key=lambda row: row["sensitivity"])
    assert all_of_them["calibration"] == best["calibration"]
    assert all_of_them["curve"][0]["output_sqnr_db"] == best["output_sqnr_db"]
    assert len({row["output_sqnr_db"] for row in methods.values()}) > 2


def test_when_nothing_keeps_the_limit_everything_stays_float(folder: Path) -> None:
    metric = f"{folder}/strict.py:metric"
    none = study(folder, "--metric", metric, "--max-accuracy-drop", "0.1", "--out",
                 folder / "none", data="numbered.npz")  # fmt: skip
    assert sorted(none["kept_float"]) == sorted(LAYERS)
    assert none["cut"]["int8_layers"] == 0
    assert all(point["drop"] > 0.1 for point in none["curve"][:-1])
    assert any("every layer stays float" in note for note in none["notes"])
    assert Plan.load(folder / "none" / "plan.json").exact
    assert none["metric"] == metric


def test_people_see_tables_and_the_next_command(folder: Path) -> None:
    options = "--calibration", "mse", "--bias-correction", "--max-accuracy-drop", "2"
    result = invoke(folder, "--out", folder / "people", *options)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(line.split()[:2] == ["kept", "float"] for line in lines)
    (cut,) = (line for line in lines if line.split()[-1:] == ["cut"] and "dB" in line)
    assert cut.split()[:2] == ["1", "bad"]
    build = next(line for line in lines if line.strip().startswith("tvmx build"))
    assert str(folder / "people" / "plan.json") in build
    explore = next(line for line in lines if line.strip().startswith("tvmx explore"))
    command = typer.main.get_command(app).commands["explore"]  # type: ignore[attr-defined]
    context = command.make_context("tvmx", shlex.split(explore)[2:])
    asked = {"calibration": "mse", "bias_correction": True, "max_accuracy_drop": 2.0}
    assert asked.items() <= context.params.items()
    assert context.params["skip"] == ["bad"]


@pytest.mark.parametrize(
    ("arguments", "data", "code", "parts"),
    [
        (["--skip", "bd"], "data.npz", 2, ["--skip 'bd' matches no layer", "close ones: 'bad'"]),
        (["--skip", "zzz"], "data.npz", 2, ["there are 'first', 'bad', 'last', ..."]),
        (["--skip", "*"], "data.npz", 2, ["no layer is left", "4 skipped", "skip fewer"]),
        ([], "none.npz", 2, ["none.npz does not exist"]),
        ([], "few.npz", 1, ["labels have shape [47]", "[48]"]),
        ([], "other.npz", 1, ["none of the model's 6 classes"]),
        (["--target", "nope"], "data.npz", 2, ["no target 'nope'"]),
        (["--samples", "0"], "data.npz", 2, ["--samples 0"]),
        (["--seed", "-1"], "data.npz", 2, ["--seed -1"]),
        (["--max-accuracy-drop", "nan"], "data.npz", 2, ["--max-accuracy-drop nan"]),
        (["--preprocess", "x.toml"], "data.npz", 2, ["--preprocess is for images"]),
        (["--out", "."], "data.npz", 2, ["not empty and not of `tvmx quantise`"]),
    ],
)
def test_bad_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], data: str, code: int,
    parts: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    result = invoke(folder, *arguments, "--json", data=data)
    assert result.exit_code == code, result.output
    error = json.loads(result.stdout)["error"]
    for part in parts:
        assert part in result.stderr
    assert f"error: {error['message']}" in result.stderr
    assert sorted(folder.iterdir()) == before


def test_data_is_needed(folder: Path) -> None:
    result = CliRunner().invoke(app, ["quantise", str(folder / "net.onnx")])
    assert result.exit_code == 2
    assert "--data" in result.output


def options(folder: Path, *skip: str) -> dict[str, list[tuple[str, str]]]:
    context = Context.open(folder / "net.onnx", {}, "host", [], exact=False, skip=skip)
    found = context.options()
    return {
        layer.name: [(i.precision, i.sparsity) for i in found[layer.index]]
        for layer in context.covered
    }


def test_explore_has_no_int8_option_for_skipped_layers(folder: Path) -> None:
    free, bound = options(folder), options(folder, "ba?", "fc")
    assert set(free) == set(bound) == set(LAYERS)
    for name in LAYERS:
        assert any(precision == "int8" for precision, _ in free[name])
        kept = [o for o in free[name] if name not in ("bad", "fc") or o[0] != "int8"]
        assert bound[name] == kept
    assert any(sparsity != "dense" for _, sparsity in bound["fc"])


def test_explore_corrects_biases_for_the_layers_that_are_int8(folder: Path) -> None:
    """Not for all: corrections behind the ruined layer would ruin the plan without it."""
    context = Context.open(folder / "net.onnx", {}, "host", [], exact=False)
    request = ExploreRequest(
        folder / "net.onnx", "host", folder / "run", data=folder / "data.npz",
        bias_correction=True,
    )  # fmt: skip
    data = load_data(folder / "data.npz", context.model.inputs, 0)
    legal = context.options()
    found = Compression.prepare(context, data, DEFAULT_METRIC, request, legal)
    int8 = {at: next(i for i in options if i.precision == "int8") for at, options in legal.items()}
    bad = next(la.index for la in context.network.graph.layers if la.name == "bad")
    spared = {at: i for at, i in int8.items() if at != bad}
    assert found.joint(spared) <= 2 < 20 < found.joint(int8)
    of_all = found.simulator.corrections
    mine = found.correcting(spared).simulator.corrections
    assert set(mine) == set(spared) and set(of_all) == set(int8)
    assert not np.allclose(mine[bad + 1], of_all[bad + 1], atol=1e-3)
    assert found.correcting(int8) is found


def test_explore_takes_skip_lists(folder: Path) -> None:
    words = ["explore", folder / "net.onnx", "--target", "host", "--dry-run", "--json"]
    data = ["--data", folder / "data.npz"]

    def int8(*more: str | Path) -> list[bool]:
        result = CliRunner().invoke(app, [str(word) for word in (*words, *more)])
        assert result.exit_code == 0, result.output
        work = json.loads(result.stdout)["workloads"]
        return [any("int8" in name for name in row["templates"]) for row in work]

    assert int8(*data) == [True] * 4
    assert int8(*data, "--skip", "first", "--skip", "*") == [False] * 4
    refused = CliRunner().invoke(app, [str(w) for w in (*words, "--skip", "first")])
    assert refused.exit_code == 2
    assert "without --data" in refused.stderr


def test_a_run_with_another_skip_list_is_refused(folder: Path, tmp_path: Path) -> None:
    model, host = folder / "net.onnx", load_target("host")
    request = ExploreRequest(model, "host", tmp_path / "run", skip=("last", "bad", "bad"))
    settings = RunSettings(
        model=model_digest(model), target="host", max_accuracy_drop=1.0, skip=("bad", "last")
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text(settings.model_dump_json())
    check_run(request, host, None)
    for other, told in ((("bad",), "bad, last there, bad now"), ((), "bad, last there, none now")):
        with pytest.raises(RunMismatchError, match=f"skipped layers: {told}"):
            check_run(ExploreRequest(model, "host", tmp_path / "run", skip=other), host, None)


def effect(drop: float) -> Any:
    return SimpleNamespace(drop=drop)


def test_the_cut_is_the_first_within_the_limit_where_drops_fall() -> None:
    for layers in range(1, 70):
        for wanted in range(layers + 1):
            asked: list[int] = []

            def simulate(kept: int, wanted: int = wanted, asked: list[int] = asked) -> Any:
                asked.append(kept)
                return effect(max(0.0, 1.0 + wanted - kept))

            cut = find_cut(layers, simulate, 1.0)
            assert cut.kept == wanted
            assert asked[-1] in cut.curve
            assert len(asked) == len(set(asked)) == len(cut.curve) <= curve_length(layers) + 1
            assert list(cut.curve) == sorted(cut.curve)
            assert {0, wanted, layers} <= set(cut.curve)


def test_the_cut_where_drops_jump_about() -> None:
    rng = random.Random(0)
    for _ in range(200):
        layers = rng.randrange(1, 40)
        drops = [rng.uniform(-1, 5) for _ in range(layers)] + [0.0]
        cut = find_cut(layers, lambda kept, drops=drops: effect(drops[kept]), 1.0)
        assert drops[cut.kept] <= 1.0
        assert cut.kept == 0 or drops[cut.kept - 1] > 1.0
        assert cut.curve[cut.kept].drop == drops[cut.kept]
