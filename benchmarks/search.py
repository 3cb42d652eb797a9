"""The agents against each other and against the optimum, on cost tables.

::

    python benchmarks/search.py --out bench-search
    python benchmarks/search.py --out bench-search --cases resnet50 --agents q-learning,random
    python benchmarks/search.py --out bench-search --measure a53 --networks squeezenet,digits

The tables of ``benchmarks/tables`` were measured by ``tvmx explore`` (``a53``, ``a72`` and ``a76``
on simulated boards); those called ``modelled`` have every kind of implementation, and latencies by
a formula. Comparing agents measures nothing: load on the machine changes no figure but the times.
Runs that are in OUT already are not made again; ``policy`` is trained, a minute for each network.

``--measure`` makes tables anew: it explores networks on a device, as OUT/runs, and writes what
comes out to ``benchmarks/tables``. ``--measure host`` takes 25 minutes of a quiet machine, or what
``--budget`` says per network; ``--prepare-only`` before does what need not be quiet. See
``docs/search.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._candidates import ONE_THREAD
from benchmarks._search_cases import names
from benchmarks._search_measured import DEVICES, MINUTES, Exploration
from benchmarks._search_plot import regret_svg
from benchmarks._search_policies import POLICY
from benchmarks._search_results import Report
from benchmarks._search_runs import Settings, summarise
from benchmarks._search_summary import print_summary
from benchmarks._search_tables import print_report
from benchmarks._stages import say
from tvmx.errors import TvmxError, UsageError
from tvmx.search import AGENTS
from tvmx.store import write_atomic
from tvmx.targets import load_target

_KNOWN = [*(name for name in AGENTS if name != POLICY), POLICY]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the runs and the figures.")],
    cases: Annotated[str, typer.Option(help="Comma-separated parts of names. Default: all.")] = "",
    agents: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(_KNOWN),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each agent.")] = 5,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each run.")] = 1000,
    measure: Annotated[
        str, typer.Option(metavar="DEVICE", help=f"Make tables of {', '.join(DEVICES)} anew.")
    ] = "",
    networks: Annotated[
        str, typer.Option(help="For --measure, comma-separated. Default: all.")
    ] = ",".join(MINUTES),
    budget: Annotated[str, typer.Option(help="For --measure, of each network.")] = "",
    trials: Annotated[int, typer.Option(help="For --measure: tuning's measurements.")] = 0,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="For --measure: write models and data, no more.")
    ] = False,
) -> None:
    """Make every run that is not in OUT yet, then print the tables."""
    try:
        if measure:
            chosen = _explorations(out.resolve(), measure, networks, budget, trials)
            _measure(chosen, prepare_only=prepare_only)
            return
        settings = Settings(out.resolve(), _cases(cases), _agents(agents, _KNOWN), seeds, episodes)
        found = []
        for case in settings.cases:
            say(case)
            found.append(summarise(settings, case))
        report = Report(
            machine=load_target("host").description, versions=_versions(), seeds=seeds,
            episodes=episodes, cases=tuple(found),
        )  # fmt: skip
        report.save(settings.out / "search.json")
        write_atomic(settings.out / "search.svg", regret_svg(found, episodes))
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    print_report(report)
    print_summary(report)
    say(f"figures: {settings.out / 'search.json'}, curves: {settings.out / 'search.svg'}")


def _explorations(
    out: Path, device: str, networks: str, budget: str, trials: int
) -> list[Exploration]:
    from tvmx.cli._parse import parse_duration

    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}; there are {', '.join(DEVICES)}")
    chosen = [name.strip() for name in networks.split(",")]
    for name in chosen:
        if name not in MINUTES:
            raise UsageError(f"there is no network {name!r}; there are {', '.join(MINUTES)}")
    seconds = parse_duration(budget, "--budget") if budget else 0.0
    return [
        Exploration(
            name, device, out, None if trials else seconds or 60 * MINUTES[name], trials or None
        )
        for name in chosen
    ]


def _measure(explorations: Sequence[Exploration], *, prepare_only: bool) -> None:
    """Explore, and keep the tables; what is done already is not done again."""
    os.environ.update(ONE_THREAD)
    for exploration in explorations:  # first: it takes time that need not be quiet
        exploration.prepare()
    for exploration in explorations if not prepare_only else ():
        name = f"{exploration.network} on {exploration.device}"
        say(name)
        result = exploration.explored(say)
        best, baseline = (result.candidates[i] for i in (result.best, result.baseline))
        say(
            f"{name}: {baseline.latency_us / 1e3:.2f} ms baseline, {best.latency_us / 1e3:.2f} ms "
            f"best, {result.failures} failures, {result.seconds:.0f} s; {exploration.table.name}"
        )


def _cases(text: str) -> tuple[str, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not any(part in name for name in names()):
            raise UsageError(f"no case has {part!r} in its name; there are {', '.join(names())}")
    return tuple(n for n in names() if not parts or any(part in n for part in parts))


def _agents(text: str, known: Sequence[str]) -> tuple[str, ...]:
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(f"there is no agent {name!r}; there are {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("tvmx", "numpy", "scipy", "gymnasium")}


if __name__ == "__main__":
    typer.run(main)
