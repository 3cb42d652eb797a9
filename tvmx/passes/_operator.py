"""What an operator between layers computes, where that is known well enough for int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tvmx._tvm import relax
from tvmx.numerics import Pool2d
from tvmx.passes._dataflow import dtype_of, op_name, shape_of
from tvmx.passes._layout_rules import global_mean
from tvmx.passes._table import ALONE, Chain, is_elementwise

if TYPE_CHECKING:
    from tvmx.passes._integer_ops import IntegerGroup
    from tvmx.passes._lrn import Lrn

Kind = Literal[
    "add",
    "multiply",
    "concat",
    "max_pool",
    "avg_pool",
    "mean",
    "clip",
    "reshape",
    "table",
    "lrn",
    "integer",
]
TIED = frozenset({"max_pool", "avg_pool", "mean", "clip", "reshape"})
"""Kinds whose int8 output keeps the scale and zero point of their input."""

_POOLS: dict[str, Kind] = {"relax.nn.max_pool2d": "max_pool", "relax.nn.avg_pool2d": "avg_pool"}
_RESHAPES = {"relax.reshape", "relax.flatten", "relax.squeeze"}


@dataclass(frozen=True)
class Operator:
    """An operator on its node's inputs, in order.

    ``pool`` is set for pooling, ``low`` and ``high`` for clip (None: no bound), and for an
    ``add`` that a clip follows. ``add``, ``multiply`` and ``concat`` (of channels) have at least
    two inputs, all others one; a ``multiply`` may broadcast (n, c, 1, 1). ``chain`` is what a
    ``table`` holds the values of, ``lrn`` the normalisation of an ``lrn``, ``group`` what an
    ``integer`` operator consists of.
    """

    kind: Kind
    pool: Pool2d | None = None
    low: float | None = None
    high: float | None = None
    chain: Chain | None = field(default=None, compare=False)
    lrn: Lrn | None = field(default=None, compare=False)
    group: IntegerGroup | None = field(default=None, compare=False)

    @property
    def tied(self) -> bool:
        """Whether the int8 output has its input's scale and zero point."""
        return self.kind in TIED


def operator_of(binding: Any, reads: Sequence[Any]) -> Operator | None:
    """The operator of a binding that reads the variables ``reads``; None if it is not known."""
    call = binding.value
    name = op_name(call)
    if not name or dtype_of(binding.var) != "float32":
        return None
    shape, out = shape_of(call.args[0]), shape_of(binding.var)
    if name == "relax.concat":
        return _concat(call, reads, out)
    if name == "relax.add":
        same = len(reads) == 2 and all(shape_of(a) == out for a in call.args)
        return Operator("add") if same and len(out) in (2, 4) else None
    if name == "relax.multiply":
        wide = [out, (*out[:2], 1, 1)]
        fits = len(reads) == 2 and all(shape_of(a) in wide for a in call.args)
        return Operator("multiply") if fits and len(out) in (2, 4) else None
    if len(reads) != 1 or not call.args[0].same_as(reads[0]):
        return None
    if name in _RESHAPES and shape[:1] == out[:1] and {len(shape), len(out)} <= {2, 4}:
        return Operator("reshape")
    if name in _POOLS and str(call.attrs.layout) == "NCHW":
        return Operator(_POOLS[name], pool_of(call))
    if name == "relax.mean" and len(shape) == 4 and global_mean(call):
        return Operator("mean")
    if name == "relax.nn.adaptive_avg_pool2d" and out[2:] == (1, 1):
        return Operator("mean")
    if name in ALONE and len(out) in (2, 4) and is_elementwise(call, out):
        return Operator("table", chain=Chain(reads[0], ((binding.var, call),)))
    bounds = clip_bounds(call) if len(shape) in (2, 4) and shape == out else None
    return None if bounds is None else Operator("clip", low=bounds[0], high=bounds[1])


def _concat(call: Any, reads: Sequence[Any], out: tuple[int, ...]) -> Operator | None:
    parts = call.args[0]
    if not isinstance(parts, relax.Tuple) or len(out) != 4 or int(call.attrs.axis) not in (1, -3):
        return None
    fields = list(parts.fields)
    if len(fields) < 2 or len(fields) != len(reads):
        return None
    in_order = all(f.same_as(r) for f, r in zip(fields, reads, strict=True))
    return Operator("concat") if in_order else None


def lrn_operator(lrn: Lrn) -> Operator | None:
    """A normalisation's operator; None where int8 has no exact arithmetic for its power."""
    return Operator("lrn", lrn=lrn) if lrn.window.exact else None


def clip_bounds(call: Any) -> tuple[float | None, float | None] | None:
    """(min, max) if the call only clips its input, None otherwise."""
    name = op_name(call)
    if name == "relax.nn.relu":
        return (0.0, None)
    if name == "relax.nn.relu6":
        return (0.0, 6.0)
    if name == "relax.clip":
        low, high = (float(getattr(a, "value", a)) for a in call.args[1:3])
        return (None if low == -np.inf else low, None if high == np.inf else high)
    return None


def pool_of(call: Any) -> Pool2d:
    """The geometry of a 2-d pooling call."""
    attrs = call.attrs
    top, left, bottom, right = (int(p) for p in attrs.padding)
    return Pool2d(
        kernel=(int(attrs.pool_size[0]), int(attrs.pool_size[1])),
        strides=(int(attrs.strides[0]), int(attrs.strides[1])),
        padding=(top, left, bottom, right),
        dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
        ceil_mode=bool(attrs.ceil_mode),
        count_include_pad=bool(attrs.count_include_pad),
    )
