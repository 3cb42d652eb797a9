"""What is measured: a library with one kernel, or a whole network, and the right answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class KernelJob:
    """A shared library with one PrimFunc ``symbol(*inputs, out)``.

    ``inputs`` and ``out`` are in the kernel's physical layouts. ``expected`` (same shape as
    ``out``) is the reference; without one the output is only checked to be finite. In a
    blocked ``layout`` only the first ``channels`` channels are compared, the padding lanes
    must merely be finite. ``rtol`` bounds max|error| relative to the range of ``expected``.
    ``label`` names the candidate in messages.
    """

    library: Path
    symbol: str
    inputs: tuple[Array, ...]
    out_shape: tuple[int, ...]
    out_dtype: str = "float32"
    expected: Array | None = None
    layout: str = "NCHW"
    channels: int | None = None
    rtol: float = 1e-3
    label: str = ""

    @property
    def name(self) -> str:
        """Label for messages."""
        return self.label or f"{self.symbol} in {self.library.name}"


@dataclass(frozen=True, eq=False)
class NetworkJob:
    """A Relax VM executable library whose function ``main`` takes ``inputs`` in this order.

    ``expected`` are the outputs of ``main``, nested tuples flattened. ``rtol`` as for kernels.
    """

    library: Path
    inputs: Mapping[str, Array]
    expected: tuple[Array, ...] | None = None
    rtol: float = 1e-3
    label: str = ""

    @property
    def name(self) -> str:
        """Label for messages."""
        return self.label or self.library.name


Job = KernelJob | NetworkJob


def poison(shape: tuple[int, ...], dtype: str) -> Array:
    """An array no kernel computes by accident: NaN, or an odd bit pattern for integers."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return np.full(shape, np.nan, kind)
    return np.full(int(np.prod(shape)) * kind.itemsize, 0x5B, np.uint8).view(kind).reshape(shape)


def check_sample(job: NetworkJob, number: int, sample: Mapping[str, Array]) -> None:
    """Raise :class:`DataError` unless ``sample`` (the ``number``-th) fits the network."""
    if set(sample) != set(job.inputs):
        raise DataError(
            f"input {number} of {job.name} has arrays {sorted(sample)}, not {sorted(job.inputs)}"
        )
    for name, like in job.inputs.items():
        got = sample[name]
        if got.shape != like.shape or got.dtype != like.dtype:
            raise DataError(
                f"input {number}, array {name!r} of {job.name}: {got.dtype}{got.shape},"
                f" the network takes {like.dtype}{like.shape}"
            )
