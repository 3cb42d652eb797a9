"""Tables that bring their network along: branches, joins, and borders on every edge."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import gymnasium
import pytest

from tests.search_tables import mixed_table
from tvmx.errors import StoreError
from tvmx.ir import CostTable, Layer, LayerCosts, NetworkGraph, Node, transition_key
from tvmx.search import ENV_ID, ChainBorderWalk, GraphBorderWalk, solve_exact, walk_of

FORMS = ("NCHW", "NCHW8c", "NCHW/s8", "NCHW8c/s8")
SHAPE = (1, 16, 8, 8)


def branched(seed: int) -> CostTable:
    """Layer 0 feeds layers 1 and 2, a concat joins them, layer 3 also adds layer 1's output."""
    table = mixed_table(seed, 4)
    joined = (1, 32, 8, 8)
    nodes = (
        Node("layer", (0,), 1, "conv2d", layer=0),
        Node("layer", (1,), 2, "conv2d", layer=1),
        Node("layer", (1,), 3, "conv2d", layer=2),
        Node("concat", (2, 3), 4, "concat"),
        Node("layer", (4, 2), 5, "conv2d", layer=3),
    )
    load = next(iter(table.workloads.values()))
    graph = NetworkGraph(
        layers=tuple(
            Layer(i, costs.layer, "conv2d", load, (), 0) for i, costs in enumerate(table.layers)
        ),
        nodes=nodes, shapes=(SHAPE, SHAPE, SHAPE, SHAPE, joined, SHAPE), inputs=(0,), outputs=(5,),
    )  # fmt: skip
    rng = random.Random(seed)
    transitions = {
        transition_key(shape, source, made): rng.uniform(1, 60)
        for shape in (SHAPE, joined) for source, made in itertools.permutations(FORMS, 2)
    }  # fmt: skip
    return table.model_copy(update={"graph": graph, "transitions": transitions})


def priced(table: CostTable, actions: tuple[int, ...]) -> float:
    """The latency written down by hand for this one network. Converted once, read often."""
    a, b, c, d = (costs.implementations[i] for costs, i in zip(table.layers, actions, strict=True))
    # The concat is int8 only where its operator can be, which it is not: float, and blocked
    # where its parts (of equal size) are, or where either is: the larger name wins the tie.
    parts = [form.partition("/")[0] for form in (b.writes, c.writes)]
    joins = parts[0] if parts[0] == parts[1] else max(parts)
    needed = {
        (SHAPE, "in", "NCHW", a.reads), (SHAPE, "a", a.writes, b.reads),
        (SHAPE, "a", a.writes, c.reads), (SHAPE, "b", b.writes, joins),
        (SHAPE, "c", c.writes, joins), ((1, 32, 8, 8), "joined", joins, d.reads),
        (SHAPE, "b", b.writes, d.writes), (SHAPE, "out", d.writes, "NCHW"),
    }  # fmt: skip
    conversions = sum(
        table.transitions[transition_key(shape, have, wanted)]
        for shape, _, have, wanted in needed
        if have != wanted
    )
    return table.layers_us(actions) + conversions


@pytest.mark.parametrize("seed", range(4))
def test_every_edge_of_branches_and_joins_is_priced(seed: int, tmp_path: Path) -> None:
    branched(seed).save(tmp_path / "table.json")
    table = CostTable.load(tmp_path / "table.json")
    assert table == branched(seed)
    env = gymnasium.make(ENV_ID, table=table)
    rng = random.Random(seed)
    for _ in range(40):
        actions = tuple(rng.choice(costs.legal) for costs in table.layers)
        env.reset()
        for action in actions:
            info = env.step(action)[4]
        assert info["latency_us"] == pytest.approx(priced(table, actions))


@pytest.mark.parametrize("seed", range(3))
def test_exact_on_branches_is_the_brute_force_optimum(seed: int) -> None:
    table = branched(seed)
    found = solve_exact(table, walk_of(table))
    best = min(priced(table, a) for a in itertools.product(*(c.legal for c in table.layers)))
    assert found.exact and found.latency_us == pytest.approx(best)


def test_tables_without_a_network_are_chains() -> None:
    assert isinstance(walk_of(mixed_table(1)), ChainBorderWalk)
    assert isinstance(walk_of(branched(1)), GraphBorderWalk)
    with pytest.raises(StoreError, match="no network graph"):
        GraphBorderWalk.from_table(mixed_table(1))


def test_a_network_of_other_layers_is_refused() -> None:
    table = branched(1)
    first, *rest = table.layers
    for rows in ([*rest, first], [LayerCosts(**{**first.model_dump(), "layer": "other"}), *rest]):
        with pytest.raises(StoreError, match="not those of its network"):
            walk_of(table.model_copy(update={"layers": tuple(rows)}))


def test_a_missing_transition_is_named() -> None:
    table = branched(2).model_copy(update={"transitions": {}})
    with pytest.raises(StoreError, match=r"no transition '1x16x8x8:NCHW"):
        solve_exact(table, walk_of(table))
