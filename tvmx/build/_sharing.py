"""Which tensors share memory on purpose: concatenations with their parts, sums with a summand.

Sharing is tried one pair at a time and kept where it is sound: no byte is ever written while a
tensor that holds something else there is still to be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvmx.build._arena import ALIGNMENT, Box
from tvmx.build._lifetimes import Join, Lifetimes, Update


@dataclass(frozen=True)
class SharedBody:
    """Tensors in one piece of memory: where each starts, and what is taken when (see ``Box``)."""

    offsets: dict[Any, int]
    boxes: tuple[Box, ...]
    escapes: bool

    @property
    def bytes(self) -> int:
        """From the first byte to the last."""
        return max(box.high for box in self.boxes)


@dataclass(frozen=True)
class Sharing:
    """Every tensor in its body, and the parts that each concatenation finds in place.

    ``in_place`` holds the joins' steps with the indices of such parts; ``updated`` the steps of
    kernels that write over what they read.
    """

    bodies: tuple[SharedBody, ...]
    in_place: dict[int, frozenset[int]]
    updated: frozenset[int]


def share(lifetimes: Lifetimes) -> Sharing:
    """Let parts be computed in their concatenations and sums over a summand, where that is sound.

    Concatenations first, from the last: what is built up part by part becomes one body.
    """
    state = _Sharer(lifetimes)
    for join in reversed(lifetimes.joins):
        for index in range(len(join.parts)):
            state.try_join(join, index)
    for update in lifetimes.updates:
        state.try_update(update)
    return state.result()


class _Sharer:
    def __init__(self, lifetimes: Lifetimes) -> None:
        self._tensors = lifetimes.tensors
        self._joins = {join.whole: join for join in lifetimes.joins}
        # Each tensor's body as the dictionary of the offsets in it, shared by its members.
        self._body: dict[Any, dict[Any, int]] = {var: {var: 0} for var in lifetimes.tensors}
        self._placed: dict[int, set[int]] = {join.step: set() for join in lifetimes.joins}
        self._sources: dict[Any, int] = {}  # last read by the kernel at that step, which writes it
        self._updated: set[int] = set()

    def try_join(self, join: Join, index: int) -> None:
        part, offset = join.parts[index], join.offsets[index]
        if part is None or offset % ALIGNMENT or self._tensors[part].escapes:
            return
        if join.parts.count(part) > 1:
            return
        self._placed[join.step].add(index)
        if not self._merge(part, join.whole, offset):
            self._placed[join.step].remove(index)

    def try_update(self, update: Update) -> None:
        if self._tensors[update.source].end != update.step + 1 or update.source in self._sources:
            return
        self._sources[update.source] = update.step
        if self._merge(update.result, update.source, 0):
            self._updated.add(update.step)
        else:
            del self._sources[update.source]

    def _merge(self, var: Any, other: Any, delta: int) -> bool:
        """Put ``var`` ``delta`` bytes behind where ``other`` starts, with all it shares with."""
        mine, theirs = self._body[var], self._body[other]
        shift = theirs[other] + delta - mine[var]
        if mine is theirs:
            return shift == 0 and self._boxes(mine) is not None
        merged = theirs | {member: offset + shift for member, offset in mine.items()}
        if sum(self._tensors[member].escapes for member in merged) > 1:
            return False
        if self._boxes(merged) is None:
            return False
        for member in merged:
            self._body[member] = merged
        return True

    def _boxes(self, members: dict[Any, int]) -> list[Box] | None:
        """What the members take; None when something would be overwritten too early."""
        found: dict[tuple[Any, int], Box] = {}
        for member, offset in members.items():
            for key, box in self._pieces(member, offset, 0):
                other = found.get(key, box)
                found[key] = Box(box.start, max(box.end, other.end), box.low, box.high)
        boxes = list(found.values())
        clash = any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        return None if clash else boxes

    def _pieces(self, var: Any, low: int, end: int) -> Iterator[tuple[tuple[Any, int], Box]]:
        """The bytes of a tensor by who writes them; all are needed up to ``end`` at least."""
        tensor, join = self._tensors[var], self._joins.get(var)
        end = max(end, self._sources.get(var, tensor.end))
        if join is None:
            yield (var, 0), Box(tensor.start, end, low, low + tensor.bytes)
            return
        stops = (*join.offsets[1:], tensor.bytes)
        for index, (part, start, stop) in enumerate(
            zip(join.parts, join.offsets, stops, strict=True)
        ):
            if part is not None and index in self._placed[join.step]:
                yield from self._pieces(part, low + start, end)
            else:
                yield (var, index), Box(tensor.start, end, low + start, low + stop)

    def result(self) -> Sharing:
        unique = {id(body): body for body in self._body.values()}
        bodies = [self._shared(body) for body in unique.values()]
        in_place = {step: frozenset(indices) for step, indices in self._placed.items()}
        return Sharing(tuple(bodies), in_place, frozenset(self._updated))

    def _shared(self, members: dict[Any, int]) -> SharedBody:
        boxes = self._boxes(members)
        assert boxes is not None
        first = min(box.low for box in boxes)
        return SharedBody(
            {var: offset - first for var, offset in members.items()},
            tuple(Box(b.start, b.end, b.low - first, b.high - first) for b in boxes),
            any(self._tensors[var].escapes for var in members),
        )
