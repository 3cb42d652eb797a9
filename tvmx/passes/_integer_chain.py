"""What becomes of an int32 sum up to the next int8 value, followed operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import Rounding
from tvmx.numerics import FIXED_BITS, LONGEST_SHIFT, QMAX, QMIN, Requantise
from tvmx.passes._dataflow import array_of, dtype_of, op_name, shape_of, variables

Whole = npt.NDArray[np.int64]
BYTES = {"int8": 0, "uint8": 128}
"""Types of quantised values, and what is taken off them to have s8."""
WIDER = ("int32", "int64")
_FREE = 1 << 40
"""A bound that bounds nothing."""
_FARTHEST = 1 << 22
"""Zero point that kernels are given exactly, as float32 with the bounds relative to it."""


class Readers:
    """The bindings of a network, by what they read."""

    def __init__(self, bindings: Sequence[Any], returned: set[Any]) -> None:
        self.bindings, self._returned = bindings, returned
        self.index = {b.var: i for i, b in enumerate(bindings)}
        self._readers: dict[Any, list[int]] = {}
        for i, binding in enumerate(bindings):
            for var in dict.fromkeys(variables(binding.value)):
                self._readers.setdefault(var, []).append(i)

    def of(self, var: Any) -> list[int]:
        """Indices of the bindings that read a variable; none where the network returns it."""
        return [] if var in self._returned else self._readers.get(var, [])

    def call(self, var: Any, op: str = "") -> Any:
        """The call a variable is bound to, None unless it is one of ``op``."""
        value = self.bindings[self.index[var]].value if var in self.index else None
        return value if not op or op_name(value) == op else None


def limits(dtype: str) -> tuple[int, int]:
    """Least and largest number of an integer type."""
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def along_channels(expr: Any, shape: tuple[int, ...]) -> Whole | None:
    """A constant that broadcasts along the channels (axis 1) as int64 (channels,); else None."""
    constant = array_of(expr)
    if constant is None or not np.issubdtype(constant.dtype, np.integer):
        return None
    if constant.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    want = tuple(size if axis == 1 else 1 for axis, size in enumerate(shape))
    if full != want and constant.size != 1:
        return None
    return np.array(np.broadcast_to(constant.reshape(-1), (shape[1],)), np.int64)


class _StopError(Exception):
    """What follows is no part of the layer."""


class Chain:
    """Follows the only readers from an anchor on, and keeps what they make of its sums.

    Before the shift a value is ``sum + bias``, or with ``relu`` ``max(sum + bias, 0) + after``;
    behind it ``clip(fixed(sum + bias) + offset, low, high)``. ``most`` is the largest absolute
    value of a sum (then of what the shift leaves), by channel.
    """

    def __init__(self, anchor: int, most: Whole, readers: Readers) -> None:
        self._readers = readers
        self._var = readers.bindings[anchor].var
        self._shape = shape_of(self._var)
        self._seen = [anchor]
        self.members: tuple[int, ...] = ()
        self._most, self._relu, self._after = most, False, 0
        self.bias = np.zeros_like(most)
        self._multiplier: Whole | None = None
        self._shift: Whole | None = None
        self._left: Whole = np.zeros_like(most)
        self._rounding: Rounding = "upward"
        self._offset, self._low, self._high = 0, -_FREE, _FREE
        self._end: tuple[Any, ...] | None = None

    def run(self) -> Chain | None:
        """The chain up to its last int8 or uint8 value; None where it has none."""
        try:
            self._check("int32")
            while True:
                self._step()
                known = self._shift is not None and abs(self._offset) <= _FARTHEST
                if dtype_of(self._var) in BYTES and known:
                    self.members = tuple(sorted(self._seen))
                    shift = BYTES[dtype_of(self._var)]
                    self._end = (self._offset - shift, self._low - shift, self._high - shift)
        except _StopError:
            return self if self._end is not None else None

    def requantise(self, data_zero_point: int) -> Requantise:
        """The end of the kernel."""
        assert self._end is not None and self._multiplier is not None and self._shift is not None
        offset, low, high = self._end
        return Requantise(
            multiplier=self._multiplier.astype(np.int32), shift=self._shift.astype(np.int32),
            rounding=self._rounding, data_zero_point=data_zero_point, out_zero_point=offset,
            low=max(low, QMIN), high=min(high, QMAX),
        )  # fmt: skip

    def _step(self) -> None:
        """Take in the only reader."""
        readers = self._readers.of(self._var)
        if len(readers) != 1:
            raise _StopError
        binding = self._readers.bindings[readers[0]]
        name, call = op_name(binding.value).removeprefix("relax."), binding.value
        if shape_of(binding.var) != self._shape or not call.args[0].same_as(self._var):
            raise _StopError
        operands = call.args[1:]
        constant = along_channels(operands[0], self._shape) if len(operands) else None
        if name == "astype" and not (self._shift is None and self._left.any()):
            self._check(dtype_of(binding.var))
        elif constant is None:
            raise _StopError
        elif self._shift is None:
            self._sum(name, constant, dtype_of(binding.var))
        else:
            self._output(name, constant, dtype_of(binding.var))
        self._seen.append(readers[0])
        self._var = binding.var
        if name == "multiply":
            self._product()

    # sums

    def _sum(self, name: str, constant: Whole, dtype: str) -> None:
        """An operator before the shift."""
        if name in ("add", "subtract"):
            self._add(constant if name == "add" else -constant)
        elif name == "multiply" and dtype == "int64" and not self._after:
            self._scale(constant)
        elif name == "left_shift" and dtype == "int64" and not (self._after or self._left.any()):
            self._left = constant
            self._bounded(constant, 0, FIXED_BITS)
        elif name == "right_shift":
            self._halve(constant)
        elif name == "maximum" and not (constant.any() or self._relu or self._left.any()):
            self._relu = True
        else:
            self._fixed(np.full_like(self._most, 1 << 30), np.full_like(self._most, 30))
            self._output(name, constant, dtype)

    def _add(self, constant: Whole) -> None:
        if self._left.any():
            raise _StopError
        if self._relu:
            self._after += self._one(constant)
        else:
            self.bias = self.bias + constant
        self._most = self._most + np.abs(constant)
        self._check("int32")  # the kernel's, whatever the model's

    def _scale(self, multiplier: Whole) -> None:
        self._bounded(multiplier, 0, (1 << FIXED_BITS) - 1)
        if any(int(a) * int(m) << int(left) >= 1 << 62
               for a, m, left in zip(self._most, multiplier, self._left, strict=True)):  # fmt: skip
            raise _StopError
        self._multiplier = multiplier

    def _product(self) -> None:
        """From the product on: half of the divisor is added, and it is shifted."""
        readers, product = self._readers.of(self._var), self._var
        adds = [i for i in readers if op_name(self._readers.bindings[i].value) == "relax.add"]
        if len(adds) != 1:
            raise _StopError
        addition = self._readers.bindings[adds[0]]
        half = along_channels(addition.value.args[1], self._shape)
        if len(readers) == 2 and half is None:
            half = self._half_away(product, addition.value, readers)
            self._rounding = "tonearest"
        elif len(readers) != 1 or half is None:
            raise _StopError
        shifts = self._readers.of(addition.var)
        if len(shifts) != 1 or half is None:
            raise _StopError
        shifting = self._readers.bindings[shifts[0]]
        shift = along_channels(shifting.value.args[1], self._shape)
        if op_name(shifting.value) != "relax.right_shift" or shift is None:
            raise _StopError
        self._bounded(shift, 1, LONGEST_SHIFT)
        if (half != np.int64(1) << (shift - 1)).any():
            raise _StopError
        self._seen += [adds[0], shifts[0]]
        self._var = shifting.var
        assert self._multiplier is not None
        self._fixed(self._multiplier, shift - self._left)

    def _half_away(self, product: Any, addition: Any, readers: list[int]) -> Whole | None:
        """The half, where one is taken off below zero: ``product + (half - (product < 0))``."""
        other = addition.args[1] if addition.args[0].same_as(product) else addition.args[0]
        difference = self._call(other, "relax.subtract")
        flag = difference.args[1]
        below = self._call(flag, "relax.astype").args[0]
        less = self._call(below, "relax.less")
        zero = along_channels(less.args[1], self._shape)
        alone = all(len(self._readers.of(var)) == 1 for var in (other, flag, below))
        inside = [self._readers.index[var] for var in (other, flag, below)]
        if not less.args[0].same_as(product) or zero is None or zero.any() or not alone:
            raise _StopError
        if inside[-1] not in readers:
            raise _StopError
        self._seen += inside
        return along_channels(difference.args[0], self._shape)

    def _call(self, var: Any, op: str) -> Any:
        call = self._readers.call(var, op)
        if call is None:
            raise _StopError
        return call

    def _halve(self, shift: Whole) -> None:
        """A shift without a product: half of the divisor is among what was added before."""
        self._bounded(shift, 1, LONGEST_SHIFT - 30)
        if self._left.any():
            raise _StopError
        if self._relu:
            # max(x, 0) + a >> n is max(x + a >> n, a >> n).
            self.bias = self.bias + self._after
            low = self._after >> self._one(shift)
            self._relu, self._after = False, 0
        else:
            low = -_FREE
        half = np.int64(1) << (shift - 1)
        self.bias = self.bias - half
        self._most = self._most + half
        self._check("int32")
        self._fixed(np.full_like(shift, 1 << 30), shift + 30)
        self._low = low

    def _fixed(self, multiplier: Whole, shift: Whole) -> None:
        """From here on a value is what the shift left."""
        self._bounded(shift, 1, LONGEST_SHIFT)
        if self._after or (self._left.any() and self._multiplier is None):
            raise _StopError
        self._multiplier, self._shift = multiplier, shift
        self._most = np.array([
            (int(a) * int(m) >> int(s)) + 1
            for a, m, s in zip(self._most, multiplier, shift, strict=True)
        ])  # fmt: skip
        if self._relu:
            self._low = 0
        if int(self._most.max()) >= 1 << 31:
            raise _StopError

    # outputs

    def _output(self, name: str, constant: Whole, dtype: str) -> None:
        """An operator behind the shift."""
        value = self._one(constant)
        if name in ("add", "subtract"):
            value = value if name == "add" else -value
            self._offset, self._low, self._high = (
                n + value for n in (self._offset, self._low, self._high)
            )
        elif name == "maximum":
            self._low, self._high = max(self._low, value), max(self._high, value)
        elif name == "minimum":
            self._low, self._high = min(self._low, value), min(self._high, value)
        else:
            raise _StopError
        self._check(dtype)

    # what must hold

    def _check(self, dtype: str) -> None:
        """No value may be beyond the type."""
        if dtype not in (*BYTES, *WIDER):
            raise _StopError
        most, (least, largest) = int(self._most.max()), limits(dtype)
        low = min(max(self._offset - most, self._low), self._high)
        high = max(min(self._offset + most, self._high), self._low)
        if low < least or high > largest:
            raise _StopError

    def _bounded(self, values: Whole, low: int, high: int) -> None:
        if (values < low).any() or (values > high).any():
            raise _StopError

    def _one(self, values: Whole) -> int:
        if (values != values[0]).any():
            raise _StopError
        return int(values[0])
