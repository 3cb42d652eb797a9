"""Random cost tables and brute force, shared by the search tests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from tvmx.ir import Conv2dWorkload, Implementation
from tvmx.ir._cost_table import CostTable, LayerCosts, transition_key
from tvmx.search import ChainBorderWalk

LAYOUTS = ("NCHW", "NCHW4c", "NCHW8c")


def workload(channels: int = 16, size: int = 8) -> Conv2dWorkload:
    return Conv2dWorkload(
        batch=1, in_channels=channels, height=size, width=size, out_channels=channels,
        kernel=(3, 3), padding=(1, 1, 1, 1),
    )  # fmt: skip


def random_table(
    seed: int, layers: int = 4, choices: int = 3, *, border: float = 100.0, failing: float = 0.0
) -> CostTable:
    """Layers of one shape; a share of ``failing`` implementations has no latency."""
    rng = random.Random(seed)
    load = workload()
    rows = []
    for i in range(layers):
        implementations = [
            Implementation(
                template=f"t{k}", layout=LAYOUTS[k % 3],
                data_layout=LAYOUTS[k % 3] if rng.random() < 0.7 else rng.choice(LAYOUTS),
            )
            for k in range(choices)
        ]  # fmt: skip
        baseline = rng.randrange(choices)
        us = [rng.uniform(50, 500) for _ in range(choices)]
        rows.append(
            LayerCosts(
                layer=f"conv{i}",
                workload=load.digest,
                implementations=tuple(implementations),
                latency_us=tuple(
                    None if k != baseline and rng.random() < failing else v
                    for k, v in enumerate(us)
                ),
                weights_bytes=tuple(rng.randrange(1, 1000) for _ in range(choices)),
                baseline=baseline,
            )
        )
    transitions = {
        transition_key(load.out_shape, src, dst): rng.uniform(0, border)
        for src, dst in itertools.permutations(LAYOUTS, 2)
    }
    return CostTable(layers=tuple(rows), transitions=transitions, workloads={load.digest: load})


def residual_edges(layers: int) -> list[tuple[int, ...]]:
    """A chain in which every third layer also reads what its block began with."""
    return [(i - 1, i - 3) if i % 3 == 2 else (i - 1,) for i in range(layers)]


def assignments(table: CostTable) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(costs.legal for costs in table.layers))


def plan_us(
    table: CostTable, actions: tuple[int, ...], edges: list[tuple[int, ...]] | None = None
) -> float:
    """Latency of a plan, written down independently of the walk: edges, then outputs."""
    edges = edges or [(i - 1,) for i in range(len(actions))]
    shape = workload().out_shape
    chosen = [c.implementations[a] for c, a in zip(table.layers, actions, strict=True)]
    needed = set()
    for i, sources in enumerate(edges):
        for j, source in enumerate(sources):
            needed.add((source, chosen[i].layout if j else chosen[i].data_layout))
    read = {source for sources in edges for source in sources}
    needed |= {(i, "NCHW") for i in range(len(actions)) if i not in read}
    total = table.layers_us(actions)
    for source, wanted in needed:
        have = "NCHW" if source < 0 else chosen[source].layout
        if have != wanted:
            total += table.transitions[transition_key(shape, have, wanted)]
    return total


def walk_of(table: CostTable, edges: list[tuple[int, ...]] | None = None) -> ChainBorderWalk:
    return ChainBorderWalk.from_table(table, predecessors=edges)
