"""Top-1, agreement and metrics of the user's against counting by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tvmx.accuracy import (
    DEFAULT_METRIC,
    Samples,
    Score,
    UserMetric,
    agreement,
    drop,
    load_metric,
    score,
    top1,
)
from tvmx.errors import DataError, UsageError


def by_hand(outputs: np.ndarray, wanted: np.ndarray) -> float:
    right = sum(
        1 for row, want in zip(outputs.tolist(), wanted.tolist(), strict=True)
        if row.index(max(row)) == want
    )  # fmt: skip
    return 100 * right / len(outputs)


def test_top1_counts_like_a_loop() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((50, 4)).astype("float32")
    labels = rng.integers(0, 4, 50)
    assert top1(outputs, labels) == pytest.approx(by_hand(outputs, labels))
    assert 0 < top1(outputs, labels) < 100
    assert top1(outputs[:, :, None, None], labels) == top1(outputs, labels)


def test_agreement_compares_decisions_not_values() -> None:
    reference = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    candidate = np.array([[1.0, 5.0], [0.2, 0.8], [0.0, 0.1], [-3.0, -2.0]])
    assert agreement(candidate, reference) == 75.0
    assert agreement(reference, reference) == 100.0


def test_agreement_at_every_position_of_a_map() -> None:
    reference = np.zeros((1, 2, 2, 2))
    reference[:, 1] = 1
    candidate = reference.copy()
    candidate[0, :, 0, 1] = [1, 0]
    assert agreement(candidate, reference) == 75.0


def test_nan_is_never_right() -> None:
    outputs = np.array([[np.nan, 0.0], [1.0, 0.0]])
    assert top1(outputs, np.array([0, 0])) == 50.0
    assert agreement(outputs, outputs) == 50.0


def test_score_picks_the_metric_and_drop_is_in_points() -> None:
    reference = np.eye(4)
    candidate = np.eye(4)[[0, 1, 2, 0]]
    labels = np.arange(4)
    labelled = [score(o, labels=labels, reference=reference) for o in (reference, candidate)]
    assert [s.kind for s in labelled] == ["top-1", "top-1"]
    assert drop(*labelled) == 25.0
    alone = score(candidate, labels=None, reference=reference)
    assert alone == Score("agreement", 75.0, 4)
    with pytest.raises(DataError, match=r"top-1.*agreement"):
        drop(labelled[0], alone)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (np.zeros((3, 2)), np.array([0, 1, 2]), "label 2 is none of the model's 2 classes"),
        (np.zeros((3, 2)), np.array([0, 1]), "3 outputs"),
        (np.zeros((3, 2, 4)), np.array([0, 1, 1]), "not .samples, classes"),
    ],
)
def test_labels_that_do_not_fit(outputs: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        top1(outputs, labels)


def test_agreement_needs_classes_and_equal_shapes() -> None:
    with pytest.raises(DataError, match="no classes"):
        agreement(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(DataError, match="reference"):
        agreement(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(DataError, match="no sample"):
        agreement(np.zeros((0, 2)), np.zeros((0, 2)))


def margins_by_hand(outputs: np.ndarray, right: np.ndarray) -> list[float]:
    found = []
    for row, want in zip(outputs.tolist(), right.tolist(), strict=True):
        found.append(row[want] - max(v for i, v in enumerate(row) if i != want))
    return found


def test_margins_are_positive_exactly_where_the_metric_counts() -> None:
    rng = np.random.default_rng(3)
    outputs = rng.standard_normal((30, 4)).astype("float32")
    reference = outputs + rng.standard_normal((30, 4)).astype("float32")
    labels = rng.integers(0, 4, 30)
    for given, right in ((labels, labels), (None, reference.argmax(1))):
        margins = DEFAULT_METRIC.margins(outputs, labels=given, reference=reference)
        assert margins is not None
        np.testing.assert_allclose(margins, margins_by_hand(outputs, right), rtol=1e-5)
        counted = DEFAULT_METRIC.score(outputs, labels=given, reference=reference)
        assert 100 * (margins > 0).mean() == pytest.approx(counted.percent)
        assert 0 < counted.percent < 100


def test_margins_of_maps_and_of_broken_outputs() -> None:
    rng = np.random.default_rng(3)
    reference = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    outputs = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    outputs[1, 2, 3, 4] = np.nan
    margins = DEFAULT_METRIC.margins(outputs, labels=None, reference=reference)
    assert margins is not None and margins.shape == (2, 4, 5)
    assert margins[1, 3, 4] == -np.inf
    flat, right = (np.moveaxis(a, 1, -1).reshape(-1, 3) for a in (outputs, reference))
    wanted = margins_by_hand(flat[:-1], right[:-1].argmax(1))
    np.testing.assert_allclose(margins.reshape(-1)[:-1], wanted, rtol=1e-5)
    assert 100 * (margins > 0).mean() == pytest.approx(agreement(outputs, reference))


METRICS = """
import numpy as np

LIMIT = 3

def top_two(outputs, labels):
    best = np.argsort(-outputs, 1)[:, :2]
    return 100 * (best == labels[:, None]).any(1).mean()

def unlabelled(outputs, labels):
    return 1 if labels is None else 2

def spoils(outputs, labels):
    outputs[:] = 7
    labels[:] = 0
    return 50.0

def raises(outputs, labels): raise KeyError("no such class")
def nan(outputs, labels): return float("nan")
def words(outputs, labels): return "97"
def many(outputs, labels): return outputs
def nothing(outputs, labels): pass
def truth(outputs, labels): return True
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_metrics.py").write_text(METRICS)
    (tmp_path / "broken_metric.py").write_text("import no_such_library_of_theirs\n")
    (tmp_path / "syntax_metric.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    for name in ("my_metrics", "broken_metric", "syntax_metric"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))


def test_metric_of_a_module_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(folder, monkeypatch)
    metric = load_metric("my_metrics:top_two")
    outputs = np.array([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [3, 1, 2]])
    labels = np.array([0, 1, 0, 1])
    found = score(outputs, labels=labels, reference=outputs, metric=metric)
    assert found == Score("my_metrics:top_two", 50.0, 4)
    assert metric.margins(outputs, labels=labels, reference=outputs) is None
    assert drop(Score("my_metrics:top_two", 75.0, 4), found) == 25.0
    with pytest.raises(DataError, match=r"top-1.*my_metrics:top_two"):
        drop(score(outputs, labels=labels, reference=outputs), found)


@pytest.mark.parametrize("place", ["my_metrics.py", "./my_metrics.py", "{folder}/my_metrics.py"])
def test_metric_of_a_file(folder: Path, place: str) -> None:
    text = f"{place.format(folder=folder)}:unlabelled"
    metric = load_metric(text)
    outputs = np.zeros((2, 3))
    found = metric.score(outputs, labels=None, reference=outputs)
    assert found == Score(text, 1.0, 2)
    assert metric.score(outputs, labels=np.zeros(2), reference=outputs).percent == 2.0
    assert "my_metrics" not in sys.modules


def test_the_current_directory_is_not_searched_for_modules(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(folder))])
    with pytest.raises(UsageError, match="no module 'my_metrics'") as caught:
        load_metric("my_metrics:top_two")
    assert caught.value.hint is not None and "./my_metrics.py:" in caught.value.hint


def test_metrics_work_on_copies(folder: Path) -> None:
    outputs, labels = np.ones((2, 3)), np.array([1, 2])
    load_metric("my_metrics.py:spoils").score(outputs, labels=labels, reference=outputs)
    assert (outputs == 1).all() and labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top1", "no MODULE:FUNCTION"),
        (":f", "no MODULE:FUNCTION"),
        ("my_metrics:", "no MODULE:FUNCTION"),
        ("my_metrics:a b", "no MODULE:FUNCTION"),
        ("my metrics:f", "no module name"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("my_metrics.deeper:f", "no module 'my_metrics.deeper'"),
        ("my_metrics:absent", "'absent' in my_metrics does not exist"),
        ("my_metrics:LIMIT", "is no function"),
        ("broken_metric:f", "importing it raised ModuleNotFoundError.*no_such_library_of_theirs"),
        ("syntax_metric:f", "importing it raised SyntaxError"),
        ("absent.py:f", "absent.py does not exist"),
        ("syntax_metric.py:f", "importing it raised SyntaxError"),
    ],
)
def test_metrics_that_cannot_be_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    on_path(folder, monkeypatch)
    with pytest.raises(UsageError, match=message) as caught:
        load_metric(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised KeyError: 'no such class'"),
        ("nan", "returned nan"),
        ("words", "returned str, not a number"),
        ("many", "returned ndarray, not a number"),
        ("nothing", "returned NoneType, not a number"),
        ("truth", "returned bool, not a number"),
    ],
)
def test_metrics_that_give_no_number(folder: Path, name: str, message: str) -> None:
    metric = load_metric(f"my_metrics.py:{name}")
    outputs = np.zeros((2, 3))
    with pytest.raises(DataError, match=message):
        metric.score(outputs, labels=np.zeros(2, int), reference=outputs)


def test_numbers_of_all_kinds_are_taken() -> None:
    outputs = np.zeros((2, 3))
    for number in (3, 3.0, np.float32(3), np.int64(3), np.array(3.0), np.array([3])):
        metric = UserMetric("m:f", lambda o, la, n=number: n)
        assert metric.score(outputs, labels=None, reference=outputs).percent == 3.0
    with pytest.raises(DataError, match="no sample"):
        metric.score(outputs[:0], labels=None, reference=outputs[:0])


def test_fingerprint_follows_the_source(folder: Path) -> None:
    first = load_metric("my_metrics.py:nan").fingerprint
    assert len(first) == 16
    assert first == load_metric("./my_metrics.py:nan").fingerprint
    assert first != load_metric("my_metrics.py:many").fingerprint
    (folder / "my_metrics.py").write_text(METRICS + "# edited\n")
    assert first != load_metric("my_metrics.py:nan").fingerprint


def test_scorer_takes_a_metric() -> None:
    from tvmx.explore._accuracy import Scorer

    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    spec = SimpleNamespace(name="x", shape=(2, 2), dtype="float32")
    model: Any = SimpleNamespace(inputs=(spec,))

    def reference(arrays: dict[str, Any]) -> tuple[Any, ...]:
        return (arrays["x"],)

    class Shifted:
        def run(self, job: Any, feeds: list[Any]) -> list[Any]:
            return [(feed["x"] - 1,) for feed in feeds]

    metric = UserMetric("m:mean", lambda outputs, labels: float(outputs.mean()))
    scorer = Scorer(model, Samples({"x": x}), reference, metric)  # type: ignore[arg-type]
    assert scorer.reference == Score("m:mean", 4.5, 5)
    runner: Any = Shifted()
    found = scorer(runner, None)  # type: ignore[arg-type]
    assert found == Score("m:mean", 3.5, 5)
    assert math.isclose(drop(scorer.reference, found), 1.0)
    plain = Scorer(model, Samples({"x": x}), reference)  # type: ignore[arg-type]
    assert plain.reference == Score("agreement", 100.0, 5)
