"""Dynamic quantisation: layers whose data is quantised by the range it has at run time.

ONNX Runtime's ``quantize_dynamic`` writes DynamicQuantizeLinear, ConvInteger or MatMulInteger, a
cast and a product with both scales. The first comes in as a dozen operators on scalars, which are
found again here: a value of a byte with a scale and zero point of its own. A convolution or
product of such a value with constant weights, and what follows up to float32, is an int8 layer
with a float output; its kernel is that of any other, on constants made at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax
from tvmx.numerics import StatedWeight, fits_int8
from tvmx.passes._dataflow import array_of, dtype_of, op_name, shape_of, variables

Float = npt.NDArray[np.float32]
_PER_STEP = float(np.float32(1) / np.float32(255))
_AND_ZERO = {"max": ("relax.nn.relu", "relax.maximum"), "min": ("relax.clip", "relax.minimum")}
"""What widens a range to hold zero, as imported or simplified."""


@dataclass(frozen=True)
class DynamicLayer:
    """An anchor on a dynamically quantised value, up to the float32 it makes.

    ``value`` is what readers see of the quantised one. ``members`` are indices of bindings: the
    anchor, the cast, and the product with the scales, whose variable is the result.
    """

    value: Any
    members: tuple[int, int, int]
    weight: StatedWeight

    @property
    def real_weight(self) -> Float:
        """The weight as numbers, output channels first."""
        along = (-1,) + (1,) * (self.weight.values.ndim - 1)
        return self.weight.values.astype(np.float32) * self.weight.scales.reshape(along)


@dataclass(frozen=True)
class _Quantised:
    """A value as DynamicQuantizeLinear makes it of ``data``; ``inner`` are all its variables."""

    data: Any
    scale: Any
    zero: Any
    inner: tuple[Any, ...]


class Dynamics:
    """Dynamically quantised values and the layers that read them, among ``bindings``.

    ``layers`` are keyed by the anchor's binding; ``values`` map the binding that quantises to the
    float32 data and the variable that readers see. ``members`` are bindings that are no steps of
    their own, because only these layers need them. ``readers`` is what
    :func:`tvmx.passes._groups.single_readers` found.
    """

    def __init__(
        self, bindings: Sequence[Any], readers: Mapping[Any, int], outputs: Sequence[Any]
    ) -> None:
        self._calls = {b.var: b.value for b in bindings}
        self._index = {b.var: i for i, b in enumerate(bindings)}
        self._bindings, self._readers = bindings, readers
        self.layers: dict[int, DynamicLayer] = {}
        self.values: dict[int, tuple[Any, Any]] = {}
        self.members: set[int] = set()
        self._seen: dict[Any, Any] = {}
        inner: set[Any] = set()
        for index, binding in enumerate(bindings):
            inner |= self._look(index, binding.value)
        if self.layers:
            self._drop(inner, outputs)

    def _look(self, index: int, call: Any) -> set[Any]:
        """Take in the layer whose anchor is ``call``, if it is one; the variables inside."""
        if op_name(call) not in ("relax.nn.conv2d", "relax.matmul") or dtype_of(call) != "int32":
            return set()
        weight = _weight(call)
        moved = self._call(call.args[0], "relax.subtract")
        if weight is None or moved is None:
            return set()
        casts = [self._call(arg, "relax.astype") for arg in moved.args]
        if None in casts:
            return set()
        q, zero = (cast.args[0] for cast in casts)
        found = self._quantised(q)
        end = self._end(index, found) if found is not None and zero.same_as(found.zero) else None
        if found is None or end is None:
            return set()
        members, scales = end
        if q not in self._seen:
            kind = relax.TensorType(q.ty.shape, "uint8")
            self._seen[q] = relax.DataflowVar(f"{q.name}_dynamic", kind)
            self.values[self._index[q]] = (found.data, self._seen[q])
        along = np.array(np.broadcast_to(scales, len(weight)), np.float32)
        self.layers[index] = DynamicLayer(self._seen[q], members, StatedWeight(weight, along))
        product = self._bindings[members[-1]].value
        other = next(a for a in product.args if not a.same_as(self._bindings[members[1]].var))
        return {*found.inner, call.args[0], *moved.args, other}

    def _end(
        self, anchor: int, found: _Quantised
    ) -> tuple[tuple[int, int, int], npt.NDArray[Any]] | None:
        """Cast and product behind an anchor, and the weight's scales by channel (or one)."""
        cast = self._readers.get(self._bindings[anchor].var)
        if cast is None or dtype_of(self._bindings[cast].var) != "float32":
            return None
        var = self._bindings[cast].var
        product = self._readers.get(var)
        if op_name(self._bindings[cast].value) != "relax.astype" or product is None:
            return None
        call = self._bindings[product].value
        if op_name(call) != "relax.multiply" or shape_of(call) != shape_of(var):
            return None
        scales = next((a for a in call.args if not a.same_as(var)), None)
        both = self._call(scales, "relax.multiply")
        if both is None or not any(a.same_as(found.scale) for a in both.args):
            return None
        constant = next((c for a in both.args if (c := array_of(a)) is not None), None)
        if constant is None or constant.dtype != np.float32:
            return None
        shape = shape_of(var)
        full = (1,) * (len(shape) - len(shape_of(scales))) + shape_of(scales)
        channels = tuple(size if axis == 1 else 1 for axis, size in enumerate(shape))
        good = bool((np.isfinite(constant) & (constant > 0)).all())
        if not good or (constant.size != 1 and full != channels):
            return None
        return (anchor, cast, product), constant.reshape(-1)

    # DynamicQuantizeLinear

    def _quantised(self, q: Any) -> _Quantised | None:
        call = self._call(q, "relax.quantize")
        if call is None or dtype_of(q) != "uint8" or not isinstance(call.args[0], relax.Var):
            return None
        data, scale, zero = call.args
        if dtype_of(data) != "float32":
            return None
        chain = self._chain(zero, "astype", "round", "clip", "negative", "divide")
        choice = self._call(scale, "relax.where")
        if chain is None or choice is None or _bounds(self._calls[chain[2]]) != (0.0, 255.0):
            return None
        low, divisor = self._calls[chain[-1]].args
        flag, one, quotient = choice.args
        width = self._width(quotient)
        same = self._call(flag, "relax.equal")
        if width is None or same is None or not divisor.same_as(scale) or _number(one) != 1.0:
            return None
        if not same.args[0].same_as(width) or _number(same.args[1]) != 0.0:
            return None
        ends = self._call(width, "relax.subtract")
        if ends is None or not ends.args[1].same_as(low):
            return None
        extremes = [self._extreme(ends.args[0], "max", data), self._extreme(low, "min", data)]
        if None in extremes:
            return None
        inner = (q, scale, *chain, flag, quotient, width, ends.args[0], low, *extremes)
        return _Quantised(data, scale, zero, inner)

    def _width(self, quotient: Any) -> Any:
        """What is divided by 255."""
        for name, number in (("relax.divide", 255.0), ("relax.multiply", _PER_STEP)):
            call = self._call(quotient, name)
            if call is not None and _number(call.args[1]) == number:
                return call.args[0]
        return None

    def _extreme(self, var: Any, kind: str, data: Any) -> Any:
        """The variable of the least or largest element, of which ``var`` is that and zero."""
        call = self._calls.get(var) if isinstance(var, relax.Var) else None
        if call is None or op_name(call) not in _AND_ZERO[kind]:
            return None
        name = op_name(call)
        if name == "relax.clip" and _bounds(call) != (-np.inf, 0.0):
            return None
        if name in ("relax.maximum", "relax.minimum") and _number(call.args[1]) != 0.0:
            return None
        found = self._call(call.args[0], f"relax.{kind}")
        if found is None or found.attrs.axis is not None or not found.args[0].same_as(data):
            return None
        return call.args[0]

    def _chain(self, var: Any, *ops: str) -> list[Any] | None:
        """Variables of calls of ``ops``, each on the result of the next."""
        found = []
        for op in ops:
            call = self._call(var, f"relax.{op}")
            if call is None:
                return None
            found.append(var)
            var = call.args[0]
        return found

    def _call(self, var: Any, op: str) -> Any:
        call = self._calls.get(var) if isinstance(var, relax.Var) else None
        return call if call is not None and op_name(call) == op else None

    def _drop(self, inner: set[Any], outputs: Sequence[Any]) -> None:
        """Bindings of ``inner`` variables that nothing but the layers reads are no steps."""
        layers = {i for layer in self.layers.values() for i in layer.members}
        kept = {v for out in outputs for v in variables(out)}
        for index in reversed(range(len(self._bindings))):
            binding = self._bindings[index]
            if index not in layers and (binding.var not in inner or binding.var in kept):
                kept.update(variables(binding.value))
        self.members = {self._index[var] for var in inner if var not in kept}


def _weight(call: Any) -> npt.NDArray[np.int8] | None:
    """Whole weights that fit s8, output channels first."""
    weight, data = array_of(call.args[1]), shape_of(call.args[0])
    if weight is None or not np.issubdtype(weight.dtype, np.integer):
        return None
    if op_name(call) == "relax.matmul":
        return fits_int8(weight.T.astype(np.int64)) if len(data) == weight.ndim == 2 else None
    layouts = (str(call.attrs.data_layout), str(call.attrs.kernel_layout))
    if weight.ndim != 4 or layouts != ("NCHW", "OIHW"):
        return None
    return fits_int8(weight.astype(np.int64))


def _number(expr: Any) -> float | None:
    array = array_of(expr)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _bounds(call: Any) -> tuple[float, ...]:
    return tuple(float(getattr(a, "value", a)) for a in call.args[1:3])


def real_anchor(call: Any, value: Any, weight: Float) -> Any:
    """The same convolution or product on float32, for where no template computes it.

    It reads ``value``, which whoever emits it replaces by the dequantised data.
    """
    data = relax.Var("data", relax.TensorType(call.args[0].ty.shape, "float32"))
    if op_name(call) == "relax.matmul":
        made = relax.op.matmul(data, relax.const(np.ascontiguousarray(weight.T)))
    else:
        attrs = call.attrs
        made = relax.op.nn.conv2d(
            data, relax.const(weight), strides=list(attrs.strides), padding=list(attrs.padding),
            dilation=list(attrs.dilation), groups=int(attrs.groups),
        )  # fmt: skip
    made = relax.BlockBuilder().normalize(made)
    return relax.Call(made.op, [value, *made.args[1:]], made.attrs)
