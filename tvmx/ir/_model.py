"""Model: an imported network and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """A network input or output: its name in the source file, static shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def describe(self) -> str:
        """Short form, such as ``data float32[1,3,224,224]``."""
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class SourceNode:
    """The node of the source file an operator came from: its name and operator type."""

    name: str
    op: str


@dataclass(frozen=True)
class Model:
    """An imported, canonical network.

    ``mod`` is a Relax IRModule whose one Relax function ``main`` is one dataflow block of
    single-operator bindings. Its parameters are the network inputs, in the order of
    ``inputs``; weights are embedded constants; every shape is static. ``main`` returns a
    tensor where there is one output, else a tuple in the order of ``outputs``.

    ``sources`` maps the name of a Relax variable to the source node it computes (one node may
    have become several variables). ``digest`` is 16 hex digits of the SHA-256 over the file's
    content and the input shapes: equal digests are the same network at the same shapes.
    """

    mod: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sources: dict[str, SourceNode]
    digest: str
    path: Path
    frontend: str
