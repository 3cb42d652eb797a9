"""Exploration on a scripted device: choices, failures, resuming, accuracy, user templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.explorations import explored, flat, kernels, save_data, save_model, scripted
from tvmx.accuracy import load_data
from tvmx.deploy import load_bundle
from tvmx.errors import (
    BuildError,
    DeviceError,
    MeasureError,
    RunMismatchError,
    StoreError,
    TemplateLoadError,
    UsageError,
)
from tvmx.explore import ExploreRequest, ExploreResult, build_bundle, dry_run, export_run
from tvmx.explore._context import Context
from tvmx.frontends import load_model
from tvmx.ir import Plan
from tvmx.measure import Cores, Job, Manners
from tvmx.store import Journal, MeasurementKey, Run
from tvmx.targets import load_target
from tvmx.testing.models import onnx_reference

EXAMPLE = Path(__file__).parents[1] / "examples" / "schedules"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explorations")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder)


def im2col_wins(label: str) -> float:
    return 2.0 if "conv2d_im2col" in label else flat(label)


@pytest.fixture(scope="module")
def run(folder: Path, model: Path) -> Iterator[tuple[Path, ExploreResult]]:
    """im2col is five times faster as a kernel, and plan1 as a network."""
    with scripted(kernels(im2col_wins, plan1=50.0)):
        yield folder / "run", explored(model, folder / "run")


def templates_of(plan: Plan) -> list[str]:
    return [c.implementation.template for c in plan.choices]


# the choice


def test_the_fastest_plan_is_found_and_chosen(run: tuple[Path, ExploreResult]) -> None:
    path, result = run
    assert result.candidates[result.baseline].name == "baseline"
    best = result.candidates[result.best]
    assert (best.name, best.ratio) == ("plan1", 0.5)
    plan = Run.load(path).plan("plan1")
    assert templates_of(plan) == ["conv2d_im2col", "conv2d_im2col", "dense_packed"]
    assert templates_of(Run.load(path).plan("baseline"))[:2] == ["conv2d_direct", "conv2d_winograd"]
    rows = {row.layer: row for row in result.layers}
    assert "conv2d_direct" in rows["first"].baseline
    assert "conv2d_im2col" in rows["first"].best
    assert (rows["first"].baseline_us or 0) >= 10
    assert (rows["first"].best_us or 99) <= 3
    assert json.loads((path / "result.json").read_text())["best"] == result.best


def test_every_candidate_is_another_plan(run: tuple[Path, ExploreResult]) -> None:
    path, result = run
    digests = [c.plan for c in result.candidates]
    assert len(set(digests)) == len(digests) > 2
    for candidate in result.candidates:
        assert Run.load(path).plan(candidate.name).digest == candidate.plan


def test_noise_is_no_gain(folder: Path, model: Path, tmp_path: Path) -> None:
    """What is 0.1 % faster under 5 % of noise does not replace the baseline."""
    again = resume_copy(folder, tmp_path, wholes=False)
    with scripted(kernels(im2col_wins, plan1=99.9), noise=0.05):
        result = explored(model, again)
    assert result.best == result.baseline == 0


@pytest.mark.parametrize("objective", ["weights", "arena"])
def test_objective(objective: str, model: Path, tmp_path: Path) -> None:
    with scripted():
        result = explored(model, tmp_path / "run", objective=objective)
    sizes = [getattr(c, f"{objective}_bytes") for c in result.candidates]
    assert sizes[result.best] == min(sizes) < sizes[0]
    assert result.objective == objective


# resuming


def keys_of(run: Path) -> list[MeasurementKey]:
    return [record.key for record in Journal(run / "journal.jsonl").records()]


def resume_copy(folder: Path, tmp_path: Path, *, wholes: bool = True) -> Path:
    """A copy of the module's run, so that a test may go on with it; with whole plans measured?"""
    copy = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    if not wholes:
        journal = copy / "journal.jsonl"
        lines = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join(line for line in lines if '"workload":"whole:' not in line))
    return copy


def test_same_seed_and_journal_same_plans(
    run: tuple[Path, ExploreResult], model: Path, tmp_path: Path
) -> None:
    path, first = run
    again = resume_copy(path.parent, tmp_path)
    lines = (again / "journal.jsonl").read_bytes()
    shutil.rmtree(again / "plans")
    # On a device on which other plans are fast now, and no two figures alike.
    with scripted(kernels(flat, plan2=10.0), noise=0.3) as device:
        result = explored(model, again)
    assert (again / "journal.jsonl").read_bytes() == lines, "something was measured again"
    assert result.candidates == first.candidates
    assert {job.label for job in device.calls} == {"baseline"}, "nothing but its check"
    assert (result.best, result.front, result.hypervolume) == (
        first.best, first.front, first.hypervolume,
    )  # fmt: skip
    for candidate in first.candidates:
        kept = (path / "plans" / f"{candidate.name}.json").read_bytes()
        assert (again / "plans" / f"{candidate.name}.json").read_bytes() == kept


def test_same_seed_same_measurements(
    run: tuple[Path, ExploreResult], model: Path, tmp_path: Path
) -> None:
    path, first = run
    with scripted(kernels(im2col_wins, plan1=50.0)):
        result = explored(model, tmp_path / "run")
    assert [c.plan for c in result.candidates] == [c.plan for c in first.candidates]
    assert keys_of(tmp_path / "run") == keys_of(path)


def test_a_journal_cut_anywhere_is_completed(
    run: tuple[Path, ExploreResult], model: Path, tmp_path: Path
) -> None:
    """What a kill leaves: a journal without its end, maybe in the middle of a line."""
    path, first = run
    lines = (path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept, torn in ((1, b""), (len(lines) // 2, lines[-1][:40])):
        again = resume_copy(path.parent, tmp_path / str(kept))
        (again / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        (again / "result.json").unlink()
        with scripted(kernels(im2col_wins, plan1=50.0)):
            result = explored(model, again)
        assert [c.plan for c in result.candidates] == [c.plan for c in first.candidates]
        assert (again / "journal.jsonl").read_bytes().startswith(b"".join(lines[:kept]))
        assert keys_of(again) == keys_of(path)


def test_more_trials_go_on_where_the_run_ended(
    run: tuple[Path, ExploreResult], model: Path, tmp_path: Path
) -> None:
    path, _ = run
    again = resume_copy(path.parent, tmp_path)
    before = (again / "journal.jsonl").read_bytes()
    with scripted(kernels(im2col_wins, plan1=50.0)):
        explored(model, again, trials=20)
    after = (again / "journal.jsonl").read_bytes()
    assert after.startswith(before)
    keys = keys_of(again)
    assert len(set(keys)) == len(keys)
    assert sum(not _other(k.workload) for k in keys) == 20


def _other(workload: str) -> bool:
    return workload.startswith(("convert:", "retime:", "whole:"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"seed": 1}, "seed: 0 there, 1 now"), ({"objective": "arena"}, "objective"),
     ({"manners": Manners(Cores(threads=2))}, "threads"),
     ({"schedules": (EXAMPLE,)}, "schedule templates")],
)  # fmt: skip
def test_another_request_is_refused(
    run: tuple[Path, ExploreResult], model: Path, changes: dict[str, Any], told: str
) -> None:
    before = (run[0] / "journal.jsonl").read_bytes()
    with scripted(), pytest.raises(RunMismatchError, match=told):
        explored(model, run[0], **changes)
    assert (run[0] / "journal.jsonl").read_bytes() == before


def test_another_model_is_refused_unless_fresh(
    run: tuple[Path, ExploreResult], tmp_path: Path
) -> None:
    again = resume_copy(run[0].parent, tmp_path)
    other = save_model(tmp_path, seed=1)
    with scripted():
        with pytest.raises(RunMismatchError, match="model digest"):
            explored(other, again)
        result = explored(other, again, fresh=True)
    assert result.measurements > 0


# failures


def test_the_baseline_is_measured_whatever_the_budget(model: Path, tmp_path: Path) -> None:
    with scripted() as device:
        result = explored(model, tmp_path / "run", trials=1)
    assert result.measurements == 3  # one template for each of three layers
    assert result.candidates[0].name == "baseline"
    assert device.calls


def test_templates_that_fail_are_left_out(model: Path, tmp_path: Path) -> None:
    def script(job: Job) -> Any:
        return "crash" if "conv2d_im2col" in job.label else kernels(flat)(job)

    with scripted(script):
        result = explored(model, tmp_path / "run")
    assert result.failures >= 2
    names = {t for p in Run.load(tmp_path / "run").plans()
             for t in templates_of(Run.load(tmp_path / "run").plan(p))}  # fmt: skip
    assert names <= {"conv2d_direct", "conv2d_winograd", "dense_packed"}


def test_a_layer_whose_baseline_template_fails_is_named(model: Path, tmp_path: Path) -> None:
    with (
        scripted(refuse=frozenset({"conv2d_direct"})),
        pytest.raises(MeasureError, match=r"layer 'first'.*conv2d_direct"),
    ):
        explored(model, tmp_path / "run")
    failed = [r for r in Journal(tmp_path / "run" / "journal.jsonl").records()
              if r.measurement["status"] == "build"]  # fmt: skip
    assert failed
    assert "refused" in failed[0].measurement["message"]


def test_a_baseline_that_computes_something_wrong_ends_the_run(model: Path, tmp_path: Path) -> None:
    with (
        scripted(kernels(flat, baseline="wrong-output")),
        pytest.raises(MeasureError, match=r"baseline failed .*wrong-output"),
    ):
        explored(model, tmp_path / "run")


def test_a_plan_that_computes_something_wrong_is_dropped(
    run: tuple[Path, ExploreResult], model: Path, tmp_path: Path
) -> None:
    again = resume_copy(run[0].parent, tmp_path, wholes=False)
    with scripted(kernels(im2col_wins, plan1="wrong-output")):
        result = explored(model, again)
    assert "plan1" not in [c.name for c in result.candidates]
    assert any("plan1 was dropped: wrong-output" in note for note in result.notes)


def test_a_device_that_stays_away_ends_the_run_and_keeps_the_journal(
    model: Path, tmp_path: Path
) -> None:
    calls = 0

    def script(job: Job) -> Any:
        nonlocal calls
        calls += 1
        return kernels(flat)(job) if calls < 9 else "queue"

    with scripted(script), pytest.raises(DeviceError, match="again and again"):
        explored(model, tmp_path / "run")
    records = list(Journal(tmp_path / "run" / "journal.jsonl").records())
    assert len(records) == 7, "all but the baseline's own check"
    assert all(r.measurement["status"] == "ok" for r in records)
    with scripted():
        result = explored(model, tmp_path / "run")
    assert list(Journal(tmp_path / "run" / "journal.jsonl").records())[:7] == records
    assert result.measurements == 12


def test_a_device_that_comes_back_costs_nothing(model: Path, tmp_path: Path) -> None:
    calls = 0

    def script(job: Job) -> Any:
        nonlocal calls
        calls += 1
        return "connect" if calls in (4, 11) else kernels(flat)(job)

    with scripted(script):
        result = explored(model, tmp_path / "run")
    assert result.failures == 0


def test_a_clock_that_jitters_is_the_same_target() -> None:
    host = load_target("host")
    (core, *rest) = host.clusters
    faster = core.model_copy(update={"clock_mhz": core.clock_mhz + 1})
    other = core.model_copy(update={"l1d_kib": core.l1d_kib + 1})

    def key(first: Any) -> str:
        target = host.model_copy(update={"clusters": (first, *rest)})
        return Context(None, None, None, target).target_key  # type: ignore[arg-type]

    assert key(core) == key(faster) != key(other)


# accuracy


@pytest.fixture(scope="module")
def scored(folder: Path, model: Path) -> ExploreResult:
    """With labels; plan1 answers nonsense, all others what ONNX Runtime says. plan1 is fastest."""

    def network(job: Any, sample: Any) -> tuple[Any, ...]:
        (out,) = onnx_reference(model, sample)
        return (np.roll(out, 1, axis=1) if job.label == "plan1" else out,)

    data = save_data(folder, model, labels=True)
    with scripted(kernels(im2col_wins, plan1=10.0, plan2=50.0), network):
        return explored(model, folder / "scored", data=data)


def test_accuracy_is_that_of_the_held_out_half(
    folder: Path, model: Path, scored: ExploreResult
) -> None:
    held_out = load_data(folder / "data.npz", load_model(model).inputs, 0).held_out
    assert held_out.labels is not None
    (images,) = held_out.inputs.values()
    answers = [onnx_reference(model, {"image": x[None]})[0].argmax() for x in images]
    expected = 100 * np.mean(np.array(answers) == held_out.labels)
    assert 50 < expected < 100
    assert scored.candidates[0].accuracy == pytest.approx(expected)
    assert scored.candidates[0].accuracy_kind == "top-1"
    assert scored.candidates[0].accuracy_drop == pytest.approx(0)


def test_a_fast_plan_that_loses_accuracy_is_not_chosen(scored: ExploreResult) -> None:
    by_name = {c.name: c for c in scored.candidates}
    assert (by_name["plan1"].accuracy_drop or 0) > 1
    assert scored.candidates[scored.best].name == "plan2"
    assert not any("no --data" in note for note in scored.notes)


def test_without_labels_agreement_is_told(model: Path, tmp_path: Path) -> None:
    data = save_data(tmp_path, model, labels=False)

    def network(job: Any, sample: Any) -> tuple[Any, ...]:
        return tuple(onnx_reference(model, sample))

    with scripted(network=network):
        result = explored(model, tmp_path / "run", data=data, trials=1)
    assert {(c.accuracy, c.accuracy_kind) for c in result.candidates} == {(100.0, "agreement")}


def test_without_data_the_result_says_so(run: tuple[Path, ExploreResult]) -> None:
    assert any("no --data" in note for note in run[1].notes)
    assert all(c.accuracy is None for c in run[1].candidates)


# a user's template


def test_a_users_template_is_chosen_and_exported(model: Path, tmp_path: Path) -> None:
    def winograd_wins(label: str) -> float:
        return 1.0 if "winograd_f2" in label else flat(label)

    with scripted(kernels(winograd_wins, plan1=20.0)):
        result = explored(model, tmp_path / "run", schedules=(EXAMPLE,))
    best = result.candidates[result.best]
    plan = Run.load(tmp_path / "run").plan(best.name)
    # The first layer has fewer channels than a wide vector unit has lanes.
    assert templates_of(plan)[1] == "winograd_f2"
    assert any("winograd_f2" in row.best for row in result.layers)
    assert Run.load(tmp_path / "run").settings.schedule_paths == (str(EXAMPLE.resolve()),)

    exported = export_run(tmp_path / "run", tmp_path / "bundle")  # finds the template again
    assert exported.layers_hit == exported.layers == 3
    assert load_bundle(tmp_path / "bundle").plan == plan

    plan.save(tmp_path / "plan.json")
    with pytest.raises(TemplateLoadError, match="winograd_f2"):
        build_bundle(model, "host", tmp_path / "replayed", plan=tmp_path / "plan.json")
    build_bundle(
        model, "host", tmp_path / "replayed", plan=tmp_path / "plan.json", schedules=(EXAMPLE,)
    )
    first, again = (load_bundle(tmp_path / n).library.read_bytes() for n in ("bundle", "replayed"))
    assert first == again


def test_a_template_that_was_edited_since_is_noticed(model: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(EXAMPLE, tmp_path / "mine", ignore=lambda *_: ["__pycache__"]))

    def winograd_wins(label: str) -> float:
        return 1.0 if "winograd_f2" in label else flat(label)

    with scripted(kernels(winograd_wins, plan1=20.0)):
        explored(model, tmp_path / "run", schedules=(mine,))
    with (mine / "winograd_f2.py").open("a") as stream:
        stream.write("\n# edited\n")
    with pytest.raises(BuildError, match="has changed"):
        export_run(tmp_path / "run", tmp_path / "bundle")
    with scripted(), pytest.raises(RunMismatchError, match="schedule templates"):
        explored(model, tmp_path / "run", schedules=(mine,))


# export and dry run


def test_pick(run: tuple[Path, ExploreResult], tmp_path: Path) -> None:
    path, result = run
    second = result.candidates[2].name
    for pick, name in (("baseline", "baseline"), ("best", "plan1"), ("2", second)):
        export_run(path, tmp_path / pick, pick=pick)
        bundle = load_bundle(tmp_path / pick)
        assert bundle.plan == Run.load(path).plan(name)
        assert bundle.manifest.measured_on_target
        latency = next(f for f in bundle.manifest.figures if f.metric == "latency")
        assert latency.value == next(c.latency_us for c in result.candidates if c.name == name)
    for pick in ("99", "-1", "worst", ""):
        with pytest.raises(UsageError, match=r"no candidate|is none of"):
            export_run(path, tmp_path / "none", pick=pick)
    assert not (tmp_path / "none").exists()


def test_export_of_what_is_no_finished_run(run: tuple[Path, ExploreResult], tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        export_run(tmp_path, tmp_path / "bundle")
    again = resume_copy(run[0].parent, tmp_path)
    (again / "result.json").unlink()
    with pytest.raises(StoreError, match="no result yet to pick"):
        export_run(again, tmp_path / "bundle", pick="1")
    (again / "work" / "so_far.json").unlink()
    with pytest.raises(StoreError, match="no result yet, and its baseline was not measured"):
        export_run(again, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_export_notices_another_model_file(tmp_path: Path) -> None:
    mine = save_model(tmp_path)
    with scripted():
        explored(mine, tmp_path / "run", trials=1)
    mine.write_bytes(save_model(tmp_path, seed=1).read_bytes())
    with pytest.raises(RunMismatchError, match="has changed"):
        export_run(tmp_path / "run", tmp_path / "bundle")


def test_a_plan_for_another_target_is_refused(
    run: tuple[Path, ExploreResult], model: Path, tmp_path: Path
) -> None:
    plan = run[0] / "plans" / "plan1.json"
    with pytest.raises(UsageError, match="made for target 'host'"):
        build_bundle(model, "rpi4", tmp_path / "bundle", plan=plan)


def test_dry_run_counts_what_explore_measures(model: Path, tmp_path: Path) -> None:
    plan = dry_run(ExploreRequest(model=model, target="host", out=tmp_path / "run"))
    assert (plan.layers, plan.covered) == (3, 3)
    assert [w.layers for w in plan.workloads] == [["first"], ["second"], ["fc"]]
    assert set(plan.workloads[0].templates) == {"conv2d_direct", "conv2d_im2col"}
    assert not (tmp_path / "run").exists()
    with scripted():
        explored(model, tmp_path / "run")
    records = Journal(tmp_path / "run" / "journal.jsonl").records()
    # Those of implementations that the defaults rule out are not costed.
    costed = sum(r.key.workload.startswith("convert:") for r in records)
    assert 0 < costed <= plan.conversions
