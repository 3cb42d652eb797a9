"""What the search believes about borders and memory is what lowering does."""

from __future__ import annotations

import random

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.network_plans import host, narrow, network_of, plan_of, registry
from tests.random_networks import networks
from tvmx.build._memory import arena_bytes
from tvmx.build._network import _lower
from tvmx.explore._walk import GraphBorderWalk, estimate_arena, possible_conversions
from tvmx.ir import Implementation, blocked
from tvmx.passes import lower


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans())
def test_the_walk_costs_what_lowering_inserts(
    proto: onnx.ModelProto, picks: list[int], small: bool
) -> None:
    target = narrow() if small else host()
    network = network_of(proto)
    graph = network.graph
    plan = plan_of(network, target, picks)
    layouts = ["NCHW", blocked(target.lanes())]
    draw = random.Random(0)
    costs = {c.key: draw.uniform(1, 9) for c in possible_conversions(graph, layouts)}
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
    total = _before_the_first_layer(walk, costs, lowered.conversions, chosen, covered)
    assert total == pytest.approx(expected)

    # The arena estimate is a lower bound of what the build plans.
    assert estimate_arena(graph, chosen) <= arena_bytes(_lower(lowered.mod, target))


def _before_the_first_layer(walk, costs, conversions, chosen, covered) -> float:  # type: ignore[no-untyped-def]
    total = 0.0
    for position, index in enumerate(covered):
        state = walk.state()
        walk.place(position, Implementation(template="t", layout="NCHW", data_layout="NCHW"))
        walk.restore(state)
        total += walk.place(position, chosen[index])
    return float(total + walk.finish())
