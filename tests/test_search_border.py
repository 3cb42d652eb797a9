"""ChainBorderWalk against a pricing written down independently."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search_tables import plan_us, random_table, residual_edges, walk_of
from tvmx.errors import StoreError
from tvmx.ir import Implementation
from tvmx.ir._cost_table import CostTable, transition_key
from tvmx.search import NETWORK_INPUT, BorderWalk, ChainBorderWalk, ResumableWalk

PLAIN = Implementation(template="p", layout="NCHW", data_layout="NCHW")
BLOCKED = Implementation(template="b", layout="NCHW4c", data_layout="NCHW4c")
SHAPE = (1, 8, 4, 4)
THERE = transition_key(SHAPE, "NCHW", "NCHW4c")
BACK = transition_key(SHAPE, "NCHW4c", "NCHW")


def walk_us(table: CostTable, walk: BorderWalk, actions: tuple[int, ...]) -> float:
    walk.reset()
    total = table.layers_us(actions)
    for i, (costs, action) in enumerate(zip(table.layers, actions, strict=True)):
        total += walk.place(i, costs.implementations[action])
    return total + walk.finish()


@given(st.integers(0, 10_000), st.booleans())
def test_plans_cost_what_their_edges_cost(seed: int, residual: bool) -> None:
    table = random_table(seed, layers=6)
    edges = residual_edges(6) if residual else None
    walk = walk_of(table, edges)
    rng = random.Random(seed)
    for _ in range(3):
        actions = tuple(rng.choice(costs.legal) for costs in table.layers)
        assert walk_us(table, walk, actions) == pytest.approx(plan_us(table, actions, edges))


@given(st.integers(0, 10_000), st.integers(0, 5))
def test_restore_continues_where_the_state_was_taken(seed: int, cut: int) -> None:
    table = random_table(seed, layers=6)
    walk = walk_of(table, residual_edges(6))
    rng = random.Random(seed)
    chosen = [rng.choice(costs.implementations) for costs in table.layers]
    walk.reset()
    for i in range(cut):
        walk.place(i, chosen[i])
    state = walk.state()
    first = [walk.place(i, chosen[i]) for i in range(cut, 6)] + [walk.finish()]
    walk.restore(state)
    assert [walk.place(i, chosen[i]) for i in range(cut, 6)] + [walk.finish()] == first


def test_walk_meets_both_protocols() -> None:
    assert isinstance(walk_of(random_table(0)), ResumableWalk)


def test_one_conversion_serves_all_readers() -> None:
    edges = [(NETWORK_INPUT,), (0,), (0,)]
    walk = ChainBorderWalk([SHAPE] * 3, {THERE: 5.0, BACK: 7.0}, predecessors=edges,
                           input_shape=SHAPE)  # fmt: skip
    assert walk.place(0, PLAIN) == 0.0
    assert walk.place(1, BLOCKED) == 5.0
    assert walk.place(2, BLOCKED) == 0.0
    assert walk.finish() == 14.0  # both outputs go back


def test_flattening_needs_plain_data() -> None:
    dense = Implementation(template="d", layout="NC", data_layout="NC")
    for first, us in ((PLAIN, 0.0), (BLOCKED, 7.0)):
        walk = ChainBorderWalk([SHAPE, (1, 10)], {THERE: 5.0, BACK: 7.0}, input_shape=SHAPE)
        walk.place(0, first)
        assert walk.place(1, dense) == us
        assert walk.finish() == 0.0


def test_missing_transition_is_named() -> None:
    walk = ChainBorderWalk([SHAPE], {}, input_shape=SHAPE)
    with pytest.raises(StoreError, match="1x8x4x4:NCHW>NCHW4c"):
        walk.place(0, BLOCKED)


def test_edges_must_point_backwards() -> None:
    with pytest.raises(StoreError, match="must come before"):
        ChainBorderWalk([SHAPE], {}, predecessors=[(0,)], input_shape=SHAPE)


def test_table_without_workloads_names_the_layer() -> None:
    table = random_table(0)
    with pytest.raises(StoreError, match="'conv0'"):
        ChainBorderWalk.from_table(CostTable(layers=table.layers))
