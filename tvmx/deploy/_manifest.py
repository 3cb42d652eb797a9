"""Manifest: what a bundle holds, what it was made from, and the figures measured for it."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tvmx.ir import DataSource

MANIFEST_SCHEMA = 1

# A file name, at most one folder deep: no parent, nothing hidden.
_NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]*"
FileName = Annotated[str, StringConstraints(pattern=rf"^{_NAME}(/{_NAME})?$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Strict):
    """An input or output: name, shape (logical, such as NCHW) and NumPy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Sizes(_Strict):
    """Sizes in bytes.

    The library file, the weights in it, the activations of one inference (arena), and the
    largest workspace any kernel takes (scratch).
    """

    library_bytes: int = Field(ge=0)
    weights_bytes: int = Field(ge=0)
    arena_bytes: int = Field(ge=0)
    scratch_bytes: int = Field(ge=0)


class Figure(_Strict):
    """One measured value, and where it was measured.

    ``metric`` such as ``latency`` or ``accuracy``, ``unit`` such as ``us`` or ``points``;
    ``spread`` in the same unit; ``device`` is the device key and ``identity`` what the
    device says it is; ``simulated`` is the model a figure comes from where no device was measured;
    ``paired_with`` names what it was measured alternately with.
    """

    metric: str
    value: float
    unit: str
    spread: float | None = None
    device: str = ""
    identity: str = ""
    simulated: str = ""
    threads: int | None = None
    paired_with: str | None = None
    note: str = ""


class Manifest(_Strict):
    """``manifest.json`` of a bundle.

    ``model_digest`` and ``plan_digest`` identify what was built; ``files`` maps every other
    file of the bundle to its SHA-256 (filled in when the bundle is written). ``rtol`` bounds
    max|error| of the golden check relative to the range of each output. ``data`` is what the
    network was calibrated and judged on: a caller prepares its inputs alike.
    """

    format: Literal["tvmx-bundle"] = "tvmx-bundle"
    schema_version: int = MANIFEST_SCHEMA
    model: str
    model_digest: str
    plan_digest: str
    target: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    glibc: str = ""
    versions: dict[str, str]
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    sizes: Sizes
    figures: tuple[Figure, ...] = ()
    measured_on_target: bool = False
    rtol: float = Field(default=1e-3, gt=0)
    notes: tuple[str, ...] = ()
    data: DataSource | None = None
    files: dict[FileName, Sha256] = Field(default_factory=dict)

    @property
    def arch(self) -> str:
        """Architecture part of the triple."""
        return self.triple.split("-", 1)[0]


def installed_versions() -> dict[str, str]:
    """Versions of ``tvmx``, ``tvm`` and ``tvm_ffi``, read without importing TVM."""
    from tvmx import __version__

    return {
        "tvmx": __version__,
        "tvm": importlib.metadata.version("apache-tvm"),
        "tvm_ffi": importlib.metadata.version("apache-tvm-ffi"),
    }
