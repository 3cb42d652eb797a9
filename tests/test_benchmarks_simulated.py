"""The benchmark on simulated cores, without a simulator: cells, models, im2col, the script.

They take some 10 s.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from benchmarks import _sim_guest, simulated
from benchmarks._sim_cells import Cell, Cells, Counts
from benchmarks._sim_models import SimFolder, resized, write_layers
from benchmarks._sim_peers import build_im2col
from benchmarks._sim_runs import RUNNERS, largest_error
from benchmarks._sim_tables import rows
from tvmx.errors import MeasureError
from tvmx.simulate import guest_server
from tvmx.targets import load_target
from tvmx.testing.models import light_model, onnx_reference, residual_model

CLOCK = '''
"""In the place of the emulator: each look at the clock closes an interval of its own."""
looks = 0
_SIMULATED_CLOCK, _HOST_CLOCK = 1, 2
def _call_emulator(what):
    pass
def _counters(index):
    global looks
    looks += 1
    return {"looks": looks, "core_cycles": 10.0 ** index, "instructions": 3}
'''


def counts(core: float = 2e6, memory: float = 1e6) -> Counts:
    lines = dict.fromkeys(("l1_misses", "l2_hits", "prefetched_lines", "l2_misses"), 1000)
    return Counts(
        core_cycles=core, memory_cycles=memory, instructions=5_000_000, unmodelled_instructions=7,
        **lines,
    )  # fmt: skip


def cell(runner: str = "tvmx", core: float = 2e6, target: str = "rpi4") -> Cell:
    return Cell(
        network="squeezenet", size=224, target=target, runner=runner, version="1", model="m",
        counts=counts(core), max_error=1e-6, limit=1e-3, seconds={"all": 12.0},
    )  # fmt: skip


def save(folder: SimFolder, model: onnx.ModelProto, seed: int = 1) -> dict[str, np.ndarray]:
    folder.path.mkdir(parents=True)
    onnx.save(model, folder.onnx)
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    image = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    given = {value.name: image}
    folder.save_golden(given, onnx_reference(model, given))
    return given


def test_cells_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "simulated.json"
    cells = Cells(path)
    assert cells.get("squeezenet", 224, "rpi4", "tvmx") is None
    cells.add(cell())
    cells.add(cell("ncnn", 1e6))
    cells.add(cell(core=3e6))  # in the place of the first
    found = Cells(path)
    again = found.get("squeezenet", 224, "rpi4", "tvmx")
    assert again == cell(core=3e6)
    assert found.has("squeezenet", 224, "rpi4", "tvmx", "m")
    assert not found.has("squeezenet", 224, "rpi4", "tvmx", "another model")
    assert [c.runner for c in found.of("rpi4", 224, ["squeezenet"], "m")] == ["tvmx", "ncnn"]
    for other in (("rpi4", 64, "m"), ("rpi5", 224, "m"), ("rpi4", 224, "another model")):
        target, size, model = other
        assert found.of(target, size, ["squeezenet"], model) == []


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "simulated.json"
    path.write_text('{"cells": [{"network": "x"}]}')
    with pytest.raises(MeasureError, match=r"simulated\.json"):
        Cells(path)
    assert path.read_text() == '{"cells": [{"network": "x"}]}'


def test_rows_compare_within_a_precision() -> None:
    given = [cell(), cell("ncnn", 1e6), cell("onnxruntime int8", 4e6), cell("tvmx int8", 2e6)]
    made = rows(given)
    assert [row[0] for row in made] == ["tvmx 1", "ncnn 1", "tvmx int8 1", "onnxruntime int8 1"]
    assert [row[1:5] for row in made] == [
        ("2.0", "3.0", "1.00", "1.00"),
        ("1.0", "2.0", "0.50", "0.67"),
        ("2.0", "3.0", "1.00", "1.00"),
        ("4.0", "5.0", "2.00", "1.67"),
    ]
    assert rows([cell("ncnn")])[0][3:5] == ("-", "-")


def test_errors_are_of_the_range() -> None:
    want = np.array([[[[0.0]], [[4.0]]]])
    assert largest_error("a", [np.array([[0.0, 4.1]])], [want], 0.1) == pytest.approx(0.025)
    for wrong in ([[0.0, 5.0]], [[0.0, np.nan]], [[0.0, 4.0, 0.0]]):
        with pytest.raises(MeasureError, match="a: "):
            largest_error("a", [np.array(wrong)], [want], 0.1)
    with pytest.raises(ValueError, match="zip"):
        largest_error("a", [], [want], 0.1)


@pytest.mark.parametrize("name", ["squeezenet", "resnet50"])
def test_light_models_for_small_images(name: str) -> None:
    model = resized(light_model(name), 64)
    (value,) = model.graph.input
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    (out,) = onnx_reference(model, {value.name: image})
    assert out.size == 1000
    assert np.ptp(out) > 0.1


def test_layers_multiplied_by_openblas(tmp_path: Path) -> None:
    """Padded, strided, depthwise and dense layers, through the very code of the guest."""
    if not list((Path(np.__file__).parents[1] / "numpy.libs").glob(_sim_guest._OPENBLAS)):
        pytest.skip("this numpy is not the wheel, which brings OpenBLAS")
    folder = SimFolder(tmp_path / "residual")
    save(folder, residual_model(size=13))
    write_layers(folder)
    library = build_im2col(load_target("host"), tmp_path)
    facts: dict[str, str] = {}
    run, outputs = _sim_guest._load_im2col(Namespace(model=folder.layers, library=library), facts)
    run()
    expected = folder.load_expected("layers")
    assert len(expected) == 5
    assert largest_error("im2col", outputs(), expected, 1e-5) < 1e-5
    assert facts["kernels"]


def test_intervals_of_a_run_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that looks at the clock cuts its run into pieces; earlier ones are not its."""
    looks = [0]
    monkeypatch.setattr(
        _sim_guest, "time", SimpleNamespace(perf_counter=lambda: looks.__setitem__(0, looks[0] + 1))
    )
    calls = []

    def counters(index: int) -> dict[str, float]:
        return {"looks": looks[0], "core_cycles": 100 ** (looks[0] - index)}

    clock = SimpleNamespace(
        _call_emulator=lambda what: calls.append(what.value),
        _counters=counters,
        _SIMULATED_CLOCK=guest_server._SIMULATED_CLOCK,
        _HOST_CLOCK=guest_server._HOST_CLOCK,
    )
    found = _sim_guest._count(lambda: [_sim_guest.time.perf_counter() for _ in range(2)], clock)
    assert found["core_cycles"] == 100**2 + 100**3 + 100**4
    assert calls == [1, 2]
    with pytest.raises(SystemExit, match="64"):
        _sim_guest._count(lambda: [_sim_guest.time.perf_counter() for _ in range(64)], clock)
    clock._counters = lambda index: {"missing": "no emulator", "looks": 0}
    with pytest.raises(SystemExit, match="no emulator"):
        _sim_guest._count(lambda: None, clock)


def test_the_guests_script_runs_onnxruntime(tmp_path: Path) -> None:
    folder = SimFolder(tmp_path / "residual")
    given = save(folder, residual_model())
    clock, out, report = (tmp_path / name for name in ("clock.py", "out.npz", "report.json"))
    clock.write_text(CLOCK)
    script = [sys.executable, "-P", _sim_guest.__file__, "onnxruntime", "--model", folder.onnx]
    script += ["--inputs", folder.golden, "--clock", clock, "--outputs", out, "--report", report]
    subprocess.run([str(part) for part in script], check=True, timeout=120)
    (want,) = onnx_reference(folder.onnx, given)
    with np.load(out) as data:
        np.testing.assert_allclose(data["out:0"], want, rtol=1e-4, atol=1e-5)
    told = json.loads(report.read_text())
    assert told["counts"] == {"looks": 3.0, "core_cycles": 1.0, "instructions": 3}
    assert set(told["seconds"]) == {"load", "warm", "count"}


class Bench:
    """The benchmark without models and guests: every cell costs the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.out, self.ran, self.broken = out, list[tuple[str, str]](), ""
        self.prepared: list[set[str]] = []
        monkeypatch.setattr(simulated, "find_guest", object)
        monkeypatch.setattr(simulated, "guest_wheels", lambda guest, say: None)
        monkeypatch.setattr(simulated, "_prepare", self.prepare)
        monkeypatch.setattr(simulated, "run_cell", self.run_cell)
        monkeypatch.setattr(simulated, "Emulator", self.emulator)
        monkeypatch.setattr(simulated, "model_of", lambda emulator: "m")
        monkeypatch.setattr("os.environ", {})

    def emulator(self, core: object, *, simulated: bool) -> Bench:
        assert not simulated
        self.core = core
        return self

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def prepare(self, folder: SimFolder, size: int, missing: dict, converters: Path) -> None:
        self.prepared.append({runner.name for chosen in missing.values() for runner in chosen})

    def run_cell(self, folder: SimFolder, size: int, runner, place) -> Cell:
        self.ran.append((place.target.name, runner.name))
        if runner.name == self.broken:
            raise MeasureError("no such luck")
        return cell(runner.name, target=place.target.name)

    def main(self, **options: str | bool) -> int:
        self.ran.clear()
        with pytest.raises(SystemExit) as end:
            simulated.main(
                self.out, networks="squeezenet", size=224,
                **{"targets": "rpi4,rpi5", "only": "tvmx,ncnn", "again": False, **options},
            )  # fmt: skip
        return int(end.value.code or 0)


def test_what_is_there_is_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(monkeypatch, tmp_path)
    bench.broken = "ncnn"
    assert bench.main() == 1
    assert bench.ran == [(t, r) for t in ("rpi4", "rpi5") for r in ("tvmx", "ncnn")]
    assert "no such luck" in capsys.readouterr().err
    bench.broken = ""
    assert bench.main() == 0
    assert bench.ran == [("rpi4", "ncnn"), ("rpi5", "ncnn")]
    assert bench.prepared == [{"tvmx", "ncnn"}, {"ncnn"}]
    assert bench.main() == 0
    assert bench.ran == []
    assert len(bench.prepared) == 2
    table = capsys.readouterr().out
    assert "rpi4: cortex-a72" in table
    assert "rpi5: cortex-a76" in table
    assert bench.main(again=True, only="ncnn") == 0
    assert bench.ran == [("rpi4", "ncnn"), ("rpi5", "ncnn")]


def test_generic_kernels_are_for_cores_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = Bench(monkeypatch, tmp_path)
    assert bench.main(targets="rpi3b+,rpi4", only="ncnn,ncnn generic") == 0
    assert bench.ran == [("rpi3b+", "ncnn"), ("rpi3b+", "ncnn generic"), ("rpi4", "ncnn")]


@pytest.mark.parametrize("only", ["tflite", "tvmx,"])
def test_runners_that_there_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], only: str
) -> None:
    assert Bench(monkeypatch, tmp_path).main(only=only) == 2
    told = capsys.readouterr().err
    assert all(runner.name in told for runner in RUNNERS)
