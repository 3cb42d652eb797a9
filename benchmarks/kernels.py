"""Single layers: every float template at its default config, ONNX Runtime and PyTorch.

::

    python benchmarks/kernels.py --out bench
    python benchmarks/kernels.py --out bench --layers "3x3 @56,dense" --threads 2
    python benchmarks/kernels.py --out bench --simulated rpi4

On this machine, in paired rounds, with the share of the measured peak; or, with ``--simulated``,
in cycles of a simulated core (tvmx only). A layer that has figures is not measured again. See
``docs/benchmarks.md``.
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
from benchmarks._kernel_layers import Workload, chosen_layers
from benchmarks._kernel_results import KernelFigures, LayerFigures
from benchmarks._kernel_runs import measure_layer, templates_of
from benchmarks._stages import alone, say
from tvmx.errors import TvmxError
from tvmx.targets import Target, load_target


def main(
    out: Annotated[Path, typer.Option(help="Folder of figures.")],
    layers: Annotated[str, typer.Option(help="Comma-separated parts of names; default: all.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Paired rounds.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Of every candidate.")] = 1,
    skip_torch: Annotated[bool, typer.Option("--skip-torch", help="Leave out PyTorch.")] = False,
    simulated: Annotated[
        str, typer.Option(metavar="TARGET", help="Cycles of this simulated core instead.")
    ] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier figures.")] = False,
) -> None:
    """Measure every layer that has no figures in OUT yet, then print the table."""
    os.environ.update(dict.fromkeys(ONE_THREAD, str(threads)))
    try:
        chosen = chosen_layers(layers)
        if simulated:
            found, path = _simulate(out.resolve(), chosen, load_target(simulated), fresh)
        else:
            found, path = _measure(
                out.resolve(), chosen, rounds, threads, fresh, with_torch=not skip_torch
            )
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    from benchmarks._kernel_tables import print_kernels

    print_kernels(found, list(chosen))
    say(f"figures: {path}")


def _measure(
    out: Path, layers: dict[str, Workload], rounds: int, threads: int, fresh: bool, *,
    with_torch: bool,
) -> tuple[KernelFigures, Path]:  # fmt: skip
    host = load_target("host")
    machine = f"{host.description or host.cpu}, {host.cores} cores"
    path = out / f"kernels-{threads}.json"
    found = _earlier(KernelFigures(
        target="host", machine=machine, threads=threads,
        versions=_versions("apache-tvm", "onnxruntime", "torch", "numpy"),
    ), path, fresh)  # fmt: skip
    for name, workload in layers.items():
        templates = templates_of(workload, host)
        if found.find(name, workload.canonical(), templates) is None:
            say(f"{name}: {', '.join(templates)}")
            figures = alone(measure_layer, name, workload, rounds, threads, with_torch)
            found = found.having(figures)
            found.save(path)
    return found, path


def _simulate(
    out: Path, layers: dict[str, Workload], target: Target, fresh: bool
) -> tuple[KernelFigures, Path]:
    from benchmarks._kernel_simulated import simulate_layers
    from benchmarks._sim_runs import model_of
    from tvmx.simulate._core import simulated_core
    from tvmx.simulate._emulator import Emulator

    path = out / f"kernels-{target.name}.json"
    model = model_of(Emulator(simulated_core(target), simulated=False))
    found = _earlier(KernelFigures(
        target=target.name, machine=model, threads=1, versions=_versions("apache-tvm")
    ), path, fresh)  # fmt: skip
    missing = {}
    for name, workload in layers.items():
        templates = templates_of(workload, target)
        if found.find(name, workload.canonical(), templates) is None:
            missing[name] = (workload, templates)

    def keep(figures: LayerFigures) -> None:
        nonlocal found
        say(f"{figures.layer}: {figures.simulated[0].cycles / 1e6:.2f} Mcycles")
        found = found.having(figures)
        found.save(path)

    if missing:
        simulate_layers(missing, target, keep)
    return found, path


def _earlier(empty: KernelFigures, path: Path, fresh: bool) -> KernelFigures:
    from tvmx.store import make_folder

    make_folder(path.parent)
    return empty if fresh else empty.resumed(path)


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    import tvmx

    return {"tvmx": tvmx.__version__} | {p: version(p) for p in packages}


if __name__ == "__main__":
    typer.run(main)
