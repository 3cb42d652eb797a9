"""The same layers and templates on a simulated core."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks._kernel_layers import Workload
from benchmarks._kernel_results import LayerFigures, Simulated
from tvmx.errors import MeasureError
from tvmx.ir import physical_shape, to_physical
from tvmx.measure import KernelJob, Runner, SimulatedCounts, TimingPolicy
from tvmx.simulate import SimulatedBoard
from tvmx.targets import Target

_ONCE = TimingPolicy(
    repeats=1, min_repeats=1, warmup=0, number=1
)  # behind the call that is checked


def simulate_layers(
    layers: dict[str, tuple[Workload, dict[str, str]]], target: Target,
    keep: Callable[[LayerFigures], None],
) -> None:  # fmt: skip
    """Build, verify and count every template's default config; ``keep`` is told layer by layer.

    ``layers`` are workloads and what :func:`benchmarks._kernel_runs.templates_of` says of them.

    Raises:
        MeasureError: a kernel does not build, fails or computes nonsense.
    """
    with SimulatedBoard(target) as board, board.runner(arch=target.arch) as runner:
        for name, (workload, templates) in layers.items():
            keep(
                LayerFigures(
                    layer=name,
                    workload=workload.canonical(),
                    gflop=2 * workload.macs / 1e9,
                    templates=templates,
                    simulated=_simulate(workload, target, runner),
                )
            )


def _simulate(workload: Workload, target: Target, runner: Runner) -> tuple[Simulated, ...]:
    from tvmx.build import SYMBOL, BuildPool, KernelBuild
    from tvmx.templates import Registry, make_operands
    from tvmx.testing.templates import kernel_arrays

    entries = Registry.with_builtin().legal(workload, target)
    configs = [entry.template.space(workload, target).default for entry in entries]
    operands = make_operands(workload)
    found = []
    with tempfile.TemporaryDirectory() as folder, BuildPool(1) as pool:
        builds = [
            KernelBuild.of(workload, entry.name, entry.path, config, target, Path(folder))
            for entry, config in zip(entries, configs, strict=True)
        ]
        for index, built in pool.build(builds):
            entry, config = entries[index], configs[index]
            if built.library is None:
                raise MeasureError(f"{entry.name}, {workload.describe()}: {built.error}")
            kernel = entry.template.build(workload, config, target)
            arrays = kernel_arrays(entry.template, kernel, workload, target, operands)
            layout = entry.template.layouts(workload, target)[1]
            job = KernelJob(
                library=built.library, symbol=SYMBOL, inputs=tuple(arrays[:-1]),
                out_shape=physical_shape(workload.out_shape, layout),
                expected=to_physical(operands.expected, layout), layout=layout,
                channels=workload.out_shape[1], label=f"{entry.name}, {workload.describe()}",
            )  # fmt: skip
            (measured,) = runner.measure([job], _ONCE)
            if not measured.ok or measured.simulated is None:
                raise MeasureError(f"{job.name}: {measured.status}, {measured.message}")
            run = measured.simulated
            counts = {name: getattr(run, name) for name in SimulatedCounts.model_fields}
            found.append(
                Simulated(
                    template=entry.name,
                    config=repr(config),
                    counts=SimulatedCounts(**counts),
                    cycles=run.cycles,
                )
            )
    return tuple(sorted(found, key=lambda s: s.cycles))
