"""Block-sparse kernels against the best dense ones: latency, work, and where they cross.

::

    python benchmarks/sparse.py --out bench
    python benchmarks/sparse.py --out bench --simulated rpi4
    python benchmarks/sparse.py --out bench --simulated rpi3b+ --layers "mobilenet 512" --levels 70

1x1 layers of ResNet-50 and MobileNetV1 and dense layers of VGG19, every template's default config
at every level of sparsity, float and int8: on this machine in paired rounds, or, with
``--simulated``, by the clock of a simulated core. What has figures is not measured again. See
``docs/sparse.md``.
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
from benchmarks._kernel_layers import Workload
from benchmarks._sparse_layers import LEVELS, Way, wanted_layers, ways
from benchmarks._sparse_results import LayerFigures, SparseFigures, only
from benchmarks._stages import alone, say
from tvmx.errors import TvmxError, UsageError
from tvmx.targets import Target, load_target


def main(
    out: Annotated[Path, typer.Option(help="Folder of figures.")],
    layers: Annotated[str, typer.Option(help="Comma-separated parts of names.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All layers, not one of a stage.")] = False,
    levels: Annotated[
        str, typer.Option(help="Percent of the blocks that are dropped, comma-separated.")
    ] = ",".join(map(str, LEVELS)),
    rounds: Annotated[int, typer.Option(min=1, help="Paired rounds.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Of every kernel.")] = 1,
    simulated: Annotated[
        str, typer.Option(metavar="TARGET", help="On this simulated core instead.")
    ] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier figures.")] = False,
) -> None:
    """Measure what has no figures in OUT yet, then print the tables."""
    os.environ.update(dict.fromkeys(ONE_THREAD, str(threads)))
    try:
        chosen, percents = wanted_layers(layers, every=every), _percents(levels)
        if simulated:
            target = load_target(simulated)
            found, path = _simulate(out.resolve(), chosen, percents, target, fresh)
        else:
            found, path = _measure(out.resolve(), chosen, percents, rounds, threads, fresh)
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    from benchmarks._sparse_tables import print_sparse

    print_sparse(found, list(chosen))
    say(f"figures: {path}")


def _percents(text: str) -> list[int]:
    """Raises UsageError for what is no level from 1 to 99."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 0 < int(part) < 100 for part in parts):
        raise UsageError(f"--levels {text!r} is not like 50,70,90 (1 to 99)")
    return sorted({int(part) for part in parts})


def _measure(
    out: Path, layers: dict[str, Workload], levels: list[int], rounds: int, threads: int,
    fresh: bool,
) -> tuple[SparseFigures, Path]:  # fmt: skip
    from benchmarks._sparse_runs import measure_here

    host = load_target("host")
    machine = f"{host.description or host.cpu}, {host.cores} cores"
    path = out / f"sparse-{threads}.json"
    found = _earlier("host", machine, threads, ("apache-tvm", "numpy"), path, fresh)
    for name, workload in layers.items():
        # Ratios are of kernels that took turns: a layer is measured whole or not at all.
        wanted = [way.key for way in ways(workload, host, levels)]
        if {way.key for way in found.find(name, workload.canonical()).ways} < set(wanted):
            say(f"{name}: {len(wanted)} kernels")
            found = found.having(alone(measure_here, name, workload, levels, rounds, threads))
            found.save(path)
    return found, path


def _simulate(
    out: Path, layers: dict[str, Workload], levels: list[int], target: Target, fresh: bool
) -> tuple[SparseFigures, Path]:
    from benchmarks._sim_runs import model_of
    from benchmarks._sparse_runs import simulate_layer
    from tvmx.simulate import SimulatedBoard
    from tvmx.simulate._core import simulated_core
    from tvmx.simulate._emulator import Emulator

    path = out / f"sparse-{target.name}.json"
    model = model_of(Emulator(simulated_core(target), simulated=False))
    found = _earlier(target.name, model, 1, ("apache-tvm",), path, fresh)

    def keep(layer: LayerFigures) -> None:
        nonlocal found
        latest = layer.ways[-1]
        say(f"{layer.layer}: {latest.template} {latest.level} %: {latest.us:.0f} us")
        found = found.having(layer)
        found.save(path)

    with SimulatedBoard(target) as board, board.runner(arch=target.arch) as runner:
        for name, workload in layers.items():
            every = list(ways(workload, target, levels))
            known = found.find(name, workload.canonical())
            now = only(known, [w.key for w in _all_levels(workload, target, levels, known)])
            simulate_layer(now, every, target, runner, keep)
    return found, path


def _all_levels(
    workload: Workload, target: Target, levels: list[int], known: LayerFigures
) -> list[Way]:
    """The ways at these levels and at those measured before."""
    return list(ways(workload, target, sorted({*levels, *known.levels()})))


def _earlier(
    target: str, machine: str, threads: int, packages: tuple[str, ...], path: Path, fresh: bool
) -> SparseFigures:
    from importlib.metadata import version

    import tvmx
    from tvmx.store import make_folder

    make_folder(path.parent)
    versions = {"tvmx": tvmx.__version__} | {p: version(p) for p in packages}
    empty = SparseFigures(target=target, machine=machine, threads=threads, versions=versions)
    return empty if fresh else empty.resumed(path)


if __name__ == "__main__":
    typer.run(main)
