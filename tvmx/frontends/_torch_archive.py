"""Reading a ``torch.export`` archive (.pt2) with the zip and json modules alone.

``torch.export.load`` must not see a file nobody vouches for: it unpickles tensor subclasses,
custom objects and sample inputs, evaluates the expressions of symbolic shapes as Python, pastes
names into generated source code and loads libraries that the archive carries. So the archive is
read here, where nothing can run. What it says is data to be checked (:mod:`_torch_check`), and
torch gets an archive written anew from the checked parts (:mod:`_torch_program`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmx.errors import CorruptModelError, ModelError, TvmxError, UsageError
from tvmx.frontends._reason import quoted

EXPORT_HINT = (
    "where the module's class is at hand, export it:\n"
    "program = torch.export.export(model.eval(), (torch.randn(1, 3, 224, 224),))\n"
    'torch.export.save(program, "model.pt2")'
)
_AGAIN = "export or copy the file again"
_OLD_HINT = (
    "save it again with torch 2.9 or later: torch.export.save(torch.export.load(old), 'model.pt2')"
)
_PICKLES = ("data.pkl", "constants.pkl")
_STUMBLES = (LookupError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile,
             RuntimeError, OSError)  # fmt: skip
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16",
    28: "uint16", 34: "uint32", 35: "uint64",
}  # fmt: skip
"""torch's numbers of element types (its serialisation schema) as NumPy spells them."""


@dataclass(frozen=True)
class Payload:
    """A stored tensor: its record and how that is to be seen (torch's tensor meta)."""

    record: str
    is_param: bool
    meta: dict[str, Any]


@dataclass(frozen=True)
class TorchArchive:
    """The parts of an archive that describe the network, unchecked beyond being JSON.

    ``graph`` and ``signature`` are torch's JSON; ``ranges`` limits symbolic sizes. ``weights``
    and ``constants`` map names in the signature to stored tensors, read on demand.
    """

    path: Path
    prefix: str
    document: dict[str, Any]
    weights: dict[str, Payload]
    constants: dict[str, Payload]

    @property
    def graph(self) -> dict[str, Any]:
        """Inputs, nodes, outputs and the meta data of every value."""
        found: dict[str, Any] = self.document["graph_module"]["graph"]
        return found

    @property
    def signature(self) -> dict[str, Any]:
        """What each graph input and output is: parameter, buffer, constant or the user's."""
        found: dict[str, Any] = self.document["graph_module"]["signature"]
        return found

    def payloads(self, folder: str, stored: dict[str, Payload]) -> Iterator[tuple[str, bytes]]:
        """The records of ``stored`` in a folder of the archive, each once, with their bytes.

        Raises:
            CorruptModelError: a record is missing or damaged.
        """
        with damage(self.path), zipfile.ZipFile(self.path) as archive:
            for record in dict.fromkeys(payload.record for payload in stored.values()):
                yield record, archive.read(f"{self.prefix}{folder}{record}")


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Whatever stumbles over unexpected content raises CorruptModelError."""
    try:
        yield
    except TvmxError:
        raise
    except _STUMBLES as err:
        raise CorruptModelError(f"{path} is damaged ({quoted(err)})", hint=_AGAIN) from err


def refuse_pickle(path: Path) -> None:
    """Raise the ModelError for a pickled module or state dict."""
    raise ModelError(
        f"{path} is a pickled PyTorch module or state dict: reading it would run code from the "
        "file, and it does not say what the network computes",
        hint=EXPORT_HINT,
    )


def read_archive(path: Path) -> TorchArchive:
    """Read the network's description from a ``.pt2`` file; nothing of it is executed.

    Raises:
        CorruptModelError: empty, truncated or no archive of torch.export.
        ModelError: a pickled module, an older archive format, or parts that only unpickling
            could read.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError as err:
        raise UsageError(f"cannot read model {path}: {err.strerror}") from err
    if not head:
        raise CorruptModelError(f"{path} is empty")
    if head[:1] == b"\x80":
        refuse_pickle(path)
    if head != b"PK\x03\x04":
        raise CorruptModelError(f"{path} is no archive of torch.export", hint=EXPORT_HINT)
    try:
        with damage(path), zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except CorruptModelError as err:
        if "not a zip file" in err.message:
            size = path.stat().st_size
            raise CorruptModelError(f"{path} is cut off after {size} bytes", hint=_AGAIN) from err
        raise


def _read(archive: zipfile.ZipFile, path: Path) -> TorchArchive:
    names = archive.namelist()
    prefix = f"{names[0].split('/')[0]}/" if names else ""
    records = {name.removeprefix(prefix) for name in names}
    _check_records(archive, records, prefix, path)
    document = _json(archive, f"{prefix}models/model.json")
    return TorchArchive(
        path=path,
        prefix=prefix,
        document=document,
        weights=_payloads(archive, prefix, "weights", path),
        constants=_payloads(archive, prefix, "constants", path),
    )


def _check_records(archive: zipfile.ZipFile, records: set[str], prefix: str, path: Path) -> None:
    names = archive.namelist()
    if "archive_format" not in records:
        if records & set(_PICKLES):
            refuse_pickle(path)
        if "serialized_exported_program.json" in names:
            raise ModelError(f"{path} is in the archive format of torch before 2.8", hint=_OLD_HINT)
        raise CorruptModelError(f"{path} is no archive of torch.export", hint=EXPORT_HINT)
    if len(set(names)) != len(names) or not all(name.startswith(prefix) for name in names):
        raise CorruptModelError(f"{path} is damaged: ambiguous records", hint=_AGAIN)
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ModelError(f"{path} is compressed; torch.export stores plainly", hint=EXPORT_HINT)
    if {"data/weights/model.pt", "data/constants/model.pt"} & records:
        raise ModelError(f"{path} holds pickled weights, as older torch saved", hint=_OLD_HINT)
    models = sorted(r for r in records if r.startswith("models/"))
    if models != ["models/model.json"]:
        listed = ", ".join(models) or "none"
        raise ModelError(
            f"{path} holds the programs {listed}; one, model.json, can be imported",
            hint="save one program with torch.export.save",
        )


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    found = json.loads(archive.read(name))
    if not isinstance(found, dict):
        raise TypeError(f"{name} holds no JSON object")
    return found


def _payloads(archive: zipfile.ZipFile, prefix: str, kind: str, path: Path) -> dict[str, Payload]:
    folder = f"{prefix}data/{kind}/"
    config = _json(archive, f"{folder}model_{kind}_config.json")["config"]
    pickled = [name for name, entry in config.items() if entry["use_pickle"]]
    if pickled:
        raise ModelError(
            f"{path} holds pickled {kind} ({', '.join(map(repr, pickled[:4]))}): "
            "reading them would run code from the file",
            hint="export a model of plain tensors, without custom objects or tensor subclasses",
        )
    found = {}
    for name, entry in config.items():
        payload = Payload(entry["path_name"], bool(entry["is_param"]), entry["tensor_meta"])
        archive.getinfo(f"{folder}{payload.record}")
        found[name] = payload
    return found
