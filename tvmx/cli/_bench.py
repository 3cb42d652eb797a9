"""``tvmx bench``: how fast a bundle is, alone or against another, in interleaved rounds."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmx.cli import _units as units
from tvmx.cli._check import check_folder
from tvmx.cli._device import check_device, check_runs_here, parse_device, parse_manners
from tvmx.cli._errors import guarded
from tvmx.cli._options import (
    Bundle,
    Cores,
    Deadline,
    Json,
    Key,
    MaxTemperature,
    Threads,
    Tracker,
    Wait,
)
from tvmx.cli._output import Output, Screen
from tvmx.cli._parse import check_count
from tvmx.cli._progress import open_progress
from tvmx.cli._run import bundle_job, describe_simulated, require_ok, simulated
from tvmx.errors import BundleError

if TYPE_CHECKING:
    from tvmx.deploy import Bundle as OpenBundle
    from tvmx.measure import DeviceAddress, Measurement

EPILOG = """Examples:
  tvmx bench bundle
  tvmx bench bundle --against bundle-baseline
  tvmx bench bundle --tracker 127.0.0.1:9190 --key rpi4 --threads 4"""

_HINT = "bundles are written by `tvmx export` and `tvmx build`"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("bench", epilog=EPILOG)(bench)


@guarded
def bench(
    bundle: Bundle,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="BUNDLE", help="Another bundle to compare with."),
    ] = None,
    tracker: Tracker = None,
    key: Key = None,
    threads: Threads = None,
    cores: Cores = None,
    deadline: Deadline = None,
    wait: Wait = "30s",
    max_temperature: MaxTemperature = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", help="Rounds; each times every bundle once.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Time a bundle on its golden input, or two of them in turns.

    Median and spread (interquartile range) over the rounds; with --against the ratio within
    each round and its 95 % interval. A difference inside the noise is called a tie.
    """
    check_count(rounds, "--rounds", 10_000, "at most 10000 are timed")
    address = parse_device(tracker, key)
    manners = parse_manners(cores, threads, deadline, wait, max_temperature)
    _check_threads(manners.cores.threads, address)
    paths = [bundle] if against is None else [bundle, against]
    for path in paths:
        check_folder(path, "bundle", hint=_HINT)
    from tvmx.deploy import load_bundle

    opened = [load_bundle(path) for path in paths]
    _check_comparable(opened)
    for each in opened:
        check_runs_here(each, address)
    check_device(address)
    from tvmx.measure import open_runner

    output = Output(as_json)
    with (
        open_progress(output) as progress,
        open_runner(address, manners, arch=opened[0].manifest.arch, observer=progress) as runner,
    ):
        measured = runner.compare([bundle_job(each) for each in opened], rounds)
    for each, result in zip(opened, measured, strict=True):
        require_ok(result, str(each.path))
    data = _describe(opened, measured)
    output.emit(data, lambda screen: _render(screen, data))


def _check_threads(threads: int, address: DeviceAddress | None) -> None:
    cores = os.cpu_count() or 1
    high = None if address is not None else cores
    check_count(threads, "--threads", high, f"this machine has {cores} processors")


def _check_comparable(bundles: list[OpenBundle]) -> None:
    first = bundles[0]
    for other in bundles[1:]:
        if other.manifest.arch != first.manifest.arch:
            raise BundleError(
                f"{first.path} is built for {first.manifest.arch}, {other.path} for "
                f"{other.manifest.arch}: no device runs both"
            )


def _describe(bundles: list[OpenBundle], measured: list[Measurement]) -> dict[str, Any]:
    first = measured[0]
    data: dict[str, Any] = {
        "device": first.device,
        "identity": first.identity,
        "threads": first.threads,
        "rounds": len(first.latencies_us),
        "bundles": [
            {
                "bundle": str(bundle.path),
                "target": bundle.manifest.target,
                "model": bundle.manifest.model_digest,
                "latency_us": result.median_us,
                "simulated": simulated(result),
                "spread_us": result.spread_us,
                "latencies_us": list(result.latencies_us),
                "max_error": result.max_error,
            }
            for bundle, result in zip(bundles, measured, strict=True)
        ],
        "notes": [],
    }
    if len(bundles) > 1:
        from tvmx.measure import compare_measured
        from tvmx.measure._paired import CONFIDENCE

        pair = compare_measured(measured[0], measured[1])
        text = pair.describe(str(bundles[0].path), str(bundles[1].path))
        data["comparison"] = {**asdict(pair), "confidence": CONFIDENCE, "text": text}
        if bundles[0].manifest.model_digest != bundles[1].manifest.model_digest:
            data["notes"].append("the bundles hold different networks, or different input shapes")
    return data


def _render(screen: Screen, data: dict[str, Any]) -> None:
    screen.table(
        ("bundle", "target", "latency", "spread", "error of range"),
        (
            (
                row["bundle"],
                row["target"],
                units.duration(row["latency_us"]),
                f"± {units.duration(row['spread_us'])}",
                "-" if row["max_error"] is None else f"{row['max_error']:.2g}",
            )
            for row in data["bundles"]
        ),
        right=("latency", "spread", "error of range"),
    )
    rounds = f"{data['rounds']} round{'s' if data['rounds'] != 1 else ''}"
    screen.fields(
        {
            "device": f"{data['device']}: {data['identity']}",
            "measured": f"{rounds}, threads {data['threads']}",
        }
    )
    for row in data["bundles"]:
        if row["simulated"]:
            screen.line(f"simulated {row['bundle']}: {describe_simulated(row['simulated'])}")
    if "comparison" in data:
        screen.line(data["comparison"]["text"], style="bold")
    for note in data["notes"]:
        screen.line(f"note: {note}")
