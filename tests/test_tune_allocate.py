"""BudgetAllocator: defaults first, then where the network gains most."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmx.errors import UsageError
from tvmx.tune import BudgetAllocator, TuningState

HISTORY = st.lists(st.floats(1, 1e6), max_size=12).map(
    lambda values: tuple(min(values[: i + 1]) for i in range(len(values)))
)
STATES = st.lists(
    st.builds(
        TuningState, layers=st.integers(1, 9), history=HISTORY,
        rival_us=st.none() | st.floats(1, 1e6), finished=st.booleans(),
    ), max_size=8,
)  # fmt: skip


@given(STATES)
def test_defaults_come_before_anything_is_tuned(states: list[TuningState]) -> None:
    chosen = BudgetAllocator().next_workload(states)
    open_ = [i for i, s in enumerate(states) if not s.finished]
    fresh = [i for i in open_ if not states[i].history]
    if not open_:
        assert chosen is None
    elif fresh:
        assert chosen == fresh[0]
    else:
        assert chosen in open_


def pick(*states: TuningState) -> int | None:
    return BudgetAllocator().next_workload(states)


def test_more_layers_and_slower_layers_weigh_more() -> None:
    flat = (100.0,) * 8
    assert pick(TuningState(1, flat), TuningState(4, flat)) == 1
    assert pick(TuningState(1, flat), TuningState(1, (300.0,) * 8)) == 1


def test_improving_workloads_weigh_more_than_stuck_ones() -> None:
    falling = tuple(200.0 - 10 * i for i in range(11))
    assert pick(TuningState(1, (100.0,) * 11), TuningState(1, falling)) == 1


def test_stuck_workloads_give_way_in_time() -> None:
    assert pick(TuningState(1, (100.0,) * 50), TuningState(1, (40.0,) * 4)) == 1


def test_implementations_far_behind_their_rival_wait() -> None:
    flat = (100.0,) * 8
    assert pick(TuningState(1, (400.0,) * 8, rival_us=50.0), TuningState(1, flat)) == 1
    assert pick(TuningState(1, flat, rival_us=400.0), TuningState(1, (90.0,) * 8)) == 0


def test_what_is_twice_as_slow_does_not_share_the_budget() -> None:
    """One workload, two templates at their defaults: the fast one is tuned, stuck or not."""
    fast = TuningState(1, (100.0,) * 40, rival_us=210.0)
    assert pick(fast, TuningState(1, (210.0,), rival_us=100.0)) == 0
    assert pick(fast, TuningState(1, (110.0,), rival_us=100.0)) == 1


def test_failing_workloads_lose_weight() -> None:
    allocator = BudgetAllocator()
    failing = [TuningState(1, (math.inf,) * n, rival_us=100.0) for n in (1, 10)]
    assert allocator.weight(failing[0]) > allocator.weight(failing[1]) > 0
    late = TuningState(1, (math.inf, math.inf, 50.0))
    assert math.isfinite(allocator.weight(late))


def test_spending_follows_the_gain() -> None:
    """Two workloads that halve with every 8 measurements, one of them 10 times slower."""
    spent, best = [1, 1], [1000.0, 100.0]
    history: list[list[float]] = [[1000.0], [100.0]]
    for _ in range(30):
        states = [TuningState(1, tuple(h)) for h in history]
        i = BudgetAllocator().next_workload(states)
        assert i is not None
        spent[i] += 1
        best[i] *= 0.5 ** (1 / 8)
        history[i].append(best[i])
    assert spent[0] > 2 * spent[1] and spent[1] >= 1


@pytest.mark.parametrize("wrong", [{"window": 0}, {"optimism": 0.0}, {"optimism": 1.5}])
def test_refusals(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        BudgetAllocator(**wrong)  # type: ignore[arg-type]
