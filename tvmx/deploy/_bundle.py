"""Bundles: a folder with the library, its manifest, golden data, the plan and a runner."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tvmx.build import read_elf
from tvmx.deploy._manifest import MANIFEST_SCHEMA, Manifest, TensorSpec
from tvmx.errors import BuildError, BundleError, UsageError
from tvmx.ir import Plan
from tvmx.store import make_folder, sync_folder, unwritable

Array = npt.NDArray[Any]

LIBRARY = "model.so"
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
PLAN = "plan.json"
RUNNER = "run.py"
_FILES = (LIBRARY, GOLDEN, PLAN, RUNNER)
_TEMPLATE = Path(__file__).with_name("_run_template.py")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found complete and unaltered."""

    path: Path
    manifest: Manifest

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.path / LIBRARY

    @property
    def plan(self) -> Plan:
        """The plan the library was built from."""
        return Plan.load(self.path / PLAN)

    def golden_inputs(self) -> dict[str, Array]:
        """Input name to array, as the manifest specifies them."""
        with np.load(self.path / GOLDEN, allow_pickle=False) as data:
            return {spec.name: data[f"input_{spec.name}"] for spec in self.manifest.inputs}

    def golden_outputs(self) -> list[Array]:
        """The right outputs for the golden inputs, in order."""
        with np.load(self.path / GOLDEN, allow_pickle=False) as data:
            return [data[f"output_{i}"] for i in range(len(self.manifest.outputs))]


def write_bundle(
    out: Path,
    library: Path,
    manifest: Manifest,
    golden_inputs: Mapping[str, Array],
    golden_outputs: Sequence[Array],
    plan: Plan,
    beside_plan: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write a bundle to the folder ``out``, whole or not at all.

    ``golden_inputs`` maps input names to arrays and ``golden_outputs`` lists the right
    answers, both as ``manifest`` specifies them; ``beside_plan`` are further files that the plan
    names (its pruned weights), by path below the bundle. An earlier bundle at ``out`` is replaced;
    any other content is left alone with a UsageError. Raises UnwritableError, and
    BundleError when library, golden data or plan contradict the manifest.
    """
    _check_consistent(library, manifest, golden_inputs, golden_outputs, plan)
    out = out.resolve()
    _check_replaceable(out)
    make_folder(out.parent)
    try:
        part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            files = {
                GOLDEN: _golden(golden_inputs, golden_outputs), RUNNER: _TEMPLATE.read_bytes(),
                **(beside_plan or {}),
            }  # fmt: skip
            _fill(part, library, manifest, plan, files)
            part.chmod(0o755)
            _move_in(part, out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as err:
        raise unwritable(out, err) from err
    return load_bundle(out)


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and compare every file with its hash.

    Raises BundleError that names the missing, altered or unreadable file.
    """
    manifest = _read_manifest(path)
    missing = [name for name in _FILES if name not in manifest.files]
    if missing:
        raise BundleError(f"{path / MANIFEST} lists no {missing[0]}: not a complete bundle")
    for name, expected in manifest.files.items():
        file = path / name
        try:
            actual = _sha256(file)
        except OSError as err:
            raise BundleError(
                f"bundle file {file} cannot be read: {err.strerror}", hint=_AGAIN
            ) from err
        if actual != expected:
            raise BundleError(f"bundle file {file} was altered: its hash differs", hint=_AGAIN)
    return Bundle(path, manifest)


_AGAIN = "write the bundle again: tvmx export RUN --out BUNDLE"


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except OSError as err:
        raise BundleError(f"{path} is no bundle: no readable {MANIFEST} ({err.strerror})") from err
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise BundleError(f"{file} is damaged at {where}: {first['msg']}", hint=_AGAIN) from err
    if manifest.schema_version != MANIFEST_SCHEMA:
        raise BundleError(
            f"{file} has schema {manifest.schema_version}, this tvmx reads {MANIFEST_SCHEMA}"
        )
    return manifest


def _check_consistent(
    library: Path,
    manifest: Manifest,
    inputs: Mapping[str, Array],
    outputs: Sequence[Array],
    plan: Plan,
) -> None:
    if plan.digest != manifest.plan_digest:
        raise BundleError(
            f"the manifest names plan {manifest.plan_digest}, the plan given is {plan.digest}"
        )
    try:
        machine = read_elf(library).machine
    except BuildError as err:
        raise BundleError(err.message) from err
    if machine != manifest.arch:
        raise BundleError(
            f"{library} is for {machine}, target {manifest.target} is {manifest.arch}"
        )
    if set(inputs) != {spec.name for spec in manifest.inputs}:
        raise BundleError(
            f"golden inputs are {', '.join(sorted(inputs))}, the model's are"
            f" {', '.join(spec.name for spec in manifest.inputs)}"
        )
    if len(outputs) != len(manifest.outputs):
        raise BundleError(f"{len(outputs)} golden outputs, the model has {len(manifest.outputs)}")
    for spec in manifest.inputs:
        _check_array("golden input", spec, inputs[spec.name])
    for spec, array in zip(manifest.outputs, outputs, strict=True):
        _check_array("golden output", spec, array)


def _check_array(what: str, spec: TensorSpec, array: Array) -> None:
    if array.shape != spec.shape or array.dtype.name != spec.dtype:
        raise BundleError(
            f"{what} {spec.name!r} is {array.dtype.name}{list(array.shape)},"
            f" the manifest says {spec.dtype}{list(spec.shape)}"
        )


def _check_replaceable(out: Path) -> None:
    """Refuse to replace anything but an earlier bundle or an empty folder."""
    hint = "name another folder with --out"
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file, not a bundle's folder", hint=hint)
    try:
        files = [f for f in out.rglob("*") if f.is_symlink() or not f.is_dir()]
        names = {str(f.relative_to(out)) for f in files if f.parent.name != "__pycache__"}
    except OSError as err:
        raise unwritable(out, err) from err
    if not names:
        return
    try:
        known = {MANIFEST, *_FILES, *_read_manifest(out).files}
    except BundleError as err:
        raise UsageError(f"{out} is not empty and not a tvmx bundle", hint=hint) from err
    foreign = sorted(names - known)
    if foreign:
        raise UsageError(
            f"bundle {out} also holds {', '.join(foreign[:3])}, which replacing it would delete",
            hint=hint,
        )


def _fill(
    part: Path, library: Path, manifest: Manifest, plan: Plan, files: Mapping[str, bytes]
) -> None:  # fmt: skip
    shutil.copyfile(library, part / LIBRARY)
    plan.save(part / PLAN)
    for name, content in files.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(content)
    names = dict.fromkeys((*_FILES, *files))
    hashes = {name: _sha256(part / name) for name in names}
    complete = manifest.model_copy(update={"files": hashes})
    (part / MANIFEST).write_text(complete.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name in (*names, MANIFEST):
        with (part / name).open("rb") as stream:
            os.fsync(stream.fileno())
    for folder in {part, *((part / name).parent for name in names)}:
        sync_folder(folder)


def _golden(inputs: Mapping[str, Array], outputs: Sequence[Array]) -> bytes:
    arrays: dict[str, Any] = {f"input_{name}": array for name, array in inputs.items()}
    arrays |= {f"output_{i}": array for i, array in enumerate(outputs)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _move_in(part: Path, out: Path) -> None:
    """Rename ``part`` to ``out``; an earlier bundle is there until the new one is."""
    if not out.exists():
        part.rename(out)
        sync_folder(out.parent)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    try:
        out.rename(old / "bundle")
        try:
            part.rename(out)
        except OSError:
            (old / "bundle").rename(out)
            raise
        sync_folder(out.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
