"""tvmx's tuner against MetaSchedule, random and grid, at equal numbers of measurements.

::

    python benchmarks/tuner.py --out bench-tuner
    python benchmarks/tuner.py --out bench-tuner --workloads depthwise,dense --seeds 1 --trials 8
    python benchmarks/tuner.py --out bench-tuner --again cold,warm

Six workloads, one thread, this machine. Runs that are in OUT already are not made again, and no
candidate is measured twice: after a change of the tuner ``--again cold,warm`` takes little time.
See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._candidates import ONE_THREAD
from benchmarks._stages import alone, say
from benchmarks._tuner_results import COLD, GRID, METASCHEDULE, METHODS, RANDOM, WARM
from benchmarks._tuner_runs import (
    Settings,
    compare,
    load_comparison,
    load_curves,
    missing,
    search,
    search_metaschedule,
)
from benchmarks._tuner_summary import Report, missed, summarise
from benchmarks._tuner_workloads import ALL, HELD_OUT, WORKLOADS, workload_of
from tvmx.errors import MeasureError, TvmxError, UsageError

_FULL_SEEDS, _FULL_TRIALS = 5, 64  # from here on a missed bound is an error


def main(
    out: Annotated[Path, typer.Option(help="Folder of the journal and the figures.")],
    workloads: Annotated[
        str,
        typer.Option(help=f"Comma-separated. Held out, if named: {', '.join(HELD_OUT)}."),
    ] = ",".join(WORKLOADS),
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 5,
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each run.")] = 64,
    again: Annotated[
        str, typer.Option(metavar="METHODS", help="Make these runs again, from the journal.")
    ] = "",
) -> None:
    """Make every run that is not in OUT yet, then print the tables.

    Exit code 1 when a bound is missed, with at least 5 seeds and 64 trials.
    """
    os.environ.update(ONE_THREAD)
    try:
        settings = Settings(
            out.resolve(), _chosen(workloads, list(ALL)), _chosen(methods, METHODS), seeds,
            trials,
        )  # fmt: skip
        if WARM in settings.methods and len(settings.workloads) < 2:
            raise UsageError(
                "a warm run learns from other workloads, and only one was named",
                hint="name more with --workloads, or leave out warm with --methods",
            )
        _forget(settings, _chosen(again, METHODS) if again else ())
        _measure(settings)
        report = _report(settings)
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    full = seeds >= _FULL_SEEDS and trials >= _FULL_TRIALS
    sys.exit(1 if full and missed(report.workloads) else 0)


def _chosen(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """In the order they are known in."""
    names = {name.strip() for name in text.split(",")}
    for name in sorted(names):
        if name not in known:
            raise UsageError(f"there is no {name!r}; there are {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _forget(settings: Settings, methods: Sequence[str]) -> None:
    for workload in settings.workloads:
        for method in methods:
            for seed in range(settings.seeds):
                settings.path(workload, method, seed).unlink(missing_ok=True)


def _measure(settings: Settings) -> None:
    """What is missing. Warm runs come after all cold ones, which teach them."""
    stages: list[tuple[Callable[[Settings, str, Sequence[str]], None], tuple[str, ...]]] = [
        (search, (COLD, RANDOM, GRID)),
        (search_metaschedule, (METASCHEDULE,)),
        (search, (WARM,)),
    ]
    for stage, methods in stages:
        for workload in settings.workloads:
            if missing(settings, workload, methods):
                alone(stage, settings, workload, methods)
    for workload in settings.workloads:
        if load_comparison(settings, workload) is None:
            alone(compare, settings, workload)


def _report(settings: Settings) -> Report:
    """Print it, and write it with the curves."""
    from benchmarks._tuner_metaschedule import ROUND
    from benchmarks._tuner_plot import best_so_far_svg
    from benchmarks._tuner_tables import print_tuners
    from tvmx.passes import versions
    from tvmx.store import write_atomic
    from tvmx.targets import load_target

    curves = {name: load_curves(settings, name) for name in settings.workloads}
    summaries = []
    for name, found in curves.items():
        comparison = load_comparison(settings, name)
        if comparison is None:
            raise MeasureError(
                f"{name}: the templates changed while they were measured",
                hint="the same command measures what is missing now",
            )
        summaries.append(summarise(name, workload_of(name), found, comparison, settings.trials))
    report = Report(
        machine=load_target("host").description, versions=versions(), seeds=settings.seeds,
        trials=settings.trials, metaschedule_round=ROUND, workloads=tuple(summaries),
    )  # fmt: skip
    report.save(settings.out / "tuner.json")
    write_atomic(settings.out / "tuner.svg", best_so_far_svg(summaries, settings.trials))
    print_tuners(report, [curve for found in curves.values() for curve in found])
    say(f"figures: {settings.out / 'tuner.json'}, curves: {settings.out / 'tuner.svg'}")
    return report


if __name__ == "__main__":
    typer.run(main)
