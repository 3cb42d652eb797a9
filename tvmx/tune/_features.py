"""Features of configs by their knobs alone, and how these divide the layer's dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tvmx.ir._config import Config, KnobValue, Space
from tvmx.ir._workload import Conv2dWorkload, DenseWorkload
from tvmx.targets import Target

Matrix = npt.NDArray[np.float32]
Columns = dict[str, npt.NDArray[np.float64]]


def knob_features(
    space: Space,
    configs: Sequence[Config],
    workload: Conv2dWorkload | DenseWorkload,
    target: Target,
) -> tuple[tuple[str, ...], Matrix]:
    """Names and values (configs, columns) of what differs between configs of a space.

    - ``knob:NAME`` and ``log2:NAME`` of numeric knobs, ``is:NAME=VALUE`` of the others;
    - ``prod:A*B``, log2 of the products of pairs of numeric knobs (tile sizes), ``prod:all``;
    - ``fit:NAME/DIM`` log2 of knob over dimension, ``rest:NAME/DIM`` the wasted share when the
      dimension is rounded up to a multiple of the knob.

    Columns that are the same for all configs are left out.
    """
    columns: Columns = {}
    numeric: Columns = {}
    for name, values in space.knobs.items():
        chosen = [config[name] for config in configs]
        if all(_is_number(v) for v in values):
            numeric[name] = np.array([float(v) for v in chosen])
            columns[f"knob:{name}"] = numeric[name]
            columns[f"log2:{name}"] = _log2(numeric[name])
        else:
            for value in values:
                columns[f"is:{name}={value}"] = np.array([float(v == value) for v in chosen])
    _add_products(columns, numeric)
    _add_fits(columns, numeric, _dimensions(workload), target.lanes(workload.dtype))
    varying = {name: v for name, v in columns.items() if len(v) and (v != v[0]).any()}
    matrix = np.array(list(varying.values()), np.float32).reshape(len(varying), len(configs))
    return tuple(varying), np.ascontiguousarray(matrix.T)


def _is_number(value: KnobValue) -> bool:
    return isinstance(value, (bool, int))


def _log2(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log2(np.maximum(values, 0.5))


def _add_products(columns: Columns, numeric: Columns) -> None:
    for a, b in itertools.combinations(numeric, 2):
        columns[f"prod:{a}*{b}"] = columns[f"log2:{a}"] + columns[f"log2:{b}"]
    if numeric:
        columns["prod:all"] = np.sum([columns[f"log2:{name}"] for name in numeric], axis=0)


def _add_fits(columns: Columns, numeric: Columns, dims: dict[str, int], lanes: int) -> None:
    fitted = {**dims, **{f"{d}_vectors": -(-dims[d] // lanes) for d in dims if d in ("ic", "oc")}}
    for (name, values), (dim, size) in itertools.product(numeric.items(), fitted.items()):
        step = np.maximum(values, 1.0)
        columns[f"fit:{name}/{dim}"] = np.log2(step / size)
        columns[f"rest:{name}/{dim}"] = np.ceil(size / step) * step / size - 1.0


def _dimensions(workload: Conv2dWorkload | DenseWorkload) -> dict[str, int]:
    if isinstance(workload, DenseWorkload):
        return {"n": workload.batch, "ic": workload.in_features, "oc": workload.out_features}
    return {
        "ic": workload.in_channels // workload.groups,
        "oc": workload.out_channels,
        "oh": workload.out_height,
        "ow": workload.out_width,
    }
