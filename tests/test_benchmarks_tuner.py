"""The comparison of tuners: counting, leave-one-out, resuming; MetaSchedule for a few trials."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _tuner_runs as runs
from benchmarks._tuner_methods import Bench, Recorder, builtin_registry, grid_order, random_order
from benchmarks._tuner_ms_build import channels_last, packed_for, plain_weight
from benchmarks._tuner_plot import best_so_far_svg
from benchmarks._tuner_results import (
    COLD,
    GRID,
    METASCHEDULE,
    RANDOM,
    WARM,
    Comparison,
    Curve,
    Point,
    Retimed,
    measured_us,
    median_needed,
    needed,
    to_compare,
)
from benchmarks._tuner_summary import Report, missed, summarise
from benchmarks._tuner_tables import print_tuners
from benchmarks._tuner_workloads import ALL, workload_of
from tests.explorations import FakePool
from tvmx.errors import UsageError
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue
from tvmx.measure import FakeRunner, Job, Manners, TimingPolicy, open_runner
from tvmx.passes import versions
from tvmx.store import Journal
from tvmx.targets import load_target

RELU = Epilogue(bias=True, clip_min=0.0)


def conv(channels: int, groups: int = 1) -> Conv2dWorkload:
    return Conv2dWorkload(
        batch=1, in_channels=channels, height=8, width=8, out_channels=channels, kernel=(3, 3),
        padding=(1, 1, 1, 1), groups=groups, epilogue=RELU,
    )  # fmt: skip


# counting


def curve(method: str, *us: float | None, seed: int = 0, trials: int = 64) -> Curve:
    """Configs are named by their figures, which makes equal ones the same config."""
    points = tuple(Point(template="t", config=f"{u}", us=u) for u in us)
    return Curve(
        workload="w", method=method, seed=seed, trials=trials, space="s", points=points,
        recalled=0, seconds=1.0,
    )  # fmt: skip


def comparison(**medians: float) -> Comparison:
    """``_100=98.0``: the config found at 100 us, and the median of what it took side by side."""
    retimed = tuple(
        Retimed(template="t", config=f"{float(name[1:])}", us=tuple(us + d for d in range(-3, 4)))
        for name, us in medians.items()
    )
    return Comparison(
        space="s", asked=tuple(r.candidate for r in retimed), retimed=retimed, load_before=0,
        load_after=0,
    )  # fmt: skip


def test_what_a_run_holds_is_the_fastest_so_far() -> None:
    found = curve(COLD, None, 300.0, 400.0, 100.0, None)
    assert [p and p.us for p in found.held(4)] == [None, 300.0, 300.0, 100.0]
    assert [p and p.us for p in found.held(7)] == [None, *[300.0] * 2, *[100.0] * 4], "it ended"
    assert [p.us for p in found.fastest(2)] == [100.0, 300.0]
    assert [p.us for p in found.fastest(2, trials=3)] == [300.0, 400.0]


def test_measurements_until_within_five_percent() -> None:
    """Found at 100 us is best side by side; 99 was luck (110), 104 was not (102), 103 is as far."""
    known = comparison(_100=100.0, _99=110.0, _104=102.0)
    searched = measured_us([curve(RANDOM, 100.0, 99.0, 104.0, 103.0, 106.0)])
    count = lambda *us: needed(curve(COLD, *us), 64, known, searched)  # noqa: E731
    assert count(None, 106.0, 104.0, 100.0) == 3
    assert count(106.0, 103.0) == 2, "not timed again: by the searches' figures"
    assert count(106.0, 99.0, 100.0) is None, "it would hold the lucky one for ever"
    assert count(106.0) is None
    assert needed(curve(COLD, 106.0, 100.0), 1, known, searched) is None, "one measurement only"


def test_the_median_over_seeds_counts_runs_that_never_got_there() -> None:
    assert median_needed([3, None, 5]) == 5
    assert median_needed([3, None, None]) is None
    assert median_needed([4, 6]) == 5


def test_what_is_timed_again() -> None:
    """Near the best of all methods, and the three best of each tuned run; none twice."""
    curves = [
        curve(RANDOM, 100.0, 105.0, 109.0, 112.0),
        curve(COLD, 200.0, 109.0, 300.0, 400.0),
        curve(METASCHEDULE, 50.0, 900.0),
    ]
    found = [float(config) for _, config in to_compare(curves, 64, near=0.1, most=2)]
    assert found == [100.0, 105.0, 109.0, 200.0, 300.0, 50.0, 900.0]


def test_a_run_deploys_the_best_of_its_three_as_timed_again() -> None:
    known = comparison(_100=120.0, _101=110.0, _102=115.0, _103=90.0)
    winner = known.winner(curve(COLD, 103.0, 102.0, 101.0, 100.0), 64)
    assert winner is not None and winner.median_us == 110.0, "103 was its fourth"
    assert known.best.median_us == 90.0


def test_bounds() -> None:
    """Cold on 33 of 32, warm on 8 of 8, and tvmx at 100 us against 80."""
    known = comparison(_100=100.0, _80=80.0)
    summary = summarise(
        "w", conv(16),
        [
            curve(COLD, *[500.0] * 32, 100.0), curve(COLD, *[500.0] * 32, 100.0, seed=1),
            curve(METASCHEDULE, 80.0),
        ],
        known, 64,
    )  # fmt: skip
    assert summary.needed == {COLD: (None, None), METASCHEDULE: (1,)}
    assert summary.ratio == pytest.approx(1.25) and summary.verdicts == ("slower",)
    assert summary.progress[COLD][31:33] == (pytest.approx(80 / 500), pytest.approx(0.8))
    assert [line.split(":")[0] for line in missed([summary])] == ["w, cold", "w"]
    fine = summary.model_copy(update={"needed": {COLD: (32, 1), WARM: (8,)}, "ratios": (0.99,)})
    assert missed([fine]) == []


# orders


@pytest.mark.parametrize("total", [1, 2, 37, 64, 1000])
def test_orders_have_every_config_once(total: int) -> None:
    for order in (grid_order, random_order):
        assert sorted(order(total, 3)) == list(range(total))
        assert total < 10 or order(total, 3) != order(total, 4)


@pytest.mark.parametrize("count", [4, 8, 32])
def test_any_beginning_of_a_grid_is_even(count: int) -> None:
    chosen = sorted(grid_order(1000, 1)[:count])
    gaps = np.diff([*chosen, chosen[0] + 1000])
    assert max(gaps) <= 1000 / count + 1 and min(gaps) >= 1000 / count - 1


# whole runs on a scripted device

NAMES = ("tiny-a", "tiny-b", "tiny-c")


def scripted(job: Job) -> float:
    digest = hashlib.sha256(job.label.encode()).digest()
    return 50.0 + digest[0] if digest[1] > 20 else 1e5


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    """Small workloads; builds and measurements from a script, everything else as it is."""
    for name, workload in zip(NAMES, (conv(16), conv(16, groups=16), conv(32)), strict=True):
        monkeypatch.setitem(ALL, name, workload)
    runner = FakeRunner(scripted)

    @contextmanager
    def bench(out: Path) -> Iterator[Bench]:
        target, journal, pool = load_target("host"), Journal(out / "journal.jsonl"), FakePool()
        recorder = Recorder(
            target=target, target_key="host", device="fake", manners=Manners(),
            versions=versions(), journal=journal, runner=runner, pool=pool, folder=out / "k",
        )  # type: ignore[arg-type]  # fmt: skip
        yield Bench(target, builtin_registry(), journal, runner, pool, recorder)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "open_bench", bench)
    return runner


def settings(out: Path, *methods: str, names: tuple[str, ...] = NAMES) -> runs.Settings:
    return runs.Settings(out, names, methods, seeds=1, trials=10)


def test_whole_runs_and_another_start(
    device: FakeRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = settings(tmp_path, COLD, RANDOM, GRID, names=("tiny-a",))
    runs.search(asked, "tiny-a", (COLD, RANDOM, GRID))
    found = runs.load_curves(asked, "tiny-a")
    assert [(c.method, len(c.points)) for c in found] == [(m, 10) for m in (COLD, RANDOM, GRID)]
    measured = measured_us(found)
    again = [p for c in found for p in c.points]
    assert all(measured[p.candidate] == p.us for p in again), "one figure, whoever asks for it"
    assert len(device.calls) == len(measured) and sum(c.recalled for c in found) == 30 - len(
        measured
    )
    assert len({p.template for p in found[1].points}) > 1, "random draws from all templates"

    assert runs.missing(asked, "tiny-a", (COLD, RANDOM, GRID)) == []
    before = len(device.calls)
    asked.path("tiny-a", COLD, 0).unlink()
    runs.search(asked, "tiny-a", (COLD, RANDOM, GRID))
    assert runs.load_curves(asked, "tiny-a")[0].points == found[0].points, "replayed"
    assert len(device.calls) == before, "from the journal"

    assert runs.load_comparison(asked, "tiny-a") is None
    runs.compare(asked, "tiny-a")
    known = runs.load_comparison(asked, "tiny-a")
    assert known is not None and known.best.median_us == min(measured.values())
    workload = workload_of("tiny-a")
    summary = summarise("tiny-a", workload, runs.load_curves(asked, "tiny-a"), known, 10)
    assert ElementTree.fromstring(best_so_far_svg([summary], 10)).tag.endswith("svg")
    report = Report(
        machine="m", versions=versions(), seeds=1, trials=10, metaschedule_round=16,
        workloads=(summary,),
    )  # fmt: skip
    print_tuners(report, found)
    assert f"{known.best.median_us:.1f}" in capsys.readouterr().out
    longer = runs.Settings(tmp_path, ("tiny-a",), (COLD,), seeds=1, trials=11)
    assert runs.missing(longer, "tiny-a", (COLD,)) == [(COLD, 0)], "ten are not eleven"


def test_a_warm_run_is_taught_by_all_others_and_by_nothing_else(
    device: FakeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(tmp_path, COLD, RANDOM, WARM)
    with pytest.raises(UsageError, match="tiny-b, seed 0, which is not there, or"):
        runs.search(asked, "tiny-a", (WARM,))
    for name in NAMES:
        runs.search(asked, name, (COLD, RANDOM))
    lessons = []
    tune = runs.tune

    def listening(bench, workload, seed, trials, taught):  # type: ignore[no-untyped-def]
        lessons.append(taught)
        tune(bench, workload, seed, trials, taught)

    monkeypatch.setattr(runs, "tune", listening)
    runs.search(asked, "tiny-a", (WARM,))
    (taught,) = lessons
    others = {workload_of(name).digest for name in NAMES[1:]}
    assert {record.key.workload for record in taught} == others
    assert len(taught) == 20, "the cold runs' measurements, not those of random"
    warm = runs.load_curve(asked, "tiny-a", WARM, 0)
    assert warm is not None and len(warm.points) == 10

    path = asked.path("tiny-b", COLD, 0)
    cold = Curve.load(path)
    assert cold is not None
    cold.model_copy(update={"points": cold.points[:9]}).save(path)
    assert runs.missing(asked, "tiny-a", (WARM,)) == [(WARM, 0)], "its teacher is another"


# MetaSchedule


@pytest.mark.parametrize("workload", [conv(8), conv(8, groups=8)])
def test_channels_last_operands(workload: Conv2dWorkload) -> None:
    """What the arrays must be for a convolution over the last axis, written out."""
    rng = np.random.default_rng(0)
    data, weight = rng.random(workload.data_shape), rng.random(workload.weight_shape)
    last, plain = channels_last(data), plain_weight(workload, weight)
    assert last[0, 2, 3, 4] == data[0, 4, 2, 3]
    index = (1, 2, 4, 0) if workload.is_depthwise else (1, 2, 0, 4)
    assert plain[index] == weight[4, 0, 1, 2]


@pytest.mark.rpc
def test_metaschedule_for_a_few_trials(tmp_path: Path) -> None:
    """Real candidates, packed, checked and timed; the three fastest stay, and are right again."""
    from benchmarks import _tuner_metaschedule as metaschedule
    from tvmx.templates import make_operands

    workloads = {
        "depthwise": conv(16, groups=16),
        "dense": DenseWorkload(batch=4, in_features=32, out_features=48, epilogue=RELU),
    }
    quick = TimingPolicy(min_repeat_ms=0.1, repeats=2)
    with open_runner(None, Manners(), arch=load_target("host").arch) as runner:
        for name, workload in workloads.items():
            folder = tmp_path / name / "4"
            # Random samples: breeding schedules takes a minute, and is MetaSchedule's own affair.
            points = metaschedule.search(
                workload, 4, 4, folder, runner, quick, strategy="replay-trace"
            )
            assert [p.config for p in points] == ["4/0", "4/1", "4/2", "4/3"]
            assert all(p.us is not None for p in points), f"{name}: {points}"
            top = sorted(points, key=lambda p: p.us or 0.0)[:3]
            kept = {tmp_path / name / f"{p.config}.so" for p in top}
            assert set(folder.iterdir()) == kept | {packed_for(path) for path in kept}
            job = metaschedule.kept_job(
                workload, make_operands(workload), tmp_path / name, top[0].config
            )
            (again,) = runner.compare([job], 3, quick)
            assert again.ok and again.max_error is not None and again.max_error < 1e-4
