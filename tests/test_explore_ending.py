"""The end of an exploration: the budget by a scripted clock, export while it runs, corrections."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.explorations import build_once, explored, flat, kernels, save_data, save_model, scripted
from tests.search_tables import random_table
from tvmx.deploy import load_bundle
from tvmx.errors import StoreError
from tvmx.explore import ExploreResult, export_run
from tvmx.explore._choices import Choices
from tvmx.explore._chooser import Chooser
from tvmx.explore._ending import MOST
from tvmx.explore._lessons import whole_lessons
from tvmx.explore._search import Found
from tvmx.explore._so_far import SoFar
from tvmx.ir import CostTable, Plan
from tvmx.measure import FakeRunner, Job, Manners, NetworkJob
from tvmx.search import Correction, plan_us, solve_exact, walk_of
from tvmx.store import Journal, Run
from tvmx.testing.models import onnx_reference


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


# the budget


class Clock:
    """Moves when something is measured or built, and only then."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@contextmanager
def clocked(
    model: Path, *, kernel_s: float, build_s: float, network_s: float, sample_s: float = 0.0
) -> Iterator[FakeRunner]:
    """A scripted device that takes its time, by a clock of its own."""
    clock = Clock()

    def network(job: Any, sample: Any) -> tuple[Any, ...]:
        clock.s += sample_s
        return tuple(onnx_reference(model, sample))

    def building(*args: Any) -> Any:
        clock.s += build_s
        return build_once(*args)

    us = 1e6 * network_s
    script = kernels(flat, baseline=us, **{f"plan{i}": (1 - i / 50) * us for i in range(1, 30)})
    with scripted(script, network) as device, pytest.MonkeyPatch.context() as patch:
        measure, compare = device.measure, device.compare

        def slow_measure(jobs: Sequence[Job], *rest: Any) -> Any:
            clock.s += sum(network_s if isinstance(j, NetworkJob) else kernel_s for j in jobs)
            return measure(jobs, *rest)

        def slow_compare(jobs: Sequence[Job], rounds: int, *rest: Any) -> Any:
            each = [network_s if isinstance(j, NetworkJob) else 0.02 for j in jobs]
            clock.s += 0.5 + rounds * sum(max(0.02, s) for s in each)
            return compare(jobs, rounds, *rest)

        patch.setattr(device, "measure", slow_measure)
        patch.setattr(device, "compare", slow_compare)
        patch.setattr("tvmx.explore._budget.now", clock)
        patch.setattr("tvmx.explore._explore.build_plan", building)
        yield device


@pytest.mark.parametrize(
    ("budget_s", "kernel_s", "build_s", "network_s"),
    [(60.0, 0.5, 2.0, 0.02), (300.0, 2.5, 5.0, 0.1), (900.0, 6.0, 30.0, 1.0)],
)
def test_the_budget_holds_to_within_five_percent(
    model: Path, tmp_path: Path, budget_s: float, kernel_s: float, build_s: float, network_s: float
) -> None:
    with clocked(model, kernel_s=kernel_s, build_s=build_s, network_s=network_s):
        result = explored(model, tmp_path / "run", trials=None, budget_s=budget_s)
    assert 0.85 * budget_s < result.seconds <= 1.05 * budget_s, result.phases
    assert sum(result.phases.values()) == pytest.approx(result.seconds, abs=0.2)
    assert result.phases["tune"] >= 0.2 * budget_s
    assert 2 <= len(result.candidates) <= MOST + 1


def test_scoring_is_within_the_budget_too(model: Path, tmp_path: Path) -> None:
    """Fewer samples where all of them would take too long; the result says on how many."""
    data = save_data(tmp_path, model, labels=True)
    costs = {"kernel_s": 0.5, "build_s": 2.0, "network_s": 0.05, "sample_s": 0.2}
    with clocked(model, **costs):
        result = explored(model, tmp_path / "run", trials=None, budget_s=120.0, data=data)
    assert result.seconds <= 1.05 * 120, result.phases
    assert result.phases["score"] > 0 < result.phases["accuracy"]
    assert all(c.accuracy is not None for c in result.candidates)


def test_one_plan_is_measured_however_short_the_time(model: Path, tmp_path: Path) -> None:
    with clocked(model, kernel_s=0.5, build_s=30.0, network_s=0.5):
        result = explored(model, tmp_path / "run", trials=None, budget_s=90.0)
    assert [c.name for c in result.candidates] == ["baseline", "plan1"]
    assert result.seconds > 85, "there was no time for a second one"


def test_what_the_device_timed_is_counted(model: Path, tmp_path: Path) -> None:
    with scripted() as device:
        result = explored(model, tmp_path / "run")
    assert result.hardware["kernels"] == 12 == result.measurements
    costed = [r for r in Journal(tmp_path / "run" / "journal.jsonl").records()
              if r.key.workload.startswith("convert:")]  # fmt: skip
    assert result.hardware["conversions"] == len(costed)
    plans = len(result.candidates) - 1
    assert result.hardware["whole plans"] == 2 * plans + plans + 1
    assert len(device.calls) > 12
    again = explored_again(model, tmp_path / "run")
    assert set(again.hardware.values()) == {0}


def explored_again(model: Path, run: Path) -> ExploreResult:
    with scripted():
        return explored(model, run)


# exporting while it runs


def test_the_best_so_far_is_exported_while_it_runs(model: Path, tmp_path: Path) -> None:
    """The exploration stands still in the middle of measuring; another thread exports."""
    run, reached, go = tmp_path / "run", threading.Event(), threading.Event()

    def halting(job: Job) -> Any:
        if isinstance(job, NetworkJob) and job.label == "plan3":
            reached.set()
            assert go.wait(120)
        return (
            {"plan1": 50.0, "plan2": 40.0}.get(job.label, 100.0)
            if isinstance(job, NetworkJob)
            else flat(job.label) * (1 + len(job.label) % 7 / 10)
        )

    found: dict[str, ExploreResult] = {}

    def explore_it() -> None:
        found["result"] = explored(model, run)

    with scripted(halting):
        thread = threading.Thread(target=explore_it)
        thread.start()
        try:
            assert reached.wait(120), "no third plan was measured"
            summary = export_run(run, tmp_path / "early")
            with pytest.raises(StoreError, match="no result yet to pick 'memory'"):
                export_run(run, tmp_path / "none", pick="memory")
        finally:
            go.set()
            thread.join(120)
    bundle = load_bundle(tmp_path / "early")
    assert bundle.plan == Run.load(run).plan("plan2"), "the fastest by then"
    assert not summary.measured_on_target
    assert any("exploration was not over" in note for note in bundle.manifest.notes)
    assert any("40 us" in note for note in bundle.manifest.notes)
    assert found["result"].candidates[found["result"].best].name == "plan2"
    export_run(run, tmp_path / "late")
    assert load_bundle(tmp_path / "late").plan == bundle.plan
    assert load_bundle(tmp_path / "late").manifest.measured_on_target


def test_a_run_killed_while_tuning_has_its_tuned_baseline(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr("tvmx.explore._explore._SO_FAR_S", 0.0)
    calls = 0

    def script(job: Job) -> float:
        nonlocal calls
        calls += 1
        if calls > 10:
            raise Killed
        return kernels(flat)(job)  # type: ignore[no-any-return]

    with scripted(script), pytest.raises(Killed):
        explored(model, tmp_path / "run")
    run = Run.load(tmp_path / "run")
    so_far = SoFar.load(run)
    assert so_far is not None and "tuned on" in so_far.told
    assert so_far.plan.exact
    export_run(tmp_path / "run", tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").plan == so_far.plan


def test_nothing_is_exported_from_a_run_that_is_explored_again(model: Path, tmp_path: Path) -> None:
    with scripted(kernels(flat, plan1=50.0)):
        explored(model, tmp_path / "run")
    run = tmp_path / "run"
    shutil.copy(run / "plans" / "baseline.json", run / "plans" / "plan1.json")
    with pytest.raises(StoreError, match="being explored again"):
        export_run(run, tmp_path / "bundle")


# what whole plans teach


def test_whole_plans_are_journalled_with_what_the_table_said(model: Path, tmp_path: Path) -> None:
    with scripted(kernels(flat, **{f"plan{i}": 60.0 + i for i in range(1, 9)})):
        result = explored(model, tmp_path / "run")
        records = list(Journal(tmp_path / "run" / "journal.jsonl").records())
        samples = whole_lessons([tmp_path / "run"], records[0].key.target, Manners())
        again = explored(model, tmp_path / "other", learn_from=(tmp_path / "run",))
    assert len(samples) == len(result.candidates) - 1 >= 3
    table = CostTable.load(tmp_path / "run" / "work" / "cost_table.json")
    choices = Choices.load(tmp_path / "run" / "work" / "choices.json")
    plan = Run.load(tmp_path / "run").plan("plan1")
    assignment = assignment_of(table, plan)
    assert choices.plan(assignment).digest == plan.digest
    predicted = plan_us(table, walk_of(table), assignment)
    assert any(s.predicted_us == pytest.approx(predicted) for s in samples)
    assert all(s.terms["kernels"] >= 3 for s in samples)
    (note,) = (n for n in again.notes if "of earlier runs" in n)
    assert "the cost table was" in note


def assignment_of(table: CostTable, plan: Plan) -> tuple[int, ...]:
    return tuple(
        costs.implementations.index(choice.implementation)
        for costs, choice in zip(table.layers, plan.choices, strict=True)
    )


def test_plans_are_chosen_by_what_whole_plans_taught() -> None:
    """Conversions take 60 us more in the network than alone; eight plans may be measured."""
    table = random_table(11, layers=8, border=20.0)
    walk = walk_of(table)
    rng = np.random.default_rng(0)
    others = [tuple(int(a) for a in rng.integers(0, 3, 8)) for _ in range(300)]

    def terms(plan: tuple[int, ...]) -> dict[str, float]:
        layouts = [
            (costs.implementations[a].reads, costs.implementations[a].writes)
            for costs, a in zip(table.layers, plan, strict=True)
        ]
        count = sum(a[1] != b[0] for a, b in itertools.pairwise(layouts))
        return {
            "conversions": float(count + (layouts[0][0] != "NCHW") + (layouts[-1][1] != "NCHW"))
        }

    def latency(plan: tuple[int, ...]) -> float:
        return plan_us(table, walk, plan)

    def truth(plan: tuple[int, ...]) -> float:
        return latency(plan) + 60 * terms(plan)["conversions"]

    def corrected(correction: Correction, cold: bool) -> tuple[int, ...]:
        better = correction.applied(table, cold=cold)
        return solve_exact(better, walk_of(better)).actions

    required = [solve_exact(table, walk).actions]
    found = Found(required, others, [], latency, lambda plan: True, corrected, lambda plan: None)

    def best_of(chooser: Chooser, *, learn: bool) -> float:
        measured = []
        for plan in itertools.islice(chooser, 8):
            measured.append(truth(plan))
            if learn:
                chooser.samples.append(chooser.sample(plan)._replace(measured_us=measured[-1]))
        return min(measured)

    dear = {key: us + 60 for key, us in table.transitions.items()}
    real = table.model_copy(update={"transitions": dear})
    optimum = solve_exact(real, walk_of(real)).latency_us
    learnt = best_of(Chooser(found, terms), learn=True)
    blind = best_of(Chooser(found, terms), learn=False)
    assert learnt < 0.97 * blind
    assert learnt < 1.03 * optimum
