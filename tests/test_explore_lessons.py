"""--learn-from: which records of earlier runs teach the knob tuner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.explorations import explored, save_model, scripted
from tvmx.errors import UsageError
from tvmx.explore._lessons import lessons
from tvmx.ir import Config, Implementation
from tvmx.measure import Cores, Manners
from tvmx.store import Journal, MeasurementKey, MeasurementRecord

TARGET = "rpi4:0123456789abcdef"
IMPLEMENTATION = Implementation(template="t", layout="NCHW4c", data_layout="NCHW4c")


def record(number: int, **changes: Any) -> MeasurementRecord:
    key = {"target": TARGET, "device": "rpi4", "threads": 1} | changes
    features = changes.pop("features", {"cycles": float(number)})
    key.pop("features", None)
    return MeasurementRecord(
        key=MeasurementKey.of(
            f"workload{number}", IMPLEMENTATION, Config(tile=number),
            versions={"tvmx": "1", "tvm": "2"}, **key,
        ),
        measurement={"status": "ok"}, timestamp=100.0 - number, features=features,
    )  # fmt: skip


def journal(folder: Path, records: list[MeasurementRecord]) -> Path:
    folder.mkdir()
    for one in records:
        Journal(folder / "journal.jsonl").append(one)
    return folder


def test_what_ran_alike_teaches_once_and_in_order(tmp_path: Path) -> None:
    first = journal(
        tmp_path / "first",
        [
            record(1), record(2, device="another"), record(3, threads=4),
            record(4, target="rpi5:0123456789abcdef"), record(5, cache="cold"),
            record(6, features=None),
        ],
    )  # fmt: skip
    second = journal(tmp_path / "second", [record(1), record(7)])
    found = lessons([first, second / "journal.jsonl"], TARGET, Manners(Cores("big", 1)))
    assert [r.key.workload for r in found] == ["workload7", "workload2", "workload1"]
    assert [r.key.threads for r in lessons([first], TARGET, Manners(Cores("big", 4)))] == [4]


def test_refusals_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: there is no journal"):
        lessons([tmp_path / "nowhere"], TARGET, Manners())
    useless = journal(tmp_path / "useless", [record(6, features=None)])
    with pytest.raises(UsageError, match=r"useless: it measured no kernel on target 'rpi4'"):
        lessons([useless], TARGET, Manners())


def test_explore_refuses_before_anything_is_measured(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    with scripted() as runner, pytest.raises(UsageError, match="there is no journal"):
        explored(model, tmp_path / "run", learn_from=(tmp_path / "nowhere",))
    assert not (tmp_path / "run").exists()
    assert runner is not None


def test_without_lessons_to_learn_there_are_none() -> None:
    assert lessons([], TARGET, Manners()) == ()
