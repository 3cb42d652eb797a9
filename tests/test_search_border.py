"""ChainBorderWalk against a pricing written down independently."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search_tables import mixed_table, plan_us, random_table, residual_edges, walk_of
from tvmx.errors import StoreError
from tvmx.ir import Implementation
from tvmx.ir._cost_table import CostTable, transition_key
from tvmx.search import NETWORK_INPUT, BorderWalk, ChainBorderWalk, ResumableWalk
from tvmx.search import plan_us as search_plan_us

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
    table = mixed_table(seed, 6) if seed % 2 else random_table(seed, layers=6)
    edges = residual_edges(6) if residual else None
    walk = walk_of(table, edges)
    rng = random.Random(seed)
    for _ in range(3):
        actions = tuple(rng.choice(costs.legal) for costs in table.layers)
        expected = pytest.approx(plan_us(table, actions, edges))
        assert walk_us(table, walk, actions) == expected
        assert search_plan_us(table, walk, actions) == expected


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


INT8 = BLOCKED.model_copy(update={"precision": "int8"})


def test_int8_neighbours_pass_int8_on_and_borders_quantise() -> None:
    """float NCHW -> int8 NCHW4c -> int8 NCHW4c + residual -> float NCHW4c -> out."""
    costs = {
        transition_key(SHAPE, "NCHW", "NCHW4c/s8"): 3.0,
        transition_key(SHAPE, "NCHW4c/s8", "NCHW4c"): 2.0,
        BACK: 7.0,
    }
    edges = [(NETWORK_INPUT,), (0, NETWORK_INPUT), (1,)]
    walk = ChainBorderWalk([SHAPE] * 3, costs, predecessors=edges, input_shape=SHAPE)
    assert walk.place(0, INT8) == 3.0
    assert walk.place(1, INT8) == 0.0  # the residual is the input, quantised already
    assert walk.place(2, BLOCKED) == 2.0
    assert walk.finish() == 7.0


def test_a_residual_is_read_in_the_format_that_is_written() -> None:
    bridge = Implementation(template="b", layout="NCHW4c", data_layout="NCHW", precision="int8")
    costs = {
        transition_key(SHAPE, "NCHW", "NCHW/s8"): 1.0,
        transition_key(SHAPE, "NCHW", "NCHW4c/s8"): 10.0,
        transition_key(SHAPE, "NCHW4c/s8", "NCHW"): 100.0,
    }
    walk = ChainBorderWalk([SHAPE], costs, predecessors=[(NETWORK_INPUT, NETWORK_INPUT)],
                           input_shape=SHAPE)  # fmt: skip
    assert walk.place(0, bridge) == 11.0
    assert walk.finish() == 100.0


def test_flattening_int8_is_free_and_its_matrix_is_dequantised_at_the_end() -> None:
    plain = PLAIN.model_copy(update={"precision": "int8"})
    dense = Implementation(template="d", layout="NC", data_layout="NC", precision="int8")
    costs = {
        transition_key(SHAPE, "NCHW", "NCHW/s8"): 1.0,
        transition_key((1, 10), "NC/s8", "NC"): 0.5,
    }
    walk = ChainBorderWalk([SHAPE, (1, 10)], costs, input_shape=SHAPE)
    assert walk.place(0, plain) == 1.0
    assert walk.place(1, dense) == 0.0
    assert walk.finish() == 0.5


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
