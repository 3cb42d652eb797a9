"""Memory a compiled module will ask for, read from its IR: arena, kernel workspace, constants."""

from __future__ import annotations

import math
from typing import Any

from tvmx import _tvm
from tvmx._tvm import relax, tirx
from tvmx.targets import Target

# TVM's LowerTVMBuiltin keeps constant-sized allocations up to this many bytes on the stack.
STACK_LIMIT_BYTES = 1024


def scratch_bytes(mod: Any, target: Target, threads: int | None = None) -> dict[str, int]:
    """Workspace bytes of every PrimFunc in ``mod``, by name.

    Counts what the lowered kernel takes from TVM's workspace pool, that is every allocation
    over 1 KiB that storage rewriting leaves; one inside a parallel loop counts once per
    thread (``threads``, by default the target's cores). Allocations that are not alive
    together are still added: the figure is an upper bound.
    """
    kernels = {gv: f for gv, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    if not kernels:
        return {}
    tvm_target = _tvm.make_target(target)
    lowered = tirx.transform.BindTarget(tvm_target.with_host(tvm_target))(
        _tvm.tvm.IRModule(kernels, attrs=mod.attrs)
    )
    pipeline, _, _ = tirx.get_default_tir_pipeline(tvm_target)
    lowered = pipeline(lowered)
    count = threads or target.cores
    return {
        gv.name_hint: _workspace(f.body, count)
        for gv, f in lowered.functions.items()
        if isinstance(f, tirx.PrimFunc)
    }


def _workspace(stmt: Any, per_parallel: int) -> int:
    """Bytes of the allocations under ``stmt``, ``per_parallel`` times those in parallel loops."""
    total = 0
    pending: list[tuple[Any, int]] = [(stmt, 1)]
    while pending:
        node, copies = pending.pop()
        if isinstance(node, tirx.AllocBuffer):
            size = buffer_bytes(node.buffer)
            total += size * copies if size > STACK_LIMIT_BYTES else 0
        elif isinstance(node, tirx.SeqStmt):
            pending += [(child, copies) for child in node.seq]
        elif isinstance(node, tirx.IfThenElse):
            branches = (node.then_case, node.else_case)
            pending += [(branch, copies) for branch in branches if branch is not None]
        else:
            if isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL:
                copies = per_parallel
            body = getattr(node, "body", None)
            if body is not None:
                pending.append((body, copies))
    return total


def buffer_bytes(buffer: Any) -> int:
    """Bytes of a buffer of static shape."""
    return math.prod(int(extent) for extent in buffer.shape) * item_bytes(buffer)


def item_bytes(buffer: Any) -> int:
    """Bytes of one element of a buffer, all its lanes together."""
    dtype = _tvm.tvm.DataType(str(buffer.dtype))
    return -(-int(dtype.bits) * int(dtype.lanes) // 8)


def arena_bytes(mod: Any) -> int:
    """Bytes of all storages the Relax functions of a fully lowered ``mod`` allocate.

    Counted behind static memory planning, so that tensors that share a storage count once.
    """
    allocate = _tvm.tvm.ir.Op.get("relax.vm.alloc_storage")
    sizes: list[int] = []

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call) and node.op == allocate:
            sizes.append(math.prod(int(extent) for extent in node.args[0].values))

    for func in mod.functions.values():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, visit)
    return sum(sizes)
