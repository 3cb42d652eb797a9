"""Top-1 and agreement against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tvmx.accuracy import Score, agreement, drop, score, top1
from tvmx.errors import DataError


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
