"""What can be checked without TVM is checked first: mistakes are answered at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.cli._check import check_file
from tvmx.errors import UsageError

if TYPE_CHECKING:
    from tvmx.ir import TensorSpec
    from tvmx.targets import Target


def check_target(name: str) -> Target:
    """A known target that something here can link for. Raises UsageError or LinkerError."""
    from tvmx.build import find_linker
    from tvmx.targets import load_target

    target = load_target(name)
    find_linker(target)
    return target


def check_model(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """The inputs of a network file that can be imported, as far as a look can tell.

    Raises ModelError for damage, unsupported operators (all at once) and dynamic shapes.
    """
    check_file(path, "model", hint="give the path of an .onnx file")
    from tvmx.frontends import check_model as look_at

    return look_at(path, shapes)


def check_data(path: Path, inputs: tuple[TensorSpec, ...], seed: int) -> None:
    """Evaluation data that fits the network: a NaN found after minutes of tuning is an insult."""
    check_file(path, "data file", hint="--data takes an .npz file")
    from tvmx.accuracy import load_data

    load_data(path, inputs, seed)


def check_measurable(target: Target) -> None:
    """A target that this machine can stand in for when no device is named."""
    from tvmx.build import host_arch

    if target.arch != host_arch():
        raise UsageError(
            f"target {target.name!r} is {target.arch}, this machine is {host_arch()}: "
            "measuring needs a device",
            hint="give --tracker HOST:PORT --key K; `tvmx serve --key K --commands` prints what "
            "the board needs, and `tvmx build` compiles without measuring",
        )
