"""Measuring what a conversion of layout, type or both costs on the device."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmx._tvm import build_module, te, tvm
from tvmx.build import SYMBOL, link
from tvmx.errors import MeasureError
from tvmx.explore._evaluate import KernelEvaluator
from tvmx.explore._walk import ConversionKey, possible_conversions
from tvmx.ir import Conversion, Implementation, dtype_of, is_int8, physical_shape, to_physical
from tvmx.measure import KernelJob
from tvmx.numerics import QuantParams, dequantise, quantise
from tvmx.passes._default_schedule import default_schedule
from tvmx.passes._int8_ops import convert
from tvmx.targets import Target

if TYPE_CHECKING:
    from tvmx.explore._context import Context


_PARAMS = QuantParams(1 / 128, 3)
"""Any scale will do: it does not change what a conversion costs."""


def conversion_func(conversion: Conversion, target: Target) -> Any:
    """The PrimFunc of a conversion: the same compute and schedule a deployed network gets."""
    source = te.placeholder(
        physical_shape(conversion.shape, conversion.source), dtype_of(conversion.source), "data"
    )
    out = convert(source, conversion.shape, conversion.source, conversion.destination, _PARAMS)
    func = default_schedule(te.create_prim_func([source, out]), target.lanes())
    return func.with_attr("global_symbol", SYMBOL)


def build_conversion(conversion: Conversion, target: Target, folder: Path) -> Path:
    """Compile and link one conversion; returns the library."""
    forms = (conversion.source, conversion.destination)
    name = "_".join((*map(str, conversion.shape), *forms)).replace("/", "-")
    library = folder / f"convert_{name}.so"
    module = build_module(tvm.IRModule({SYMBOL: conversion_func(conversion, target)}), target)
    with tempfile.TemporaryDirectory(prefix="tvmx-build-") as scratch:
        object_file = Path(scratch) / "convert.o"
        module.write_to_file(str(object_file))
        link([object_file], library, target)
    return library


def conversion_job(conversion: Conversion, target: Target, folder: Path) -> KernelJob:
    """The measurable candidate of a conversion, checked against NumPy's rearrangement."""
    count = math.prod(conversion.shape)
    logical: Any = np.linspace(-1, 1, count, dtype=np.float32).reshape(conversion.shape)
    result: Any = logical
    if is_int8(conversion.source):
        result = logical = quantise(logical, _PARAMS)
        if not is_int8(conversion.destination):
            result = dequantise(logical, _PARAMS)
    elif is_int8(conversion.destination):
        result = quantise(logical, _PARAMS)
    expected = to_physical(result, conversion.destination)
    return KernelJob(
        library=build_conversion(conversion, target, folder),
        symbol=SYMBOL,
        inputs=(to_physical(logical, conversion.source),),
        out_shape=expected.shape,
        out_dtype=str(expected.dtype),
        expected=expected,
        layout=conversion.destination,
        channels=conversion.shape[1],
        label=f"{conversion.source}->{conversion.destination} {conversion.shape}",
    )


def conversion_workload(conversion: Conversion) -> str:
    """The journal's workload name of a conversion."""
    shape = "x".join(map(str, conversion.shape))
    return f"convert:{shape}:{conversion.source}>{conversion.destination}"


def measure_transitions(
    context: Context, evaluator: KernelEvaluator, options: Mapping[int, Sequence[Implementation]]
) -> dict[ConversionKey, float]:
    """Us of every conversion some plan may need, from the journal where it is known.

    Raises:
        MeasureError: a conversion fails on the device; without its cost no plan can be priced.
    """
    costs: dict[ConversionKey, float] = {}
    conversions = possible_conversions(context.network.graph, options)
    with tempfile.TemporaryDirectory(prefix="tvmx-borders-") as scratch:
        named = [
            (conversion_workload(c), partial(conversion_job, c, context.target, Path(scratch)))
            for c in conversions
        ]
        measured = evaluator.others(named)
    for conversion, measurement in zip(conversions, measured, strict=True):
        if measurement.median_us is None:
            raise MeasureError(
                f"conversion {conversion.source}->{conversion.destination} of "
                f"{conversion.shape} failed: {measurement.status}: {measurement.message}"
            )
        costs[conversion.key] = measurement.median_us
    return costs
