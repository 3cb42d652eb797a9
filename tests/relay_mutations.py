"""Damaged Relay files (JSON, text, parameters), and what becomes of them.

As a script: ``python -m tests.relay_mutations --count 2000`` imports each in a worker of 2 GB that
is killed when it hangs, builds and runs what was imported, and compares with NumPy and PyTorch.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutated_bytes import Mutation, flipped, flipped_head, moved, truncated
from tests.mutation_runs import judge_many, wind_clock
from tests.relay_files import DATA, Array, call, module_json, params_file, run, var
from tests.relay_reference import UnknownError, evaluate, json_main, same
from tvmx.errors import TvmxError
from tvmx.frontends.relay._graph import Function, GlobalVar, Let, Tuple, TupleGetItem, Var
from tvmx.frontends.relay._ndarray import parse_array, read_params
from tvmx.frontends.relay._text import read_text

_SMALL = 3  # of the seeds
_LARGE = 1 << 24  # elements
_BEYOND = 1e6  # sums in another order come out otherwise


_NUMBERS = ("0", "-1", "1", "2", "3", "7", "4294967296", "2147483648", "1099511627776",
            "9223372036854775807", "9" * 30)  # fmt: skip


def another_number(data: bytes, rng: random.Random) -> bytes:
    """A number somewhere in a text becomes another: ids, sizes, attributes."""
    places = [i for i, c in enumerate(data) if 48 <= c <= 57]
    start = end = rng.choice(places)
    while start and 48 <= data[start - 1] <= 57:
        start -= 1
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    number = rng.choice((str(rng.randrange(300)), *_NUMBERS))
    return data[:start] + number.encode() + data[end:]


def of_nodes(change: Callable[[list[dict[str, Any]], random.Random], None]) -> Mutation:
    """A mutation of the node table of a JSON file."""

    def mutation(data: bytes, rng: random.Random) -> bytes:
        module = json.loads(data)
        change(module["nodes"], rng)
        return json.dumps(module).encode()

    return mutation


def swapped_nodes(nodes: list[dict[str, Any]], rng: random.Random) -> None:
    """Two nodes change places, whoever refers to them."""
    a, b = (rng.randrange(1, len(nodes)) for _ in range(2))
    nodes[a], nodes[b] = nodes[b], nodes[a]


def copied_node(nodes: list[dict[str, Any]], rng: random.Random) -> None:
    """A node becomes another, or takes the type of another."""
    a, b = (rng.randrange(1, len(nodes)) for _ in range(2))
    nodes[a] = nodes[b] if rng.random() < 0.5 else {**nodes[a], "type_key": nodes[b]["type_key"]}


def other_argument(nodes: list[dict[str, Any]], rng: random.Random) -> None:
    """A call reads what another reads or makes, before or after it: cycles too."""
    calls = [i for i, node in enumerate(nodes) if node["type_key"] == "relay.Call"]
    lists = [nodes[int(nodes[i]["attrs"]["args"])]["data"] for i in calls]
    mine = rng.choice(lists)
    mine[rng.randrange(len(mine))] = rng.choice([*calls, *rng.choice(lists)])


def other_call(nodes: list[dict[str, Any]], rng: random.Random) -> None:
    """A call has the operator, the attributes or the arguments of another."""
    calls = [node["attrs"] for node in nodes if node["type_key"] == "relay.Call"]
    part = rng.choice(("op", "attrs", "args"))
    rng.choice(calls)[part] = rng.choice(calls)[part]


def other_attribute(nodes: list[dict[str, Any]], rng: random.Random) -> None:
    """A field of a node is another number, or gone, or named otherwise."""
    fields = rng.choice([node["attrs"] for node in nodes if node.get("attrs")])
    name = rng.choice(sorted(fields))
    kind = rng.randrange(8)
    if kind == 0:
        fields[name + "s"] = fields.pop(name)
    elif kind == 1:
        del fields[name]
    else:
        fields[name] = rng.choice((*_NUMBERS, "nan", "1e30", str(rng.randrange(len(nodes)))))


def other_whole_number(nodes: list[dict[str, Any]], rng: random.Random) -> None:
    """A size, stride, width or axis: huge, negative, or off by a little."""
    rng.choice([n["attrs"] for n in nodes if n["type_key"] == "IntImm"])["value"] = rng.choice(
        _NUMBERS
    )


@dataclass(frozen=True)
class DamagedRelay:
    """A module and its parameters."""

    suffix: str
    module: bytes
    params: bytes
    built: bool = True
    """Whether it is small enough to be built each time."""

    def save(self, folder: Path, name: str) -> None:
        """Keep both."""
        self._write(folder, name)

    def _write(self, folder: Path, name: str) -> tuple[Path, Path]:
        paths = folder / f"{name}{self.suffix}", folder / f"{name}.params"
        for path, data in zip(paths, (self.module, self.params), strict=True):
            path.write_bytes(data)
        return paths

    def imported(self, folder: Path) -> tuple[str, Any]:
        """The kind of error, or "" with the model. Raises what is no error of tvmx."""
        from tvmx.frontends import load_model

        path, params = self._write(folder, "net")
        try:
            return "", load_model(path, params=params)
        except TvmxError as err:
            assert err.message, "an error without a message"
            return type(err).__name__, None

    def judge(self, whole: bool = True) -> str:
        """An error's kind, "right", or another word where it cannot be told."""
        with tempfile.TemporaryDirectory() as folder:
            kind, model = self.imported(Path(folder))
        if model is None or not (whole and self.built):
            return kind or "imported"
        wind_clock()
        if any(math.prod(spec.shape) > _LARGE for spec in (*model.inputs, *model.outputs)):
            return "imported, too large to run"
        feeds = {spec.name: _data(spec.shape, spec.dtype) for spec in model.inputs}
        want, unknown = self._expected(feeds)
        try:
            got = _run(model, list(feeds.values()))
        except TvmxError as err:
            return f"imported, {type(err).__name__}"
        if want is None:
            want = list(run(model, feeds))
        if any(map(_beyond, (*want, *self._constants()))):
            return "imported, figures beyond floats"
        if not same(got, want, 1e-3):
            raise AssertionError(f"wrong figures: {_shown(got)} for {_shown(want)}; {unknown}")
        return f"as Relax computes it: {unknown}" if unknown else "right"

    def _expected(self, feeds: dict[str, Array]) -> tuple[list[Array] | None, str]:
        """What the file says, or why that is not known."""
        with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
            _, params = self._write(Path(folder), "net")
            try:
                main = self._main()
                return evaluate(main, {**read_params(params), **feeds}), ""
            except UnknownError as err:
                return None, f"the reference does not know {err}"
            except Exception as err:  # whatever damage makes the reference run into
                return None, f"the reference fails: {type(err).__name__}"

    def _constants(self) -> list[Array]:
        """All floating-point arrays of an importable module."""
        table = self.module.decode()
        if "txt" in self.suffix:
            table = table.partition("#[metadata]")[2] or "{}"
        blobs = json.loads(table).get("b64ndarrays", [])
        arrays = [parse_array(base64.b64decode(blob), "array") for blob in blobs]
        with tempfile.TemporaryDirectory() as folder:
            arrays += read_params(self._write(Path(folder), "net")[1]).values()
        return [array for array in arrays if array.dtype.kind == "f"]

    def _main(self) -> Function:
        text = self.module.decode()
        return read_text(text, "").functions["main"] if "txt" in self.suffix else json_main(text)


def _data(shape: tuple[int, ...], dtype: str) -> Array:
    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 100, shape).astype(dtype)


def _run(model: Any, feeds: list[Array]) -> list[Array]:
    from tests.network_plans import execute, host, registry
    from tvmx.passes import baseline_plan, extract_layers, lower

    network = extract_layers(model)
    plan = baseline_plan(network, registry(), host())
    return execute(lower(network, plan, registry(), host()).mod, host(), feeds)


def _beyond(array: Array) -> bool:
    wide = array.astype(np.float64)
    return bool(np.abs(np.nan_to_num(wide, nan=np.inf)).max(initial=0) > _BEYOND)


def _shown(arrays: list[Array]) -> str:
    return ", ".join(f"{a.dtype}{a.shape}{a.reshape(-1)[:4]}" for a in arrays)


def mixed() -> DamagedRelay:
    """Functions, lets, tuples, operators of many attributes; weights in both files."""
    rng = np.random.default_rng(0)

    def figures(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    data, kernel = figures(1, 6, 8, 4), figures(3, 3, 4, 8)
    x, w, y, a = var("x", data), var("conv_weight", kernel), Var("y"), Var("a", None)
    double = Function((a,), call("add", a, call("tanh", a)))
    conv = call("nn.conv2d", x, w, padding=(1, 1, 1, 1), data_layout="NHWC", kernel_layout="HWIO",
                channels=8, kernel_size=(3, 3), span="first")  # fmt: skip
    cut = call("strided_slice", y, begin=(0, 1), end=(1, -1), strides=(1,), axes=(1, 2))
    parts = call("split", call("transpose", cut, axes=(0, 3, 1, 2)), indices_or_sections=(3,),
                 axis=1)  # fmt: skip
    up = call("nn.conv2d_transpose", TupleGetItem(parts, 0), figures(3, 5, 2, 2), strides=(2, 2),
              padding=(0, 0), kernel_layout="IOHW")  # fmt: skip
    q = call("qnn.quantize", TupleGetItem(parts, 1), 0.05, 100, out_dtype="uint8", axis=-1)
    q = call("qnn.conv2d_transpose", q, rng.integers(-127, 128, (5, 4, 3, 3)).astype(np.int8), 100,
             0, 0.05, 0.02, strides=(2, 1), padding=(1, 1, 0, 1), kernel_layout="IOHW",
             out_dtype="int32")  # fmt: skip
    q = call("qnn.requantize", q, 0.001, 0, 0.1, 128, axis=1, out_dtype="uint8")
    padded = call("nn.pad", up, 0.5, pad_width=((0, 0), (0, 0), (1, 0), (0, 2)),
                  pad_mode="constant")  # fmt: skip
    sized = call("image.resize2d", padded, size=(4, 4), layout="NCHW", method="linear",
                 coordinate_transformation_mode="half_pixel")  # fmt: skip
    flat = call("reshape", sized, newshape=(1, -1))
    probable = call("nn.softmax", call("take", flat, np.array([3, 0, 7], np.int32), axis=1),
                    axis=-1)  # fmt: skip
    both = Tuple((call(GlobalVar("double"), probable), call("mean", up, axis=(2, 3), keepdims=0),
                  q, call("max", sized, axis=(1,), keepdims=1, exclude=1)))  # fmt: skip
    module = module_json([x, w], Let(y, call("clip", conv, a_min=-2.0, a_max=3.0), both),
                         double=double)  # fmt: skip
    return DamagedRelay(".relay.json", module.encode(), params_file({"conv_weight": kernel}))


@functools.cache
def seeds() -> tuple[DamagedRelay, ...]:
    """The files that are damaged; those from ``_SMALL`` on are large."""
    names = (("qnn_block", ".relay.json"), ("qnn_block", ".relay.txt"), ("resnet20", ".relay.json"),
             ("resnet20", ".relay.txt"))  # fmt: skip
    read = (
        DamagedRelay(suffix, (DATA / f"{name}{suffix}").read_bytes(),
                     (DATA / f"{name}.params").read_bytes())
        for name, suffix in names
    )  # fmt: skip
    return mixed(), *read


BYTES: tuple[Mutation, ...] = (flipped, flipped_head, truncated, moved)
TEXTS: tuple[Mutation, ...] = (flipped, truncated, moved, another_number, another_number)
NODES: tuple[Mutation, ...] = tuple(map(of_nodes, (
    swapped_nodes, copied_node, other_argument, other_argument, other_call, other_call,
    other_attribute, other_attribute, other_whole_number, other_whole_number,
)))  # fmt: skip


def mutant(number: int, seed: int) -> DamagedRelay:
    """The damaged files of this number: the module, and in one of six the parameters instead."""
    rng = random.Random(f"{seed}/{number}")
    turn, which = divmod(number, len(seeds()))
    made = replace(seeds()[which], built=which < _SMALL or turn % 10 == 0)
    for _ in range(rng.choice((1, 1, 1, 2))):
        of_params = rng.random() < 1 / 6
        kinds = TEXTS if rng.random() < 0.4 or "txt" in made.suffix else NODES
        try:
            if of_params:
                made = replace(made, params=rng.choice(BYTES)(made.params, rng))
            else:
                made = replace(made, module=rng.choice(kinds)(made.module, rng))
        except Exception:  # the mutation before left nothing to change, or nothing that parses
            continue
    return made


if __name__ == "__main__":
    sys.exit(judge_many(mutant, len(seeds())))
