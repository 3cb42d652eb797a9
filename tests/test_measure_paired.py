"""The verdict of bench: exact coverage, ties inside the noise, differences outside of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvmx.measure._paired import compare_paired, interval_rank


def coverage_by_counting(rounds: int, rank: int) -> float:
    """Chance that the median of coin-flip signs lies between the order statistics."""
    inside = sum(
        rank + 1 <= sum(flips) <= rounds - rank - 1
        for flips in itertools.product((0, 1), repeat=rounds)
    )
    return inside / 2**rounds


@pytest.mark.parametrize("rounds", range(1, 15))
def test_rank_is_the_largest_with_the_asked_coverage(rounds: int) -> None:
    rank = interval_rank(rounds)
    if rank is None:
        assert coverage_by_counting(rounds, 0) < 0.95
        return
    assert coverage_by_counting(rounds, rank) >= 0.95
    if rank + 1 < rounds // 2:
        assert coverage_by_counting(rounds, rank + 1) < 0.95


def test_a_constant_gain_is_seen_through_shared_noise() -> None:
    rng = np.random.default_rng(0)
    drift = 1 + 0.5 * rng.random(20)
    found = compare_paired((90 * drift).tolist(), (100 * drift).tolist())
    assert found.verdict == "faster"
    assert found.ratio == pytest.approx(0.9)
    assert compare_paired((100 * drift).tolist(), (90 * drift).tolist()).verdict == "slower"


def test_equal_bundles_are_called_different_rarely() -> None:
    rng = np.random.default_rng(1)
    verdicts = [
        compare_paired(rng.normal(100, 5, 20).tolist(), rng.normal(100, 5, 20).tolist()).verdict
        for _ in range(1000)
    ]
    # The interval covers at least 95 %; three standard errors above 5 % of 1000 is 71.
    assert 0 < sum(v != "tie" for v in verdicts) <= 71


def test_too_few_rounds_are_a_tie_and_say_so() -> None:
    found = compare_paired([1.0] * 5, [2.0] * 5)
    assert (found.verdict, found.low, found.ratio) == ("tie", None, 0.5)
    assert "5 rounds are too few" in found.describe("a", "b")
    assert compare_paired([1.0] * 6, [2.0] * 6).verdict == "faster"


def test_sentences() -> None:
    assert "a is faster than b" in compare_paired([1.0] * 9, [2.0] * 9).describe("a", "b")
    tie = compare_paired([1.0, 2.0] * 9, [2.0, 1.0] * 9)
    assert "a tie" in tie.describe("a", "b")


def test_unpaired_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 rounds"):
        compare_paired([1.0, 2.0], [1.0])
