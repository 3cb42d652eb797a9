"""Random cost tables and brute force, shared by the search tests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction

from tvmx.ir import Conv2dWorkload, Implementation
from tvmx.ir._cost_table import CostTable, LayerCosts, transition_key
from tvmx.ir._implementation import Precision
from tvmx.search import Budgets, ChainBorderWalk

LAYOUTS = ("NCHW", "NCHW4c", "NCHW8c")
KINDS: tuple[tuple[Precision, str], ...] = (
    ("f32", "dense"), ("int8", "dense"), ("f32", "8x1@50"), ("f32", "8x1@80"),
)  # fmt: skip


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


def mixed_table(
    seed: int, layers: int = 4, *, border: float = 60.0,
    layouts: tuple[str, ...] = ("NCHW", "NCHW8c"),
) -> CostTable:  # fmt: skip
    """Float, int8 and sparse implementations in some layouts, as a network has them.

    What is smaller or faster loses accuracy, more or less by layer; here and there int8 does
    not run or is no faster. The baseline is float and dense.
    """
    rng = random.Random(seed)
    load = workload()
    rows = []
    for i in range(layers):
        base, size = rng.uniform(50, 500), rng.randrange(1_000, 100_000)
        loss = round(rng.expovariate(5), 4)
        choices = []
        for precision, sparsity in KINDS if rng.random() < 0.7 else KINDS[:2]:
            kept = 1 - int(sparsity.partition("@")[2] or 0) / 100
            for layout in layouts:
                us = base * (0.45 if precision == "int8" else 1.0) * (kept + 0.3 * (kept < 1))
                choices.append((
                    Implementation(template="t", layout=layout, data_layout=layout,
                                   precision=precision, sparsity=sparsity),
                    us * rng.uniform(0.7, 1.4),
                    int(size * kept * (0.25 if precision == "int8" else 1 + 0.1 * (kept < 1))),
                    round(loss * (0.3 if precision == "int8" else 2 * (1 - kept)), 6),
                ))  # fmt: skip
        implementations, us_all, sizes, losses = zip(*choices, strict=True)
        rows.append(
            LayerCosts(
                layer=f"conv{i}",
                workload=load.digest,
                implementations=implementations,
                latency_us=tuple(
                    None if k >= len(layouts) and rng.random() < 0.1 else us
                    for k, us in enumerate(us_all)
                ),
                weights_bytes=sizes,
                baseline=rng.randrange(len(layouts)),
                accuracy_drop=losses,
            )
        )
    transitions = {
        transition_key(load.out_shape, source, destination): rng.uniform(0, border)
        for source, destination in itertools.permutations(
            [*layouts, *(f"{name}/s8" for name in layouts)], 2
        )
    }
    return CostTable(layers=tuple(rows), transitions=transitions, workloads={load.digest: load})


def tight_budgets(table: CostTable, share: float = 0.3, slack: float = 1.05) -> Budgets:
    """Budgets in conflict: ``share`` of the drop of the smallest plan, and few weights.

    The weights are ``slack`` times those of a plan that, from the baseline on, takes the
    smallest implementations where they save most bytes per point, as long as it may.
    """
    plan = list(table.baseline)
    smallest = [min(c.legal, key=c.weights_bytes.__getitem__) for c in table.layers]
    drop = share * table.accuracy_drop(smallest)

    def worth(layer: int) -> float:
        costs, new, old = table.layers[layer], smallest[layer], plan[layer]
        saved = costs.weights_bytes[old] - costs.weights_bytes[new]
        return saved / (costs.drops[new] - costs.drops[old] + 1e-9)

    for layer in sorted(range(len(plan)), key=worth, reverse=True):
        option = [*plan[:layer], smallest[layer], *plan[layer + 1 :]]
        if table.accuracy_drop(option) <= drop:
            plan = option
    return Budgets(max_accuracy_drop=drop, max_weights_bytes=int(table.weights_bytes(plan) * slack))


def within(table: CostTable, budgets: Budgets) -> list[tuple[int, ...]]:
    """All assignments that keep the accuracy and weights budgets, summed up independently."""
    found = []
    for actions in assignments(table):
        pairs = list(zip(table.layers, actions, strict=True))
        drop = sum(Fraction(repr(c.accuracy_drop[a])) for c, a in pairs if c.accuracy_drop)
        size = sum(c.weights_bytes[a] for c, a in pairs)
        limit, most = budgets.max_accuracy_drop, budgets.max_weights_bytes
        if (limit is None or drop <= Fraction(repr(limit))) and (most is None or size <= most):
            found.append(actions)
    return found


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
            needed.add((source, chosen[i].writes if j else chosen[i].reads))
    read = {source for sources in edges for source in sources}
    needed |= {(i, "NCHW") for i in range(len(actions)) if i not in read}
    total = table.layers_us(actions)
    for source, wanted in needed:
        have = "NCHW" if source < 0 else chosen[source].writes
        if have != wanted:
            total += table.transitions[transition_key(shape, have, wanted)]
    return total


def walk_of(table: CostTable, edges: list[tuple[int, ...]] | None = None) -> ChainBorderWalk:
    return ChainBorderWalk.from_table(table, predecessors=edges)
