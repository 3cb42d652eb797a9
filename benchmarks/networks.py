"""Whole networks: untuned TVM, tvmx (defaults, int8, explored), and its peers.

The peers are ONNX Runtime in float and int8, and OpenVINO, ncnn and MNN in float.

::

    python benchmarks/networks.py --out bench
    python benchmarks/networks.py --out bench --networks resnet50 --budget 10m --threads 2
    python benchmarks/networks.py --out bench --profile resnet50 --precision int8

The networks are the onnx package's light models and two MobileNets, all with random weights and
without softmax. See ``docs/benchmarks.md``.
"""

from __future__ import annotations

import enum
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._build import build_defaults, explore_network
from benchmarks._candidates import ONE_THREAD, started_with
from benchmarks._folder import MOBILENETS, Folder
from benchmarks._models import known_networks, prepare_model
from benchmarks._peers import convert_models, install_peers
from benchmarks._quantised import build_quantised
from benchmarks._results import NetworkResult
from benchmarks._stages import (
    EXPLORED,
    alone,
    build_ort_int8,
    measure_main,
    measure_memory,
    measure_untuned,
    say,
)
from tvmx.errors import TvmxError, UsageError

NETWORKS = ("bvlc_alexnet", "inception_v1", "resnet50", "squeezenet", "vgg19", *MOBILENETS)


class Precision(enum.StrEnum):
    """Which plan of template defaults."""

    F32 = "f32"
    INT8 = "int8"


def main(
    out: Annotated[Path, typer.Option(help="Folder of models, runs and figures.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(NETWORKS),
    budget: Annotated[str, typer.Option(help="Exploration per network, such as 3m.")] = "3m",
    rounds: Annotated[int, typer.Option(min=1, help="Paired rounds.")] = 15,
    threads: Annotated[
        int, typer.Option(min=1, help="Measure what was built on so many threads too.")
    ] = 1,
    untuned_rounds: Annotated[int, typer.Option(min=1, help="Rounds with untuned TVM.")] = 2,
    skip_untuned: Annotated[bool, typer.Option("--skip-untuned", help="It takes long.")] = False,
    skip_explored: Annotated[bool, typer.Option("--skip-explored", help="Defaults only.")] = False,
    skip_peers: Annotated[
        bool, typer.Option("--skip-peers", help="Leave out OpenVINO, ncnn and MNN.")
    ] = False,
    verify_mixed: Annotated[
        bool, typer.Option(help="Build and check a plan that mixes float, int8 and sparse.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier figures.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure again what was built.")] = False,
    profile: Annotated[
        str, typer.Option(metavar="NETWORK", help="Print where one network's time goes.")
    ] = "",
    precision: Annotated[
        Precision, typer.Option(help="What --profile looks at: the defaults, or the int8 plan.")
    ] = Precision.F32,
) -> None:
    """Measure every network that has no figures in OUT yet, then print the table."""
    os.environ.update(ONE_THREAD)
    try:
        if profile:
            _profile(Folder(out.resolve() / _known(profile)), precision)
            return
        seconds = _seconds(budget)
        wheels = None if skip_peers else out.resolve() / "peers"
        if wheels is not None:
            say("OpenVINO, ncnn and MNN by pip, unless they are there")
            install_peers(wheels)
        results = [
            _network(
                Folder(out.resolve() / _known(name)), None if skip_explored else seconds, rounds,
                0 if skip_untuned else untuned_rounds, verify_mixed=verify_mixed, fresh=fresh,
                again=again, wheels=wheels, threads=threads,
            )
            for name in networks.split(",")
        ]  # fmt: skip
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    _print(results, out)


def _known(name: str) -> str:
    if name not in known_networks():
        raise UsageError(f"no network {name!r}; there are {', '.join(known_networks())}")
    return name


def _seconds(text: str) -> float:
    from tvmx.cli._parse import parse_duration

    return parse_duration(text, "--budget")


def _network(
    folder: Folder, budget_s: float | None, rounds: int, untuned_rounds: int, *,
    verify_mixed: bool, fresh: bool, again: bool, wheels: Path | None, threads: int,
) -> NetworkResult:  # fmt: skip
    """Measure what is missing; every finished section is on disk before the next begins."""
    from tvmx.store import make_folder

    if fresh:
        _forget(folder)
    make_folder(folder.path)
    result = NetworkResult.load(folder.result) or _empty(folder)
    if again:
        forgotten = ["main", "memory", *(["untuned"] if untuned_rounds else [])]
        result = result.model_copy(update={**dict.fromkeys(forgotten), "threaded": {}})
    want_main = result.main is None or (budget_s is not None and result.explored is None)
    want_untuned = bool(untuned_rounds) and result.untuned is None
    want_mixed = verify_mixed and result.mixed is None
    want_memory = want_main or result.memory is None
    want_threads = threads > 1 and (want_main or threads not in result.threaded)
    if not (want_main or want_untuned or want_mixed or want_memory or want_threads):
        say(f"{folder.network}: already measured")
        return result

    def add(**sections: object) -> None:
        nonlocal result
        result = result.model_copy(update=sections)
        result.save(folder.result)

    say(f"{folder.network}: defaults")
    alone(prepare_model, folder)
    add(**alone(build_defaults, folder))
    if want_main or want_mixed:
        say(f"{folder.network}: int8" + (" and a mixed plan" if want_mixed else ""))
        quantised, mixed = alone(build_quantised, folder, want_mixed)
        nodes = alone(build_ort_int8, folder)
        add(quantised=quantised.model_copy(update={"ort_nodes": nodes}),
            mixed=mixed or result.mixed)  # fmt: skip
    if want_untuned:
        say(f"{folder.network}: untuned TVM, {untuned_rounds} rounds")
        add(untuned=alone(measure_untuned, folder, untuned_rounds))
    if want_main:
        if budget_s is not None:
            say(f"{folder.network}: explore, {budget_s:.0f} s")
            add(explored=alone(explore_network, folder, budget_s, False, say))
        if wheels is not None:
            alone(convert_models, folder, wheels)
        say(f"{folder.network}: {rounds} paired rounds")
        add(main=alone(measure_main, folder, rounds, budget_s is not None, wheels))
    if want_memory:
        say(f"{folder.network}: memory")
        failed = result.main.failed if result.main else {}
        explored = folder.library(EXPLORED).is_file()
        add(memory=measure_memory(folder, explored, wheels, failed))
    if want_threads:
        say(f"{folder.network}: {rounds} paired rounds on {threads} threads")
        explored = folder.library(EXPLORED).is_file()
        with started_with(threads):
            found = alone(measure_main, folder, rounds, explored, wheels)
        add(threaded={**result.threaded, threads: found})
    return result


def _forget(folder: Folder) -> None:
    """Remove everything but what is not the benchmark's."""
    files = (
        folder.result, folder.onnx, folder.model, folder.onnx_int8, folder.mnn,
        *(folder.ncnn.with_name(folder.ncnn.name + end) for end in (".bin", ".param")),
    )  # fmt: skip
    plans = ("defaults", "explored", "int8", "mixed")
    for path in (*files, *map(folder.library, plans), *map(folder.plan, plans)):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.run, ignore_errors=True)


def _empty(folder: Folder) -> NetworkResult:
    from importlib.metadata import version

    import tvmx
    from tvmx.targets import load_target

    host = load_target("host")
    packages = ("apache-tvm", "onnxruntime", "onnx", "numpy", "torch")
    return NetworkResult(
        network=folder.network,
        machine=f"{host.description or host.cpu}, {host.cores} cores",
        versions={"tvmx": tvmx.__version__} | {p: version(p) for p in packages},
    )


def _print(results: list[NetworkResult], out: Path) -> None:
    from benchmarks._tables import print_networks

    print_networks(results)
    say(f"figures: {out}/<network>/result.json")


def _profile(folder: Folder, precision: Precision) -> None:
    from benchmarks._profile import profile_network
    from benchmarks._tables import print_profile
    from tvmx.store import make_folder

    make_folder(folder.path)
    alone(prepare_model, folder)
    alone(build_defaults, folder)
    if precision is Precision.INT8:
        alone(build_quantised, folder, False)
    plan = "int8" if precision is Precision.INT8 else "defaults"
    print_profile(alone(profile_network, folder, plan))


if __name__ == "__main__":
    typer.run(main)
