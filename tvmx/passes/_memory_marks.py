"""Marks on kernels that tell memory planning what may share memory.

:data:`CONCAT`: the kernel's result is its arguments, one behind the other in memory, so that what
computes an argument can write there itself. :data:`IN_PLACE`: the numbers of the arguments the
kernel may overwrite with its result.
"""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import relax, topi
from tvmx.passes._dataflow import op_name, shape_of

CONCAT = "tvmx.concat"
IN_PLACE = "tvmx.in_place"
OPAQUE = 8
"""Relax's OpPatternKind::kOpaque: FuseOps leaves the kernel alone."""


def mark_concats(mod: Any) -> Any:
    """Concatenations that put their arguments one behind the other as kernels marked so.

    Those along the first axis whose extent is not 1, of at least two tensors of static shape.
    """
    marker = _Marker(mod)
    for var, func in mod.functions.items():
        if isinstance(func, relax.Function):
            marker.builder_.update_func(var, marker.visit_expr(func))
    return marker.builder_.get()


@relax.expr_functor.mutator
class _Marker(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, mod: Any) -> None:
        super().__init__(mod)

    def visit_call_(self, op: Any) -> Any:
        call = self.visit_expr_post_order(op)
        if not _in_memory_order(call):
            return call
        parts = list(call.args[0].fields)
        axis = int(call.attrs.axis)
        made = self.builder_.call_te(
            lambda *x: topi.concatenate(x, axis=axis), *parts, primfunc_name_hint="concat"
        )
        kernel = self.builder_.get()[made.args[0]]
        # Opaque: fused with its neighbours it would be no mere concatenation any more.
        marked = kernel.with_attrs({CONCAT: True, "op_pattern": OPAQUE})
        self.builder_.update_func(made.args[0], marked)
        return made


def _in_memory_order(call: Any) -> bool:
    """Whether a call concatenates tensors so that each one's elements stay together."""
    if op_name(call) != "relax.concat" or not isinstance(call.args[0], relax.Tuple):
        return False
    parts = call.args[0].fields
    if len(parts) < 2 or call.attrs.axis is None:
        return False
    shapes = [shape_of(part) for part in parts]
    axis = int(call.attrs.axis) % max(1, len(shapes[0]))
    return all(shapes) and all(math.prod(shape[:axis]) == 1 for shape in shapes)
