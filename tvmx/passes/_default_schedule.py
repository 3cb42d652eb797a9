"""A vectorised, parallel default schedule for everything no template covers.

TVM's own default for the CPU leaves scalar, serial loops. This one inlines element-wise
producers, spreads the outer loops over threads and puts a vector axis innermost: the last
axis where its extent allows whole vectors, otherwise LLVM's auto-vectoriser gets a unit-stride
loop. Reductions run outside the vector axis when that axis is spatial; a long one along the rows of
memory is made in as many parts as a vector has lanes.
"""

from __future__ import annotations

import math
from typing import Any

from tvmx._tvm import s_tir, tirx, tvm
from tvmx.targets import Target

_SPATIAL, _REDUCE = 0, 2  # types of a block's axes

# Above this many steps a reduction streams a vector axis; below, it stays in a register.
_SHORT_REDUCTION = 64
# Up to this many steps, such as the taps of a pool, a reduction is unrolled into a register.
_UNROLLED_REDUCTION = 25


def schedule_rest(mod: Any, target: Target) -> Any:
    """Schedule every PrimFunc of ``mod`` that is not marked ``tirx.is_scheduled``."""
    out = tvm.IRModule(dict(mod.functions.items()), attrs=mod.attrs)
    for var, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc) and not _scheduled(func):
            out[var] = default_schedule(func, target.lanes())
    return out


def _scheduled(func: Any) -> bool:
    attrs = func.attrs
    return attrs is not None and "tirx.is_scheduled" in attrs and bool(attrs["tirx.is_scheduled"])


def default_schedule(func: Any, lanes: int) -> Any:
    """Schedule one PrimFunc for vectors of ``lanes`` floats."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
    for block in _blocks(sch):
        kept = _guards_scalar_reduction(sch, block, lanes) or _is_dear_to_repeat(sch, block)
        if not _is_reduction(sch, block) and not kept:
            _try_inline(sch, block)
    for block in _blocks(sch):
        _schedule_block(sch, block, lanes)
    result = sch.mod["main"].with_attr("tirx.is_scheduled", True)
    if func.attrs is None or "global_symbol" not in func.attrs:
        result = result.without_attr("global_symbol")
    return result


def _blocks(sch: Any) -> list[Any]:
    root = sch.get_sblock("root")
    return list(sch.get_child_blocks(root))


def _is_reduction(sch: Any, block: Any) -> bool:
    return any(v.iter_type != 0 for v in sch.get(block).iter_vars)


def _guards_scalar_reduction(sch: Any, block: Any, lanes: int) -> bool:
    """A padded copy read by a reduction without whole vectors: cheaper than its tests."""
    if "T.if_then_else" not in str(sch.get(block).body):
        return False
    for consumer in sch.get_consumers(block):
        kinds = [v.iter_type for v in sch.get(consumer).iter_vars]
        spatial = [v for v in sch.get(consumer).iter_vars if v.iter_type == 0]
        if any(kinds) and spatial and int(spatial[-1].dom.extent) % lanes:
            return True
    return False


def _is_dear_to_repeat(sch: Any, block: Any) -> bool:
    """One of the functions of ``_vector_math``, which bind variables, for several readers."""
    return len(sch.get_consumers(block)) > 1 and "T.Let(" in str(sch.get(block).body)


def _try_inline(sch: Any, block: Any) -> None:
    """Inline an element-wise producer; a block that cannot be inlined stays as it is."""
    if not sch.get_consumers(block):
        return
    try:
        sch.compute_inline(block)
    except s_tir.ScheduleError:
        return


def _schedule_block(sch: Any, block: Any, lanes: int) -> None:
    loops = sch.get_loops(block)
    kinds = [v.iter_type for v in sch.get(block).iter_vars]
    if not loops or len(kinds) != len(loops) or any(k not in (_SPATIAL, _REDUCE) for k in kinds):
        return
    extents = [_extent(sch, loop) for loop in loops]
    if any(e is None for e in extents):
        return
    spatial = [loop for loop, k in zip(loops, kinds, strict=True) if k == _SPATIAL]
    reduce = [loop for loop, k in zip(loops, kinds, strict=True) if k == _REDUCE]
    if not spatial:
        return
    last = _extent(sch, spatial[-1]) or 1
    row_lanes = _width(_extent(sch, reduce[-1]) or 1, lanes) if reduce else 0
    if reduce and _along_rows(sch, block, reduce, row_lanes):
        _schedule_rows(sch, block, spatial, reduce, row_lanes)
        return
    lanes = _width(last, lanes)
    if reduce:
        _schedule_reduction(sch, block, spatial, reduce, last, lanes)
    else:
        _schedule_spatial(sch, spatial, last, lanes)


def _width(extent: int, lanes: int) -> int:
    """The widest vector of at least 4 that divides ``extent``, else ``lanes``."""
    return next((w for w in (lanes, lanes // 2, lanes // 4) if w >= 4 and extent % w == 0), lanes)


def _extent(sch: Any, loop: Any) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None


def _schedule_spatial(sch: Any, spatial: list[Any], last: int, lanes: int) -> None:
    if last % lanes == 0:
        outer, inner = sch.split(spatial[-1], [None, lanes])
        sch.vectorize(inner)
        sch.parallel(sch.fuse(*spatial[:-1], outer) if len(spatial) > 1 else outer)
    elif len(spatial) > 1:
        sch.parallel(sch.fuse(*spatial[:-1]))


def _along_rows(sch: Any, block: Any, reduce: list[Any], lanes: int) -> bool:
    """Whether a long reduction's innermost axis is the last one of what it reads, in vectors."""
    steps = math.prod(_extent(sch, loop) or 1 for loop in reduce)
    if steps <= _UNROLLED_REDUCTION or (_extent(sch, reduce[-1]) or 1) % lanes:
        return False
    inner = sch.get(block).iter_vars[-1]
    if inner.iter_type != _REDUCE:
        return False
    regions = [read.region for read in sch.get(block).reads]
    return any(region and region[-1].min.same_as(inner.var) for region in regions)


def _schedule_rows(sch: Any, block: Any, spatial: list[Any], reduce: list[Any], lanes: int) -> None:
    """Reduce rows in vectors of partial results, each in its lane, and then those."""
    _, lane = sch.split(reduce[-1], [None, lanes])
    parts = sch.rfactor(lane, len(spatial))
    outer = sch.get_loops(block)[: len(spatial)]
    rows = sch.fuse(*outer) if len(outer) > 1 else outer[0]
    sch.parallel(rows)
    sch.compute_at(parts, rows)
    sch.set_scope(parts, 0, "local")
    lane, *steps = sch.get_loops(parts)[1:]
    sch.reorder(*steps, lane)
    sch.vectorize(lane)
    sch.decompose_reduction(parts, steps[0])
    sch.decompose_reduction(block, sch.get_loops(block)[1])


def _schedule_reduction(
    sch: Any, block: Any, spatial: list[Any], reduce: list[Any], last: int, lanes: int
) -> None:
    vector = None
    outer = spatial
    steps = math.prod(_extent(sch, loop) or 1 for loop in reduce)
    if last % lanes == 0:
        split, vector = sch.split(spatial[-1], [None, lanes])
        outer = [*spatial[:-1], split]
    elif len(spatial) > 1 and last > 1 and steps > _SHORT_REDUCTION:
        outer, vector = spatial[:-1], spatial[-1]
    if steps <= _UNROLLED_REDUCTION:
        _schedule_in_registers(sch, block, outer, reduce, vector)
        return
    order = [*outer, *reduce] + ([vector] if vector is not None else [])
    sch.reorder(*order)
    fused = sch.fuse(*outer) if len(outer) > 1 else outer[0]
    sch.parallel(fused)
    if vector is not None and last % lanes == 0:
        sch.vectorize(vector)
    if vector is not None:
        sch.decompose_reduction(block, reduce[0])


def _schedule_in_registers(
    sch: Any, block: Any, outer: list[Any], reduce: list[Any], vector: Any | None
) -> None:
    """Reduce in a register, in straight code for each vector (or scalar) of a row."""
    result = sch.cache_write(block, 0, "global")  # of one vector: TVM puts it on the stack
    sch.reorder(*outer, *reduce, *([] if vector is None else [vector]))
    sch.reverse_compute_at(result, outer[-1])
    # The innermost loops stay as they are: an index that is not fused takes no division.
    tasks = max(1, len(outer) - (1 if vector is None or _extent(sch, outer[-1]) != 1 else 2))
    sch.parallel(sch.fuse(*outer[:tasks]) if tasks > 1 else outer[0])
    if vector is not None:
        sch.vectorize(sch.get_loops(result)[-1])
        sch.vectorize(vector)
    sch.decompose_reduction(block, reduce[0])
    for loop in reduce:
        sch.unroll(loop)
