"""Files that are no exported program, or one that cannot be imported: one clear error each.

Nothing in a file may run: the archives here carry code in every place torch would execute it.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tvmx.cli._main import app
from tvmx.errors import (
    CorruptModelError,
    ModelError,
    ModelShapeError,
    TvmxError,
    UnsupportedOpError,
)
from tvmx.frontends import check_model, load_model, torch_runner

TWO_LINES = (
    "program = torch.export.export(model.eval(), (torch.randn(1, 3, 224, 224),))",
    'torch.export.save(program, "model.pt2")',
)


class Net(nn.Module):
    """A convolution, a pool, a linear layer; any image size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(image)).relu()
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1))


def export(
    module: nn.Module, path: Path, *inputs: torch.Tensor, train: bool = False, **options: Any
) -> Path:
    program = torch.export.export(module.train(train), inputs, **options)
    torch.export.save(program, str(path))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Net(), tmp_path_factory.mktemp("net") / "net.pt2", torch.zeros(1, 3, 6, 6))


def altered(saved: Path, folder: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of the archive whose records went through ``change`` (names without the root)."""
    with zipfile.ZipFile(saved) as archive:
        root = archive.namelist()[0].split("/")[0]
        records = {n.removeprefix(f"{root}/"): archive.read(n) for n in archive.namelist()}
    change(records)
    path = folder / "altered.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"{root}/{name}", content)
    return path


def edited(saved: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy whose description (JSON) went through ``change``."""

    def rewrite(records: dict[str, bytes]) -> None:
        document = json.loads(records["models/model.json"])
        change(document)
        records["models/model.json"] = json.dumps(document).encode()

    return altered(saved, folder, rewrite)


# code in files


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def payload(target: Path) -> bytes:
    """What torch.save writes, with the bomb in it."""
    buffer = io.BytesIO()
    torch.save({"x": Bomb(target)}, buffer)
    return buffer.getvalue()


def pickled_weight(records: dict[str, bytes], target: Path) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(records[name])
    config["config"]["fc.bias"]["use_pickle"] = True
    records[name] = json.dumps(config).encode()
    records["data/weights/" + config["config"]["fc.bias"]["path_name"]] = payload(target)


def opaque_constant(records: dict[str, bytes], target: Path) -> None:
    name = "data/constants/model_constants_config.json"
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    records[name] = json.dumps({"config": {"c": {**entry, "tensor_meta": None}}}).encode()
    records["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(target))


def sample_inputs(records: dict[str, bytes], target: Path) -> None:
    records["data/sample_inputs/model.pt"] = payload(target)


def legacy_weights(records: dict[str, bytes], target: Path) -> None:
    records["data/weights/model.pt"] = payload(target)


def of_document(change: Callable[[Any, str], None]) -> Callable[[dict[str, bytes], Path], None]:
    def rewrite(records: dict[str, bytes], target: Path) -> None:
        document = json.loads(records["models/model.json"])
        change(document, f"__import__('pathlib').Path({str(target)!r}).touch()")
        records["models/model.json"] = json.dumps(document).encode()

    return rewrite


def symbolic_size(document: Any, code: str) -> None:
    meta = document["graph_module"]["graph"]["tensor_values"]["conv2d"]
    meta["sizes"][0] = {"as_expr": {"expr_str": code, "hint": {"as_int": 1}}}


def guard(document: Any, code: str) -> None:
    document["guards_code"] = [code]


def operator_target(document: Any, code: str) -> None:
    node = document["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": code}, "kind": 1}]


def value_name(document: Any, code: str) -> None:
    text = json.dumps(document["graph_module"]).replace('"conv2d"', json.dumps(f"a={code};conv2d"))
    document["graph_module"] = json.loads(text)


def parameter_name(document: Any, code: str) -> None:
    for spec in document["graph_module"]["signature"]["input_specs"]:
        if spec.get("parameter", {}).get("parameter_name") == "fc.bias":
            spec["parameter"]["parameter_name"] = f'fc", {code}, "bias'


PLACES: dict[str, Callable[[dict[str, bytes], Path], None]] = {
    "weight": pickled_weight,
    "constant": opaque_constant,
    "sample inputs": sample_inputs,
    "weights of older torch": legacy_weights,
    "size": of_document(symbolic_size),
    "guard": of_document(guard),
    "operator": of_document(operator_target),
    "value's name": of_document(value_name),
    "parameter's name": of_document(parameter_name),
}
HARMLESS = ("sample inputs", "guard")  # left out of what torch gets; the network is imported


@pytest.mark.parametrize("place", PLACES)
def test_code_in_an_archive_never_runs(saved: Path, tmp_path: Path, place: str) -> None:
    mark = tmp_path / "ran"
    path = altered(saved, tmp_path, lambda records: PLACES[place](records, mark))
    image = np.ones((1, 3, 6, 6), np.float32)
    if place in HARMLESS:
        assert load_model(path).inputs == load_model(saved).inputs
        (got,), (want,) = (torch_runner(p)({"image": image}) for p in (path, saved))
        assert np.array_equal(got, want)
    else:
        for function in (load_model, torch_runner):
            with pytest.raises(ModelError):
                function(path)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["weight", "constant", "sample inputs", "size"])
def test_the_same_code_does_run_in_torchs_own_reader(
    saved: Path, tmp_path: Path, place: str
) -> None:
    """The archives above are dangerous: otherwise the test before this one shows nothing."""
    mark = tmp_path / "ran"
    path = altered(saved, tmp_path, lambda records: PLACES[place](records, mark))
    try:
        torch.export.load(path)
    except Exception as err:
        assert not isinstance(err, TvmxError)
    assert mark.exists()


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.pt2", "net.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_with_the_lines_that_export(
    tmp_path: Path, name: str, zipped: bool
) -> None:
    path, mark = tmp_path / name, tmp_path / "ran"
    torch.save({"net": Net().state_dict(), "x": Bomb(mark)}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    for function in (load_model, check_model):
        with pytest.raises(ModelError, match="pickled PyTorch module") as caught:
            function(path)
        assert str(caught.value.hint).splitlines()[-2:] == list(TWO_LINES)
    assert not mark.exists()
    shown = CliRunner().invoke(app, ["import", str(path)])
    assert shown.exit_code == 1
    assert all(line in shown.stderr for line in TWO_LINES)


def test_the_two_lines_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Net()
    exec("\n".join(TWO_LINES), {"torch": torch, "model": model})
    assert load_model("model.pt2").inputs[0].shape == (1, 3, 224, 224)


# damage


def test_empty_cut_off_and_other_files(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "net.pt2"
    for content, message in (
        (b"", "is empty"), (whole[: len(whole) // 2], "is cut off"), (b"hello", "is no archive"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(CorruptModelError, match=message):
            load_model(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", "text")
    with pytest.raises(CorruptModelError, match=r"no archive of torch\.export"):
        load_model(path)


def test_flipped_bytes_never_escape_as_other_errors(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "net.pt2"
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            torch_runner(path)
        except ModelError:
            refused += 1
    assert refused > 20


def test_fields_of_other_types_never_escape_as_other_errors(saved: Path, tmp_path: Path) -> None:
    """Every third field of the description in turn becomes something else."""
    with zipfile.ZipFile(saved) as archive:
        name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
        document = json.loads(archive.read(name))

    def places(found: Any) -> list[tuple[Any, Any]]:
        keys = list(found) if isinstance(found, dict) else range(len(found))
        own = [(found, key) for key in keys]
        inner = [p for k in keys if isinstance(found[k], dict | list) for p in places(found[k])]
        return own + inner

    found = places(document["graph_module"])
    assert len(found) > 300
    for index in range(0, len(found), 9):
        container, key = found[index]
        kept, container[key] = container[key], [None, -7, "a b", {}, []][index % 5]
        text = json.dumps(document).encode()
        container[key] = kept
        path = altered(saved, tmp_path, lambda r, text=text: r.update({"models/model.json": text}))
        try:
            torch_runner(path)
        except ModelError:
            continue


@pytest.mark.parametrize("record", ["weights/weight_0", "weights/model_weights_config.json"])
def test_missing_and_short_records(saved: Path, tmp_path: Path, record: str) -> None:
    gone = altered(saved, tmp_path, lambda records: records.pop(f"data/{record}"))
    with pytest.raises(CorruptModelError, match="damaged"):
        load_model(gone)
    short = altered(saved, tmp_path, lambda r: r.update({f"data/{record}": b"1234"}))
    with pytest.raises(CorruptModelError):
        load_model(short)


def test_several_programs_and_older_archives(saved: Path, tmp_path: Path) -> None:
    two = altered(saved, tmp_path, lambda r: r.update({"models/other.json": b"{}"}))
    with pytest.raises(ModelError, match=r"model\.json, models/other\.json"):
        load_model(two)
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(ModelError, match="format of torch before") as caught:
        load_model(path)
    assert "torch.export.save(torch.export.load(old)" in str(caught.value.hint)


# shapes


def dynamic(path: Path, **dims: Any) -> Path:
    shapes = {"image": {0: torch.export.Dim("batch", **dims), 2: torch.export.Dim.AUTO,
                        3: torch.export.Dim.AUTO}}  # fmt: skip
    return export(Net(), path, torch.zeros(2, 3, 6, 8), dynamic_shapes=shapes)


def test_dynamic_dimensions_are_pinned_by_shape(tmp_path: Path) -> None:
    path = dynamic(tmp_path / "net.pt2")
    with pytest.raises(ModelShapeError, match=r"'image' has the dynamic shape \(s\d+, 3, ") as e:
        load_model(path)
    assert e.value.hint == "add --shape image=1,3,224,224"
    feeds = {"image": np.random.default_rng(0).standard_normal((3, 3, 5, 7)).astype(np.float32)}
    shape = {"image": (3, 3, 5, 7)}
    model = load_model(path, shape)
    assert model.outputs[0].shape == (3, 2)
    with torch.inference_mode():
        want = torch.export.load(path).module()(torch.from_numpy(feeds["image"]))
    np.testing.assert_allclose(torch_runner(path, shape)(feeds)[0], want, atol=1e-6)
    assert model.digest != load_model(path, {"image": (2, 3, 5, 7)}).digest


def test_limits_of_dynamic_dimensions(tmp_path: Path) -> None:
    path = dynamic(tmp_path / "net.pt2", min=2, max=4)
    for batch in (1, 5):
        with pytest.raises(ModelShapeError, match=r"exported for s\d+ of 2 to 4"):
            load_model(path, {"image": (batch, 3, 6, 8)})


def test_dimensions_that_depend_on_each_other(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            return torch.cat([one, two[:, ::2] + one])

    half = torch.export.Dim("half", min=2, max=64)
    path = export(
        Halves(), tmp_path / "net.pt2", torch.zeros(1, 6), torch.zeros(1, 12),
        dynamic_shapes={"one": {1: half}, "two": {1: 2 * half}},
    )  # fmt: skip
    assert load_model(path, {"one": (1, 5), "two": (1, 10)}).outputs[0].shape == (2, 5)
    with pytest.raises(ModelShapeError, match="dimension 1 has to be 10"):
        load_model(path, {"one": (1, 5), "two": (1, 9)})


@pytest.mark.parametrize(
    "name, shape, message",
    [("y", (1, 3, 6, 6), "no input 'y'"), ("image", (1, 3, 6), "has 3 dimensions"),
     ("image", (2, 3, 6, 6), "dimension 0 is fixed to 1")],
)  # fmt: skip
def test_shapes_that_do_not_fit(
    saved: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelShapeError, match=message):
        load_model(saved, {name: shape})


def test_size_that_depends_on_values(tmp_path: Path) -> None:
    class Some(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = x.sum().to(torch.int64).item()
            torch._check(count >= 2)
            torch._check(count < 5)
            return torch.ones(count) * 2

    path = export(Some(), tmp_path / "net.pt2", torch.ones(3))
    with pytest.raises(ModelError, match=r"item\.default|depends on values"):
        load_model(path)


# contents


def test_all_unsupported_operators_at_once(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.AdaptiveMaxPool3d(1), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wave = torch.fft.fft(x).real + torch.fft.fft(x + 1).real
            return self.inner(torch.linalg.inv(wave))

    path = export(Odd(), tmp_path / "net.pt2", torch.zeros(1, 2, 4, 4))
    for function in (load_model, check_model):
        with pytest.raises(UnsupportedOpError) as caught:
            function(path)
        ops = caught.value.ops
        assert ops["fft_fft.default"] == ["fft_fft", "fft_fft_1"]
        assert ops["adaptive_max_pool3d.default"] == ["inner.0"]
        assert {"fft_fft.default", "linalg_inv.default"} <= set(ops)
        assert all(name in str(caught.value) for names in ops.values() for name in names)
    shown = CliRunner().invoke(app, ["import", str(path)])
    assert shown.exit_code == 1
    assert "inner.0" in shown.stderr


def test_node_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(2, divisor_override=3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(x)

    path = export(Pool(), tmp_path / "net.pt2", torch.zeros(1, 2, 4, 4))
    with pytest.raises(ModelError, match=r"node 'pool' \(avg_pool2d\).*divisor_override"):
        load_model(path)


def test_positions_of_maxima_are_refused(tmp_path: Path) -> None:
    class Pool(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return nn.functional.max_pool2d_with_indices(x, 2)

    path = export(Pool(), tmp_path / "net.pt2", torch.zeros(1, 2, 4, 4))
    with pytest.raises(ModelError, match="positions of the maxima"):
        load_model(path)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Dropout])
def test_training_mode_is_refused(tmp_path: Path, kind: Callable[[int], nn.Module]) -> None:
    odd = nn.Sequential(nn.ReLU(), kind(2) if kind is nn.BatchNorm2d else nn.Dropout(0.5))
    path = export(odd, tmp_path / "net.pt2", torch.zeros(2, 2, 4, 4), train=True)
    with pytest.raises(ModelError, match=r"'1'.*training mode") as caught:
        load_model(path)
    assert "model.eval()" in str(caught.value.hint)


def test_state_that_changes_is_refused(tmp_path: Path) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.get_buffer("seen").add_(1)
            return x + self.seen

    path = export(Counter(), tmp_path / "net.pt2", torch.zeros(1, 3))
    with pytest.raises(ModelError, match="changes its own state"):
        load_model(path)


def test_inputs_and_weights_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    for dtype in (torch.float64, torch.float16):
        export(nn.ReLU(), path, torch.zeros(1, 3, dtype=dtype))
        with pytest.raises(ModelError, match="'input' is of type float"):
            load_model(path)
    export(nn.Embedding(4, 3, dtype=torch.float64), path, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ModelError, match=r"embedding|is of type float64"):
        load_model(path)

    class Scaled(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.to(torch.float32) / 255

    export(Scaled(), path, torch.zeros(1, 3, dtype=torch.uint8))
    assert load_model(path).inputs[0].describe() == "pixels uint8[1,3]"


def test_inputs_that_are_no_tensors(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, factor: float) -> torch.Tensor:
            return x * factor

    program = torch.export.export(Scaled(), (torch.zeros(1, 3), 2.0))
    torch.export.save(program, str(tmp_path / "net.pt2"))
    with pytest.raises(ModelError, match="not a tensor"):
        load_model(tmp_path / "net.pt2")
