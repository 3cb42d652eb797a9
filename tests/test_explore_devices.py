"""What an exploration makes of noise, drift and devices that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.explorations import explored, flat, save_model, scripted
from tvmx.explore._budget import Budget
from tvmx.explore._devices import device_notes
from tvmx.explore._evaluate import flush_bytes
from tvmx.ir import CostTable
from tvmx.measure import (
    Cores,
    Deadlines,
    DeviceReport,
    FakeRunner,
    Job,
    Manners,
    Measurement,
    NetworkJob,
    ProbeFigures,
)
from tvmx.store import Journal, Run
from tvmx.targets import load_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def slightly_faster(label: str) -> float:
    """im2col is one percent faster than the baseline's template."""
    return 9.9 if "conv2d_im2col" in label else flat(label)


def same(us: Any) -> Any:
    """Every config of a template takes the same time."""

    def script(job: Job) -> Any:
        return 100.0 if isinstance(job, NetworkJob) else us(job.label)

    return script


def test_a_difference_inside_the_noise_earns_nothing(model: Path, tmp_path: Path) -> None:
    with scripted(same(slightly_faster), noise=0.1):
        explored(model, tmp_path / "run")
    table = CostTable.load(tmp_path / "run" / "work" / "cost_table.json")
    for layer in table.layers:
        known = [us for us in layer.latency_us if us is not None]
        assert len(set(known)) == 1, layer


def test_a_difference_beyond_the_noise_counts(model: Path, tmp_path: Path) -> None:
    with scripted(same(slightly_faster), noise=0.0):
        explored(model, tmp_path / "run")
    table = CostTable.load(tmp_path / "run" / "work" / "cost_table.json")
    assert {9.9, 10.0} <= {us for layer in table.layers for us in layer.latency_us}


@pytest.mark.parametrize(("later", "told"), [(100.0, False), (102.0, False), (110.0, True)])
def test_the_baseline_is_repeated_and_drift_is_told(
    model: Path, tmp_path: Path, later: float, told: bool
) -> None:
    """First for the deadlines, last before the plans are compared."""
    seen: list[str] = []

    def script(job: Job) -> Any:
        if isinstance(job, NetworkJob):
            seen.append(job.label)
            return 100.0 if seen.count("baseline") < 2 else later
        return flat(job.label)

    with scripted(script) as runner:
        result = explored(model, tmp_path / "run")
    labels = [job.label for job in runner.calls if isinstance(job, NetworkJob)]
    assert labels[0] == labels[1] == "baseline"
    notes = [note for note in result.notes if note.startswith("the baseline takes")]
    assert bool(notes) is told, result.notes
    if told:
        assert "10.0% longer than at the start" in notes[0]


def test_the_deadlines_follow_the_baseline(model: Path, tmp_path: Path) -> None:
    """100 us of a baseline: 5 s, 0.3 s of timing, and next to nothing for the calls."""
    with scripted() as runner:
        result = explored(model, tmp_path / "a")
    assert runner.deadlines.run == pytest.approx(5.3, abs=0.01)
    assert "run 5.3 s" in result.deadlines
    with scripted() as runner:
        runner.deadlines = Deadlines.parse(["run=77"])
        explored(model, tmp_path / "b")
    assert runner.deadlines.run == 77


def test_cores_and_cache_are_part_of_the_record_key(model: Path, tmp_path: Path) -> None:
    with scripted():
        explored(model, tmp_path / "warm")
    manners = Manners(cores=Cores("big", 2), cold=True)
    with scripted():
        explored(model, tmp_path / "cold", manners=manners)
    warm, cold = (
        {r.key for r in Journal(tmp_path / name / "journal.jsonl").records()}
        for name in ("warm", "cold")
    )
    assert {(k.cores, k.threads, k.cache) for k in warm} == {("big", 1, "warm")}
    assert {(k.cores, k.threads, k.cache) for k in cold} == {("big", 2, "cold")}
    assert Run.load(tmp_path / "cold").settings.cache == "cold"


def test_a_pause_without_devices_is_not_charged_to_the_budget() -> None:
    budget = Budget(100.0, None, spent_s=10.0)
    assert budget.elapsed_s == pytest.approx(10.0, abs=0.5)
    budget.paused = lambda: 8.0
    assert budget.elapsed_s == pytest.approx(2.0, abs=0.5)
    assert budget.left_s == pytest.approx(98.0, abs=0.5)


def test_devices_that_drift_or_stand_out_are_told() -> None:
    class Seen(FakeRunner):
        @property
        def devices(self) -> tuple[DeviceReport, ...]:
            figures = ProbeFigures(10.0, 5.0)
            calm = DeviceReport("h:1", "pi, one", figures, figures, 50.0, 0.01, None, 3)
            odd = DeviceReport(
                "h:2", "pi, two", figures, figures, 80.0, 0.2, "float peak 12% lower"
            )
            return calm, odd

        @property
        def waited_s(self) -> float:
            return 12.0

    notes = device_notes(Seen(lambda job: 1.0))
    assert len(notes) == 3
    assert "h:2 (pi, two)" in notes[0] and "moved by 20%" in notes[0]
    assert "float peak 12% lower than its siblings" in notes[1]
    assert notes[2].startswith("12 s were spent waiting")


def test_a_flush_is_larger_than_the_caches() -> None:
    for name in ("rpi3b+", "rpi4", "rpi5", "host"):
        target = load_target(name)
        cores = target.clusters
        l2 = sum(c.l2_kib * (c.count if c.l2_private else 1) for c in cores) << 10
        assert flush_bytes(target) >= min(2 * l2, 128 << 20), name


def test_a_measurement_without_an_interval_has_its_range_as_noise() -> None:
    from tvmx.explore._tuning import noise

    assert noise(Measurement.success([3.0, 1.0, 2.0])) == (1.0, 3.0)
    many = Measurement.success([1.0, 2.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 9.0])
    assert noise(many) == many.interval_us
    assert many.interval_us is not None and many.interval_us[1] < 9.0
