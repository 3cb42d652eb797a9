"""The part of a network that is written in whole numbers, as int8 layers and what is between them.

Values of a byte that layers read or write are stated: in int8 whatever the plan, with the scale 1
and the zero point 0, since the operators themselves say what they do to the numbers. Where nothing
is recognised all operators stay as they are written, and are just as exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.numerics import QuantParams
from tvmx.passes._dataflow import dtype_of, op_name, shape_of, variables
from tvmx.passes._integer_chain import BYTES, Readers
from tvmx.passes._integer_layer import IntegerLayer, integer_layer
from tvmx.passes._integer_ops import IntegerGroup, integer_group
from tvmx.passes._operator import Operator, pool_of

PARAMS = QuantParams(1.0, 0)
"""Those of every value stated here."""


class Integers:
    """Integer layers and operators among ``bindings``, whose results ``outputs`` return.

    ``layers`` and ``operators`` are keyed by the binding that makes their output. ``members`` are
    bindings that are no steps of their own, because only those read them. ``canonical`` maps the
    stated values to the float variables that readers see; ``entering`` are those among them that
    something else makes, ``raw`` those that something else reads as they are.
    """

    def __init__(self, bindings: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._bindings = bindings
        returned = {v for out in outputs for v in variables(out)}
        readers = Readers(bindings, returned)
        found = (integer_layer(i, readers) for i in range(len(bindings)))
        self.layers: dict[int, IntegerLayer] = {
            layer.members[-1]: layer for layer in found if layer is not None
        }
        self.operators: dict[int, IntegerGroup] = {}
        self.canonical: dict[Any, Any] = {}
        if self.layers:
            self._find_operators(readers)
        needed = self._drop_unneeded(readers, returned)
        steps = {*needed, *self.layers, *self.operators}
        self.members = set(range(len(bindings))) - steps if self.layers else set()
        makes = {bindings[i].var for i in (*self.layers, *self.operators)}
        self.entering = self.canonical.keys() - makes
        read = returned.union(*(variables(bindings[i].value) for i in needed))
        self.raw = read & makes

    def _find_operators(self, readers: Readers) -> None:
        """Operators that layers and other operators read the results of, or read themselves."""
        inside = {i for layer in self.layers.values() for i in layer.members}
        groups = {
            i: group for i in range(len(self._bindings))
            if i not in inside and (group := _group(i, readers)) is not None
        }  # fmt: skip
        for layer in self.layers.values():
            self._state(layer.source)
            self._state(self._bindings[layer.members[-1]].var)
        while True:
            joined = {
                i: g for i, g in groups.items()
                if i not in self.operators
                and (g.output in self.canonical or all(s in self.canonical for s in g.sources))
            }  # fmt: skip
            if not joined:
                break
            for index, group in joined.items():
                self.operators[index] = group
                for var in (*group.sources, group.output):
                    self._state(var)

    def _state(self, q: Any) -> None:
        if q not in self.canonical:
            kind = relax.TensorType(q.ty.shape, "float32")
            self.canonical[q] = relax.DataflowVar(f"{getattr(q, 'name', 'value')}_whole", kind)

    def _drop_unneeded(self, readers: Readers, returned: set[Any]) -> set[int]:
        """Keep the layers and operators that results depend on; other bindings they depend on."""
        needed: set[int] = set()
        seen: set[int] = set()
        pending = list(returned)
        while pending:
            index = readers.index.get(pending.pop())
            if index is None or index in seen:
                continue
            seen.add(index)
            if index in self.layers:
                pending.append(self.layers[index].source)
            elif index in self.operators:
                pending += self.operators[index].sources
            else:
                needed.add(index)
                pending += variables(self._bindings[index].value)
        self.layers = {i: v for i, v in self.layers.items() if i in seen}
        self.operators = {i: v for i, v in self.operators.items() if i in seen}
        if not self.layers:
            self.operators.clear()
            self.canonical.clear()
        return needed

    def entry(self, q: Any) -> Any:
        """The call that makes the float variable of a value that something else makes."""
        return _normal(relax.op.dequantize(q, *_parameters(q), out_dtype="float32"))

    def exit(self, q: Any) -> Any:
        """The call that makes the value itself from its float variable."""
        call = relax.op.quantize(self.canonical[q], *_parameters(q), out_dtype=dtype_of(q))
        return _normal(call)

    def as_written(self, layer: IntegerLayer) -> tuple[Any, ...]:
        """A layer's bindings between float variables, for where no template computes it."""
        output = self._bindings[layer.members[-1]].var
        inner = sorted({*layer.moved, *layer.members})
        return (
            relax.VarBinding(layer.source, self.exit(layer.source)),
            *(self._bindings[i] for i in inner),
            relax.VarBinding(self.canonical[output], self.entry(output)),
        )


def _parameters(q: Any) -> tuple[Any, Any]:
    zero = np.array([BYTES[dtype_of(q)]], dtype_of(q))
    return relax.const(1.0, "float32"), relax.const(zero.reshape(()), dtype_of(q))


def _normal(call: Any) -> Any:
    return relax.BlockBuilder().normalize(call)


def _group(index: int, readers: Readers) -> IntegerGroup | None:
    binding = readers.bindings[index]
    if dtype_of(binding.var) in BYTES and op_name(binding.value) == "relax.reshape":
        data = binding.value.args[0]
        if isinstance(data, relax.Var) and len(shape_of(data)) in (2, 4):
            return IntegerGroup((data,), ((binding.var, binding.value),))
        return None
    return integer_group(index, readers)


def operator_in(group: IntegerGroup) -> Operator:
    """A group as an operator on int8."""
    name, call = op_name(group.calls[-1][1]), group.calls[-1][1]
    if name == "relax.reshape":
        return Operator("reshape")
    if len(group.calls) == 1 and name == "relax.nn.max_pool2d":
        return Operator("max_pool", pool_of(call))
    return Operator("integer", group=group)


__all__ = ["PARAMS", "Integers", "operator_in"]
