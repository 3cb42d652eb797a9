"""Bytes of a file damaged at random, whatever the file says."""

from __future__ import annotations

import random
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bits."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flipped_head(data: bytes, rng: random.Random) -> bytes:
    """Some bits of the structure, names and headers, which weights follow."""
    cut = min(len(data), 1500)
    return flipped(data[:cut], rng) + data[cut:]


def truncated(data: bytes, rng: random.Random) -> bytes:
    """The file ends early."""
    return data[: rng.randrange(len(data))]


def moved(data: bytes, rng: random.Random) -> bytes:
    """A stretch of the file goes elsewhere."""
    length, start, to = rng.randint(1, 200), rng.randrange(len(data)), rng.randrange(len(data))
    rest = data[:start] + data[start + length :]
    return rest[:to] + data[start : start + length] + rest[to:]
