"""run and bench: over a real local farm once, else with a scripted device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from tvmx.cli._main import app
from tvmx.deploy import Bundle, load_bundle
from tvmx.explore import build_bundle
from tvmx.measure import DeviceAddress, FakeRunner, Job
from tvmx.testing.models import residual_model


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    onnx.save(residual_model(), folder / "res.onnx")
    build_bundle(folder / "res.onnx", "host", folder / "b")
    return load_bundle(folder / "b")


@pytest.fixture
def foreign(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The same bundle, said to be for another architecture."""
    other = bundle.manifest.model_copy(update={"triple": "riscv64-linux-gnu", "target": "board"})
    changed = dataclasses.replace(bundle, manifest=other)
    monkeypatch.setattr("tvmx.deploy.load_bundle", lambda path: changed)
    return changed


Device = Callable[..., FakeRunner]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> Device:
    """Puts a FakeRunner where run and bench open their device."""

    def use(script: Callable[[Job], Any], **settings: Any) -> FakeRunner:
        def network(job: Job, inputs: Any) -> tuple[Any, ...]:
            return tuple(bundle.golden_outputs())

        runner = FakeRunner(script, network=network, **settings)

        @contextmanager
        def open_runner(address: Any, manners: Any, **_: Any) -> Iterator[FakeRunner]:
            yield runner

        monkeypatch.setattr("tvmx.measure.open_runner", open_runner)
        return runner

    return use


@pytest.mark.rpc
def test_run_and_bench_on_this_machine(bundle: Bundle, tmp_path: Path) -> None:
    result = invoke("run", bundle.path, "--output", tmp_path / "y.npz", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["checked"]
    assert data["max_error"] < 1e-4
    assert data["latency_us"] > 0
    with np.load(tmp_path / "y.npz", allow_pickle=False) as written:
        np.testing.assert_allclose(
            written["output_0"], bundle.golden_outputs()[0], rtol=1e-3, atol=1e-4
        )
    # Against itself: the same library cannot be faster or slower than its noise by much.
    result = invoke("bench", bundle.path, "--against", bundle.path, "--rounds", "8", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [len(b["latencies_us"]) for b in data["bundles"]] == [8, 8]
    assert 0.5 < data["comparison"]["ratio"] < 2


def test_run_shows_the_check_and_the_output(bundle: Bundle, device: Device) -> None:
    runner = device(lambda job: 1500.0)
    result = invoke("run", bundle.path)
    assert result.exit_code == 0, result.output
    (job,) = runner.calls
    assert job.rtol == bundle.manifest.rtol
    np.testing.assert_array_equal(job.expected[0], bundle.golden_outputs()[0])
    best = int(bundle.golden_outputs()[0].argmax())
    for part in ("1.50 ms", "output checked  yes", "fake device", str(best)):
        assert part in result.stdout


def test_a_wrong_output_is_an_error(bundle: Bundle, device: Device) -> None:
    device(lambda job: "wrong-output")
    result = invoke("run", bundle.path)
    assert result.exit_code == 1
    assert "wrong-output" in result.stderr
    assert str(bundle.path) in result.stderr
    assert result.stdout == ""


def test_own_input_is_fed_and_not_checked(bundle: Bundle, device: Device, tmp_path: Path) -> None:
    runner = device(lambda job: 10.0)
    spec = bundle.manifest.inputs[0]
    own = np.full(spec.shape, 0.5, spec.dtype)
    np.savez(tmp_path / "x.npz", **{spec.name: own})
    result = invoke("run", bundle.path, "--input", tmp_path / "x.npz")
    assert result.exit_code == 0, result.output
    (job,) = runner.calls
    assert job.expected is None
    np.testing.assert_array_equal(job.inputs[spec.name], own)
    assert "output checked  no" in result.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype("float64"), "is float64"),
        (lambda a: a[:, :1], "has shape"),
        (lambda a: a * np.nan, "is nan"),
    ],
)
def test_own_input_that_does_not_fit(
    change: Callable[[Any], Any], message: str, bundle: Bundle, device: Device, tmp_path: Path
) -> None:
    runner = device(lambda job: 10.0)
    spec = bundle.manifest.inputs[0]
    np.savez(tmp_path / "x.npz", **{spec.name: change(np.ones(spec.shape, spec.dtype))})
    result = invoke("run", bundle.path, "--input", tmp_path / "x.npz")
    assert result.exit_code == 1
    assert message in result.stderr
    assert runner.calls == []


def test_bench_pairs_the_rounds(bundle: Bundle, device: Device, tmp_path: Path) -> None:
    latencies = iter([90.0, 100.0])
    device(lambda job: next(latencies), noise=0.001)
    result = invoke("bench", bundle.path, "--against", bundle.path, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["rounds"] == 20
    assert data["comparison"]["verdict"] == "faster"
    assert data["comparison"]["ratio"] == pytest.approx(0.9, abs=0.01)
    assert data["comparison"]["low"] < 0.9 < data["comparison"]["high"] < 1
    assert [b["latency_us"] for b in data["bundles"]] == pytest.approx([90, 100], rel=0.01)


def test_a_difference_inside_the_noise_is_a_tie(bundle: Bundle, device: Device) -> None:
    device(lambda job: 100.0, noise=0.05)
    result = invoke("bench", bundle.path, "--against", bundle.path)
    assert result.exit_code == 0, result.output
    assert "a tie, the difference is inside the noise" in result.stdout


def test_bench_alone_and_with_a_failure(bundle: Bundle, device: Device) -> None:
    device(lambda job: 100.0)
    alone = json.loads(invoke("bench", bundle.path, "--rounds", "3", "--json").stdout)
    assert "comparison" not in alone
    assert alone["bundles"][0]["latency_us"] == 100
    device(lambda job: "crash")
    failed = invoke("bench", bundle.path)
    assert failed.exit_code == 1
    assert "crash" in failed.stderr


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_bundle_for_another_machine_says_so(
    command: str, foreign: Bundle, device: Device
) -> None:
    runner = device(lambda job: 1.0)
    result = invoke(command, foreign.path)
    assert result.exit_code == 1
    assert "built for board (riscv64), this machine is" in result.stderr
    assert "--tracker" in result.stderr
    assert runner.calls == []


def test_a_bundle_for_another_machine_goes_to_its_device(
    foreign: Bundle, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DeviceAddress] = []
    monkeypatch.setattr("tvmx.measure.require_key", asked.append)
    device(lambda job: 1.0)
    result = invoke("run", foreign.path, "--tracker", "board:9190", "--key", "k")
    assert result.exit_code == 0, result.output
    assert asked == [DeviceAddress("board", 9190, "k")]
