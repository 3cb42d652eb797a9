"""Damaged Relay files: a typed error or a right result, never a crash, a hang or much memory."""

from __future__ import annotations

import base64
import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.relay_files import DATA, Writer, blob, call, load, module_json, params_file, var
from tvmx.errors import CorruptModelError, ModelError, ModelShapeError, TvmxError
from tvmx.frontends import check_model
from tvmx.frontends.relay._flatten import flatten
from tvmx.frontends.relay._graph import Function, GlobalVar, Tuple, TupleGetItem, Var
from tvmx.frontends.relay._json import read_module
from tvmx.frontends.relay._ndarray import parse_array, read_params
from tvmx.frontends.relay._text import read_text

X = np.ones((2, 3), np.float32)
x = var("x", X)
Mutation = Callable[[bytes, random.Random], bytes]


def flipped(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def another_number(data: bytes, rng: random.Random) -> bytes:
    """A number somewhere in a text becomes another: ids, sizes, attributes."""
    places = [i for i, c in enumerate(data) if 48 <= c <= 57]
    start = end = rng.choice(places)
    while start and 48 <= data[start - 1] <= 57:
        start -= 1
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    values = [str(rng.randrange(300)), "0", "-1", "1099511627776", "2147483648", "9" * 30]
    return data[:start] + rng.choice(values).encode() + data[end:]


def moved(data: bytes, rng: random.Random) -> bytes:
    """A stretch of the file goes elsewhere."""
    length = rng.randint(1, 200)
    start, to = rng.randrange(len(data)), rng.randrange(len(data))
    part = data[start : start + length]
    rest = data[:start] + data[start + length :]
    return rest[:to] + part + rest[to:]


def another_node(data: bytes, rng: random.Random) -> bytes:
    """A node of the table is replaced by another, or refers to another."""
    module = json.loads(data)
    nodes = module["nodes"]
    node = nodes[rng.randrange(1, len(nodes))]
    other = rng.choice(nodes)
    kind = rng.randrange(4)
    if kind == 0:
        node.clear()
        node.update(other)
    elif kind == 1 and isinstance(node.get("data"), list) and node["data"]:
        node["data"][rng.randrange(len(node["data"]))] = rng.randrange(len(nodes))
    elif kind == 2 and node.get("attrs"):
        node["attrs"][rng.choice(sorted(node["attrs"]))] = str(rng.randrange(len(nodes)))
    else:
        node["type_key"] = other["type_key"]
    return json.dumps(module).encode()


BYTES: tuple[Mutation, ...] = (flipped, cut, moved)
TEXTS: tuple[Mutation, ...] = (*BYTES, another_number)
CASES: tuple[tuple[str, str, tuple[Mutation, ...]], ...] = (
    ("qnn_block", ".relay.json", (*TEXTS, another_node, another_node)),
    ("qnn_block", ".relay.txt", TEXTS),
    ("resnet20", ".relay.txt", TEXTS),
    ("resnet20", ".relay.json", (*TEXTS, another_node)),
)


def survives(path: Path, params: Path | None, whole: bool) -> str:
    """Import as far as asked; the kind of error, or "" for none."""
    from tvmx.frontends import load_model

    start = time.monotonic()
    try:
        (load_model if whole else check_model)(path, params=params)
    except TvmxError as err:
        assert err.message
        return type(err).__name__
    finally:
        assert time.monotonic() - start < 10
    return ""


def mutate_files(count: int, seed: int, folder: Path, whole: bool) -> dict[str, int]:
    """How many mutated files ended in which error."""
    seen: dict[str, int] = {}
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name, suffix, mutations = CASES[number % len(CASES)]
        data = (DATA / f"{name}{suffix}").read_bytes()
        for _ in range(rng.choice((1, 1, 1, 2))):
            try:
                data = rng.choice(mutations)(data, rng)
            except (ValueError, IndexError):
                continue  # the mutation before left nothing to change
        path = folder / f"net{suffix}"
        path.write_bytes(data)
        kind = survives(path, DATA / f"{name}.params", whole)
        seen[kind] = seen.get(kind, 0) + 1
    return seen


def test_mutated_files_are_refused_or_imported(tmp_path: Path) -> None:
    seen = mutate_files(400, 0, tmp_path, whole=False)
    assert seen["CorruptModelError"] > 100
    assert seen[""] > 20, seen


def test_mutated_files_through_the_whole_import(tmp_path: Path) -> None:
    assert sum(mutate_files(40, 1, tmp_path, whole=True).values()) == 40


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
        path.write_bytes(rng.choice(BYTES)(whole, rng))
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
