"""Ranker: the analytical model first, then what measurements taught, across workloads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from tvmx.tune import Ranker

RNG = np.random.default_rng(7)
ROWS = [
    {"cycles": c, "loads": loads, "misses": misses, "twice": 2 * misses}
    for c, loads, misses in zip(
        RNG.uniform(0, 2, 160), RNG.uniform(0, 1, 160), RNG.uniform(-2, 6, 160), strict=True
    )
]


def latency(row: dict[str, float], scale: float) -> float:
    """Cycles, and what they leave out: misses beyond a threshold."""
    return float(scale * 2 ** row["cycles"] * (1 + max(0.0, row["misses"] - 2)))


def agreement(ranker: Ranker, group: str, rows: list[dict[str, float]]) -> float:
    scores = ranker.rank(group, rows)
    return float(spearmanr(scores, [latency(row, 1.0) for row in rows]).statistic)


def test_without_rows_the_analytical_model_ranks() -> None:
    scores = Ranker().rank("a", ROWS)
    assert scores == pytest.approx([row["cycles"] * math.log(2) for row in ROWS])
    assert len(Ranker().rank("a", [])) == 0


def test_learns_what_the_model_leaves_out_from_other_workloads() -> None:
    ranker = Ranker()
    before = agreement(ranker, "new", ROWS[120:])
    for group, scale in (("small", 3.0), ("large", 5000.0)):
        for row in ROWS[:120]:
            ranker.learn(group, row, latency(row, scale))
    assert len(ranker) == 240
    assert agreement(ranker, "new", ROWS[120:]) > max(0.85, before + 0.1)


def test_own_measurements_count_more_than_others() -> None:
    ranker = Ranker()
    for row in ROWS[:40]:
        ranker.learn("other", row, 1 / latency(row, 1.0))
    for row in ROWS[:20]:
        ranker.learn("own", row, latency(row, 1.0))
    assert agreement(ranker, "own", ROWS[:20]) > agreement(ranker, "other", ROWS[:20]) + 0.5


def test_failures_rank_behind_the_slowest() -> None:
    ranker = Ranker()
    for number in range(40):
        row = {"cycles": 0.0, "loads": float(number % 2), "misses": 0.0}
        ranker.learn("a", row, None if number % 2 else 10.0 + number / 100)
    good, bad = ranker.rank("a", [{"cycles": 0.0, "loads": x, "misses": 0.0} for x in (0.0, 1.0)])
    assert bad - good > 0.4


def test_workloads_where_nothing_worked_teach_nothing() -> None:
    ranker = Ranker()
    for row in ROWS[:20]:
        ranker.learn("broken", row, None)
    assert ranker.rank("a", ROWS) == pytest.approx(Ranker().rank("a", ROWS))


def test_equal_rows_and_seed_rank_equally() -> None:
    def scores(seed: int) -> list[float]:
        ranker = Ranker(seed)
        for row in ROWS[:30]:
            ranker.learn("a", row, latency(row, 1.0))
        return ranker.rank("a", ROWS).tolist()

    assert scores(1) == scores(1) != scores(2)
