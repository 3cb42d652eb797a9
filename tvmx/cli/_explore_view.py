"""What explore found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmx.cli._units import clock, duration, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmx.cli._output import Screen
    from tvmx.explore import (
        CandidateSummary,
        DeviceSummary,
        DryRun,
        ExploreResult,
        LayerSummary,
    )

OTHERS = 3


def render_result(screen: Screen, result: ExploreResult) -> None:
    """Candidates, then the choice of every layer, then what a reader must know."""
    if result.simulated:
        screen.line(f"SIMULATED, no board was measured: {result.simulated}", style="bold")
    _candidates(screen, result)
    _layers(screen, result.layers)
    screen.fields(
        {
            "device": f"{result.device}, {_threads(result)}",
            "objective": result.objective,
            "measured": f"{result.measurements} kernels, {result.failures} failed, "
            f"in {clock(result.seconds)}",
            "hardware measurements": _hardware(result.hardware),
            "time": _phases(result.phases),
            "Pareto front": _front(result),
            "outputs checked": _checked(result),
            "deadlines": result.deadlines,
            "run": result.run,
        }
    )
    if len(result.devices) > 1:
        _devices(screen, result.devices)
    for note in result.notes:
        screen.line(f"note: {note}")
    screen.line("next:")
    screen.command(f"tvmx export {result.run} --out BUNDLE")


def _candidates(screen: Screen, result: ExploreResult) -> None:
    first = list(dict.fromkeys((result.baseline, result.best, result.best_memory)))
    rest = [index for index in range(len(result.candidates)) if index not in first]
    shown = [*first, *rest[:OTHERS]]
    rows = [_row(index, result) for index in shown]
    columns = (
        "index", "candidate", "latency", "spread", "time / baseline", _accuracy_title(result),
        "drop", "weights", "arena", "scratch", "layers",
    )  # fmt: skip
    screen.table(
        columns,
        rows,
        title=f"{result.model} on {result.target}",
        right=tuple(name for name in columns if name not in ("candidate", "layers")),
    )
    if len(rest) > OTHERS:
        screen.line(f"{len(rest) - OTHERS} more candidates: --json lists all")


def _row(index: int, result: ExploreResult) -> tuple[object, ...]:
    found: CandidateSummary = result.candidates[index]
    return (
        index,
        _role(index, result),
        duration(found.latency_us),
        f"± {duration(found.spread_us)}",
        f"{found.ratio:.3f}",
        "-" if found.accuracy is None else f"{found.accuracy:.2f} %",
        "-" if found.accuracy_drop is None else f"{found.accuracy_drop:+.2f}",
        size(found.weights_bytes),
        size(found.arena_bytes),
        size(found.scratch_bytes),
        ", ".join(f"{count} {kind}" for kind, count in found.layers.items()),
    )


def _role(index: int, result: ExploreResult) -> str:
    best = f"best {result.objective}"
    roles = [
        name
        for name, at in (
            ("baseline", result.baseline),
            (best, result.best),
            ("best memory", result.best_memory),
        )
        if at == index
    ]
    text = " and ".join(roles) or result.candidates[index].name
    return text if result.candidates[index].meets else f"{text} (past the limits)"


def _checked(result: ExploreResult) -> str:
    names = dict.fromkeys(c.checked_against for c in result.candidates if c.checked_against)
    return "against " + "; int8 and sparse ones against ".join(names or [result.reference])


def _hardware(counts: Mapping[str, int]) -> str | None:
    """What the device timed in this start of the run; None for results of older versions."""
    if not counts:
        return None
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f"{sum(counts.values())} now ({told})"


def _phases(phases: Mapping[str, float]) -> str | None:
    """The stages that took a second or more, in order."""
    return ", ".join(f"{name} {clock(s)}" for name, s in phases.items() if s >= 1) or None


def _front(result: ExploreResult) -> str | None:
    if not result.front:
        return None
    names = ", ".join(f"{i} {result.candidates[i].name}" for i in result.front)
    what = ", ".join(result.reference_point)
    return f"{names}; hypervolume {result.hypervolume:.3f} ({what}; see docs/search.md)"


def _accuracy_title(result: ExploreResult) -> str:
    kinds = [c.accuracy_kind for c in result.candidates if c.accuracy_kind]
    return kinds[0] if kinds else "accuracy"


def _layers(screen: Screen, layers: list[LayerSummary]) -> None:
    columns = ["layer", "workload", "baseline", "baseline time", "best", "best time"]
    # The memory winner's column only where it is another plan than the best one's.
    memory = any((row.memory, row.memory_us) != (row.best, row.best_us) for row in layers)
    if memory:
        columns += ["best memory", "its time"]
    screen.table(
        columns,
        (_layer(row, memory) for row in layers),
        title="Layers (time of the kernel alone)",
        right=("baseline time", "best time", "its time"),
    )


def _layer(row: LayerSummary, memory: bool) -> tuple[object, ...]:
    def told(name: str, us: float | None) -> str:
        return "same" if (name, us) == (row.baseline, row.baseline_us) else name

    cells: list[object] = [
        row.layer, row.workload, row.baseline, duration(row.baseline_us),
        told(row.best, row.best_us), duration(row.best_us),
    ]  # fmt: skip
    if memory:
        cells += [told(row.memory, row.memory_us), duration(row.memory_us)]
    return tuple(cells)


def _threads(result: ExploreResult) -> str:
    cores = "" if result.cores == "big" else f" on {result.cores} cores"
    return f"{result.threads} thread{'s' if result.threads != 1 else ''}{cores}"


def _devices(screen: Screen, devices: Sequence[DeviceSummary]) -> None:
    """Who measured the kernels, where several devices did."""
    screen.table(
        ("device", "what it is", "kernels", "float peak", "memory", "drift", "flag"),
        (
            (
                device.server,
                device.identity,
                device.measured,
                "-" if device.fma_gflops is None else f"{device.fma_gflops:.1f} GFLOP/s",
                "-" if device.stream_gbs is None else f"{device.stream_gbs:.1f} GB/s",
                "-" if device.drift is None else f"{device.drift:.1%}",
                device.deviation or "",
            )
            for device in devices
        ),
        right=("kernels", "float peak", "memory", "drift"),
    )


def render_dry_run(screen: Screen, plan: DryRun) -> None:
    """Distinct workloads, their templates and how many configs each has."""
    screen.table(
        ("workload", "layers", "templates (configs)", "configs"),
        (
            (
                work.workload,
                len(work.layers),
                ", ".join(f"{name} ({size})" for name, size in work.templates.items())
                or "none: default schedule",
                sum(work.templates.values()),
            )
            for work in plan.workloads
        ),
        title=f"{plan.model} on {plan.target}: nothing was measured",
        right=("layers", "configs"),
    )
    screen.fields(
        {
            "layers covered by templates": f"{plan.covered}/{plan.layers}",
            "conversions to cost, at most": plan.conversions,
        }
    )
    for note in plan.notes:
        screen.line(f"note: {note}")
