"""What a build worker is asked and what it answers: plain, picklable data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tvmx.ir import Config, Conv2dWorkload, DenseWorkload
from tvmx.targets import Target

SYMBOL = "kernel"

FailureKind = Literal["illegal", "template", "build", "link", "crash", "timeout", "cancelled"]
"""Why a kernel was not built.

``illegal``: the template refused the config; ``template``: its file does not load, or its code
raised; ``build``: TVM or LLVM refused the kernel; ``link``: no linker, or it failed; ``crash``:
the worker died (segmentation fault, out of memory, killed); ``timeout``; ``cancelled``: the pool
was closed first.
"""


@dataclass(frozen=True)
class KernelBuild:
    """One kernel to build, as data: the worker loads the template from its file.

    ``workload``, ``config`` and ``target`` are JSON (:meth:`of` makes them). The library goes
    to ``folder``, under a name that depends on the whole job, and exports ``symbol``. With
    ``describe_only`` the kernel is scheduled and described, but not compiled: tens of
    milliseconds; such jobs are done before all others. ``with_assembly`` asks for LLVM's assembly.
    """

    workload: str
    template: str
    template_path: str
    config: str
    target: str
    folder: str
    symbol: str = SYMBOL
    describe_only: bool = False
    with_assembly: bool = False

    @classmethod
    def of(
        cls,
        workload: Conv2dWorkload | DenseWorkload,
        template: str,
        template_path: Path | str,
        config: Config,
        target: Target,
        folder: Path,
    ) -> KernelBuild:
        """The job for these objects; ``template_path`` is the Python file that defines it."""
        return cls(
            workload=workload.canonical(),
            template=template,
            template_path=str(template_path),
            # In the knobs' own order: a Config keeps it.
            config=json.dumps(config.to_dict(), separators=(",", ":")),
            target=target.model_dump_json(),
            folder=str(folder),
        )

    @property
    def library(self) -> Path:
        """Where the library is written."""
        what = (self.workload, self.template, self.template_path, self.config)
        text = "\0".join((*what, self.target, self.symbol))
        return Path(self.folder) / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.so"

    def describe(self) -> str:
        """Template and config, for messages."""
        return f"{self.template} {self.config}"


@dataclass(frozen=True)
class BuildFailure:
    """Why a build gave no library."""

    kind: FailureKind
    message: str


@dataclass(frozen=True)
class BuildResult:
    """What came of one :class:`KernelBuild`.

    With ``error`` None: ``library`` is a shared library; ``digest`` the SHA-256 of its object
    code (equal digests are equal binaries, to be measured once); ``arguments`` the
    (shape, dtype) of every buffer of the kernel in order; ``scratch_bytes`` what the kernel
    allocates itself while it runs. ``seconds`` is the time the worker spent. Of a job that is
    ``describe_only`` there is but ``features``, those of the loop nest
    (:func:`tvmx.build.nest_features`).
    """

    library: Path | None = None
    digest: str = ""
    arguments: tuple[tuple[tuple[int, ...], str], ...] = ()
    scratch_bytes: int = 0
    features: Mapping[str, float] = field(default_factory=dict)
    assembly: str = ""
    seconds: float = 0.0
    error: BuildFailure | None = None

    @property
    def ok(self) -> bool:
        """Whether the job was done."""
        return self.error is None
