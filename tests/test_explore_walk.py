"""What the search believes about borders and memory is what lowering does."""

from __future__ import annotations

import random

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.explorations import tiny_model
from tests.network_plans import host, narrow, network_of, plan_of, registry
from tests.random_networks import networks
from tvmx.build._memory import arena_bytes
from tvmx.build._network import _lower
from tvmx.errors import UsageError
from tvmx.explore._budget import Budget
from tvmx.explore._walk import estimate_arena, possible_conversions
from tvmx.ir import Implementation
from tvmx.passes import lower
from tvmx.search import GraphBorderWalk
from tvmx.testing.models import residual_model

PLAIN = Implementation(template="t", layout="NCHW", data_layout="NCHW")
BLOCKED = Implementation(template="t", layout="NCHW16c", data_layout="NCHW16c")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans())
def test_the_walk_costs_what_lowering_inserts(
    proto: onnx.ModelProto, picks: list[int], small: bool
) -> None:
    target = narrow() if small else host()
    network = network_of(proto)
    graph = network.graph
    plan = plan_of(network, target, picks)
    options = {
        la.index: [e.implementation(la.workload, target) for e in legal]
        for la in graph.layers
        if (legal := registry().legal(la.workload, target))
    }
    draw = random.Random(0)
    costs = {c.key: draw.uniform(1, 9) for c in possible_conversions(graph, options)}
    covered = [la.index for la in graph.layers if plan.choice(la.name)]
    chosen: dict[int, Implementation] = {}
    for la in graph.layers:
        choice = plan.choice(la.name)
        if choice is not None:
            chosen[la.index] = choice.implementation

    lowered = lower(network, plan, registry(), target)
    # Every conversion that lowering inserts has a measured cost ...
    expected = sum(costs[c.key] for c in lowered.conversions)
    # ... and the environment adds them up to the same sum, layer by layer, even if it goes back.
    walk = GraphBorderWalk(graph, covered, costs)
    total = _played(walk, chosen, covered)
    assert total == pytest.approx(expected)


def _played(walk: GraphBorderWalk, chosen: dict[int, Implementation], covered: list[int]) -> float:
    """The sum of an episode's border costs, each layer placed again after a dead end."""
    total = 0.0
    for position, index in enumerate(covered):
        state = walk.state()
        dead_end = walk.place(position, chosen[index])
        walk.restore(state)
        assert walk.place(position, chosen[index]) == dead_end
        walk.restore(state)
        total += walk.place(position, chosen[index])
    return float(total + walk.finish())


def test_layers_are_placed_in_order() -> None:
    graph = network_of(residual_model()).graph
    walk = GraphBorderWalk(graph, [0, 1, 2, 3, 4], {})
    assert walk.place(0, PLAIN) == 0
    with pytest.raises(UsageError, match="out of order"):
        walk.place(2, PLAIN)
    walk.reset()
    assert [walk.place(i, PLAIN) for i in range(5)] == [0] * 5
    assert walk.finish() == 0


# the arena


def test_arena_of_a_chain_counted_by_hand() -> None:
    """8 x 12 x 12 -> 20 x 12 x 12 -> 20 x 12 x 12 -> 20 -> 5 floats."""
    graph = network_of(tiny_model()).graph
    image = 4 * 12 * 12
    assert estimate_arena(graph, {0: PLAIN, 1: PLAIN}) == 2 * 20 * image
    # 8 channels fill half a block and 20 one and a quarter: the input copied, then 32 + 32.
    assert estimate_arena(graph, {0: BLOCKED, 1: BLOCKED}) == 64 * image
    # Three pieces at the conversion back and forth: only two of them live at a time.
    assert estimate_arena(graph, {0: BLOCKED, 1: PLAIN}) == (32 + 20) * image
    assert estimate_arena(graph, {0: PLAIN, 1: BLOCKED}) == 64 * image


@pytest.mark.parametrize("picks", [(0,), (1,), (0, 1), (1, 0, 0)])
@pytest.mark.parametrize("proto", [tiny_model(), residual_model(channels=12, size=24)],
                         ids=["tiny", "residual"])  # fmt: skip
def test_the_estimate_is_near_what_the_build_plans(
    proto: onnx.ModelProto, picks: tuple[int, ...]
) -> None:
    network = network_of(proto)
    plan = plan_of(network, host(), picks)
    chosen = {
        la.index: choice.implementation
        for la in network.graph.layers
        if (choice := plan.choice(la.name))
    }
    planned = arena_bytes(_lower(lower(network, plan, registry(), host()).mod, host()))
    assert 0.5 * planned <= estimate_arena(network.graph, chosen) <= planned


# the budget


def test_trials_bound_the_tuning() -> None:
    budget = Budget(None, 10)
    assert not budget.tuning_over(9)
    assert budget.tuning_over(10)
    assert [budget.room(t, 8) for t in (0, 4, 10, 12)] == [8, 6, 0, 0]
    assert budget.progress(4) == (4.0, 10.0)
    assert budget.left_s is None


def test_seconds_spent_before_a_kill_count() -> None:
    budget = Budget(100.0, None, spent_s=95.0)
    assert budget.left_s == pytest.approx(5.0, abs=0.5)
    assert not budget.tuning_over(10**6)
    budget.reserve(10.0)
    assert budget.tuning_over(0)


def test_the_reserve_leaves_some_time_for_tuning() -> None:
    budget = Budget(100.0, None)
    budget.reserve(1000.0)
    assert not budget.tuning_over(0)
    done, total = budget.progress(0)
    assert (round(done), total) == (0, 40.0)
