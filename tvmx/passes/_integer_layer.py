"""Layers written out in whole numbers: from an int32 convolution to the int8 value it ends in.

Relay's QNN dialect comes in as plain integer operators (see ``tvmx.frontends.relay``): the zero
point taken off in int32, the convolution or product, the bias, a multiplication by a 31-bit number
in int64, half of the divisor added, a shift, the zero point, bounds, a cast. This is what an int8
kernel computes in one go, with constants read from here. What does not fit to the last bit, for
every possible input, is no layer and stays as it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.ir import Rounding
from tvmx.numerics import QMAX, QMIN, LayerConstants, fits_int8
from tvmx.passes._dataflow import array_of, dtype_of, op_name, shape_of
from tvmx.passes._integer_chain import BYTES, WIDER, Chain, Readers, Whole, limits

Padding = tuple[int, int, int, int]


@dataclass(frozen=True)
class IntegerLayer:
    """A layer between two int8 or uint8 values.

    ``members`` are indices of bindings: the ``anchor`` and all that is computed from it, in
    order; the last one makes the output. ``moved`` is what turns ``source`` into the anchor's
    data; ``padding`` (top, left, bottom, right) is what that adds of zero points. ``bias`` says
    whether the model adds one.
    """

    anchor: int
    source: Any
    moved: tuple[int, ...]
    padding: Padding
    members: tuple[int, ...]
    constants: LayerConstants
    bias: bool

    @property
    def rounding(self) -> Rounding:
        """How its sums are brought to the output's scale."""
        assert self.constants.requantise is not None
        return self.constants.requantise.rounding


def integer_layer(index: int, readers: Readers) -> IntegerLayer | None:
    """The layer whose convolution or product is binding ``index``; None if it is none."""
    call = readers.bindings[index].value
    weight = _weight(call)
    if weight is None:
        return None
    found = _source(call.args[0], readers)
    if found is None:
        return None
    source, zero, moved, padding = found
    shift = BYTES[dtype_of(source)]
    values = fits_int8(weight)
    if values is None or not QMIN <= zero - shift <= QMAX:
        return None
    reach = max(abs(zero - limit) for limit in limits(dtype_of(source)))
    sums = np.abs(weight.reshape(len(weight), -1)).sum(axis=1) * reach
    chain = Chain(index, sums, readers).run()
    if chain is None:
        return None
    zero -= shift
    # Modulo 2**32 like the accumulators: only their sums have to fit.
    bias = (chain.bias - zero * weight.reshape(len(weight), -1).sum(axis=1)).astype(np.int32)
    how = chain.requantise(zero)
    constants = LayerConstants(values, bias, how)
    bias_added = bool(chain.bias.any())
    return IntegerLayer(index, source, moved, padding, chain.members, constants, bias_added)


def _weight(call: Any) -> Whole | None:
    """Whole weights, output channels first, of a convolution or product with int32 sums."""
    name = op_name(call)
    if name not in ("relax.nn.conv2d", "relax.matmul") or dtype_of(call) != "int32":
        return None
    weight = array_of(call.args[1])
    if weight is None or not np.issubdtype(weight.dtype, np.integer):
        return None
    data = shape_of(call.args[0])
    if name == "relax.matmul":
        return weight.T.astype(np.int64) if len(data) == weight.ndim == 2 else None
    attrs = call.attrs
    standard = (str(attrs.data_layout), str(attrs.kernel_layout)) == ("NCHW", "OIHW")
    return weight.astype(np.int64) if standard and weight.ndim == 4 else None


def _source(data: Any, readers: Readers) -> tuple[Any, int, tuple[int, ...], Padding] | None:
    """(quantised variable, zero point, bindings between, padding) that an anchor's data is of."""
    zero, moved = 0, []
    call = readers.call(data)
    if op_name(call) in ("relax.add", "relax.subtract") and dtype_of(data) in WIDER:
        constant = array_of(call.args[1])
        if constant is None or constant.size != 1:
            return None
        zero = int(constant.reshape(())) * (-1 if op_name(call) == "relax.add" else 1)
        moved.append(readers.index[data])
        data = call.args[0]
        call = readers.call(data)
    if op_name(call) == "relax.astype" and dtype_of(data) in WIDER:
        moved.append(readers.index[data])
        data = call.args[0]
    if not isinstance(data, relax.Var) or dtype_of(data) not in BYTES:
        return None
    padding = _padding(readers.call(data, "relax.nn.pad"), zero)
    if padding is None:
        return data, zero, tuple(reversed(moved)), (0, 0, 0, 0)
    moved.append(readers.index[data])
    return readers.call(data).args[0], zero, tuple(reversed(moved)), padding


def _padding(pad: Any, zero: int) -> Padding | None:
    """What a call adds around an image, if it is all zero points: TFLite's importer writes that."""
    if pad is None or str(pad.attrs.pad_mode) != "constant" or pad.attrs.pad_value != zero:
        return None
    width = [int(w) for w in pad.attrs.pad_width]
    if len(width) != 8 or any(width[:4]) or not isinstance(pad.args[0], relax.Var):
        return None
    top, bottom, left, right = width[4:]
    return top, left, bottom, right
