"""What runs in a Ray worker that builds kernels; TVM is imported with the first call."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tvmx.build._job import BuildResult, KernelBuild


class Shipped(NamedTuple):
    """A result from another machine: its library as bytes."""

    result: BuildResult
    library: bytes | None


class Builder:
    """Builds one kernel at a time. Nothing outside the worker's temporary folders is written."""

    def __init__(self) -> None:
        self._templates = tempfile.TemporaryDirectory(prefix="tvmx-ray-templates-")

    def ready(self) -> str:
        """The version of tvmx here; imports TVM."""
        import tvmx
        from tvmx.build import _worker

        _worker.ready()
        return tvmx.__version__

    def build(self, job: KernelBuild, template: str) -> Shipped:
        """The kernel of a job; ``template`` is the text of its template's file."""
        from tvmx.build import _worker

        with tempfile.TemporaryDirectory(prefix="tvmx-ray-") as folder:
            path = self._template(Path(job.template_path), template)
            here = replace(job, folder=folder, template_path=str(path))
            result = _worker.build_kernel(here)
            library = None if result.library is None else result.library.read_bytes()
        return Shipped(result, library)

    def _template(self, path: Path, text: str) -> Path:
        """The template's own file where it is the same here, else a copy of it.

        A copy is made once: modules are kept by path and content.
        """
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return path
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        copy = Path(self._templates.name) / digest / path.name
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")
        return copy
