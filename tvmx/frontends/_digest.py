"""What makes two imports the same network."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tvmx.ir import TensorSpec

_CHUNK = 1 << 24


def content_digest(files: tuple[Path, ...], inputs: tuple[TensorSpec, ...]) -> str:
    """16 hex digits over the files' content and the input shapes; see :class:`tvmx.ir.Model`."""
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                sha.update(chunk)
    for spec in inputs:
        sha.update(spec.describe().encode())
    return sha.hexdigest()[:16]
