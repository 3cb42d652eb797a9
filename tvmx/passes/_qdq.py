"""Quantised models: which values a network states in int8, and what computes them.

``relax.quantize`` and ``relax.dequantize`` pairs are not operators to run. A pair on a value
says that it is int8, with one scale and zero point, whoever makes or reads it. u8 values are the
same numbers as s8 with a zero point less by 128, and are taken for these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax
from tvmx.numerics import QuantParams, StatedWeight, fits_int8
from tvmx.passes._dataflow import array_of, dtype_of, op_name, variables
from tvmx.passes._lrn import Lrn
from tvmx.passes._operator import Operator, clip_bounds, lrn_operator, operator_of
from tvmx.passes._table import chain_of

_SHIFT = {"int8": 0, "uint8": 128}
_OWN_SCALE = frozenset({"add", "multiply", "concat", "mean", "avg_pool", "clip", "table", "lrn"})
"""Kinds whose int8 kernels write any scale; the others are exact within one."""


@dataclass(frozen=True)
class OperatorGroup:
    """Operators that together make a stated value from stated ones: one int8 kernel.

    ``members`` are indices of bindings, the quantising one last; ``binding`` is the one whose
    layout rules hold; ``reads`` are dequantised variables.
    """

    operator: Operator
    binding: Any
    reads: tuple[Any, ...]
    members: tuple[int, ...]


class Qdq:
    """The quantise/dequantise pairs among ``bindings``.

    ``params`` are those of the stated values, by quantised variable. The canonical variable of
    a stated value is the float one readers see: ``canonical[q]``; ``quantised`` is its inverse.
    ``skipped`` are indices of bindings that are no steps of their own: dequantising ones and
    those of quantised weights. Where a variable q itself is read (by a network output, say),
    it is in ``raw``: made again from the float one. A network input that is int8 itself is
    dequantised first: ``entered`` maps the canonical variable to the one that holds that.
    """

    def __init__(self, bindings: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._bindings = bindings
        self._values = {b.var: b.value for b in bindings}
        self.params: dict[Any, QuantParams] = {}
        self.canonical: dict[Any, Any] = {}
        self.quantised: dict[Any, Any] = {}
        self.skipped: set[int] = set()
        self.raw: set[Any] = set()
        self.entered: dict[Any, Any] = {}
        self._weights: dict[Any, Any] = {}
        for index, binding in enumerate(bindings):
            self._look(index, binding)
        readers = Counter(v for b in bindings for v in variables(b.value) if v in self.params)
        readers.update(v for out in outputs for v in variables(out) if v in self.params)
        for q in self.params.keys() - {self.quantised[var] for var in self.entered}:
            alone = readers[q] == 1 and q in self.canonical
            if not alone:
                self.raw.add(q)
            if q not in self.canonical:
                self.canonical[q] = relax.DataflowVar(f"{q.name}_float", _float_type(q))
                self.quantised[self.canonical[q]] = q

    def _look(self, index: int, binding: Any) -> None:
        name, call = op_name(binding.value), binding.value
        if name == "relax.quantize" and dtype_of(call.args[0]) == "float32":
            params = _scalar_params(call, dtype_of(binding.var))
            if params is not None:
                self.params[binding.var] = params
        if name != "relax.dequantize" or dtype_of(binding.var) != "float32":
            return
        source = call.args[0]
        if array_of(source) is not None:
            if all(array_of(arg) is not None for arg in call.args[1:3]):  # else it is computed
                self._weights[binding.var] = call
                self.skipped.add(index)
            return
        if isinstance(source, relax.Var) and source not in self._values:
            self._enter(index, binding)
            return
        params = self.params.get(source)
        first = params is not None and source not in self.canonical
        if first and _scalar_params(call, dtype_of(source)) == params:
            self.canonical[source], self.quantised[binding.var] = binding.var, source
            self.skipped.add(index)

    def _enter(self, index: int, binding: Any) -> None:
        call, var = binding.value, binding.var
        params = _scalar_params(call, dtype_of(call.args[0]))
        if params is not None:
            q = relax.DataflowVar(f"{var.name}_quantised", call.args[0].ty)
            self.params[q], self.canonical[q], self.quantised[var] = params, var, q
            self.entered[var] = relax.DataflowVar(f"{var.name}_float", var.ty)
            self.skipped.add(index)

    def stated(self, var: Any) -> bool:
        """Whether a variable is what readers see of a stated value."""
        return var in self.quantised

    def scale(self, var: Any) -> float:
        """The scale of a stated value, by the variable that readers see."""
        return self.params[self.quantised[var]].scale

    def weight(self, expr: Any) -> npt.NDArray[Any] | None:
        """A quantised weight as float32, None for anything else."""
        call = self._weights.get(expr) if isinstance(expr, relax.Var) else None
        return None if call is None else dequantised(call)

    def stated_weight(self, expr: Any, axis: int) -> StatedWeight | None:
        """A quantised weight in s8, output channels (``axis``) first; None if it has no such form.

        Zero points must vanish: after them the weight fits s8 (:func:`tvmx.numerics.fits_int8`).
        """
        call = self._weights.get(expr) if isinstance(expr, relax.Var) else None
        if call is None:
            return None
        values, scale, zero = (np.asarray(array_of(a)) for a in call.args[:3])
        if values.dtype not in (np.int8, np.uint8) or scale.dtype != np.float32:
            return None
        channels = values.shape[axis]
        if max(scale.size, zero.size) > 1 and int(call.attrs.axis) % values.ndim != axis:
            return None
        along = [1] * values.ndim
        along[axis] = -1
        shifted = values.astype(np.int32) - zero.astype(np.int32).reshape(along)
        fitting = fits_int8(np.moveaxis(shifted, axis, 0))
        scales = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (channels,)))
        if fitting is None or not (np.isfinite(scales) & (scales > 0)).all():
            return None
        return StatedWeight(fitting, scales)

    def operators(
        self, uses: Counter[Any], taken: set[int], lrns: Mapping[int, Lrn]
    ) -> Iterator[OperatorGroup]:
        """Every operator between layers that int8 takes the place of. ``taken`` are layers'.

        ``lrns`` are the normalisations by the index of their last binding.
        """
        index_of = {b.var: i for i, b in enumerate(self._bindings)}
        for index, binding in enumerate(self._bindings):
            q = binding.var
            if q not in self.params or index in taken:
                continue
            data = binding.value.args[0]
            found = lrns.get(index_of.get(data, -1)) if uses[data] == 1 else None
            made = (
                self._normalisation(found) if found is not None else None,
                self._operator(data, index_of, uses),
                self._table(data, index_of, uses),
            )
            fitting = [g for g in made if g and all(self.stated(v) for v in g.reads)]
            if not fitting or set(fitting[0].members) & taken:
                continue
            group = fitting[0]
            sources = [self.params[self.quantised[v]] for v in group.reads]
            if group.operator.kind in _OWN_SCALE or sources == [self.params[q]]:
                yield replace(group, members=(*group.members, index))

    def _operator(
        self, data: Any, index_of: dict[Any, int], uses: Counter[Any]
    ) -> OperatorGroup | None:
        """What computes ``data``, when only a quantising reads it."""
        if self.stated(data):  # from one scale to another
            binding = self._bindings[index_of[data]] if data in index_of else None
            return OperatorGroup(Operator("clip"), binding, (data,), ()) if binding else None
        if data not in index_of or uses[data] != 1:
            return None
        index = index_of[data]
        binding = self._bindings[index]
        bounds = clip_bounds(binding.value)
        if bounds is not None:
            inner = binding.value.args[0]
            before = index_of.get(inner) if isinstance(inner, relax.Var) else None
            if before is not None and uses[inner] == 1 and not self.stated(inner):
                group = self._operator(inner, index_of, uses)
                if group is not None and group.operator.kind == "add":
                    clipped = replace(group.operator, low=bounds[0], high=bounds[1])
                    return replace(group, operator=clipped, members=(*group.members, index))
        reads = tuple(dict.fromkeys(variables(binding.value)))
        operator = operator_of(binding, reads)
        return None if operator is None else OperatorGroup(operator, binding, reads, (index,))

    def _normalisation(self, lrn: Lrn) -> OperatorGroup | None:
        operator = lrn_operator(lrn)
        if operator is None:
            return None
        binding = self._bindings[lrn.members[-1]]
        return OperatorGroup(operator, binding, (lrn.source,), lrn.members)

    def _table(
        self, data: Any, index_of: dict[Any, int], uses: Counter[Any]
    ) -> OperatorGroup | None:
        """Element-wise operators between one stated value and ``data``."""
        chain = chain_of(data, self._values, uses, self.stated)
        if chain is None:
            return None
        members = tuple(index_of[var] for var, _ in chain.calls)
        operator = Operator("table", chain=chain)
        return OperatorGroup(operator, self._bindings[members[-1]], (chain.source,), members)


def dequantised(call: Any) -> npt.NDArray[np.float32]:
    """The float32 constant that ``relax.dequantize`` of a constant stands for."""
    values, scale, zero = (np.asarray(array_of(a)) for a in call.args[:3])
    along = along_axis(call)
    shifted = values.astype(np.float64) - zero.astype(np.float64).reshape(along)
    result: npt.NDArray[np.float32] = (shifted * scale.reshape(along)).astype(np.float32)
    return result


def along_axis(call: Any) -> list[int]:
    """The shape in which a (de)quantising call's constant scales and zero points broadcast."""
    data, *params = (np.asarray(array_of(a)) for a in call.args[:3])
    along = [1] * data.ndim
    if max(p.size for p in params) > 1:
        along[int(call.attrs.axis)] = -1
    return along


def _scalar_params(call: Any, dtype: str) -> QuantParams | None:
    """Scale and zero point of a (de)quantising call per tensor, as those of s8."""
    scale, zero = (array_of(arg) for arg in call.args[1:3])
    if dtype not in _SHIFT or scale is None or zero is None or scale.size * zero.size != 1:
        return None
    if scale.dtype != np.float32:
        return None
    try:
        zero_point = int(zero.reshape(())) - _SHIFT[dtype]
        return QuantParams(float(scale.reshape(())), zero_point, dtype == "uint8")
    except ValueError:
        return None


def _float_type(q: Any) -> Any:
    return relax.TensorType(q.ty.shape, "float32")
