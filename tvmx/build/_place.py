"""Memory planning: tensors of a lowered Relax function become views of one arena.

In place of TVM's StaticPlanBlockMemory, which hands out whole buffers and knows neither parts of a
concatenation nor kernels that write over what they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmx._tvm import relax, tirx, tvm
from tvmx.build._arena import ALIGNMENT, pack
from tvmx.build._copies import copy_kernel
from tvmx.build._lifetimes import Join, bindings, lifetimes, tensor_bytes
from tvmx.build._sharing import SharedBody, share
from tvmx.build._views import view


def plan_memory(mod: Any) -> Any:
    """Place the tensors of every Relax function; to run behind ``CallTIRRewrite``.

    Tensors that the function returns, with what shares memory with them, have storage of their
    own: the caller may keep them over the next inference. Concatenations whose parts are computed
    where they belong are gone; other parts are copied.
    """
    builder = relax.BlockBuilder(mod)
    for var, func in mod.functions.items():
        if isinstance(func, relax.Function):
            builder.update_func(var, _Writer(builder, mod, func).function())
    out = builder.get()
    called = _called(out)
    for var, func in out.functions.items():
        private = func.attrs is None or "global_symbol" not in func.attrs
        if isinstance(func, tirx.PrimFunc) and private and var not in called:
            del out[var]
    return out


def _called(mod: Any) -> set[Any]:
    """The functions that the Relax functions of a module name."""
    found: set[Any] = set()

    def visit(node: Any) -> None:
        if isinstance(node, tvm.ir.GlobalVar):
            found.add(node)

    for func in mod.functions.values():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, visit)
    return found


@dataclass(frozen=True)
class _Place:
    """``offset`` bytes into the storage of that number."""

    storage: int
    offset: int


def _places(bodies: Sequence[SharedBody]) -> tuple[dict[Any, _Place], list[int]]:
    """Where each tensor goes, and the storages' bytes: the arena, then one for each result.

    A result that shares with nothing has no place: TVM allocates it.
    """
    inside = [body for body in bodies if not body.escapes]
    offsets, arena = pack([body.boxes for body in inside])
    places = {
        var: _Place(0, start + offset)
        for body, start in zip(inside, offsets, strict=True)
        for var, offset in body.offsets.items()
    }
    sizes = [arena]
    for body in bodies:
        if body.escapes and len(body.offsets) > 1:
            places |= {var: _Place(len(sizes), offset) for var, offset in body.offsets.items()}
            sizes.append(body.bytes)
    return places, sizes


class _Writer:
    def __init__(self, builder: Any, mod: Any, func: Any) -> None:
        found = lifetimes(mod, func)
        sharing = share(found)
        self._builder, self._mod, self._func = builder, mod, func
        self._places, self._sizes = _places(sharing.bodies)
        self._joins = {join.step: join for join in found.joins}
        self._sharing = sharing
        self._made: list[Any] = []

    def function(self) -> Any:
        """The function with its tensors placed."""
        func, made = self._func, self._made
        storages = [self._storage(size) if size else None for size in self._sizes]
        for step, binding in bindings(func):
            place = self._places.get(binding.var)
            if place is not None:
                call = binding.value
                arena, dtype = storages[place.storage], str(call.ty.dtype)
                value = view(arena, place.offset, call.args[0], dtype)
                made.append(relax.VarBinding(binding.var, value))
            elif step in self._joins:
                self._copy_parts(self._joins[step], binding.value)
            elif step in self._sharing.updated:
                made.append(relax.VarBinding(binding.var, self._updating(binding.value)))
            else:
                made.append(binding)
        body = relax.SeqExpr([relax.BindingBlock(made)], func.body.body)
        return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)

    def _storage(self, size: int) -> Any:
        """Bind a storage; returns the bytes of it as one tensor."""
        shape = relax.ShapeExpr([-(-size // ALIGNMENT) * ALIGNMENT])
        storage = self._bind("storage", relax.op.memory.alloc_storage(shape, 0, "global", "uint8"))
        return self._bind("arena", relax.op.memory.alloc_tensor(storage, 0, shape, "uint8"))

    def _bind(self, name: str, call: Any) -> Any:
        call = self._builder.normalize(call)
        var = relax.Var(name, call.ty)
        self._made.append(relax.VarBinding(var, call))
        return var

    def _updating(self, call: Any) -> Any:
        """Call a twin of the kernel that does not promise its compiler distinct arguments."""
        kernel = self._mod[call.op].with_attr("tirx.noalias", False)
        twin = self._builder.add_func(kernel, call.op.name_hint)
        return relax.Call(twin, call.args, call.attrs, call.ty_args)

    def _copy_parts(self, join: Join, call: Any) -> None:
        """Copy the parts that were not computed in the concatenation."""
        *parts, whole = call.args
        for index, (part, offset) in enumerate(zip(parts, join.offsets, strict=True)):
            size = tensor_bytes(part)
            if size and index not in self._sharing.in_place[join.step]:
                shape, target = (tuple(int(n) for n in x.ty.shape.values) for x in (part, whole))
                kernel = copy_kernel(shape, target, str(part.ty.dtype), offset)
                var = self._builder.add_func(kernel.without_attr("global_symbol"), "copy_part")
                self._bind("copied", relax.Call(var, [part, whole]))
