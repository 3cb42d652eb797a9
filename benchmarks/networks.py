"""Whole networks, 1 thread: untuned TVM, tvmx defaults, tvmx explored, ONNX Runtime.

::

    python benchmarks/networks.py --out bench
    python benchmarks/networks.py --out bench --networks resnet50 --budget 10m
    python benchmarks/networks.py --out bench --profile inception_v1

The networks are the onnx package's light models with random weights, softmax dropped. See
``docs/benchmarks.md``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._build import Folder, build_defaults, explore_network, prepare_model
from benchmarks._candidates import ONE_THREAD
from benchmarks._results import NetworkResult
from benchmarks._stages import alone, measure_main, measure_untuned, say
from tvmx.errors import TvmxError, UsageError

NETWORKS = ("bvlc_alexnet", "inception_v1", "resnet50", "squeezenet", "vgg19")


def main(
    out: Annotated[Path, typer.Option(help="Folder of models, runs and figures.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(NETWORKS),
    budget: Annotated[str, typer.Option(help="Exploration per network, such as 3m.")] = "3m",
    rounds: Annotated[int, typer.Option(min=1, help="Paired rounds.")] = 15,
    untuned_rounds: Annotated[int, typer.Option(min=1, help="Rounds with untuned TVM.")] = 2,
    skip_untuned: Annotated[bool, typer.Option("--skip-untuned", help="It takes long.")] = False,
    skip_explored: Annotated[bool, typer.Option("--skip-explored", help="Defaults only.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier figures.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure again what was built.")] = False,
    profile: Annotated[
        str, typer.Option(metavar="NETWORK", help="Print where one network's time goes.")
    ] = "",
) -> None:
    """Measure every network that has no figures in OUT yet, then print the table."""
    os.environ.update(ONE_THREAD)
    try:
        if profile:
            _profile(Folder(out.resolve() / _known(profile)))
            return
        seconds = _seconds(budget)
        results = [
            _network(
                Folder(out.resolve() / _known(name)), None if skip_explored else seconds, rounds,
                0 if skip_untuned else untuned_rounds, fresh=fresh, again=again,
            )
            for name in networks.split(",")
        ]  # fmt: skip
    except TvmxError as err:
        say(f"error: {err.message}" + (f"\n  hint: {err.hint}" if err.hint else ""))
        sys.exit(err.exit_code)
    _print(results, out)


def _known(name: str) -> str:
    from tvmx.testing.models import LIGHT_MODELS

    if name not in LIGHT_MODELS:
        raise UsageError(f"no light model {name!r}; there are {', '.join(LIGHT_MODELS)}")
    return name


def _seconds(text: str) -> float:
    from tvmx.cli._parse import parse_duration

    return parse_duration(text, "--budget")


def _network(
    folder: Folder, budget_s: float | None, rounds: int, untuned_rounds: int, *, fresh: bool,
    again: bool,
) -> NetworkResult:  # fmt: skip
    """Measure what is missing; every finished section is on disk before the next begins."""
    from tvmx.store import make_folder

    if fresh and folder.path.is_dir():
        for path in (folder.result, folder.defaults, folder.explored):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder.run, ignore_errors=True)
    make_folder(folder.path)
    result = NetworkResult.load(folder.result) or _empty(folder)
    if again:
        result = result.model_copy(
            update={"main": None} | ({"untuned": None} if untuned_rounds else {})
        )
    want_main = result.main is None or (budget_s is not None and result.explored is None)
    want_untuned = untuned_rounds and result.untuned is None
    if not (want_main or want_untuned):
        say(f"{folder.network}: already measured")
        return result
    say(f"{folder.network}: defaults")
    alone(prepare_model, folder)
    hit, layers = alone(build_defaults, folder)
    result = result.model_copy(update={"layers": layers, "layers_hit": hit})
    if want_untuned:
        say(f"{folder.network}: untuned TVM, {untuned_rounds} rounds")
        untuned = alone(measure_untuned, folder, untuned_rounds)
        result = result.model_copy(update={"untuned": untuned})
        result.save(folder.result)
    if want_main:
        if budget_s is not None:
            say(f"{folder.network}: explore, {budget_s:.0f} s")
            explored = alone(explore_network, folder, budget_s, False, say)
            result = result.model_copy(update={"explored": explored})
        say(f"{folder.network}: {rounds} paired rounds")
        main_rounds = alone(measure_main, folder, rounds, budget_s is not None)
        result = result.model_copy(update={"main": main_rounds})
    result.save(folder.result)
    return result


def _empty(folder: Folder) -> NetworkResult:
    from importlib.metadata import version

    import tvmx
    from tvmx.targets import load_target

    host = load_target("host")
    packages = ("apache-tvm", "onnxruntime", "onnx", "numpy")
    return NetworkResult(
        network=folder.network,
        machine=f"{host.description or host.cpu}, {host.cores} cores",
        versions={"tvmx": tvmx.__version__} | {p: version(p) for p in packages},
    )


def _print(results: list[NetworkResult], out: Path) -> None:
    from benchmarks._tables import print_networks

    print_networks(results)
    say(f"figures: {out}/<network>/result.json")


def _profile(folder: Folder) -> None:
    from benchmarks._profile import profile_network
    from benchmarks._tables import print_profile
    from tvmx.store import make_folder

    make_folder(folder.path)
    alone(prepare_model, folder)
    alone(build_defaults, folder)
    print_profile(alone(profile_network, folder))


if __name__ == "__main__":
    typer.run(main)
