"""The agents against each other and against the optimum, on cost tables.

::

    python benchmarks/search.py --out bench-search
    python benchmarks/search.py --out bench-search --cases resnet50 --agents q-learning,random

The tables of ``benchmarks/tables`` were measured by ``tvmx explore`` (``a72`` and ``a76`` on
simulated boards); those called ``modelled`` have every kind of implementation, and latencies by a
formula. Nothing is measured here: load on the machine changes no figure but processor time. Runs
that are in OUT already are not made again; ``policy`` is trained, a minute for each network. See
``docs/search.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._search_cases import names
from benchmarks._search_plot import regret_svg
from benchmarks._search_policies import POLICY
from benchmarks._search_results import Report
from benchmarks._search_runs import Settings, summarise
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
) -> None:
    """Make every run that is not in OUT yet, then print the tables."""
    try:
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
    say(f"figures: {settings.out / 'search.json'}, curves: {settings.out / 'search.svg'}")


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
