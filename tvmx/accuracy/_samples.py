"""Samples and Dataset: arrays that were checked, fed to a model batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvmx.errors import DataError
from tvmx.ir import DataSource

Array = npt.NDArray[Any]


class InputSpec(Protocol):
    """What is asked of a model's input: ``tvmx.ir.TensorSpec`` has it."""

    @property
    def name(self) -> str:
        """Name in the source file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Static shape, the batch first."""

    @property
    def dtype(self) -> str:
        """NumPy name of the element type."""


@dataclass(frozen=True)
class Feed:
    """One call of the model: ``arrays`` by input name in exactly the model's shapes.

    Only the first ``count`` rows are samples; the rest repeats the last one, to fill a batch.
    """

    arrays: dict[str, Array]
    count: int


@dataclass(frozen=True)
class Samples:
    """Samples of one purpose: ``inputs[name]`` is (samples, *shape of one sample).

    ``labels`` is int64 (samples,), or None.
    """

    inputs: dict[str, Array]
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: npt.NDArray[np.intp]) -> Samples:
        """The samples at ``rows``, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return Samples({name: array[rows] for name, array in self.inputs.items()}, labels)

    def feeds(self, specs: Mapping[str, InputSpec]) -> Iterator[Feed]:
        """The samples in order, as calls of a model whose inputs are ``specs`` by name."""
        batch = batch_size(list(specs.values()))
        for start in range(0, len(self), batch):
            rows = np.minimum(np.arange(start, start + batch), len(self) - 1)
            arrays = {n: a[rows].reshape(specs[n].shape) for n, a in self.inputs.items()}
            yield Feed(arrays, min(batch, len(self) - start))


@dataclass(frozen=True)
class Dataset:
    """What ``--data`` holds, checked and split.

    ``calibration`` has no labels. ``visible`` is the half choices may look at, ``held_out``
    the half that is reported; they share no sample. ``digest`` is 16 hex digits over the
    arrays, before the split; ``source`` says where they came from.
    """

    calibration: Samples
    visible: Samples
    held_out: Samples
    digest: str
    source: DataSource | None = None

    @property
    def metric(self) -> str:
        """``top-1`` where there are labels, else ``agreement`` (with the float reference)."""
        return "agreement" if self.held_out.labels is None else "top-1"


def sample_shape(spec: InputSpec) -> tuple[int, ...]:
    """Shape of one sample: the model's input shape without its batch."""
    return tuple(spec.shape[1:])


def batch_size(specs: list[InputSpec]) -> int:
    """Samples the model takes in one call. Raises DataError when its inputs disagree."""
    sizes = {spec.name: spec.shape[0] if spec.shape else 1 for spec in specs}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise DataError(
            f"the model's inputs differ in their first dimension ({told}), so that samples "
            "cannot be fed row by row",
            hint="give all inputs the same batch with --shape, or leave out --data",
        )
    return next(iter(sizes.values()))
