"""Golden data of a run: the inputs everything was checked on and the reference's outputs."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tvmx.errors import StoreError
from tvmx.store import Run

Array = npt.NDArray[Any]

_FILE = "golden.npz"


class Golden(NamedTuple):
    """Inputs by name, outputs in order, and which reference computed them."""

    inputs: dict[str, Array]
    outputs: tuple[Array, ...]
    reference: str


def save_golden(
    run: Run, inputs: dict[str, Array], outputs: tuple[Array, ...], reference: str
) -> None:
    """Keep golden data in the run's work folder."""
    arrays: dict[str, Any] = {f"input_{name}": array for name, array in inputs.items()}
    arrays |= {f"output_{i}": array for i, array in enumerate(outputs)}
    np.savez(run.work / _FILE, **arrays, reference=np.array(json.dumps(reference)))


def load_golden(run: Run) -> Golden:
    """Golden data of an explored run. Raises StoreError when the run never got that far."""
    path = run.work / _FILE
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError) as err:
        raise StoreError(
            f"{path} is missing or damaged: the run has no golden data",
            hint=f"run the same `tvmx explore ... --out {run.path}` again to finish it",
        ) from err
    inputs = {n.removeprefix("input_"): a for n, a in arrays.items() if n.startswith("input_")}
    count = sum(n.startswith("output_") for n in arrays)
    outputs = tuple(arrays[f"output_{i}"] for i in range(count))
    return Golden(inputs, outputs, str(json.loads(str(arrays["reference"]))))
