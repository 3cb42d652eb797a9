"""Features of configs for the cost model: knobs, workload, and how the two fit together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmx.ir._config import Config, KnobValue, Space
from tvmx.ir._workload import Conv2dWorkload, DenseWorkload
from tvmx.targets import Target

Matrix = npt.NDArray[np.float32]
_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int32": 4}


@dataclass(frozen=True)
class FeatureTable:
    """Named feature columns: ``matrix`` has shape (rows, len(names)), float32."""

    names: tuple[str, ...]
    matrix: Matrix

    def aligned(self, names: Sequence[str]) -> Matrix:
        """The columns in the order of ``names``; what this table lacks is zero."""
        column = {name: i for i, name in enumerate(self.names)}
        wanted = np.zeros((len(self.matrix), len(names)), np.float32)
        for j, name in enumerate(names):
            if name in column:
                wanted[:, j] = self.matrix[:, column[name]]
        return wanted

    def varying(self) -> Matrix:
        """Only the columns that differ between rows: all that a model of one workload needs."""
        if not len(self.matrix):
            return self.matrix
        keep = (self.matrix != self.matrix[0]).any(axis=0)
        return np.ascontiguousarray(self.matrix[:, keep])


def config_features(
    space: Space,
    configs: Sequence[Config],
    workload: Conv2dWorkload | DenseWorkload,
    target: Target,
) -> FeatureTable:
    """Features of ``configs`` of a template's space for one workload on one target.

    Column names depend on the knobs and the kind of workload only, not on its sizes, so that
    the rows of several workloads of a template can train one model:

    - ``knob:NAME`` and ``log2:NAME`` of numeric knobs, ``is:NAME=VALUE`` of the others;
    - ``prod:A*B``, log2 of the products of pairs of numeric knobs (tile sizes), ``prod:all``;
    - ``fit:NAME/DIM`` log2 of knob over dimension, ``rest:NAME/DIM`` the wasted share when the
      dimension is rounded up to a multiple of the knob;
    - ``dim:DIM`` log2, MACs, bytes, arithmetic intensity (MACs per byte), target lanes and caches.
    """
    columns: dict[str, npt.NDArray[np.float64]] = {}
    numeric: dict[str, npt.NDArray[np.float64]] = {}
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
    dims = _dimensions(workload)
    _add_fits(columns, numeric, dims, target.lanes(workload.dtype))
    for name, constant in (_constants(workload, target) | _log_dims(dims)).items():
        columns[name] = np.full(len(configs), constant)
    matrix = np.stack(list(columns.values()), axis=1).astype(np.float32)
    return FeatureTable(tuple(columns), matrix)


def _is_number(value: KnobValue) -> bool:
    return isinstance(value, (bool, int))


def _log2(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log2(np.maximum(values, 0.5))


def _add_products(
    columns: dict[str, npt.NDArray[np.float64]], numeric: dict[str, npt.NDArray[np.float64]]
) -> None:
    for a, b in itertools.combinations(numeric, 2):
        columns[f"prod:{a}*{b}"] = columns[f"log2:{a}"] + columns[f"log2:{b}"]
    if numeric:
        columns["prod:all"] = np.sum([columns[f"log2:{name}"] for name in numeric], axis=0)


def _add_fits(
    columns: dict[str, npt.NDArray[np.float64]],
    numeric: dict[str, npt.NDArray[np.float64]],
    dims: dict[str, int],
    lanes: int,
) -> None:
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


def _log_dims(dims: dict[str, int]) -> dict[str, float]:
    return {f"dim:{name}": math.log2(size) for name, size in dims.items()}


def _constants(workload: Conv2dWorkload | DenseWorkload, target: Target) -> dict[str, float]:
    shapes = (workload.data_shape, workload.weight_shape, workload.out_shape)
    moved = sum(math.prod(shape) for shape in shapes) * _BYTES[workload.dtype]
    constants = {
        "macs": math.log2(workload.macs),
        "bytes": math.log2(moved),
        "intensity": math.log2(workload.macs / moved),
        "target:lanes": float(target.lanes(workload.dtype)),
        "target:registers": float(target.vector_registers),
        "target:in_order": float(target.big.in_order),
        "target:l1d_kib": math.log2(max(1, target.big.l1d_kib)),
        "target:l2_kib": math.log2(max(1, target.big.l2_kib)),
    }
    if isinstance(workload, Conv2dWorkload):
        constants |= {
            "kernel_area": float(workload.kernel[0] * workload.kernel[1]),
            "stride_area": float(workload.strides[0] * workload.strides[1]),
            "groups": math.log2(workload.groups),
        }
    return constants
