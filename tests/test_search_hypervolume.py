"""The hypervolume against inclusion and exclusion, and against counting random points."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmx.errors import UsageError
from tvmx.search import hypervolume

COORDINATE = st.integers(0, 6)


def by_inclusion(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """The sum over all subsets of the boxes that their members share, with signs."""
    total = 0.0
    for count in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, count):
            corner = [max(values) for values in zip(*chosen, strict=True)]
            edges = [max(0.0, r - c) for r, c in zip(reference, corner, strict=True)]
            total += (-1) ** (count + 1) * math.prod(edges)
    return total


@given(st.integers(1, 4), st.data())
def test_it_is_what_inclusion_and_exclusion_gives(dimensions: int, data: st.DataObject) -> None:
    point = st.tuples(*[COORDINATE] * dimensions)
    points = data.draw(st.lists(point, max_size=7))
    reference = data.draw(point)
    assert hypervolume(points, reference) == pytest.approx(by_inclusion(points, reference))


def test_it_is_the_share_of_random_points_that_are_dominated() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((12, 4))
    darts = rng.random((100_000, 4))
    hit = np.zeros(len(darts), bool)
    for point in points:
        hit |= (darts >= point).all(axis=1)
    assert hypervolume(points.tolist(), [1.0] * 4) == pytest.approx(hit.mean(), abs=0.006)


def test_corners() -> None:
    assert hypervolume([], (1.0, 1.0)) == 0
    assert hypervolume([(1.0, 0.0)], (1.0, 1.0)) == 0, "on the border nothing is dominated"
    assert hypervolume([(0.0, 0.0), (0.0, 0.0)], (2.0, 3.0)) == 6
    with pytest.raises(UsageError, match="point 1"):
        hypervolume([(0.0, 0.0), (0.0,)], (1.0, 1.0))
    with pytest.raises(UsageError, match="point 0"):
        hypervolume([(0.0, math.nan)], (1.0, 1.0))
