"""load_data: what it accepts, how it splits, and each way a data file can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmx.accuracy import load_data
from tvmx.errors import DataError, UsageError
from tvmx.ir import TensorSpec

SPEC = TensorSpec("image", (1, 3, 4, 5), "float32")


def arrays(samples: int = 7) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "calibration": rng.standard_normal((4, 3, 4, 5)).astype("float32"),
        "inputs": rng.standard_normal((samples, 3, 4, 5)).astype("float32"),
        "labels": np.arange(samples, dtype=np.int32),
    }


def save(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "data.npz"
    np.savez(path, **content)
    return path


def test_halves_are_disjoint_cover_everything_and_keep_labels_with_inputs(tmp_path: Path) -> None:
    content = arrays()
    data = load_data(save(tmp_path, content), [SPEC], seed=3)
    assert (len(data.calibration), len(data.visible), len(data.held_out)) == (4, 3, 4)
    seen = []
    for half in (data.visible, data.held_out):
        assert half.labels is not None
        for row, label in zip(half.inputs["image"], half.labels, strict=True):
            np.testing.assert_array_equal(row, content["inputs"][label])
            seen.append(int(label))
    assert sorted(seen) == list(range(7))
    assert data.metric == "top-1"


def test_the_seed_decides_the_split_and_the_digest_only_the_content(tmp_path: Path) -> None:
    path = save(tmp_path, arrays(40))
    one, same, other = (load_data(path, [SPEC], seed=s) for s in (0, 0, 1))
    assert one.visible.labels is not None
    assert other.visible.labels is not None
    assert same.visible.labels is not None
    assert one.visible.labels.tolist() == same.visible.labels.tolist()
    assert one.visible.labels.tolist() != other.visible.labels.tolist()
    assert one.digest == other.digest
    changed = arrays(40)
    changed["inputs"][3, 1, 2, 2] += 1
    assert load_data(save(tmp_path, changed), [SPEC], 0).digest != one.digest


def test_without_labels_the_metric_is_agreement(tmp_path: Path) -> None:
    content = arrays()
    del content["labels"]
    data = load_data(save(tmp_path, content), [SPEC], seed=0)
    assert data.metric == "agreement"
    assert data.held_out.labels is None


@pytest.mark.parametrize(("batch", "calls"), [(1, 4), (3, 2), (8, 1)])
def test_feeds_fill_the_batch_and_count_real_rows(tmp_path: Path, batch: int, calls: int) -> None:
    spec = TensorSpec("image", (batch, 3, 4, 5), "float32")
    held = load_data(save(tmp_path, arrays()), [spec], seed=3).held_out
    feeds = list(held.feeds({"image": spec}))
    assert len(feeds) == calls
    assert all(f.arrays["image"].shape == spec.shape for f in feeds)
    rows = np.concatenate([f.arrays["image"][: f.count] for f in feeds])
    np.testing.assert_array_equal(rows, held.inputs["image"])


def test_a_model_with_two_inputs_has_named_arrays(tmp_path: Path) -> None:
    specs = [TensorSpec("a", (1, 2), "float32"), TensorSpec("b", (1, 3), "int64")]
    content = {
        "calibration_a": np.ones((2, 2), "float32"),
        "calibration_b": np.ones((2, 3), "int64"),
        "inputs_a": np.arange(8, dtype="float32").reshape(4, 2),
        "inputs_b": np.arange(12, dtype="int64").reshape(4, 3),
    }
    data = load_data(save(tmp_path, content), specs, seed=0)
    feed = next(data.visible.feeds({s.name: s for s in specs}))
    assert feed.arrays["a"].shape == (1, 2)
    # Row i of both inputs stays together.
    assert feed.arrays["a"][0, 0] / 2 == feed.arrays["b"][0, 0] / 3
    content["inputs_b"] = content["inputs_b"][:3]
    with pytest.raises(DataError, match=r"inputs_a 4, inputs_b 3"):
        load_data(save(tmp_path, content), specs, seed=0)


def _set(name: str, index: tuple[int, ...], value: float) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[name][index] = value

    return change


def _replace(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[name] = make(content[name])

    return change


def _rename(name: str, to: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[to] = content.pop(name)

    return change


BAD = {
    "nan": (_set("inputs", (5, 2, 3, 4), np.nan), r"inputs\[5, 2, 3, 4\] is nan"),
    "infinity": (_set("calibration", (1, 0, 2, 0), -np.inf), r"calibration\[1, 0, 2, 0\] is -inf"),
    "float64": (_replace("inputs", lambda a: a.astype("float64")), "inputs is float64.*'image'"),
    "uint8": (_replace("calibration", lambda a: a.astype("uint8")), "calibration is uint8"),
    "channels": (_replace("inputs", lambda a: a[:, :2]), r"\[7, 2, 4, 5\].*\[samples, 3, 4, 5\]"),
    "rank": (_replace("inputs", lambda a: a[0]), r"shape \[3, 4, 5\]"),
    "empty": (_replace("calibration", lambda a: a[:0]), "calibration is empty"),
    "missing": (lambda c: c.pop("calibration"), "missing calibration"),
    "typo": (_rename("labels", "label"), "unknown arrays label"),
    "float labels": (_replace("labels", lambda a: a / 2), "labels are float64"),
    "too few labels": (_replace("labels", lambda a: a[:6]), r"labels have shape \[6\].*\[7\]"),
    "negative label": (_set("labels", (4,), -1), r"labels\[4\] is -1"),
    "object array": (
        _replace("inputs", lambda a: np.array([{}, a], dtype=object)), "'inputs' cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_named(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    content = arrays()
    change(content)
    with pytest.raises(DataError, match=message):
        load_data(save(tmp_path, content), [SPEC], seed=0)


def test_one_sample_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 sample, two halves need at least 2"):
        load_data(save(tmp_path, arrays(1)), [SPEC], seed=0)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = save(tmp_path, arrays())
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not an npz file"):
            load_data(path, [SPEC], seed=0)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="cannot be read"):
        load_data(path, [SPEC], seed=0)
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))
    with pytest.raises(DataError, match="not an npz file"):
        load_data(path, [SPEC], seed=0)
    with pytest.raises(UsageError, match="does not exist"):
        load_data(tmp_path / "none.npz", [SPEC], seed=0)


def test_inputs_of_different_batch_are_refused(tmp_path: Path) -> None:
    specs = [TensorSpec("a", (1, 2), "float32"), TensorSpec("b", (4, 2), "float32")]
    ones = np.ones((4, 2), "float32")
    names = ("calibration_a", "calibration_b", "inputs_a", "inputs_b")
    with pytest.raises(DataError, match=r"a: 1, b: 4"):
        load_data(save(tmp_path, dict.fromkeys(names, ones)), specs, seed=0)
