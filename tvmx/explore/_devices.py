"""The device a request names: a board behind a tracker, or the host's own server."""

from __future__ import annotations

from tvmx.build import host_arch
from tvmx.errors import UsageError
from tvmx.explore._request import DeviceSummary
from tvmx.measure import (
    DRIFT,
    LOCAL_KEY,
    DeviceAddress,
    Runner,
    describe_simulation,
    require_key,
    simulation_id,
)
from tvmx.targets import Target


def device_key(tracker: DeviceAddress | None) -> str:
    """The key measurements are recorded under."""
    return tracker.key if tracker else LOCAL_KEY


def check_device(target: Target, tracker: DeviceAddress | None) -> None:
    """Fail early: a foreign target needs a board, and the board's key must be known.

    Raises UsageError, TrackerError, UnknownKeyError.
    """
    if tracker is not None:
        require_key(tracker)
    elif target.arch != host_arch():
        raise UsageError(
            f"target {target.name!r} is {target.arch}, this machine is {host_arch()}: "
            "measuring needs a device",
            hint="`tvmx serve --key KEY --commands` prints what the board needs, then give "
            "--tracker HOST:PORT --key KEY; `tvmx build` compiles without measuring",
        )


def recorded_key(tracker: DeviceAddress | None, runner: Runner) -> str:
    """The device of journal keys: simulated figures are nobody else's."""
    simulation = simulation_id(runner.simulated)
    return f"{device_key(tracker)} {simulation}" if simulation else device_key(tracker)


def device_summaries(runner: Runner) -> list[DeviceSummary]:
    """Who measured, in the form of the result."""
    return [
        DeviceSummary(
            server=report.server, identity=report.identity, measured=report.measured,
            fma_gflops=report.first.fma_gflops if report.first else None,
            stream_gbs=report.first.stream_gbs if report.first else None,
            drift=report.drift, deviation=report.deviation,
        )
        for report in runner.devices
    ]  # fmt: skip


def device_notes(runner: Runner) -> list[str]:
    """What a reader must know of the devices: drift beyond 3 %, unlike siblings, pauses."""
    notes = []
    if runner.simulated:
        model = describe_simulation(runner.simulated)
        notes.append(
            f"latencies are simulated, no board was measured: {model}; differences under 20 % are "
            "ties (docs/simulated-boards.md)"
        )
    for report in runner.devices:
        name = f"device on {report.server} ({report.identity})"
        if report.drift is not None and report.drift > DRIFT:
            notes.append(
                f"{name}: probe figures moved by {report.drift:.0%} since the start; its kernels "
                "measured far apart compare badly"
            )
        if report.deviation is not None:
            notes.append(f"{name}: {report.deviation} than its siblings'; leave it out?")
    if runner.waited_s >= 1:
        notes.append(f"{runner.waited_s:.0f} s were spent waiting for a device")
    return notes
