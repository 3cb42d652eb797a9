"""Cost tables against whole networks: what the sum of the parts leaves out, and what can be learnt.

::

    python benchmarks/where_tables_lie.py --out bench-lies
    python benchmarks/where_tables_lie.py --out bench-lies --networks digits --plans 10

Three small networks (the digits example, SqueezeNet and MobileNet v1 at 96x96) are explored on this
machine with data, so that their tables have int8 and sparse layers. Then plans are drawn at random
from each table, built, and measured in turns in one process. What is in OUT already is not done
again. See ``docs/search.md``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._candidates import ONE_THREAD
from benchmarks._lies_networks import NETWORKS, prepare
from benchmarks._lies_results import Report, print_report, summarise
from benchmarks._lies_runs import Network, build_plans, explore_network, measure_plans
from benchmarks._stages import alone, say
from tvmx.errors import TvmxError, UsageError
from tvmx.targets import load_target


def main(
    out: Annotated[Path, typer.Option(help="Folder of models, runs and figures.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(NETWORKS),
    plans: Annotated[int, typer.Option(min=4, help="Random plans of each network.")] = 50,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds.")] = 15,
    budget: Annotated[float, typer.Option(min=10, help="Seconds of each exploration.")] = 90.0,
) -> None:
    """Do what is not in OUT yet, then print the errors of tables, before and after."""
    os.environ.update(ONE_THREAD)
    try:
        samples = []
        for name in _known(networks):
            network = Network(out.resolve() / name, plans, rounds, budget)
            say(f"{name}: model and data")
            alone(prepare, network.path)
            say(f"{name}: explore, {budget:.0f} s")
            alone(explore_network, network)
            say(f"{name}: {plans} plans")
            alone(build_plans, network)
            say(f"{name}: {rounds} rounds of {plans} plans")
            samples += alone(measure_plans, network)
        report = Report(machine=load_target("host").description, samples=tuple(samples))
        report.save(out.resolve() / "lies.json")
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    print_report(summarise(report))
    say(f"figures: {out.resolve() / 'lies.json'}")


def _known(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NETWORKS:
            raise UsageError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    return names


if __name__ == "__main__":
    typer.run(main)
