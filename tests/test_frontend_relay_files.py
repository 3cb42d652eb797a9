"""Damaged Relay files: a typed error or a right result, never a crash, a hang or much memory.

``python -m tests.relay_mutations --count 2000`` does the same at length, in processes of their own.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import relay_mutations as mutations
from tests.relay_files import Writer, blob, call, load, module_json, params_file, var
from tvmx.errors import CorruptModelError, ModelError, ModelShapeError, TvmxError
from tvmx.frontends import check_model
from tvmx.frontends.relay._flatten import flatten
from tvmx.frontends.relay._graph import Expr, Function, GlobalVar, Tuple, TupleGetItem, Var
from tvmx.frontends.relay._json import read_module
from tvmx.frontends.relay._ndarray import parse_array, read_params
from tvmx.frontends.relay._text import read_text

X = np.ones((2, 3), np.float32)
x = var("x", X)


@pytest.mark.parametrize("number", range(2))
def test_the_files_themselves_are_right(number: int) -> None:
    kind = mutations.seeds()[number].judge()
    assert kind == ("right" if number else "as Relax computes it: the reference does not know "
                    "several functions")  # fmt: skip


def test_damaged_files_are_checked_without_tvm(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for number in range(200):
        damaged = mutations.mutant(number, seed=0)
        damaged.save(tmp_path, "net")
        started = time.monotonic()
        try:
            check_model(tmp_path / f"net{damaged.suffix}", params=tmp_path / "net.params")
            seen[""] += 1
        except TvmxError as err:
            assert err.message
            seen[type(err).__name__] += 1
        assert time.monotonic() - started < 10
    assert seen["CorruptModelError"] > 60, seen
    assert seen[""] > 20, seen


def test_damaged_files_that_import_compute_what_they_say() -> None:
    """Built, run and compared with NumPy and PyTorch."""
    seen: Counter[str] = Counter()
    for number in range(35):
        seen[mutations.mutant(number, seed=1).judge(whole=number % 5 in (1, 2))] += 1
    assert seen["CorruptModelError"] > 10, seen
    assert seen["right"] > 1, seen


def test_mutated_parameters(tmp_path: Path) -> None:
    small = {"x": X, "name/of:a.weight": np.arange(60, dtype=np.int8).reshape(3, 4, 5)}
    whole = params_file(small)
    path = tmp_path / "p"
    path.write_bytes(whole)
    for name, array in read_params(path).items():
        np.testing.assert_array_equal(array, small[name])
    refused = 0
    for number in range(600):
        rng = random.Random(number)
        path.write_bytes(rng.choice(mutations.BYTES)(whole, rng))
        try:
            read_params(path)
        except CorruptModelError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "offset, layout, value",
    [
        (0, "Q", 1), (24, "i", -1), (24, "i", 1 << 20), (28, "B", 9), (29, "B", 7), (30, "H", 4),
        (32, "q", 1 << 60), (32, "q", -2), (40, "q", 4), (48, "q", 1 << 62), (48, "q", -1),
    ],
)  # fmt: skip
def test_array_headers_are_checked(offset: int, layout: str, value: int) -> None:
    data = bytearray(blob(X))
    np.testing.assert_array_equal(parse_array(bytes(data), "array"), X)
    struct.pack_into(f"<{layout}", data, offset, value)
    with pytest.raises(CorruptModelError, match="array is damaged"):
        parse_array(bytes(data), "array")


def test_a_cycle_is_found() -> None:
    writer = Writer()
    root = writer.expr(Function((x,), call("nn.relu", call("nn.relu", x))))
    calls = [i for i, node in enumerate(writer.nodes) if node["type_key"] == "relay.Call"]
    inner, outer = calls
    args = int(writer.nodes[inner]["attrs"]["args"])
    writer.nodes[args]["data"] = [outer]
    with pytest.raises(CorruptModelError, match="contains itself"):
        read_module(writer.json(root), "file")


@pytest.mark.parametrize("size", [1 << 29, 1 << 63, 1 << 70])
def test_inputs_beyond_all_sizes(size: int) -> None:
    text = f"""#[version = "0.0.5"]
def @main(%x: Tensor[(1, {size}), float32]) -> Tensor[(1, {size}), float32] {{
  nn.relu(%x)
}}
"""
    with pytest.raises(ModelShapeError, match="'x' is too large"):
        load(text, ".relay.txt")


def test_recursion_is_refused() -> None:
    loop = Function((x,), call(GlobalVar("main"), x))
    with pytest.raises(ModelError, match="call themselves"):
        load(Writer().module({"main": loop}))


def test_deep_graphs_need_no_recursion() -> None:
    writer = Writer()
    param = writer.expr(x)
    op = writer.add("Op", repr_str="nn.relu")
    last = param
    for _ in range(20_000):
        args = writer.add("Array", data=[last])
        last = writer.node("relay.Call", op=op, args=args, attrs=0, span=0, type_args=0)
    params = writer.add("Array", data=[param])
    root = writer.node("relay.Function", params=params, body=last, span=0)
    module = read_module(writer.json(root), "deep")
    assert len(flatten(module, {}, Path("deep")).steps) == 20_000
    with pytest.raises(CorruptModelError, match="too deep"):
        read_text("fn (%x: float32) { " + "nn.relu(" * 5000 + "%x" + ")" * 5000 + "}", "deep")


def test_what_constants_make_is_bounded_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, which are transposed, may be as large as a file is; what grows out of them not."""
    monkeypatch.setattr("tvmx.frontends.relay._emit._MOST_CONSTANTS", 0)
    weight = np.ones((5, 3), np.float32)
    dense = call("nn.dense", x, weight, units=5)
    assert load(module_json([x], dense)).outputs[0].shape == (2, 5)
    with pytest.raises(ModelError, match=r"tile.*\(45, 3\) is too large"):
        load(module_json([x], Tuple((dense, call("tile", weight, reps=(9, 1))))))


def test_functions_that_multiply_are_refused() -> None:
    """Each calls the one before twice: 2 ** 40 operators once inlined."""
    functions = {"f0": Function((x,), call("nn.relu", x))}
    for level in range(1, 41):
        v = Var(f"v{level}", x.type)
        before = GlobalVar(f"f{level - 1}")
        functions[f"f{level}"] = Function((v,), call("add", call(before, v), call(before, v)))
    body = call(GlobalVar("f40"), x)
    start = time.monotonic()
    with pytest.raises(ModelError, match="more than"):
        load(module_json([x], body, **functions))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda m: m.update(root=10**9), "node 1000000000"),
        (lambda m: m.update(root="1"), "node '1'"),
        (lambda m: m.update(root=True), "node True"),
        (lambda m: m.update(nodes={}), "list of nodes"),
        (lambda m: m.update(b64ndarrays=[1]), "texts"),
        (lambda m: m["nodes"].__setitem__(1, {}), "no Relay module|type"),
        (lambda m: m["nodes"][m["root"]]["attrs"].pop("functions"), "functions"),
    ],
)
def test_tables_that_tvm_does_not_write(change: Callable[[Any], Any], part: str) -> None:
    module = json.loads(module_json([x], call("nn.relu", x)))
    change(module)
    if part.startswith("no Relay"):
        module["root"] = 1
    with pytest.raises(CorruptModelError, match=part):
        read_module(json.dumps(module), "file")


def call_of(module: dict[str, Any], op: str) -> dict[str, Any]:
    """The fields of an operator's call in a node table."""
    nodes = module["nodes"]
    at = next(i for i, node in enumerate(nodes) if node.get("repr_str") == op)
    calls = [node["attrs"] for node in nodes if node["type_key"] == "relay.Call"]
    found: dict[str, Any] = next(fields for fields in calls if fields["op"] == str(at))
    return found


def test_attributes_are_those_of_the_operator() -> None:
    """Others, or of other names, would leave it with its defaults: wrong figures."""
    text = module_json([x], call("nn.softmax", x, axis=0))
    read_module(text, "file")
    changes: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
        "attribute 'axes'": lambda call, node: node.update(attrs={"axes": "0"}),
        "has relay.attrs.Reduce": lambda call, node: node.update(type_key="relay.attrs.Reduce"),
        "no attributes": lambda call, node: call.update(attrs="0"),
    }
    for part, change in changes.items():
        module = json.loads(text)
        fields = call_of(module, "nn.softmax")
        change(fields, module["nodes"][int(fields["attrs"])])
        with pytest.raises(CorruptModelError, match=part):
            read_module(json.dumps(module), "file")


@pytest.mark.parametrize(
    "body, part",
    [
        (call("nn.dense", x, np.ones((5, 3), np.float32), units=4), "units is 4"),
        (call("nn.conv2d", call("reshape", x, newshape=(1, 1, 2, 3)),
              np.ones((2, 1, 1, 1), np.float32), channels=3, kernel_size=(1, 1)), "channels is 3"),
        (call("nn.conv2d", call("reshape", x, newshape=(1, 1, 2, 3)),
              np.ones((2, 1, 1, 1), np.float32), channels=2, kernel_size=(1, 2)), "kernel_size"),
    ],
)  # fmt: skip
def test_attributes_and_weights_that_disagree(body: Expr, part: str) -> None:
    with pytest.raises(ModelError, match=part):
        load(module_json([x], body))


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "empty"),
        ("{}", "list of nodes"),
        ("[" * 100_000, "line 1"),
        ('{"nodes": ' + "[" * 100_000, "JSON"),
        ("fn (%x: float32) { %y }", "not defined"),
        ("fn (%x: float32) { add(%x }", "expected"),
        ("fn (%x: float32) { meta[relay.Constant][0] }", "no relay.Constant 0"),
        ("fn (%x: float32) { add(%x, 300u8) }", "is no uint8"),
        ("fn (%x: Tensor[(-1), float32]) { %x }", "no size"),
        ("fn (%x: float32) { nn.softmax(%x, axes=0) }", "no attribute 'axes'"),
        ("fn (%x: float32) { if (%x) { %x } else { %x } }", "control flow"),
        ("fn (%x: float32) { nn.relu }", "used as a tensor"),
        ("fn (%x: float32) { nn.relu(%x).3 }", "no result 3"),
        ("fn (%x: float32) { (%x, %x).2 }", "no item 2"),
        ("fn (%x: float32) { add(%x) }", "wrong arguments"),
        ("fn (%x: float32) { %x(%x) }", "neither an operator nor a function"),
        ("def @f(%x: float32) { %x } def @g(%x: float32) { %x }", "no function @main"),
        ("fn (%x: float32, %x: float32) { %x }", "two inputs"),
        ("fn (%x: (float32, float32)) { %x.0 }", "no tensor|no item"),
        ("\x00\x01", "not Relay text"),
    ],
)
def test_what_is_no_relay_file(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "net.relay"
    path.write_text(text)
    with pytest.raises(ModelError, match=part):
        from tvmx.frontends import load_model

        load_model(path)


def test_a_tuple_as_a_tensor_is_refused() -> None:
    with pytest.raises(CorruptModelError, match="wrong arguments"):
        load(module_json([x], call("nn.relu", Tuple((x, x)))))
    with pytest.raises(CorruptModelError, match="no item 7"):
        load(module_json([x], TupleGetItem(Tuple((x, x)), 7)))


def test_base64_that_is_none() -> None:
    text = module_json([x], call("add", x, X))
    module = json.loads(text)
    module["b64ndarrays"] = [base64.b64encode(blob(X)).decode()[:-3] + "***"]
    with pytest.raises(CorruptModelError, match="base64"):
        load(json.dumps(module))
