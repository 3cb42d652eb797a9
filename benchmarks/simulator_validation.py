"""Real cycles of this machine against those of the simulator's model of it.

::

    python benchmarks/simulator_validation.py --out bench/validation

Kernels run natively, and under qemu-x86_64 with the plugin and llvm-mca's table of this machine's
core, exactly as on a simulated board. See ``docs/simulated-boards.md``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._stages import say
from benchmarks._validation_kernels import COMPUTE, ValidationKernel, build_kernels, compile_driver
from benchmarks._validation_runs import (
    FIGURES,
    SHOWN,
    KernelResult,
    Runner,
    Validation,
    agreement,
    host_core,
    measure_round,
    simulate_all,
)
from benchmarks._validation_tables import print_validation
from tvmx.errors import TvmxError
from tvmx.simulate._emulator import Emulator
from tvmx.store import make_folder

RESULT = "simulator_validation.json"
WANTED = 0.9
"""Spearman's coefficient on matrix products and convolutions, of whatever a clock may show."""


def main(
    out: Annotated[Path, typer.Option(help="Folder of libraries and figures.")],
    rounds: Annotated[int, typer.Option(min=1, help="Native rounds.")] = 15,
    cpu: Annotated[int | None, typer.Option(help="Processor to run on; default: the last.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier figures.")] = False,
) -> None:
    """Measure what is missing in OUT, then print the tables.

    Exit code 1 when the model orders matrix products and convolutions worse than it should.
    """
    folder = out.resolve()
    try:
        found = _measure(
            folder, rounds, max(os.sched_getaffinity(0)) if cpu is None else cpu, fresh
        )
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    compute = [kernel for kernel in found.kernels if kernel.kind in COMPUTE]
    groups = {
        ", ".join(COMPUTE): [agreement(compute, figure) for figure in FIGURES],
        "all": [agreement(found.kernels, figure) for figure in FIGURES],
    }
    print_validation(found, groups)
    say(f"figures: {folder / RESULT}")
    for one in groups[", ".join(COMPUTE)]:
        if one.figure in SHOWN and one.spearman < WANTED:
            say(f"error: Spearman of {one.figure} is {one.spearman:.3f}, under {WANTED}")
            sys.exit(1)


def _measure(folder: Path, rounds: int, cpu: int, fresh: bool) -> Validation:
    """Simulate and measure; everything finished is on disk before the next begins."""
    make_folder(folder)
    if fresh:
        (folder / RESULT).unlink(missing_ok=True)
    say("building kernels")
    kernels = build_kernels(folder)
    compile_driver(folder)
    runner = Runner(folder, cpu)
    emulator = Emulator(host_core(cpu), simulated=False)
    found = _empty(kernels, emulator).resumed(folder / RESULT)

    def keep(result: Validation) -> None:
        result.save(folder / RESULT)

    missing = sum(1 for kernel in found.kernels if kernel.model is None)
    if missing:
        say(f"simulating {missing} kernels")
        with emulator:
            found = simulate_all(found, kernels, runner, emulator, keep)
    while len(found.loads) < rounds:
        say(f"native round {len(found.loads) + 1} of {rounds}")
        found = measure_round(found, kernels, runner, os.getloadavg()[0])
        keep(found)
    return found


def _empty(kernels: list[ValidationKernel], emulator: Emulator) -> Validation:
    from tvmx.targets import load_target

    core = {k: v for k, v in asdict(emulator.core).items() if isinstance(v, str | int | float)}
    told = subprocess.run(["qemu-x86_64", "--version"], capture_output=True, text=True, check=True)
    return Validation(
        machine=load_target("host").description,
        qemu=told.stdout.splitlines()[0],
        model=emulator.costs.model.name,
        core=core,
        kernels=tuple(
            KernelResult(name=k.name, kind=k.kind, case=k.case, digest=k.digest) for k in kernels
        ),
    )


if __name__ == "__main__":
    typer.run(main)
