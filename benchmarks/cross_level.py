"""What it gains to choose on all levels at once: the joint plan beside plans of one level.

::

    python benchmarks/cross_level.py
    python benchmarks/cross_level.py --cases "squeezenet a72,modelled"

Per network and device, by the exact solver on the cost tables: the optimum where every layer may
take any implementation, and the optima where layers may leave the baseline's on one level only,
which is the template, the layout, int8, or sparsity. Kernels are tuned in all of them. A plan may
lose one point, by the table. Nothing is measured here. See ``docs/search.md``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._search_cases import LIMITED, case_of, names
from tvmx.errors import UsageError
from tvmx.ir import CostTable, Implementation, LayerCosts
from tvmx.search import Budgets, plan_us, solve_exact, walk_of

LEVELS = ("template", "layout", "int8", "sparsity")
POINTS = 1.0


@dataclass(frozen=True)
class Gain:
    """Latencies in us of one table: the tuned baseline, the optimum of each level, the joint one.

    ``chosen`` counts the joint plan's layers that leave the baseline on each level.
    """

    case: str
    baseline_us: float
    level_us: dict[str, float]
    joint_us: float
    chosen: dict[str, int]

    @property
    def gain(self) -> float:
        """The best plan of one level over the joint one."""
        return min(self.level_us.values()) / self.joint_us


def levels(implementation: Implementation, baseline: Implementation) -> set[str]:
    """On which levels an implementation leaves the baseline's.

    int8, sparse kernels and other layouts have templates of their own: the template counts where
    nothing else differs.
    """
    found = set()
    layouts = [(one.data_layout, one.layout) for one in (implementation, baseline)]
    if layouts[0] != layouts[1]:
        found.add("layout")
    if implementation.precision != baseline.precision:
        found.add("int8")
    if implementation.sparsity != baseline.sparsity:
        found.add("sparsity")
    if not found and implementation != baseline:
        found.add("template")
    return found


def restricted(table: CostTable, level: str) -> CostTable:
    """The table with what leaves the baseline on other levels made illegal."""

    def costs(layer: LayerCosts) -> LayerCosts:
        baseline = layer.implementations[layer.baseline]
        latency = tuple(
            us if levels(one, baseline) <= {level} else None
            for one, us in zip(layer.implementations, layer.latency_us, strict=True)
        )
        return layer.model_copy(update={"latency_us": latency})

    return table.model_copy(update={"layers": tuple(costs(layer) for layer in table.layers)})


def has_int8(table: CostTable) -> bool:
    """Whether there is anything to be joined."""
    return any(i.precision == "int8" for layer in table.layers for i in layer.implementations)


def gain_of(case: str, table: CostTable) -> Gain:
    """What one table says."""
    joint = _optimum(table)
    chosen = dict.fromkeys(LEVELS, 0)
    for layer, index in zip(table.layers, joint, strict=True):
        for level in levels(layer.implementations[index], layer.implementations[layer.baseline]):
            chosen[level] += 1
    walk = walk_of(table)
    return Gain(
        case=case, baseline_us=plan_us(table, walk, table.baseline),
        level_us={
            level: plan_us(table, walk, _optimum(restricted(table, level))) for level in LEVELS
        },
        joint_us=plan_us(table, walk, joint), chosen=chosen,
    )  # fmt: skip


def _optimum(table: CostTable) -> Sequence[int]:
    return solve_exact(table, walk_of(table), Budgets(max_accuracy_drop=POINTS)).actions


def main(
    cases: Annotated[str, typer.Option(help="Comma-separated parts of names. Default: all.")] = "",
) -> None:
    """Print the table."""
    parts = [part.strip() for part in cases.split(",") if part.strip()]
    wanted = [n for n in names() if LIMITED not in n and (not parts or any(p in n for p in parts))]
    tables = {name: case_of(name).table for name in wanted}
    gains = [gain_of(name, table) for name, table in tables.items() if has_int8(table)]
    if not gains:
        raise UsageError(f"no table with int8 has {cases!r} in its name")
    _row(["case", "baseline, ms", *(f"{level} only" for level in LEVELS), "joint",
          "joint over best single", "layers off the baseline"])  # fmt: skip
    _row(["---"] * (5 + len(LEVELS)))
    for gain in gains:
        ratios = [gain.baseline_us / gain.level_us[level] for level in LEVELS]
        layers = ", ".join(f"{count} {level}" for level, count in gain.chosen.items() if count)
        _row([gain.case, f"{gain.baseline_us / 1e3:.2f}", *(f"{ratio:.2f}" for ratio in ratios),
              f"{gain.baseline_us / gain.joint_us:.2f}", f"{gain.gain:.2f}", layers])  # fmt: skip
    for kind in (False, True):
        found = [gain.gain for gain in gains if ("modelled" in gain.case) == kind]
        if found:
            mean = math.exp(math.fsum(map(math.log, found)) / len(found))
            print(f"\n{'modelled' if kind else 'measured'}: joint over the best single level, "
                  f"geometric mean of {len(found)}: {mean:.3f}, {min(found):.3f} to "
                  f"{max(found):.3f}")  # fmt: skip


def _row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    typer.run(main)
