"""One real exploration by the command line: killed in the middle, continued, exported, replayed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.explorations import explored, save_data, save_model
from tvmx.accuracy import load_data
from tvmx.deploy import load_bundle
from tvmx.errors import UsageError
from tvmx.explore import export_run
from tvmx.frontends import load_model
from tvmx.measure import LocalFarm, NetworkJob, TimingPolicy
from tvmx.measure._worker import _IDLE_SECONDS
from tvmx.store import Journal, Run
from tvmx.testing.models import onnx_reference

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "schedules"
CLI = [sys.executable, "-c", "from tvmx.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

pytestmark = [pytest.mark.rpc, pytest.mark.slow]


@dataclass
class Killed:
    """What was there when the exploration was killed, and how it went on."""

    folder: Path
    model: Path
    command: list[str]
    journal: bytes
    children: int
    left_after_s: float | None  # until the last child was gone
    result: dict[str, Any]

    @property
    def run(self) -> Path:
        return self.folder / "run"


def records_in(journal: Path) -> int:
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.is_file() else 0


def start_and_kill(command: list[str], journal: Path, records: int) -> tuple[int, float | None]:
    """SIGKILL once there are so many records; how many children, and seconds until all are gone."""
    log = journal.parent.with_suffix(".log")
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=stream, stderr=stream)
    family: dict[int, psutil.Process] = {}
    try:
        end = time.monotonic() + 120
        while records_in(journal) < records or len(family) < 4:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            for child in psutil.Process(process.pid).children(recursive=True):
                family[child.pid] = child
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = time.monotonic()
    _, alive = psutil.wait_procs(list(family.values()), timeout=15)
    return len(family), None if alive else time.monotonic() - killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    folder = tmp_path_factory.mktemp("real")
    model = save_model(folder)
    data = save_data(folder, model, labels=True)
    out = folder / "run"
    command = [
        *CLI, "explore", str(model), "--target", "host", "--trials", "12", "--data", str(data),
        "--schedules", str(EXAMPLE), "--out", os.path.relpath(out), "--json",
    ]  # fmt: skip
    children, gone = start_and_kill(command, out / "journal.jsonl", 10)
    journal = (out / "journal.jsonl").read_bytes()
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    yield Killed(folder, model, command, journal, children, gone, json.loads(done.stdout))


# killed and continued


def test_nothing_outlives_a_killed_exploration(killed: Killed) -> None:
    assert killed.children >= 4  # tracker, server, session worker, build worker
    assert killed.left_after_s is not None, "processes were left behind"
    assert killed.left_after_s < 10


def test_the_run_was_killed_before_its_end(killed: Killed) -> None:
    final = (killed.run / "journal.jsonl").read_bytes()
    assert len(killed.journal) < len(final)


def test_no_measurement_is_lost_or_repeated(killed: Killed) -> None:
    complete = killed.journal[: killed.journal.rfind(b"\n") + 1]
    final = (killed.run / "journal.jsonl").read_bytes()
    assert final.startswith(complete)
    keys = [record.key for record in Journal(killed.run / "journal.jsonl").records()]
    assert len(set(keys)) == len(keys)


def test_the_continued_run_did_what_was_asked(killed: Killed) -> None:
    result = killed.result
    assert result["measurements"] == 12
    assert result["failures"] == 0
    assert Path(result["run"]).resolve() == killed.run.resolve()
    baseline, best = (result["candidates"][result[k]] for k in ("baseline", "best"))
    assert baseline["name"] == "baseline"
    assert best["ratio"] <= 1.0
    assert all(c["max_error"] < 1e-3 for c in result["candidates"])
    assert json.loads((killed.run / "result.json").read_text()) == result
    curve = Run.load(killed.run).curve()
    assert [p["elapsed_s"] for p in curve] == sorted(p["elapsed_s"] for p in curve)
    assert result["seconds"] >= curve[-1]["elapsed_s"]


def test_the_users_template_was_measured_on_the_device(killed: Killed) -> None:
    records = Journal(killed.run / "journal.jsonl").records()
    mine = [r for r in records if "winograd_f2" in r.key.implementation]
    assert mine
    assert all(r.measurement["status"] == "ok" for r in mine)


def test_accuracy_is_that_of_onnx_runtime_on_the_held_out_half(killed: Killed) -> None:
    data = load_data(killed.folder / "data.npz", load_model(killed.model).inputs, 0)
    (images,) = data.held_out.inputs.values()
    assert data.held_out.labels is not None
    answers = [onnx_reference(killed.model, {"image": x[None]})[0].argmax() for x in images]
    expected = 100 * np.mean(np.array(answers) == data.held_out.labels)
    for candidate in killed.result["candidates"]:
        assert candidate["accuracy"] == pytest.approx(expected)
        assert candidate["accuracy_kind"] == "top-1"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_finished_run_measures_no_kernel_again(killed: Killed) -> None:
    before = (killed.run / "journal.jsonl").read_bytes()
    plans = contents(killed.run / "plans")
    copy = Path(shutil.copytree(killed.run, killed.folder / "copy"))
    result = explored(
        killed.model, copy, trials=12, schedules=(EXAMPLE,), data=killed.folder / "data.npz"
    )
    assert (copy / "journal.jsonl").read_bytes() == before
    assert contents(copy / "plans") == plans
    assert result.measurements == 12


# exported


@pytest.fixture(scope="module")
def bundle(killed: Killed) -> Path:
    export_run(killed.run, killed.folder / "bundle")
    return killed.folder / "bundle"


def test_the_bundle_runs_without_tvmx(bundle: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["TVM_USE_RUNTIME_LIB"] = "1"
    # Whatever the runner imports, tvmx and the compiler's friends are not to be had.
    blocked = tmp_path / "blocked"
    for name in ("tvmx", "onnx", "onnxruntime", "torch", "xgboost", "pydantic", "gymnasium"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name}')\n")
    done = subprocess.run(
        [sys.executable, str(bundle / "run.py")], capture_output=True, text=True, timeout=100,
        check=False, cwd=blocked, env={**environment, "PYTHONPATH": str(blocked)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout


def test_the_golden_data_is_what_onnx_runtime_computes(
    killed: Killed, bundle: Path, tmp_path: Path
) -> None:
    """Of the float baseline; the best plan's own is near it, as far as int8 and pruning go."""
    export_run(killed.run, tmp_path / "baseline", pick="baseline")
    for folder, limit in ((tmp_path / "baseline", 1e-5), (bundle, 0.1)):
        loaded = load_bundle(folder)
        expected = onnx_reference(killed.model, loaded.golden_inputs())
        for got, want in zip(loaded.golden_outputs(), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=limit * np.ptp(want))


def test_the_manifest_tells_where_it_was_measured(killed: Killed, bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    best = killed.result["candidates"][killed.result["best"]]
    assert manifest.measured_on_target
    assert manifest.plan_digest == best["plan"]
    figures = {f.metric: f for f in manifest.figures}
    assert figures["latency"].value == best["latency_us"]
    assert figures["latency"].identity == killed.result["device"]
    assert figures["top-1"].value == best["accuracy"]


def test_its_plan_rebuilds_the_same_library_in_another_process(
    killed: Killed, bundle: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*CLI, "build", str(killed.model), "--target", "host", "--plan", str(bundle / "plan.json"),
         "--schedules", str(EXAMPLE), "--out", str(tmp_path / "again")],
        capture_output=True, text=True, timeout=100, check=False,
        env={**ENVIRONMENT, "PYTHONHASHSEED": "123"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digests = {
        hashlib.sha256((folder / "model.so").read_bytes()).hexdigest()
        for folder in (bundle, tmp_path / "again")
    }
    assert len(digests) == 1


@pytest.mark.cross
def test_export_for_another_target(killed: Killed, tmp_path: Path) -> None:
    summary = export_run(killed.run, tmp_path / "pi", target="rpi4")
    assert not summary.measured_on_target
    loaded = load_bundle(tmp_path / "pi")
    assert not loaded.manifest.measured_on_target
    assert loaded.manifest.figures == ()
    assert any("not measured on this target" in note for note in loaded.manifest.notes)
    best = Run.load(killed.run).plan(killed.result["candidates"][killed.result["best"]]["name"])
    assert loaded.plan.target == "rpi4"
    assert [c.implementation.template for c in loaded.plan.choices] == [
        c.implementation.template for c in best.choices
    ]
    assert all("NCHW4c" in c.implementation.layout or c.implementation.layout in ("NCHW", "NC")
               for c in loaded.plan.choices)  # fmt: skip


def test_another_run_at_the_same_time_is_refused(killed: Killed, tmp_path: Path) -> None:
    from filelock import FileLock

    copy = Path(shutil.copytree(killed.run, tmp_path / "run"))
    with FileLock(copy / ".lock"):
        done = subprocess.run(
            [*killed.command[:-3], "--out", str(copy)], env=ENVIRONMENT, capture_output=True,
            text=True, timeout=100, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "another process" in done.stderr


def test_a_foreign_target_needs_a_device(killed: Killed, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measuring needs a device"):
        explored(killed.model, tmp_path / "run", target="rpi4")
    assert not (tmp_path / "run").exists()


def test_the_device_is_there_at_once_after_a_pause(killed: Killed) -> None:
    """Builds between measurements take longer than the worker holds on to an idle device."""
    with np.load(killed.run / "work" / "golden.npz") as golden:
        inputs = {"image": golden["input_image"]}
        expected = (golden["output_0"],)
    job = NetworkJob(library=killed.run / "work" / "baseline.so", inputs=inputs, expected=expected)
    policy = TimingPolicy(min_repeat_ms=0.1)
    with LocalFarm() as farm, farm.runner() as runner:
        assert all(m.ok for m in runner.compare([job, job], 2, policy))
        for _ in range(2):
            time.sleep(_IDLE_SECONDS + 0.5)
            start = time.monotonic()
            assert all(m.ok for m in runner.compare([job, job], 2, policy))
            assert time.monotonic() - start < 10
