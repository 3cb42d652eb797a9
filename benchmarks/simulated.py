"""Whole networks on simulated Cortex-A cores: tvmx, ONNX Runtime, ncnn, MNN, im2col+OpenBLAS.

::

    python benchmarks/simulated.py --out bench-simulated
    python benchmarks/simulated.py --out bench-simulated --networks squeezenet --targets rpi4
    python benchmarks/simulated.py --out bench-simulated --only "ncnn,tvmx int8" --again

Every runner is given the same ONNX file, in its own format where it needs one, runs in the same
emulator and has its outputs checked. Needs ``tvmx simulate --prepare``; the frameworks' wheels are
downloaded by pip. A cell that is in the file with figures of the same model is not run again. See
``docs/simulated-boards.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._candidates import ONE_THREAD
from benchmarks._models import known_networks
from benchmarks._sim_cells import Cells
from benchmarks._sim_models import (
    FULL_SIZE,
    SimFolder,
    build_libraries,
    write_layers,
    write_model,
)
from benchmarks._sim_peers import convert_mnn, convert_ncnn, guest_wheels, install_converters
from benchmarks._sim_runs import RUNNERS, Place, Runner, model_of, run_cell
from benchmarks._stages import alone, build_ort_int8, say
from tvmx.errors import MeasureError, TvmxError, UsageError
from tvmx.simulate import Guest, find_guest
from tvmx.simulate._core import simulated_core
from tvmx.simulate._emulator import Emulator
from tvmx.simulate._guest import PREPARE
from tvmx.targets import Target, load_target

NETWORKS = ("squeezenet", "mobilenet_v1", "resnet50")
TARGETS = ("rpi3b+", "rpi4", "rpi5")
_NAMES = [runner.name for runner in RUNNERS]


def main(
    out: Annotated[Path, typer.Option(help="Folder of models, libraries and figures.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(NETWORKS),
    targets: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(TARGETS),
    only: Annotated[str, typer.Option(help="Comma-separated runners.")] = ",".join(_NAMES),
    size: Annotated[int, typer.Option(help="Height and width of the image.")] = FULL_SIZE,
    again: Annotated[
        bool,
        typer.Option("--again", help="Build tvmx's libraries anew, run cells that have figures."),
    ] = False,
) -> None:
    """Run every cell that has no figures in OUT yet, then print a table per core."""
    os.environ.update(ONE_THREAD)
    try:
        wanted = _chosen(only, _NAMES)
        runners = [runner for runner in RUNNERS if runner.name in wanted]
        chosen = _chosen(networks, known_networks())
        failed = _run(out.resolve(), chosen, targets.split(","), runners, size, again=again)
    except TvmxError as err:
        say(_told(err))
        sys.exit(err.exit_code)
    sys.exit(1 if failed else 0)


def _chosen(text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no {name!r}; there are {', '.join(known)}")
    return names


def _run(
    out: Path, networks: Sequence[str], targets: Sequence[str], runners: Sequence[Runner],
    size: int, *, again: bool,
) -> int:  # fmt: skip
    """How many cells failed; all others are in the file when this returns."""
    from benchmarks._sim_tables import print_cells

    loaded = {target: model_of(_emulator(target)) for target in map(load_target, targets)}
    guest = find_guest()
    if guest is None:
        raise UsageError("the arm64 guest is not prepared", hint=PREPARE)
    out.mkdir(parents=True, exist_ok=True)
    cells, failed = Cells(out / "simulated.json"), 0
    for network in networks:
        folder = SimFolder(out / str(size) / network)
        missing = {
            target.name: [
                runner
                for runner in runners
                if runner.runs_on(target)
                and (again or not cells.has(network, size, target.name, runner.name, model))
            ]
            for target, model in loaded.items()
        }
        if any(missing.values()):
            say(f"{network}: models and libraries")
            if again:
                _forget_libraries(folder, missing)
            _prepare(folder, size, missing, out / "converters")
        for target in loaded:
            if missing[target.name]:
                failed += _fill(cells, folder, size, missing[target.name], target, guest)
    for target, model in loaded.items():
        title = f"{target.name}: {simulated_core(target).qemu_cpu}, {size}x{size}"
        print_cells(title, cells.of(target.name, size, networks, model), networks)
    say(f"figures: {out / 'simulated.json'}")
    return failed


def _forget_libraries(folder: SimFolder, missing: Mapping[str, Sequence[Runner]]) -> None:
    """Those of tvmx, which may have changed."""
    for target, chosen in missing.items():
        for runner in chosen:
            if runner.plan and runner.expected is not None:
                folder.for_target(target).library(runner.expected).unlink(missing_ok=True)


def _prepare(
    folder: SimFolder, size: int, missing: Mapping[str, Sequence[Runner]], converters: Path
) -> None:
    """Make the files that the runners of ``missing`` (by target) need."""
    runners = {runner for chosen in missing.values() for runner in chosen}
    loaders = {runner.loader for runner in runners}
    alone(write_model, folder, size)
    if "im2col" in loaders:
        alone(write_layers, folder)
    if loaders & {"ncnn", "mnn"}:
        install_converters(converters)
    if "ncnn" in loaders:
        convert_ncnn(folder, converters)
    if "mnn" in loaders:
        convert_mnn(folder, converters)
    if any(runner.int8 and not runner.plan for runner in runners):
        alone(build_ort_int8, folder)
    for precision in [r.expected for r in RUNNERS if r.plan and r.expected and r in runners]:
        wanted = [
            t for t, chosen in missing.items() if any(r.expected == precision for r in chosen)
        ]
        alone(build_libraries, folder, wanted, [precision])


def _emulator(target: Target) -> Emulator:
    """On the host's clock: the guest's script starts the simulated one."""
    return Emulator(simulated_core(target), simulated=False)


def _fill(
    cells: Cells, folder: SimFolder, size: int, runners: Sequence[Runner], target: Target,
    guest: Guest,
) -> int:  # fmt: skip
    """Run the cells of one network on one core; how many failed."""
    failed = 0
    wheels = guest_wheels(guest, lambda text: None)
    with _emulator(target) as emulator:
        place = Place(guest, wheels, target, emulator)
        for runner in runners:
            name = f"{folder.network} on {target.name}, {runner.name}"
            try:
                cell = run_cell(folder, size, runner, place)
            except MeasureError as err:  # the next cell may be fine
                say(f"{name}: {_told(err)}")
                failed += 1
                continue
            cells.add(cell)
            counts = cell.counts
            say(f"{name}: {counts.core_mcycles:.1f} Mcycles, {counts.mcycles:.1f} with memory")
    return failed


def _told(err: TvmxError) -> str:
    return f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else "")


if __name__ == "__main__":
    typer.run(main)
