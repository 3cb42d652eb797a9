"""Samples stacked to many calls at once, in chunks that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._samples import InputSpec, Samples, batch_size

if TYPE_CHECKING:
    from tvmx.passes import Network

Array = npt.NDArray[Any]

CHUNK_BYTES = 256 * 2**20
"""What all values of the calls that are simulated together may take."""


@dataclass(frozen=True)
class Chunk:
    """Several calls: ``inputs`` are (calls, *shape), in the model's order.

    ``rows`` of the ``calls * batch`` rows are samples, the first ones; the rest fills a batch.
    """

    inputs: list[Array]
    rows: int
    batch: int

    def valid(self, values: Array) -> Array:
        """The samples of (calls, batch, ...) as (rows, ...).

        Of a value without the batch in front (a transposed one) nothing is left out: there the
        repeated last sample counts more than once.
        """
        if values.ndim < 2 or values.shape[1] != self.batch:
            return values
        return values.reshape(-1, *values.shape[2:])[: self.rows]


def chunks(samples: Samples, specs: Mapping[str, InputSpec], calls: int) -> Iterator[Chunk]:
    """All samples in order, at most ``calls`` calls of the model at once.

    ``specs`` are the model's inputs by name, in its order.
    """
    batch = batch_size(list(specs.values()))
    feeds = samples.feeds(specs)
    while part := list(islice(feeds, calls)):
        stacked = [np.stack([feed.arrays[name] for feed in part]) for name in specs]
        yield Chunk(stacked, sum(feed.count for feed in part), batch)


def calls_at_once(network: Network) -> int:
    """How many calls keep all values of a network below ``CHUNK_BYTES`` (at least one)."""
    elements = sum(int(np.prod(shape)) for shape in network.graph.shapes)
    return max(1, CHUNK_BYTES // (4 * elements))


def spread(samples: Samples, most: int | None) -> Samples:
    """At most ``most`` samples, evenly spread: files are often sorted by class."""
    if most is None or len(samples) <= most:
        return samples
    return samples.take(np.arange(most) * len(samples) // most)
