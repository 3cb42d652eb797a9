"""Prefilter: candidates whose inner loop is slow by llvm-mca need not be measured."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tvmx.errors import SimulationError, UsageError
from tvmx.simulate._core import simulated_core
from tvmx.simulate._mca import analyser
from tvmx.targets import Target

MARGIN = 1.3
"""How much slower than the best of its kind an inner loop may be: llvm-mca knows no caches."""
_LABEL = re.compile(r"^(\.L\w+):")
_BRANCH = re.compile(r"^\s+(?:b(?:\.\w+)?\s+|cbn?z\s+\w+, |tbn?z\s+\w+, \S+ )(\.L\w+)")
_INSTRUCTION = re.compile(r"^\t[a-z]")
_MULTIPLY = re.compile(
    r"^\s+(?:fml[as]l?2?|fmul|fmadd|[su]ml[as]l2?|[su]mull2?|[su]dot|usdot|[su]mmla)\s"
)


class Prefilter:
    """Compares candidates of a workload by the cycles of their inner loops on the target's core.

    The inner loop is the one with most multiplies; its cycles per multiply, spills included, are
    llvm-mca's. A candidate is dropped when it needs over ``margin`` times those of the best seen so
    far of the same workload and template. What llvm-mca rejects reliably are tiles that spill, and
    on in-order cores bad orders of loads; what memory costs it does not know.

    Raises:
        UsageError: no AArch64 core that LLVM has tables of, or no llvm-mca.
    """

    def __init__(self, target: Target, margin: float = MARGIN) -> None:
        if target.arch != "aarch64":
            raise UsageError(
                f"--prefilter is for AArch64 cores, target {target.name} is {target.arch}",
                hint="leave it out",
            )
        try:
            core = simulated_core(target)
            self._analyser = analyser(core.triple, core.mca_cpu, core.mca_attrs)
        except SimulationError as err:
            raise UsageError(f"--prefilter: {err.message}", hint=err.hint) from err
        self._margin = margin
        self._best: dict[str, float] = {}
        self.dropped = 0

    def cycles(self, assembly: Sequence[str]) -> list[float | None]:
        """Cycles per multiply of the inner loop of each kernel; None where there is none."""
        loops = [inner_loop(text) for text in assembly]
        found = self._analyser.loop_cycles(loops)
        counts = [sum(1 for line in loop if _MULTIPLY.match(line)) for loop in loops]
        return [
            None if cycles is None or not count else cycles / count
            for cycles, count in zip(found, counts, strict=True)
        ]

    def keep(self, group: str, assembly: Sequence[str]) -> list[bool]:
        """Which kernels of one workload and template are worth measuring."""
        cycles = self.cycles(assembly)
        known = [c for c in cycles if c is not None]
        if known:
            self._best[group] = min([*known, self._best.get(group, known[0])])
        bound = self._margin * self._best.get(group, float("inf"))
        kept = [c is None or c <= bound for c in cycles]
        self.dropped += kept.count(False)
        return kept


def inner_loop(assembly: str) -> list[str]:
    """Instructions of the loop that multiplies most, of those that hold no other; may be empty."""
    lines = assembly.splitlines()
    labels = {found[1]: i for i, line in enumerate(lines) if (found := _LABEL.match(line))}
    back = [
        (start, end)
        for end, line in enumerate(lines)
        if (branch := _BRANCH.match(line)) and (start := labels.get(branch[1], end)) < end
    ]
    best: list[str] = []
    most = 0
    for start, end in back:
        if any(
            start <= inner and last < end for inner, last in back if (inner, last) != (start, end)
        ):
            continue
        body = [line for line in lines[start : end + 1] if _INSTRUCTION.match(line)]
        count = sum(1 for line in body if _MULTIPLY.match(line))
        if count > most:
            most, best = count, [line.split("//")[0].rstrip() for line in body]
    return best
