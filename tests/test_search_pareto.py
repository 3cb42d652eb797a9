"""The Pareto front against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmx.errors import UsageError
from tvmx.search import dominates, pareto_front

POINTS = st.lists(
    st.fixed_dictionaries({name: st.integers(0, 4) for name in ("latency", "weights", "drop")}),
    max_size=30,
)


@given(POINTS)
def test_front_is_what_nothing_dominates(points: list[dict[str, int]]) -> None:
    names = ("latency", "weights", "drop")
    rows = [tuple(p[n] for n in names) for p in points]
    wanted = []
    for i, row in enumerate(rows):
        beaten = any(
            all(x <= y for x, y in zip(other, row, strict=True)) and other != row for other in rows
        )
        if not beaten and row not in rows[:i]:
            wanted.append(i)
    assert pareto_front(points, names) == wanted


def test_ties_keep_the_first_and_the_order_is_the_inputs() -> None:
    points = [{"a": 3, "b": 1}, {"a": 1, "b": 3}, {"a": 3, "b": 1}, {"a": 3, "b": 3}]
    assert pareto_front(points, ("a", "b")) == [0, 1]


def test_dominates() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"point 0 .* 'drop'"):
        pareto_front([{"latency": 1, "weights": 1, "arena": 1}])
    with pytest.raises(UsageError, match="'a'"):
        pareto_front([{"a": float("nan")}], ("a",))
    with pytest.raises(UsageError, match="at least one objective"):
        pareto_front([], ())
