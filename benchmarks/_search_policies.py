"""The policies of the search benchmark: each trained without the network it is applied to."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks._search_cases import NETWORKS, graph_of
from benchmarks._search_modelled import drawn_core, modelled_table
from benchmarks._stages import say
from tvmx.search import Budgets, DeployEnv
from tvmx.search.policy import train_policy
from tvmx.store import make_folder

POLICY = "policy"
_CORES = 10


def policy_without(network: str, folder: Path) -> Path:
    """The policy of all networks but one, trained unless it is there already.

    On modelled tables of drawn cores, half of them with budgets: no table of the benchmark, and
    no core of it either.
    """
    path = folder / f"without-{network}.json"
    if not path.is_file():
        say(f"training a policy without {network}")
        make_folder(folder)
        train_policy(_lessons(network)).save(path)
    return path


def _lessons(held_out: str) -> list[DeployEnv]:
    rng, envs = random.Random(0), []
    for network in NETWORKS:
        for seed in range(_CORES if network != held_out else 0):
            table = modelled_table(graph_of(network), drawn_core(seed), seed)
            size = int(rng.uniform(0.3, 0.8) * table.weights_bytes(table.baseline))
            limits = Budgets(max_accuracy_drop=rng.uniform(0.3, 3), max_weights_bytes=size)
            envs += [DeployEnv(table), DeployEnv(table, budgets=limits)]
    return envs
