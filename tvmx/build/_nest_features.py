"""Numbers that say how fast a loop nest may run, comparable between workloads and templates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvmx.build._loop_nest import Access, Loop, LoopNest, loop_nest
from tvmx.targets import Target

_L1_SHARE, _L2_SHARE = 0.75, 0.6
"""What of a cache a kernel can count on: pages fall unevenly into its sets."""
_LINE = 64
_FAR = 4096
"""Places farther apart than a page are streams of their own to a prefetcher."""
_L1_MISS_CYCLES, _L2_MISS_CYCLES = 4.0, 20.0
_SCALAR_BYTES = 8


def nest_features(func: Any, macs: int, dtype: str, target: Target) -> dict[str, float]:
    """Features of a scheduled kernel for a workload of ``macs`` multiply-accumulates of ``dtype``.

    Relative to the vector multiplies that the workload takes at least (MACs / lanes), so that
    equal numbers mean equal shares of the peak whatever the layer, and mostly in log2:

    - ``waste``, ``adds``, ``loads``, ``scalars``, ``stores``, ``calls``: operations per multiply;
    - ``hot_*``: the loop that does most of the multiplies: how many an iteration, iterations,
      loads and accumulators, streams of memory;
    - ``l1_miss``, ``l2_miss``, ``touched``: bytes per multiply that come from beyond a cache. A
      loop's data stay in a cache as long as what one iteration touches fits there (compare the
      reuse distances of Zheng et al., "Ansor", OSDI 2020, appendix B);
    - ``tasks``, ``idle``, ``task_work``: parallel tasks and how they divide among the cores;
    - ``cycles``: what all that would take on a core of one multiply a cycle;
    - ``work`` and ``target_*``: the size of the workload and what the core is.

    Six significant digits: they are kept in journals.
    """
    vector = target.vector_bits // 8
    nest = loop_nest(func, vector)
    summary = _Summary(nest, target)
    ideal = macs / target.lanes(dtype)
    multiplies = max(1.0, summary.ops["multiply"] + summary.ops["call"])
    traffic = {
        "l1_miss": summary.traffic(target.big.l1d_kib * 1024 * _L1_SHARE),
        "l2_miss": summary.traffic(target.big.l2_kib * 1024 * _L2_SHARE),
        "touched": float(nest.arguments),
    }
    tasks = summary.tasks
    found = {
        "waste": _log(multiplies / ideal),
        "adds": summary.ops["add"] / multiplies,
        "calls": summary.ops["call"] / multiplies,
        "loads": summary.ops["load"] / multiplies,
        "scalars": summary.ops["scalar"] / multiplies,
        "stores": summary.ops["store"] / multiplies,
        "iterations": _log(summary.iterations / multiplies),
        "code": _log(summary.code),
        **summary.hot(multiplies, vector),
        **{name: _log(bytes_ / multiplies) for name, bytes_ in traffic.items()},
        "tasks": _log(tasks),
        "idle": math.ceil(tasks / target.cores) * target.cores / tasks,
        "task_work": _log(multiplies / tasks),
        "scratch": _log(1.0 + nest.scratch / 1024),
        "cycles": _log(_cycles(summary, multiplies, traffic) / ideal),
        "work": _log(ideal),
        "target_vector": float(vector),
        "target_registers": float(target.vector_registers),
        "target_in_order": float(target.big.in_order),
        "target_l1": _log(target.big.l1d_kib),
        "target_l2": _log(target.big.l2_kib),
    }
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def _cycles(summary: _Summary, multiplies: float, traffic: dict[str, float]) -> float:
    ops = summary.ops
    work = max(multiplies, (ops["load"] + ops["scalar"]) / 2, ops["store"])
    extra = max(0.0, ops["add"] - multiplies) / 2 + summary.iterations
    misses = traffic["l1_miss"] * _L1_MISS_CYCLES + traffic["l2_miss"] * _L2_MISS_CYCLES
    return float(work + extra + misses / _LINE)


def _log(value: float) -> float:
    return math.log2(max(value, 2.0**-20))


@dataclass(frozen=True, eq=False)
class _Group:
    """Accesses of one loop's body to one buffer that move alike."""

    loop: Loop
    buffer: Any
    size: int
    bytes: int
    strides: tuple[tuple[Loop, float], ...]
    offsets: tuple[float, ...]

    def footprint(self, inside: set[Loop]) -> float:
        """Bytes touched in one run of the loops ``inside``, whole cache lines where spread out."""
        moving = [(loop, abs(step)) for loop, step in self.strides if loop in inside]
        places = float(len(self.offsets))
        span = self.bytes + self.offsets[-1] - self.offsets[0]
        for loop, step in moving:
            places *= loop.extent
            span += step * (loop.extent - 1)
        line = max(self.bytes, min([_LINE, *(step for _, step in moving)]))
        return min(places * line, max(span, self.bytes), float(self.size or math.inf))

    @property
    def streams(self) -> int:
        """Distinct places its accesses read at once."""
        found, last = 0, -math.inf
        for offset in self.offsets:
            found += offset - last > _FAR
            last = offset
        return found


def _share(access: Access) -> float:
    """What of an access in unrolled loops is left once equal ones are one."""
    moving, share, loop = {loop for loop, _ in access.strides}, 1.0, access.loop
    while loop.unrolled and loop.parent is not None:
        share /= 1 if loop in moving else loop.extent
        loop = loop.parent
    return share


def _groups(loop: Loop) -> Iterator[_Group]:
    found: dict[tuple[Any, ...], list[Access]] = defaultdict(list)
    for access in loop.accesses:
        found[access.buffer, access.strides, access.bytes].append(access)
    for accesses in found.values():
        first = accesses[0]
        offsets = tuple(sorted({access.offset for access in accesses}))
        yield _Group(loop, first.buffer, first.size, first.bytes, first.strides, offsets)


class _Summary:
    """Counts over a whole nest."""

    def __init__(self, nest: LoopNest, target: Target) -> None:
        self._loops = nest.loops()
        self._times = {loop: loop.times for loop in self._loops}
        self._groups = [group for loop in self._loops for group in _groups(loop)]
        self.ops: dict[str, float] = dict.fromkeys(
            ("multiply", "add", "call", "load", "scalar", "store"), 0.0
        )
        self.code = self.iterations = 0.0
        for loop in self._loops:
            times = self._times[loop]
            body = self._body(loop)
            for op, number in body.items():
                self.ops[op] += number * times
            self.code += sum(body.values())
            if not loop.unrolled and loop.parent is not None:
                self.iterations += times
        self.tasks = self._tasks()
        self._inside = self._nesting()
        self._sets = {loop: self._working_set(loop) for loop in self._loops}

    def traffic(self, capacity: float) -> float:
        """Bytes that come from beyond a cache of ``capacity`` bytes."""
        total = 0.0
        for group in self._groups:
            node = group.loop
            while node.parent is not None and self._sets[node] <= capacity:
                node = node.parent
            outside = self._times[node.parent] if node.parent is not None else 1.0
            total += group.footprint(self._inside[node]) * outside
        return total

    def hot(self, multiplies: float, vector: int) -> dict[str, float]:
        """The rolled loop that does most of the multiplies."""
        bodies = {loop: self._unrolled(loop) for loop in self._loops if not loop.unrolled}
        weight = {
            loop: (body["multiply"] + body["call"]) * self._times[loop]
            for loop, (body, _, _) in bodies.items()
        }
        loop = max(weight, key=lambda at: weight[at])
        body, registers, streams = bodies[loop]
        own = max(1.0, body["multiply"] + body["call"])
        return {
            "hot_share": weight[loop] / multiplies,
            "hot_multiplies": _log(own),
            "hot_iterations": _log(loop.extent),
            "hot_loads": body["load"] / own,
            "hot_scalars": body["scalar"] / own,
            "hot_registers": registers / vector,
            "hot_streams": float(streams),
        }

    def _unrolled(self, loop: Loop) -> tuple[dict[str, float], int, int]:
        """Operations of an iteration, bytes of register buffers, and streams."""
        total = dict.fromkeys(self.ops, 0.0)
        registers: dict[Any, int] = {}
        streams = 0
        pending = [(loop, 1.0)]
        while pending:
            at, times = pending.pop()
            for op, number in self._body(at).items():
                total[op] += number * times
            registers |= at.registers
            streams += sum(g.streams for g in self._groups if g.loop is at)
            pending += [(c, times * c.extent) for c in at.children if c.unrolled]
        return total, sum(registers.values()), streams

    @staticmethod
    def _body(loop: Loop) -> dict[str, float]:
        counts = dict(loop.ops)
        for access in loop.accesses:
            kind = (
                "store" if access.store else "scalar" if access.bytes <= _SCALAR_BYTES else "load"
            )
            counts[kind] = counts.get(kind, 0.0) + _share(access)
        return counts

    def _tasks(self) -> float:
        """Iterations of the parallel loops around the busiest place."""
        found = dict.fromkeys(self._loops, 1.0)
        for loop in self._loops:  # outer before inner
            around = found[loop.parent] if loop.parent is not None else 1.0
            found[loop] = around * (loop.extent if loop.parallel else 1)
        return max(found.values())

    def _nesting(self) -> dict[Loop, set[Loop]]:
        inside: dict[Loop, set[Loop]] = {}
        for loop in reversed(self._loops):
            inside[loop] = {loop}.union(*(inside[child] for child in loop.children))
        return inside

    def _working_set(self, loop: Loop) -> float:
        """Bytes that one run of a loop touches."""
        inside = self._inside[loop]
        buffers: dict[Any, float] = defaultdict(float)
        for group in self._groups:
            if group.loop in inside:
                buffers[group.buffer] = max(buffers[group.buffer], group.footprint(inside))
        return sum(buffers.values())
