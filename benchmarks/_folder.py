"""Where everything about one network lies, and the arrays kept there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
TARGET = "host"
SEED = 0
MOBILENETS = ("mobilenet_v1", "mobilenet_v2")
"""Networks of ``tvmx.testing.torch_models``; all others are light models of the onnx package."""


@dataclass(frozen=True)
class Folder:
    """One network's files."""

    path: Path

    @property
    def network(self) -> str:
        """Name of the network."""
        return self.path.name

    @property
    def onnx(self) -> Path:
        """The ONNX file, random weights, softmax dropped: what ONNX Runtime is given."""
        return self.path / f"{self.network}.onnx"

    @property
    def model(self) -> Path:
        """What tvmx is given: a torch.export archive of the same weights, or the ONNX file."""
        suffix = ".pt2" if self.network in MOBILENETS else ".onnx"
        return self.path / f"{self.network}{suffix}"

    @property
    def onnx_int8(self) -> Path:
        """The ONNX file, quantised by ONNX Runtime's tools (QDQ)."""
        return self.path / f"{self.network}.qdq.onnx"

    @property
    def ncnn(self) -> Path:
        """What pnnx makes of the ONNX file: this with ``.param``, and with ``.bin``."""
        return self.path / f"{self.network}.ncnn"

    @property
    def mnn(self) -> Path:
        """What MNN's converter makes of the ONNX file."""
        return self.path / f"{self.network}.mnn"

    @property
    def run(self) -> Path:
        """The exploration's run folder."""
        return self.path / "run"

    @property
    def result(self) -> Path:
        """Figures so far."""
        return self.path / "result.json"

    def library(self, plan: str) -> Path:
        """The library of a plan: ``defaults``, ``explored``, ``int8`` or ``mixed``."""
        return self.path / f"{plan}.so"

    def plan(self, plan: str) -> Path:
        """That plan as JSON."""
        return self.path / f"{plan}.plan.json"

    def save_golden(self, inputs: dict[str, Array], outputs: Sequence[Array]) -> None:
        """Keep seeded inputs and what the float reference makes of them."""
        self._save("golden", {f"in:{k}": v for k, v in inputs.items()} | _numbered(outputs))

    def load_golden(self) -> tuple[dict[str, Array], list[Array]]:
        """Inputs by tvmx's names and the float outputs, both in the model's order."""
        arrays = self._load("golden")
        inputs = {k.removeprefix("in:"): v for k, v in arrays.items() if k.startswith("in:")}
        return inputs, _outputs(arrays)

    def save_expected(self, name: str, outputs: Sequence[Array], limit: float) -> None:
        """Keep what the golden inputs must become under a plan that is not float and dense.

        ``limit`` is the error allowed, over the range of the output.
        """
        self._save(f"{name}.expected", {**_numbered(outputs), "limit": np.array(limit)})

    def load_expected(self, name: str) -> list[Array]:
        """What :meth:`save_expected` kept."""
        return _outputs(self._load(f"{name}.expected"))

    def load_limit(self, name: str) -> float:
        """The error allowed that :meth:`save_expected` kept."""
        return float(self._load(f"{name}.expected")["limit"])

    def _save(self, name: str, arrays: dict[str, Array]) -> None:
        with (self.path / f"{name}.npz").open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    def _load(self, name: str) -> dict[str, Array]:
        with np.load(self.path / f"{name}.npz", allow_pickle=False) as data:
            return {key: data[key] for key in data.files}


def _numbered(outputs: Sequence[Array]) -> dict[str, Array]:
    return {f"out:{index}": array for index, array in enumerate(outputs)}


def _outputs(arrays: dict[str, Array]) -> list[Array]:
    return [array for key, array in arrays.items() if key.startswith("out:")]
