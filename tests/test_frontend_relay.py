"""Networks saved by TVM 0.17, against what its own runtime computed; names, weights, commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.network_plans import execute, host, plan_of, registry
from tests.relay_files import DATA, Array, call, constant, load, module_json, params_file, run, var
from tvmx.cli._main import app
from tvmx.errors import (
    CorruptModelError,
    ModelError,
    ModelShapeError,
    TvmxError,
    UnsupportedOpError,
    UsageError,
)
from tvmx.frontends import check_model, load_model, model_digest
from tvmx.frontends.relay._graph import (
    Call,
    Expr,
    Function,
    GlobalVar,
    Let,
    TensorType,
    Tuple,
    TupleGetItem,
    Var,
)
from tvmx.passes import extract_layers, lower

PARAMS = {name: DATA / f"{name}.params" for name in ("resnet20", "qnn_block")}
X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
x = var("x", X)


def relays_own(name: str) -> tuple[dict[str, Array], Array]:
    with np.load(DATA / f"{name}.npz") as file:
        return {"data": file["input_data"]}, file["output_0"]


def resnet(suffix: str = ".relay.json") -> Path:
    return DATA / f"resnet20{suffix}"


@pytest.mark.parametrize("suffix", [".relay.json", ".relay.txt"])
def test_a_float_network_computes_what_relay_computed(suffix: str) -> None:
    feeds, want = relays_own("resnet20")
    model = load_model(DATA / f"resnet20{suffix}", params=PARAMS["resnet20"])
    assert [spec.describe() for spec in model.inputs] == ["data float32[1,3,28,28]"]
    assert [spec.describe() for spec in model.outputs] == ["output_0 float32[1,10]"]
    network = extract_layers(model)
    names = [layer.name for layer in network.graph.layers]
    assert names[:2] == ["conv0", "stage1_unit1_conv1"]
    assert (len(names), names[-1]) == (23, "fc1")
    (got,) = run(model, feeds)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.ptp(want))


@pytest.mark.parametrize("name, tolerance", [("resnet20", 1e-4), ("qnn_block", 2e-7)])
def test_relay_networks_as_they_are_deployed(name: str, tolerance: float) -> None:
    feeds, want = relays_own(name)
    network = extract_layers(load_model(DATA / f"{name}.relay.json", params=PARAMS[name]))
    lowered = lower(network, plan_of(network, host()), registry(), host())
    (got,) = execute(lowered.mod, host(), list(feeds.values()))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.ptp(want))


@pytest.mark.parametrize("suffix", [".relay.json", ".relay.txt"])
def test_a_quantised_network_is_exact(suffix: str) -> None:
    feeds, want = relays_own("qnn_block")
    model = load_model(DATA / f"qnn_block{suffix}", params=PARAMS["qnn_block"])
    (got,) = run(model, feeds)
    # Whole numbers until the last multiplication, which rounds once.
    np.testing.assert_allclose(got, want, rtol=2e-7, atol=0)
    assert np.unique(want).size > 5


def test_lets_tuples_and_functions() -> None:
    y, a = Var("y"), Var("a", None)
    double = Function((a,), call("add", a, a))
    inner = Var("b")
    pair = Function((inner,), Tuple((call("exp", inner), call("negative", inner))))
    called = Call(pair, (y,), {})
    twice = Call(GlobalVar("double"), (TupleGetItem(called, 1),))
    closure_arg = Var("c")
    closure = Function((closure_arg,), call("multiply", closure_arg, y))
    named = Var("f")
    body = Let(y, call("multiply", x, 3.0), Let(named, closure, Tuple((
        twice, TupleGetItem(called, 0), Call(named, (x,)), Call(named, (twice,)),
    ))))  # fmt: skip
    got = run(load(module_json([x], body, double=double)), {"x": X})
    triple = X * 3
    for have, want in zip(got, [-2 * triple, np.exp(triple), X * triple, -2 * triple * triple],
                          strict=True):  # fmt: skip
        np.testing.assert_allclose(have, want, rtol=1e-5)


TEXT = """#[version = "0.0.5"]
def @main(%x: Tensor[(2, 4), float32], %w.1: Tensor[(4), float32]) -> Tensor[(2, 4), float32] {
  let %y: Tensor[(2, 4), float32] = multiply(%x, 3f) /* ty=Tensor[(2, 4), float32] */;
  %0 = fn (%b: Tensor[(2, 4), float32], Primitive=1) -> (Tensor[(2, 4), float32], int32) {
    (nn.relu(%b), %b)
  };
  %1 = %0(%y);
  %2 = split(%1.0, indices_or_sections=2, axis=1) /* span=model/cut:3:1 */;
  let %z = add(%2.1, %2.0) /* ty=Tensor[(2, 2), float32] span=model/sum:0:0 */;
  %3 = (%z, @twice(%z));
  %4 = concatenate(%3, axis=-1);
  add(%4, %w.1)
}

def @twice(%v: Tensor[(?, 2), float32]) -> Tensor[(?, 2), float32] {
  add(%v, %v)
}
"""


def test_text_with_functions_tuples_and_spans() -> None:
    w = np.arange(4, dtype=np.float32)
    model = load(TEXT, ".relay")
    assert "model/sum" in {source.name for source in model.sources.values()}
    top = np.maximum(X * 3, 0)
    parts = top[:, 2:] + top[:, :2]
    want = np.concatenate([parts, parts * 2], 1) + w
    np.testing.assert_allclose(run(model, {"x": X, "w.1": w})[0], want, rtol=1e-6)


def test_numbers_in_texts_have_their_types() -> None:
    text = (
        "fn (%x: Tensor[(2), int64]) { (add(%x, 5i64), cast(-2.5e-1f64, dtype=\"float32\"), "
        "where(True, 1f, 2f), cast(7u8, dtype=\"int32\")) }"
    )  # fmt: skip
    got = run(load(text, ".relay.txt"), {"x": np.array([1, 2**40])})
    assert [g.dtype.name for g in got] == ["int64", "float32", "float32", "int32"]
    np.testing.assert_array_equal(got[0], [6, 2**40 + 5])
    assert [float(g.reshape(())) for g in got[1:]] == [-0.25, 1.0, 7.0]


def test_layers_are_named_by_span_then_by_weights_then_by_number() -> None:
    w = constant(np.ones((4, 4), np.float32))
    one = call("nn.dense", x, w, span="head")
    two = call("nn.dense", one, w, span="head")
    body = call("nn.dense", call("nn.relu", two), w)
    names = [layer.name for layer in extract_layers(load(module_json([x], body))).graph.layers]
    assert names == ["head", "head#2", "nn.dense_0"]


def test_weights_and_files_give_their_names(tmp_path: Path) -> None:
    weight = np.ones((4, 4), np.float32)
    held = var("block/dense.weight", weight)
    body = call("nn.dense", call("nn.dense", x, held, span="from_string"), held)
    (tmp_path / "net.json").write_text(module_json([x, held], body))
    (tmp_path / "p").write_bytes(params_file({"block/dense.weight": weight}))
    network = extract_layers(load_model(tmp_path / "net.json", params=tmp_path / "p"))
    # A text that TVM has parsed has the parser's own name everywhere: it tells nothing.
    names = [layer.name for layer in network.graph.layers]
    assert names == ["block/dense", "block/dense#2"]


def nhwc_network(layout: str) -> tuple[Var, Tuple]:
    """The same small network in either order: residual, concat, pad, batch norm, pools, mean."""
    rng = np.random.default_rng(3)

    def weights(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    nhwc = layout == "NHWC"
    axis = 3 if nhwc else 1
    image = Var("image", TensorType((1, 8, 8, 3) if nhwc else (1, 3, 8, 8), "float32"))

    def conv(value: Expr, out: int, inner: int) -> Expr:
        w = weights(out, inner, 3, 3)
        w = w.transpose(2, 3, 1, 0).copy() if nhwc else w
        made = call("nn.conv2d", value, w, padding=(1, 1), channels=out, kernel_size=(3, 3),
                    data_layout=layout, kernel_layout="HWIO" if nhwc else "OIHW")  # fmt: skip
        biased = call("nn.bias_add", made, weights(out), axis=axis)
        return call("clip", biased, a_min=0.0, a_max=6.0)

    one = conv(image, 4, 3)
    two = call("add", conv(one, 4, 4), one)
    vector = weights(4) if nhwc else weights(4).reshape(4, 1, 1)
    norm = [weights(4), weights(4), weights(4), weights(4) ** 2]
    three = TupleGetItem(call("nn.batch_norm", call("multiply", two, vector), *norm, axis=axis), 0)
    joined = call("concatenate", Tuple((three, two)), axis=axis)
    sides = ((1, 1), (0, 2))
    widths = ((0, 0), *sides, (0, 0)) if nhwc else ((0, 0), (0, 0), *sides)
    pooled = call("nn.max_pool2d", call("nn.pad", joined, 0.0, pad_width=widths,
                                        pad_mode="constant"),
                  pool_size=(2, 2), strides=(2, 2), padding=(0, 0), layout=layout)  # fmt: skip
    last = conv(pooled, 5, 8)
    spatial = (1, 2) if nhwc else (2, 3)
    mean = call("mean", last, axis=spatial, keepdims=1, exclude=0)
    return image, Tuple((call("nn.batch_flatten", mean), call("tanh", last)))


def test_nhwc_networks_become_nchw_with_everything_fused() -> None:
    data = np.random.default_rng(4).standard_normal((1, 3, 8, 8)).astype(np.float32)
    results, kinds = [], []
    for layout, feed in (("NCHW", data), ("NHWC", data.transpose(0, 2, 3, 1).copy())):
        image, body = nhwc_network(layout)
        model = load(module_json([image], body))
        graph = extract_layers(model).graph
        kinds.append([layer.workload.describe() for layer in graph.layers])
        moves = [node.op for node in graph.nodes if node.op == "relax.permute_dims"]
        assert len(moves) == (2 if layout == "NHWC" else 0)
        flat, last = run(model, {"image": feed})
        results.append((flat, last if layout == "NCHW" else last.transpose(0, 3, 1, 2)))
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 3
    for have, want in zip(*results, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


def test_every_unsupported_operator_is_listed_with_its_spans(tmp_path: Path) -> None:
    body = call("vision.nms", call("nn.conv3d", call("vision.nms", x, span="boxes"), span="deep"))
    path = tmp_path / "net.relay.json"
    path.write_text(module_json([x], body))
    for look in (check_model, load_model):
        with pytest.raises(UnsupportedOpError) as caught:
            look(path)
        assert caught.value.ops == {"nn.conv3d": ["deep"], "vision.nms": ["boxes", "vision.nms_0"]}
        assert "docs/relay.md" in str(caught.value.hint)


def test_dynamic_inputs_need_a_shape(tmp_path: Path) -> None:
    path = tmp_path / "net.txt.relay"
    path.write_text("fn (%x: Tensor[(?, 3), float32]) { nn.relu(%x) }")
    with pytest.raises(ModelShapeError, match=r"dynamic shape \(\?, 3\)"):
        check_model(path)
    assert load_model(path, {"x": (5, 3)}).outputs[0].shape == (5, 3)


# weights


def test_weights_without_values_are_asked_for() -> None:
    with pytest.raises(ModelError, match=r"bn_data_gamma.* has no value") as caught:
        check_model(resnet())
    assert "--params FILE" in str(caught.value.hint)


def test_the_digest_covers_the_weights(tmp_path: Path) -> None:
    first = model_digest(resnet(), params=PARAMS["resnet20"])
    assert first == load_model(resnet(), params=PARAMS["resnet20"]).digest
    changed = bytearray(PARAMS["resnet20"].read_bytes())
    changed[-1] ^= 1
    (tmp_path / "other.params").write_bytes(changed)
    assert model_digest(resnet(), params=tmp_path / "other.params") != first


@pytest.mark.parametrize(
    "arrays, error, part",
    [
        ({"other": X}, ModelError, "no parameter"),
        ({"x": X.T.copy()}, ModelShapeError, "declares float32"),
        ({"x": X.astype(np.float64)}, ModelShapeError, "float64"),
    ],
)
def test_weights_of_another_model(
    arrays: dict[str, Array], error: type[TvmxError], part: str, tmp_path: Path
) -> None:
    (tmp_path / "net.relay.json").write_text(module_json([x, var("y", X)], call("nn.relu", x)))
    (tmp_path / "p").write_bytes(params_file(arrays))
    with pytest.raises(error, match=part):
        check_model(tmp_path / "net.relay.json", params=tmp_path / "p")


def test_params_are_for_relay_alone(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08")
    with pytest.raises(UsageError, match="no Relay file"):
        check_model(tmp_path / "net.onnx", params=PARAMS["resnet20"])
    with pytest.raises(UsageError, match="does not exist"):
        check_model(resnet(), params=tmp_path / "none")
    with pytest.raises(CorruptModelError, match="no parameter file"):
        check_model(resnet(), params=resnet())


def test_files_are_known_by_their_beginning_too(tmp_path: Path) -> None:
    for index, source in enumerate((resnet(), resnet(".relay.txt"))):
        path = tmp_path / f"saved{index}.model"
        path.write_bytes(source.read_bytes())
        assert check_model(path, params=PARAMS["resnet20"])[0].name == "data"


def test_looking_at_a_file_needs_no_tvm() -> None:
    code = (
        "import sys; from tvmx.frontends import check_model, model_digest\n"
        f"check_model({str(resnet())!r}, None, {str(PARAMS['resnet20'])!r})\n"
        f"model_digest({str(resnet('.relay.txt'))!r}, None, {str(PARAMS['resnet20'])!r})\n"
        "assert not {'tvm', 'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# commands


def tvmx(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("name, tolerance", [("resnet20", 1e-4), ("qnn_block", 2e-7)])
def test_import_writes_relax_that_tvm_runs(name: str, tolerance: float, tmp_path: Path) -> None:
    out = tmp_path / "net.relax.py"
    words = (DATA / f"{name}.relay.json", "--params", PARAMS[name])
    done = tvmx("import", *words, "--emit", "relax", "--output", out, "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert (data["frontend"], data["written"]) == ("relay", str(out))

    from tvmx._tvm import relax, tvm

    feeds, want = relays_own(name)
    module = tvm.script.from_source(out.read_text())
    built = relax.build(module, tvm.target.Target({"kind": "llvm", "opt-level": 0}))
    got = relax.VirtualMachine(built, tvm.cpu())["main"](tvm.runtime.tensor(feeds["data"]))
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=tolerance * np.ptp(want))

    size = out.stat().st_size
    again = tvmx("import", *words, "--emit", "relax", "--output", out)
    assert (again.exit_code, out.stat().st_size) == (2, size)


@pytest.mark.parametrize(
    "words, part",
    [
        (["--emit", "relax"], "--output"),
        (["--output", "file"], "--emit relax"),
        (["--emit", "relax", "--output", "/none/such/file"], "no folder"),
        ([], "--params FILE"),
    ],
)
def test_what_import_cannot_do(words: list[str], part: str) -> None:
    done = tvmx("import", resnet(), *words)
    assert done.exit_code != 0
    assert part in done.output.replace("\n", " ")


def test_explore_and_build_take_the_weights(tmp_path: Path) -> None:
    words = (resnet(), "--params", PARAMS["resnet20"], "--target", "host")
    done = tvmx("explore", *words, "--dry-run", "--json", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["layers"] == 23
    assert tvmx("build", resnet(), "--target", "host", "--out", tmp_path / "b").exit_code == 1


@pytest.mark.parametrize(
    "head, name, proper",
    [
        (b'{"root": 1}', "net.onnx", "net.relay.json"),
        (b"#[version", "net.pt2", "net.relay.txt"),
        (b"\x08\x07", "net.relay.json", "net.relay.onnx"),
        (b"PK\x03\x04", "net.relay", "net.pt2"),
    ],
)
def test_a_name_of_another_format(head: bytes, name: str, proper: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(head)
    with pytest.raises(CorruptModelError, match="by its first bytes") as caught:
        check_model(path)
    assert caught.value.hint == f"mv {path} {tmp_path / proper}"
