"""What the search benchmark searches: cost tables, measured and modelled, free and limited."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks._search_modelled import CORES, modelled_table
from tvmx.ir import CostTable, NetworkGraph
from tvmx.search import Budgets, DeployEnv, ExactPlan, solve_exact, walk_of

TABLES = Path(__file__).parent / "tables"
NETWORKS = (
    "bvlc_alexnet", "inception_v1", "mobilenet_v1", "mobilenet_v2", "resnet50", "squeezenet",
    "vgg19",
)  # fmt: skip
_MODELLED = ("a72", "host")
LIMITED = "limited"
_POINTS, _SHARE = 1.0, 0.4  # what a limited case may lose, and keep of the weights


@dataclass(frozen=True)
class Case:
    """A table with budgets. ``name`` is such as ``resnet50 a72 modelled limited``."""

    name: str
    table: CostTable
    budgets: Budgets

    @property
    def digest(self) -> str:
        """Changes with the table or the budgets: runs of another digest are made again."""
        text = f"{self.table.model_dump_json()} {self.budgets}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def env(self) -> DeployEnv:
        """A new environment."""
        return DeployEnv(self.table, budgets=self.budgets)

    def exact(self) -> ExactPlan:
        """The optimum."""
        return solve_exact(self.table, walk_of(self.table), self.budgets)


def measured_names() -> list[str]:
    """Networks and devices of the committed tables, such as ``squeezenet a72``."""
    return [path.stem.replace("-", " ") for path in sorted(TABLES.glob("*.json"))]


def names() -> list[str]:
    """Every case: measured tables, then modelled ones, then those limited."""
    modelled = [f"{network} {core} modelled" for core in _MODELLED for network in NETWORKS]
    limited = [f"{network} a72 modelled {LIMITED}" for network in NETWORKS]
    return [*measured_names(), *modelled, *limited]


@cache
def graph_of(network: str) -> NetworkGraph:
    """The network's graph, from its table of the host."""
    graph = measured_table(f"{network} host").graph
    assert graph is not None, network
    return graph


@cache
def measured_table(name: str) -> CostTable:
    """A committed table. Raises StoreError."""
    return CostTable.load(TABLES / f"{name.replace(' ', '-')}.json")


@cache
def case_of(name: str) -> Case:
    """A case by its name."""
    network, device, *kind = name.split()
    if not kind:
        return Case(name, measured_table(name), Budgets())
    table = modelled_table(graph_of(network), CORES[device])
    budgets = Budgets()
    if LIMITED in kind:
        size = int(_SHARE * table.weights_bytes(table.baseline))
        budgets = Budgets(max_accuracy_drop=_POINTS, max_weights_bytes=size)
    return Case(name, table, budgets)
