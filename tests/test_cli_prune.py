"""``tvmx prune``: levels, patterns, layers that arrive sparse, its plan, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner, Result

from tests.test_explore_calibration import executed
from tvmx.cli._main import app
from tvmx.deploy import load_bundle
from tvmx.errors import BuildError, StoreError
from tvmx.explore import build_bundle
from tvmx.explore._context import Context
from tvmx.explore._prune_weights import with_weights
from tvmx.ir import BlockSparsity, Plan
from tvmx.numerics import own_level, prune
from tvmx.passes import Simulator, baseline_plan, planned
from tvmx.targets import load_target
from tvmx.testing.models import graph_model, onnx_reference

Array = Any
SHAPE = (16, 6, 6)
CLASSES = 6
COUNT = 48
LAYERS = ("wide", "depth", "sparse", "fc")
OWN = 75  # percent of the 4x1 blocks of `sparse` that are zero


def network(kinds: Array) -> onnx.ModelProto:
    """1x1, depthwise, 1x1 that arrives sparse, dense; tells ``kinds`` apart."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) / 2)).astype(np.float32)

    make = helper.make_node
    sparse = weight(64, 64, 1, 1)
    sparse = prune(sparse, BlockSparsity(16, 1, OWN))
    nodes = [
        make("Conv", ["image", "w1", "b1"], ["a"], name="wide"),
        make("Relu", ["a"], ["b"]),
        make("Conv", ["b", "w2"], ["c"], name="depth", pads=[1] * 4, group=64),
        make("Relu", ["c"], ["d"]),
        make("Conv", ["d", "w3"], ["e"], name="sparse"),
        make("Relu", ["e"], ["f"]),
        make("GlobalAveragePool", ["f"], ["g"]),
        make("Flatten", ["g"], ["h"]),
        make("Gemm", ["h", "w4", "b4"], ["logits"], name="fc", transB=1),
    ]
    bias = np.full(64, 0.1, np.float32)
    weights = {"w1": weight(64, 16, 1, 1), "b1": bias, "w2": weight(64, 1, 3, 3), "w3": sparse}
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
    folder = tmp_path_factory.mktemp("prune")
    rng = np.random.default_rng(5)
    kinds = rng.standard_normal((CLASSES, *SHAPE)).astype(np.float32)
    onnx.save(network(kinds), folder / "net.onnx")
    inputs = kinds[np.arange(COUNT) % CLASSES]
    inputs = inputs + 0.3 * rng.standard_normal(inputs.shape).astype(np.float32)
    labels = answers(folder / "net.onnx", inputs).argmax(1)
    np.savez(folder / "data.npz", calibration=inputs[:32], inputs=inputs, labels=labels)
    return folder


def invoke(folder: Path, *arguments: str | Path) -> Result:
    words = ["prune", folder / "net.onnx", "--data", folder / "data.npz", "--target", "rpi4"]
    return CliRunner().invoke(app, [str(word) for word in (*words, *arguments)])


def study(folder: Path, *arguments: str | Path) -> Any:
    result = invoke(folder, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    """For this machine, with the plan written; blocks of 4x1 whatever its lanes are."""
    return study(folder, "--target", "host", "--pattern", "4x1", "--max-accuracy-drop", "5",
                 "--out", folder / "out")  # fmt: skip


def layers_of(found: Any) -> dict[str, Any]:
    return {row["layer"]: row for row in found["layers"]}


def test_each_level_of_each_layer(found: Any) -> None:
    rows = layers_of(found)
    assert tuple(rows) == LAYERS
    levels = {name: [level["sparsity"] for level in row["levels"]] for name, row in rows.items()}
    assert levels["wide"] == [f"4x1@{level}" for level in (50, 70, 80, 90)]
    assert levels["depth"] == [] and rows["depth"]["chosen"] == "cannot be pruned"
    assert levels["sparse"] == ["4x1@80", "4x1@90"], "it arrives with more than the others"
    for name in ("wide", "sparse"):
        noise = [level["sqnr_db"] for level in rows[name]["levels"]]
        assert noise == sorted(noise, reverse=True)
        assert "reconstruction" in {level["method"] for level in rows[name]["levels"]}


def test_a_layer_that_arrives_sparse(found: Any) -> None:
    rows = layers_of(found)
    sparse = rows["sparse"]
    assert sparse["zeros"] == pytest.approx(OWN / 100, abs=0.01)
    assert sparse["zero_pattern"] == "16x1"
    assert sparse["zero_blocks"] == pytest.approx(OWN / 100, abs=0.01)
    assert rows["wide"]["zeros"] == 0 and rows["wide"]["zero_pattern"] == ""
    assert any("arrive sparse" in note for note in found["notes"])


def test_operations_and_bytes_are_those_of_the_kept_blocks(found: Any) -> None:
    assert found["dense"]["flops"] == 2 * 36 * 64 * (16 + 9 + 64) + 2 * 64 * CLASSES
    assert found["dense"]["bytes"] == 4 * 64 * (16 + 9 + 64 + CLASSES)
    for row in found["layers"]:
        blocks = BlockSparsity.parse(row["chosen"].split()[0]) if "@" in row["chosen"] else None
        if blocks is None or not (row["kernel"] or "arrived" in row["chosen"]):
            assert row["after"] == row["dense"]
        else:
            assert row["after"]["flops"] == pytest.approx(
                row["dense"]["flops"] * (1 - blocks.level / 100), rel=0.05
            )
            assert row["after"]["bytes"] < row["dense"]["bytes"]
    totals = [sum(row["after"][name] for row in found["layers"]) for name in ("flops", "bytes")]
    assert [found["best"]["work"][name] for name in ("flops", "bytes")] == totals


def test_the_curve_ends_with_the_network_as_it_was(found: Any) -> None:
    curve = {point["left_out"]: point for point in found["curve"]}
    assert curve[max(curve)]["drop"] == 0.0 and curve[max(curve)]["output_sqnr_db"] == 200.0
    assert found["best"]["visible_drop"] <= 5.0
    assert found["most"]["visible_sqnr_db"] == curve[0]["output_sqnr_db"]
    assert found["best"]["sqnr_db"] >= found["most"]["sqnr_db"]
    assert any("latency is not measured" in note for note in found["notes"])


def test_the_plan_replays_and_computes_what_was_simulated(
    found: Any, folder: Path, tmp_path: Path
) -> None:
    assert json.loads((folder / "out" / "report.json").read_text()) == found
    plan = Plan.load(folder / "out" / "plan.json")
    chosen = {row["layer"]: row["chosen"] for row in found["layers"]}
    for choice in plan.choices:
        if "@" in chosen[choice.layer]:
            assert choice.implementation.sparsity == chosen[choice.layer].split()[0]
    pruned = [choice for choice in plan.choices if choice.weights]
    assert pruned, "something is pruned, so that there is something to test"
    context = Context.open(folder / "net.onnx", {}, "host", [])
    network = planned(with_weights(folder / "out", plan, context.network), plan)
    for choice in pruned:
        blocks = BlockSparsity.parse(choice.implementation.sparsity)
        assert blocks is not None
        (step,) = (s for s in network.steps if getattr(s, "pruned", None)
                   and s.layer.name == choice.layer)  # fmt: skip
        constants = step.pruned[choice.implementation.sparsity]
        assert own_level(constants.weight, blocks.rows, blocks.columns) >= blocks.level
    build_bundle(folder / "net.onnx", "host", tmp_path / "b", plan=folder / "out" / "plan.json")
    again = build_bundle(
        folder / "net.onnx", "host", tmp_path / "again", plan=tmp_path / "b" / "plan.json"
    )
    libraries = [tmp_path / name / "model.so" for name in ("b", "again")]
    assert again.layers_hit
    assert libraries[0].read_bytes() == libraries[1].read_bytes()
    bundle = load_bundle(tmp_path / "b")
    inputs = [bundle.golden_inputs()[spec.name] for spec in bundle.manifest.inputs]
    (out,) = executed(bundle.path / "model.so", inputs)
    (wanted,) = bundle.golden_outputs()
    assert np.abs(out - wanted).max() <= 1e-3 * np.abs(wanted).max()
    (exact,) = onnx_reference(folder / "net.onnx", {"image": inputs[0]})
    assert np.abs(out - exact).max() > 1e-3 * np.abs(exact).max(), "pruned in earnest"


def test_a_plan_without_its_weights_is_refused(found: Any, folder: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(folder / "out", lost)
    context = Context.open(folder / "net.onnx", {}, "host", [])
    plan = Plan.load(lost / "plan.json")
    with pytest.raises(BuildError, match="are not there"):
        planned(context.network, plan)
    file = next((lost / "weights").iterdir())
    with np.load(file) as arrays:
        changed = {name: array * 2 for name, array in arrays.items()}
    np.savez(file, **changed)
    with pytest.raises(StoreError, match="were altered"):
        with_weights(lost, plan, context.network)
    file.write_bytes(b"nothing")
    with pytest.raises(StoreError, match="are damaged"):
        with_weights(lost, plan, context.network)
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        with_weights(lost, plan, context.network)


def test_zeros_that_no_kernel_skips_are_computed_and_said_to_buy_nothing(
    folder: Path, tmp_path: Path
) -> None:
    rows = study(folder, "--target", "host", "--pattern", "unstructured", "--levels", "0.5",
                 "--method", "magnitude", "--skip", "sp*", "--out", tmp_path / "out",
                 "--max-accuracy-drop", "100")  # fmt: skip
    layers = layers_of(rows)
    assert layers["wide"]["chosen"] == "1x1@50" and layers["wide"]["kernel"] == ""
    assert layers["wide"]["after"] == layers["wide"]["dense"]
    assert layers["sparse"]["levels"] == []
    assert any("buy no latency" in note for note in rows["notes"])
    build_bundle(folder / "net.onnx", "host", tmp_path / "b", plan=tmp_path / "out" / "plan.json")
    bundle = load_bundle(tmp_path / "b")
    inputs = [bundle.golden_inputs()[spec.name] for spec in bundle.manifest.inputs]
    (out,) = executed(bundle.path / "model.so", inputs)
    model = onnx.load(folder / "net.onnx")
    for name in ("w1", "w4"):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = onnx.numpy_helper.to_array(tensor)
        flat = np.abs(array).ravel()
        kept = flat >= np.sort(flat)[flat.size // 2]
        half = np.where(kept, array.ravel(), 0).reshape(array.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half.astype(np.float32), name))
    (wanted,) = onnx_reference(model, {"image": inputs[0]})
    assert np.abs(out - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_reconstruction_loses_less_than_magnitude(folder: Path) -> None:
    options = "--target", "host", "--pattern", "4x1", "--levels", "0.5,0.7", "--samples", "16"
    noise = {
        method: study(folder, *options, "--method", method)["most"]["visible_sqnr_db"]
        for method in ("magnitude", "reconstruction")
    }
    assert noise["reconstruction"] > noise["magnitude"] + 1


def test_own_sparsity_is_exact_without_data(folder: Path) -> None:
    """On NEON blocks of 4x1: the layer's zeros come in 16x1, which are 4x1 four times."""
    context = Context.open(folder / "net.onnx", {}, "rpi4", [], exact=True)
    options = context.options()
    by_name = {layer.name: options[layer.index] for layer in context.covered}
    own = [i for i in by_name["sparse"] if i.sparsity != "dense"]
    assert own and all(i.exact and i.precision == "f32" for i in own)
    assert {i.sparsity for i in own if i.template == "conv1x1_bsr"} == {f"4x1@{OWN}"}
    assert by_name["sparse"][0].sparsity == "dense", "the baseline's stays in front"
    assert all(i.sparsity == "dense" for name in ("wide", "fc") for i in by_name[name])


def test_own_sparsity_computes_the_network_as_it_is(folder: Path, tmp_path: Path) -> None:
    """A plan that takes it has the float network's outputs, and its digest names it."""
    context = Context.open(folder / "net.onnx", {}, "host", [], exact=True)
    plan = baseline_plan(context.network, context.registry, context.target)
    options = context.options()
    index = {layer.name: layer.index for layer in context.covered}
    own = [i for i in options[index["sparse"]] if i.sparsity != "dense"]
    if not own:
        pytest.skip("this machine's sparse kernels take blocks that the zeros do not fill")
    from tvmx.passes import choose

    layer = context.network.graph.layers[index["sparse"]]
    entry = context.registry.get(own[0].template)
    choice = choose(entry, layer, context.target, implementation=own[0])
    choices = tuple(choice if c.layer == "sparse" else c for c in plan.choices)
    mixed = plan.model_copy(update={"choices": choices})
    assert mixed.exact and mixed.digest != plan.digest
    image = np.random.default_rng(0).standard_normal((1, *SHAPE)).astype(np.float32)
    (simulated,) = Simulator(context.network, load_target("host")).expected(mixed, [image])
    (wanted,) = onnx_reference(folder / "net.onnx", {"image": image})
    np.testing.assert_allclose(simulated, wanted, rtol=1e-4, atol=1e-5)
    mixed.save(tmp_path / "plan.json")
    build_bundle(folder / "net.onnx", "host", tmp_path / "b", plan=tmp_path / "plan.json")
    (out,) = executed(tmp_path / "b" / "model.so", [image])
    assert np.abs(out - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_people_see_tables_and_the_next_command(folder: Path, tmp_path: Path) -> None:
    result = invoke(folder, "--levels", "0.5,0.8", "--samples", "16", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for part in ("Layers that arrive sparse", "Each layer at each level alone", "Whole networks",
                 "latency is not measured", "tvmx build", "plan.json"):  # fmt: skip
        assert part in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--levels", "0.5,x"], ["--levels 0.5,x", "no number"]),
        (["--levels", "0"], ["no share of whole percent"]),
        (["--levels", "0.505"], ["no share of whole percent"]),
        (["--levels", "50"], ["no share of whole percent"]),
        (["--pattern", "0x1"], ["--pattern 0x1"]),
        (["--pattern", "65x1"], ["--pattern 65x1", "64"]),
        (["--pattern", "blocks"], ["--pattern blocks", "unstructured"]),
        (["--skip", "zzz"], ["matches no layer"]),
        (["--skip", "*"], ["no layer is left", "4 skipped"]),
        (["--samples", "0"], ["--samples 0"]),
        (["--out", "."], ["not empty and not of `tvmx prune`"]),
        (["--target", "nope"], ["no target 'nope'"]),
    ],
)
def test_bad_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    result = invoke(folder, *arguments, "--json")
    assert result.exit_code == 2, result.output
    assert json.loads(result.stdout)["error"]["message"]
    for part in parts:
        assert part in result.stderr
    assert sorted(folder.iterdir()) == before
