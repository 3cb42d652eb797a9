"""Bad input, command by command: one clear message, the right exit code, and no TVM loaded."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from tvmx.cli._main import app
from tvmx.cli._preflight import _RUN_FILES
from tvmx.frontends import load_model, model_digest
from tvmx.store import RunSettings, _run
from tvmx.testing.models import conv_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: models good and bad, data good and bad, folders that get in the way."""
    monkeypatch.chdir(tmp_path)
    model = conv_model(in_channels=3, size=(9, 11))
    onnx.save(model, "net.onnx")
    whole = Path("net.onnx").read_bytes()
    Path("cut.onnx").write_bytes(whole[: len(whole) - 40])
    Path("empty.onnx").write_bytes(b"")
    Path("text.onnx").write_text("not a model")
    onnx.save(conv_model(batch="N"), "dynamic.onnx")
    onnx.save(_unsupported(), "odd.onnx")
    name = model.graph.input[0].name
    good = np.ones((4, 3, 9, 11), "float32")
    bad = good.copy()
    bad[2, 1, 0, 3] = np.nan
    np.savez("nan.npz", calibration=good, inputs=bad)
    np.savez("shape.npz", calibration=good, inputs=good[:, :2])
    np.savez("good.npz", calibration=good, inputs=good)
    np.savez("inputs.npz", **{name: good[:1]})
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("empty_folder").mkdir()
    Path("file").write_text("a file")
    return tmp_path


def _unsupported() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"),
        helper.make_node("Unique", ["x"], ["y"], name="second"),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


EXPLORE = "explore net.onnx --target host "
BUILD = "build net.onnx --target host --out b "
TRACKED = EXPLORE + "--tracker 127.0.0.1:{closed} "
CASES = {
    # arguments: (exit code, parts of the message)
    "import none.onnx": (2, "none.onnx does not exist"),
    "import empty_folder": (2, "is a folder"),
    "import empty.onnx": (1, "empty.onnx is empty"),
    "import cut.onnx": (1, "cut.onnx"),
    "import text.onnx": (1, "text.onnx"),
    "import dynamic.onnx": (1, "dynamic shape", "--shape "),
    "import odd.onnx": (1, "NonZero (first)", "Unique (second)"),
    "import net.onnx --shape x": (2, "--shape 'x'"),
    "import net.onnx --shape other=1,3,9,11": (1, "no input 'other'"),
    "targets show rpi44": (2, "no target 'rpi44'", "did you mean"),
    "tracker --port 0": (2, "port 0"),
    "serve --key k --threads 0": (2, "--threads 0"),
    "serve --key k --tracker nowhere --commands": (2, "nowhere"),
    "serve --key k --tracker 127.0.0.1:{closed}": (1, "no tracker", "refused"),
    "devices --tracker 127.0.0.1:{closed}": (1, "no tracker", "refused"),
    "devices --tracker x:99999": (2, "x:99999"),
    "schedules check none.py": (2, "none.py does not exist"),
    "schedules --schedules none": (1, "none does not exist"),
    "schedules --schedules full": (1, "holds no *.py"),
    EXPLORE + "--budget 0s": (2, "--budget '0s'"),
    EXPLORE + "--budget 10": (2, "--budget '10'", "10m"),
    EXPLORE + "--budget -5m": (2, "--budget"),
    EXPLORE + "--budget nan": (2, "--budget"),
    EXPLORE + "--trials 0": (2, "--trials 0"),
    EXPLORE + "--max-accuracy-drop nan": (2, "--max-accuracy-drop nan"),
    EXPLORE + "--max-accuracy-drop -1": (2, "--max-accuracy-drop -1"),
    EXPLORE + "--max-accuracy-drop 101": (2, "--max-accuracy-drop 101"),
    EXPLORE + "--threads 0": (2, "--threads 0"),
    EXPLORE + "--threads 100000": (2, "--threads 100000 is too many"),
    EXPLORE + "--cores medium": (2, "--cores medium: not a choice of cores"),
    EXPLORE + "--cores big:x": (2, "--cores big:x: not a choice of cores"),
    EXPLORE + "--cores big:2 --threads 1": (2, "leave one of them out"),
    EXPLORE + "--deadline soon": (2, "'soon' is no deadline"),
    EXPLORE + "--deadline run=nan": (2, "'run=nan' is no deadline"),
    EXPLORE + "--deadline run=-3": (2, "deadline run=-3"),
    EXPLORE + "--deadline flight=3": (2, "queue, connect, upload, load, run"),
    EXPLORE + "--wait 5": (2, "--wait '5' is no duration"),
    EXPLORE + "--max-temperature 900": (2, "--max-temperature"),
    "explore net.onnx --target rpi4 --dry-run --cores little": (2, "cores of one kind only"),
    "explore net.onnx --target rk3399 --dry-run --cores little:5": (2, "has 4 little cores"),
    EXPLORE + "--seed -1": (2, "--seed -1"),
    EXPLORE + "--key rpi4": (2, "--key rpi4 needs the tracker"),
    EXPLORE + "--tracker 127.0.0.1:9190": (2, "needs a device key", "tvmx devices"),
    TRACKED + "--key rpi4": (1, "no tracker", "refused"),
    EXPLORE + "--tracker 127.0.0.1:x --key k": (2, "127.0.0.1:x"),
    EXPLORE + "--data none.npz": (2, "none.npz does not exist"),
    EXPLORE + "--data nan.npz": (1, "inputs[2, 1, 0, 3] is nan"),
    EXPLORE + "--data shape.npz": (1, "inputs has shape [4, 2, 9, 11]"),
    EXPLORE + "--data file": (1, "file is not an npz file"),
    EXPLORE + "--data empty_folder": (1, "empty_folder holds no images"),
    EXPLORE + "--data no_such_module:f": (2, "no module 'no_such_module'"),
    EXPLORE + "--data good.npz --preprocess file": (2, "--preprocess is for images"),
    EXPLORE + "--preprocess file": (2, "--preprocess needs images"),
    EXPLORE + "--out file": (2, "--out file is a file"),
    EXPLORE + "--out file/run": (2, "file is a file"),
    EXPLORE + "--out /proc/run": (2, "/proc"),
    EXPLORE + "--out full": (2, "full is not empty and not a tvmx run", "notes.txt"),
    EXPLORE + "--schedules none": (1, "none does not exist"),
    "explore net.onnx --target riscv": (2, "no target 'riscv'"),
    "explore net.onnx --target rpi4": (2, "measuring needs a device"),
    "explore cut.onnx --target host": (1, "cut.onnx"),
    "explore odd.onnx --target host": (1, "NonZero (first)", "Unique (second)"),
    "explore dynamic.onnx --target host": (1, "--shape "),
    BUILD + "--plan none.json": (2, "plan none.json does not exist"),
    "build net.onnx --target host --out full": (2, "full is not empty and not a tvmx bundle"),
    "build net.onnx --target host --out file": (2, "--out file is a file"),
    "build net.onnx --target nope --out b": (2, "no target 'nope'"),
    "build empty.onnx --target host --out b": (1, "empty.onnx is empty"),
    "export none --out b": (2, "run none does not exist"),
    "export full --pick worst --out b": (2, "--pick 'worst'"),
    "export full --pick -1 --out b": (2, "--pick '-1'"),
    "export full --target nope --out b": (2, "no target 'nope'"),
    "run none": (2, "bundle none does not exist"),
    "run full": (1, "full is no", "manifest.json"),
    "run full --key k": (2, "--key k needs the tracker"),
    "run full --input none.npz": (2, "input file none.npz does not exist"),
    "run full --output none/x.npz": (2, "none does not exist"),
    "bench full --rounds 0": (2, "--rounds 0"),
    "bench full --threads 100000": (2, "--threads 100000 is too many"),
    "bench full --against none": (2, "bundle none does not exist"),
}  # fmt: skip


@pytest.fixture(scope="module")
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("arguments", CASES)
def test_bad_input_is_one_message_and_an_exit_code(
    arguments: str, folder: Path, closed_port: int
) -> None:
    code, *parts = CASES[arguments]
    before = sorted(folder.rglob("*"))
    args = arguments.format(closed=closed_port).split()
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    for part in parts:
        assert part in result.stderr
    error = json.loads(result.stdout)["error"]
    assert lines[0] == f"error: {error['message']}"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        EXPLORE + "--data nan.npz",
        TRACKED + "--key k",
        "import odd.onnx",
        "build cut.onnx --target host --out b",
        "run full",
    ],
)
def test_bad_input_is_answered_before_tvm_is_loaded(
    arguments: str, folder: Path, closed_port: int
) -> None:
    script = (
        "import sys\nfrom tvmx.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'tvm', 'torch', 'xgboost'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.format(closed=closed_port).split()],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", ["explore", "explore net.onnx", "build net.onnx --target host", "nonsense",
                  "explore net.onnx --target host --objective speed", "run b --bogus"],
)  # fmt: skip
def test_what_typer_refuses_is_usage_too(arguments: str) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def _run_of(folder: Path, **changes: Any) -> None:
    settings = RunSettings(
        model=model_digest("net.onnx"), target="host", max_accuracy_drop=1.0, **changes
    )
    folder.mkdir()
    (folder / "settings.json").write_text(settings.model_dump_json())


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({}, "--seed 1", "seed: 0 there, 1 now"),
        ({}, "--objective arena", "objective"),
        ({}, "--data good.npz", "data"),
        ({"threads": 2}, "", "threads: 2 there, 1 now"),
        ({"device": "board"}, "", "device"),
    ],
)
def test_a_run_of_another_exploration_is_refused_at_once(
    changes: dict[str, Any], options: str, told: str, folder: Path
) -> None:
    _run_of(Path("run"), **changes)
    arguments = f"{EXPLORE} --out run {options}".split()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "run holds another exploration" in result.stderr
    assert told in result.stderr
    assert "--fresh" in result.stderr
    assert "tuning" not in result.stderr


def test_the_run_of_another_model_is_refused(folder: Path) -> None:
    _run_of(Path("run"))
    onnx.save(conv_model(in_channels=3, size=(9, 11), seed=7), "net.onnx")
    result = CliRunner().invoke(app, f"{EXPLORE} --out run".split())
    assert (result.exit_code, "model" in result.stderr) == (1, True)


def test_the_digest_looked_up_is_the_digest_imported(folder: Path) -> None:
    assert model_digest("net.onnx") == load_model("net.onnx").digest


def test_an_unfinished_run_is_no_foreign_folder() -> None:
    assert {*_run._OWN, _run._LOCK} - {_run._SETTINGS} == _RUN_FILES


def test_no_linker_is_said_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder / "empty_folder"))
    monkeypatch.delenv("TVMX_LINKER", raising=False)
    real = __import__("importlib.util", fromlist=["find_spec"]).find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "ziglang" else real(name, *a)
    )
    result = CliRunner().invoke(app, ["build", "net.onnx", "--target", "rpi4", "--out", "b"])
    assert result.exit_code == 1
    assert "no linker for target 'rpi4'" in result.stderr
    assert "hint: pip install ziglang" in result.stderr
