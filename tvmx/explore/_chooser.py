"""Which plan to build and measure next, going by what was measured of those before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from tvmx.explore._search import Assignment, Found
from tvmx.search import Correction, Sample


class Chooser:
    """Gives one assignment after another; each is chosen when it is asked for.

    ``terms`` tells those of a plan (``tvmx.search.TERMS``), ``taught`` is what earlier runs
    measured. ``cold``: plans do not fit into the L2.
    """

    def __init__(
        self, found: Found, terms: Callable[[Assignment], Mapping[str, float]],
        taught: Sequence[Sample] = (), *, cold: bool = False,
    ) -> None:  # fmt: skip
        self._found, self._terms, self._cold = found, terms, cold
        self.taught = tuple(taught)
        self.samples: list[Sample] = []

    @property
    def correction(self) -> Correction:
        """What is known of whole plans by now."""
        return Correction.fit([*self.taught, *self.samples])

    def sample(self, assignment: Assignment) -> Sample:
        """A plan that is not measured yet; belongs into ``samples`` when it is."""
        return Sample(self._found.latency(assignment), math.nan, self._terms(assignment))

    def __iter__(self) -> Iterator[Assignment]:
        """What is required, then by the corrected prediction, the corrected optimum first."""
        found = self._found
        seen = set(found.required)
        yield from found.required
        while left := [a for a in found.others if a not in seen]:
            correction = self.correction
            again = found.corrected(correction, self._cold) if correction.prices else None
            if again is not None and again not in seen:
                seen.add(again)
                yield again
                continue
            best = min(left, key=lambda a: correction.us(found.latency(a), self._terms(a)))
            seen.add(best)
            if found.lossless(best):
                yield best
