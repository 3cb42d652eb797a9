"""Other frameworks: their aarch64 wheels for the guest, and models in their own formats.

ncnn's are written by pnnx, MNN's by the converter of MNN's own wheel (its library alone: the
script around it reports to a server). Both run on this machine, from a folder of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from tvmx.build._link import link
from tvmx.errors import MeasureError
from tvmx.simulate import Guest, add_wheels
from tvmx.simulate._tools import pip, run, said
from tvmx.targets import Target

NCNN, MNN, PNNX = "1.0.20261020", "3.6.1", "20261020"
_CONVERTERS = (f"MNN=={MNN}", f"pnnx=={PNNX}")
_IM2COL = Path(__file__).with_name("_sim_im2col.c")
_CONVERT_MNN = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"


def guest_wheels(guest: Guest, say: Callable[[str], None]) -> Path:
    """The folder of the frameworks' packages for the guest; ONNX Runtime's as on this machine."""
    wheels = [f"onnxruntime=={version('onnxruntime')}", f"ncnn=={NCNN}", f"MNN=={MNN}"]
    return add_wheels(guest, wheels, say)


class PeerFolder(Protocol):
    """One network's files, as far as other frameworks need them."""

    @property
    def onnx(self) -> Path:
        """What is converted."""

    @property
    def ncnn(self) -> Path:
        """Of ncnn's two files, without their suffixes."""

    @property
    def mnn(self) -> Path:
        """MNN's file."""

    def load_golden(self) -> tuple[Mapping[str, Any], Any]:
        """Inputs by name, and outputs."""


def install_converters(folder: Path) -> None:
    """The converters, by pip, in ``folder``. Raises MeasureError when pip fails."""
    install_wheels(folder, _CONVERTERS)


def install_wheels(folder: Path, wheels: Sequence[str]) -> None:
    """Wheels by pip in ``folder``, unless it is there; nothing else of this Python changes.

    Raises:
        MeasureError: pip failed.
    """
    if folder.is_dir():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    options = ["--no-deps", "--only-binary=:all:", "--no-compile", "--target", str(partial)]
    done, text = run([*pip(), "install", *options, *wheels], partial / "log")
    if not done:
        raise MeasureError(f"pip could not install {', '.join(wheels)}: {said(text, ('ERROR:',))}")
    partial.rename(folder)


def convert_ncnn(folder: PeerFolder, converters: Path) -> None:
    """Write the model for ncnn, float32 weights. Raises MeasureError."""
    wanted = [folder.ncnn.with_name(folder.ncnn.name + end) for end in (".bin", ".param")]
    if all(path.is_file() for path in wanted):
        return
    given, _ = folder.load_golden()
    (image,) = given.values()
    shape = f"inputshape=[{','.join(map(str, image.shape))}]"
    with tempfile.TemporaryDirectory() as scratch:  # it writes many files beside the model
        model = shutil.copy(folder.onnx, scratch)
        _convert([str(converters / "pnnx/pnnx"), model, shape, "fp16=0"], {})
        for path in wanted:
            _keep(Path(scratch) / path.name, path)


def convert_mnn(folder: PeerFolder, converters: Path) -> None:
    """Write the model for MNN, float32 weights. Raises MeasureError."""
    if folder.mnn.is_file():
        return
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / folder.mnn.name
        options = ["-f", "ONNX", "--modelFile", str(folder.onnx), "--MNNModel", str(made)]
        _convert(
            [sys.executable, "-c", _CONVERT_MNN, *options, "--bizCode", "tvmx"],
            {"PYTHONPATH": str(converters)},
        )
        _keep(made, folder.mnn)


def build_im2col(target: Target, folder: Path) -> Path:
    """The library of ``_sim_im2col.c`` for a board."""
    library = folder / f"im2col-{target.name}.so"
    if not library.is_file() or library.stat().st_mtime < _IM2COL.stat().st_mtime:
        link([_IM2COL], library, target, options=["-O3"])
    return library


def _convert(command: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, errors="replace",
        env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        raise MeasureError(f"{command[0]} failed: {said(done.stdout + done.stderr)}")


def _keep(made: Path, path: Path) -> None:
    if not made.is_file():
        raise MeasureError(f"the converter wrote no {path.name}")
    shutil.copy(made, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)
