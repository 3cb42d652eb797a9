"""End to end on simulated boards: explore, export, run there; the same cycles every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.disassembly import instructions
from tests.explorations import save_data, save_model
from tests.simulated import board_or_skip
from tvmx.deploy import load_bundle
from tvmx.errors import RunMismatchError
from tvmx.explore import ExploreRequest, ExploreResult, explore, export_run
from tvmx.measure import DeviceAddress, Manners, Measurement, NetworkJob, TimingPolicy, open_runner
from tvmx.simulate import SimulatedBoard
from tvmx.store import Journal

pytestmark = [pytest.mark.rpc, pytest.mark.slow, pytest.mark.emulated]

TRIALS = 10


def explored(
    tmp_path: Path, target: str, address: DeviceAddress, **changes: Any
) -> tuple[Path, ExploreResult]:
    model = save_model(tmp_path)
    data = save_data(tmp_path, model, labels=True)
    settings: dict[str, Any] = {
        "model": model, "target": target, "out": tmp_path / "run", "tracker": address,
        "trials": TRIALS, "data": data, "max_accuracy_drop": 50.0,
    }  # fmt: skip
    return tmp_path / "run", explore(ExploreRequest(**(settings | changes)))


def measured(board: SimulatedBoard, bundle: Path) -> Measurement:
    opened = load_bundle(bundle)
    job = NetworkJob(
        opened.library, opened.golden_inputs(), tuple(opened.golden_outputs()),
        opened.manifest.rtol,
    )  # fmt: skip
    with open_runner(board.address, Manners(), arch="aarch64") as runner:
        (result,) = runner.measure([job], TimingPolicy.quick())
    return result


@pytest.mark.parametrize(("target", "dot"), [("rpi4", False), ("rpi5", True)])
def test_explore_export_and_run(target: str, dot: bool, tmp_path: Path) -> None:
    with board_or_skip(target) as board:
        run, result = explored(tmp_path, target, board.address)
        export_run(run, tmp_path / "bundle")
        first, second = measured(board, tmp_path / "bundle"), measured(board, tmp_path / "bundle")
    if target == "rpi4":  # after a restart it is the same
        with board_or_skip(target) as board:
            assert measured(board, tmp_path / "bundle").simulated == first.simulated
            # a board of another model may not go on with these figures
            simulation = run / "work" / "simulation"
            simulation.write_text("")
            with pytest.raises(RunMismatchError, match="a real device"):
                explored(tmp_path, target, board.address)

    # right, and marked
    assert first.ok, first.message
    assert first.simulated is not None
    assert result.simulated.startswith("core+memory cycles of cortex-a7")
    assert any("no board was measured" in note for note in result.notes)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert all(f["simulated"] for f in manifest["figures"] if f["metric"].startswith("latency"))
    records = list(Journal(run / "journal.jsonl").records())
    assert records and all(r.key.device.startswith(f"{target} simulated:") for r in records)

    # plausible, and the clock shows the cycles
    counts = first.simulated
    assert counts.instructions > 1000 and counts.core_cycles > 0.2 * counts.instructions
    assert first.median_us == pytest.approx(counts.cycles / counts.clock_mhz, rel=1e-3)

    # deterministic in another session
    assert second.simulated == counts

    # the instructions are the core's
    library = load_bundle(tmp_path / "bundle").library
    int8 = any("int8" in row.best for row in result.layers)
    assert int8 or not dot, "dot products are faster beyond any tie; without them Winograd may win"
    assert any(name == "sdot" for name, _ in instructions(library)) is dot
