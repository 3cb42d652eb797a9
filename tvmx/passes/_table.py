"""Element-wise functions of one int8 value, as tables of 256 entries.

Whatever a chain of operators computes between a dequantising and a quantising (sigmoid,
hard-swish, a scale and a shift) is a function of 256 possible values, and is evaluated once, here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax, tvm
from tvmx.numerics import QMAX, QMIN, QuantParams, dequantise
from tvmx.passes._dataflow import array_of, dtype_of, op_name, shape_of, variables

Float = npt.NDArray[np.float32]
_ONE = np.float32(1)


def _sigmoid(x: Any) -> Any:
    return _ONE / (_ONE + np.exp(-x))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relax.sigmoid": _sigmoid, "relax.tanh": np.tanh, "relax.exp": np.exp,
    "relax.nn.silu": lambda x: x * _sigmoid(x), "relax.abs": np.abs, "relax.negative": np.negative,
    "relax.sqrt": np.sqrt, "relax.nn.relu": lambda x: np.maximum(x, 0),
    "relax.nn.relu6": lambda x: np.clip(x, 0, 6), "relax.add": np.add,
    "relax.subtract": np.subtract, "relax.multiply": np.multiply, "relax.divide": np.divide,
    "relax.maximum": np.maximum, "relax.minimum": np.minimum,
}  # fmt: skip
_WITH_ATTRIBUTES = ("relax.nn.leakyrelu", "relax.clip")
ALONE = frozenset({"relax.sigmoid", "relax.tanh", "relax.nn.silu", "relax.nn.leakyrelu"})
"""Functions that one operator between int8 layers may be a table of."""


@dataclass(frozen=True)
class Chain:
    """Calls that compute the last one's variable from ``source`` alone, element by element."""

    source: Any
    calls: tuple[tuple[Any, Any], ...]

    def evaluate(self, values: Float) -> Float:
        """The function of an array."""
        known: dict[Any, Any] = {self.source: np.asarray(values, np.float32)}
        with np.errstate(all="ignore"):
            for var, call in self.calls:
                known[var] = np.asarray(_value(call, known), np.float32)
        result: Float = known[self.calls[-1][0]]
        return result

    def table(self, params: QuantParams, out: QuantParams) -> npt.NDArray[np.int8]:
        """s8 results for the s8 values -128 to 127: dequantised, computed, quantised.

        Rounding is half to even on ``y / scale``, as ONNX's QuantizeLinear has it.
        """
        every = np.arange(QMIN, QMAX + 1, dtype=np.int8)
        results = self.evaluate(dequantise(every, params)) / np.float32(out.scale)
        low, high = np.float32(QMIN - out.zero_point), np.float32(QMAX - out.zero_point)
        bounded = np.clip(np.nan_to_num(results, nan=0.0), low, high)
        table: npt.NDArray[np.int8] = (np.rint(bounded) + out.zero_point).astype(np.int8)
        return table


def _value(call: Any, known: Mapping[Any, Any]) -> Any:
    name = op_name(call)
    if name == "relax.clip":
        low, high = (float(getattr(a, "value", a)) for a in call.args[1:3])
        return np.clip(known[call.args[0]], np.float32(low), np.float32(high))
    if name == "relax.nn.leakyrelu":
        x = known[call.args[0]]
        return np.where(x > 0, x, x * np.float32(call.attrs.alpha))
    operands = [known[a] if isinstance(a, relax.Var) else _scalar(a) for a in call.args]
    return _FUNCTIONS[name](*operands)


def _scalar(expr: Any) -> np.float32 | None:
    array = array_of(expr)
    return None if array is None or array.size != 1 else np.float32(array.reshape(()))


def is_elementwise(call: Any, shape: tuple[int, ...]) -> bool:
    """Whether a call computes every element of ``shape`` from the same one of its variables."""
    name = op_name(call)
    if name not in _FUNCTIONS and name not in _WITH_ATTRIBUTES:
        return False
    args = call.args[:1] if name in _WITH_ATTRIBUTES else call.args
    for arg in args:
        if isinstance(arg, tvm.ir.GenericConst):
            if _scalar(arg) is None:
                return False
        elif not isinstance(arg, relax.Var) or shape_of(arg) != shape or dtype_of(arg) != "float32":
            return False
    return any(isinstance(arg, relax.Var) for arg in args)


def chain_of(
    data: Any, values: Mapping[Any, Any], uses: Counter[Any], is_source: Callable[[Any], bool]
) -> Chain | None:
    """The chain that computes ``data`` from one source; None where there is none.

    ``values`` maps variables to the calls they are bound to. No intermediate result may be read
    from elsewhere; ``uses`` counts readers.
    """
    calls: dict[Any, Any] = {}
    sources: set[Any] = set()
    pending = [data]
    while pending:
        var = pending.pop()
        if is_source(var):
            sources.add(var)
        elif var not in calls:
            call = values.get(var)
            if call is None or not is_elementwise(call, shape_of(data)):
                return None
            calls[var] = call
            pending += variables(call)
    inside = Counter(v for call in calls.values() for v in variables(call))
    alone = all(uses[var] == inside[var] for var in calls if var is not data)
    if len(sources) != 1 or not calls or not alone or uses[data] != 1:
        return None
    ordered = [(var, call) for var, call in values.items() if var in calls]
    return Chain(sources.pop(), tuple(ordered))
