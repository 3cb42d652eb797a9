"""Run folders: new, resumed, refused; one process at a time; nothing foreign is deleted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tvmx.errors import RunMismatchError, StoreError, UnwritableError, UsageError
from tvmx.ir import Implementation, LayerChoice, Plan
from tvmx.store import Run, RunSettings, make_folder, write_atomic

ROOT = Path(__file__).resolve().parents[1]


def settings(**changes: object) -> RunSettings:
    values: dict[str, object] = {"model": "feed", "target": "host", "seed": 1, "budget_s": 60.0}
    return RunSettings.model_validate(values | changes)


def plan(note: str = "") -> Plan:
    implementation = Implementation(template="t", layout="NCHW8c", data_layout="NCHW")
    choice = LayerChoice(layer="a", workload="0", implementation=implementation, config={"x": 1})
    return Plan(model="feed", target="host", choices=(choice,), note=note)


def test_new_then_resumed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with Run.open(path, settings()) as run:
        assert not run.resumed
        run.append_curve({"step": 1, "best_us": 10.5})
        run.save_plan("best", plan())
    with Run.open(path, settings(budget_s=600.0, model_path="elsewhere.onnx")) as run:
        assert run.resumed
        assert run.curve() == [{"step": 1, "best_us": 10.5}]
        assert run.plans() == ["best"]
        assert run.plan("best") == plan()
        assert run.result() is None
        run.save_result({"best_us": 9.0})
    loaded = Run.load(path)
    assert loaded.settings.budget_s == 600.0
    assert loaded.result() == {"best_us": 9.0}


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"model": "beef"}, "model digest: feed there, beef now"),
        ({"target": "rpi4"}, "target: host there, rpi4 now"),
        ({"seed": 2}, "seed: 1 there, 2 now"),
        ({"threads": 2}, "threads: 1 there, 2 now"),
        ({"data": "d1"}, "data digest: none there, d1 now"),
        ({"objective": "arena"}, "objective: latency there, arena now"),
        ({"schedules": {"mine": "ab12"}}, "schedule templates: none there, mine ab12 now"),
    ],
)
def test_another_exploration_is_refused(
    tmp_path: Path, change: dict[str, object], label: str
) -> None:
    Run.open(tmp_path / "run", settings()).close()
    before = (tmp_path / "run" / "settings.json").read_bytes()
    with pytest.raises(RunMismatchError) as caught:
        Run.open(tmp_path / "run", settings(**change))
    assert label in caught.value.message
    assert caught.value.hint is not None
    assert "--fresh" in caught.value.hint
    assert "--out" in caught.value.hint
    assert (tmp_path / "run" / "settings.json").read_bytes() == before


def test_fresh_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run"
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "x.json").write_text("{}")
    with Run.open(path, settings()) as run:
        run.save_plan("best", plan())
        run.append_curve({"step": 1})
        (run.work / "kernel.so").write_text("x")
    (path / "notes.txt").write_text("mine")
    (path / "work" / "link").symlink_to(outside)
    with Run.open(path, settings(seed=5), fresh=True) as run:
        assert not run.resumed
        assert run.plans() == []
        assert run.curve() == []
        assert list(run.work.iterdir()) == []
    assert (path / "notes.txt").read_text() == "mine"
    assert (outside / "x.json").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(UsageError, match=r"not a tvmx run \(it holds photo\.jpg\)") as caught:
        Run.open(tmp_path, settings(), fresh=fresh)
    assert caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_settings_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"editor": "vi"}')
    (tmp_path / "plans").mkdir()
    for fresh in (False, True):
        with pytest.raises(StoreError, match=r"settings\.json"):
            Run.open(tmp_path, settings(), fresh=fresh)
    assert (tmp_path / "settings.json").read_text() == '{"editor": "vi"}'
    assert (tmp_path / "plans").is_dir()


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        Run.open(tmp_path / "run", settings())
    with pytest.raises(UnwritableError, match="Not a directory"):
        Run.open(tmp_path / "run" / "below", settings())


def test_load_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no tvmx run"):
        Run.load(tmp_path)
    with pytest.raises(StoreError, match="holds no tvmx run"):
        Run.load(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", settings()):
        with pytest.raises(StoreError, match="another process"):
            Run.open(tmp_path / "run", settings())
        with pytest.raises(StoreError, match="another process"):
            Run.open(tmp_path / "run", settings(), fresh=True)
        assert Run.load(tmp_path / "run").settings == settings()
    Run.open(tmp_path / "run", settings()).close()


HOLDER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tvmx.store import Run, RunSettings
run = Run.open(Path(sys.argv[1]), RunSettings(model="feed", target="host", seed=1))
run.append_curve({{"step": 1}})
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_of_a_live_process_holds_and_of_a_killed_one_does_not(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(root=str(ROOT)), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match="another process"):
        Run.open(tmp_path / "run", settings())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    with (tmp_path / "run" / "curve.jsonl").open("ab") as stream:
        stream.write(b'{"step": 2, "be')
    with Run.open(tmp_path / "run", settings()) as run:
        assert run.resumed
        assert run.curve() == [{"step": 1}]
        run.append_curve({"step": 3})
        assert run.curve() == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden"])
def test_plan_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with Run.open(tmp_path / "run", settings()) as run, pytest.raises(UsageError):
        run.save_plan(name, plan())
    assert not (tmp_path / "escape.json").exists()


def test_unknown_plan_lists_the_known(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", settings()) as run:
        run.save_plan("best", plan())
        with pytest.raises(StoreError, match="plans: best"):
            run.plan("worst")


def test_reading_only(tmp_path: Path) -> None:
    Run.open(tmp_path / "run", settings()).close()
    with pytest.raises(StoreError, match="reading only"):
        Run.load(tmp_path / "run").save_result({})


def test_write_atomic_replaces_whole_files(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", "old")
    write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    with pytest.raises(UnwritableError, match="no/x"):
        write_atomic(tmp_path / "no" / "x", "a")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(UnwritableError, match="folder/x"):
        write_atomic(tmp_path / "folder" / "x", "a")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["x"]


def test_make_folder_in_a_place_that_takes_none() -> None:
    with pytest.raises(UnwritableError, match="/proc/tvmx"):
        make_folder(Path("/proc/tvmx"))
