"""Load schedule templates from files: one module per file content, errors without tracebacks."""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType

from tvmx.errors import TemplateLoadError
from tvmx.templates._base import ScheduleTemplate

_MODULES: dict[tuple[str, str], ModuleType] = {}


def fingerprint_of(path: Path) -> str:
    """First 12 hex digits of the SHA-256 of a template's source text."""
    return _digest(_read(path))


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise TemplateLoadError(f"cannot read template file {path}: {err.strerror}") from err


def _explain(path: Path, err: BaseException) -> TemplateLoadError:
    frames = reversed(traceback.extract_tb(err.__traceback__))
    line = next((f.lineno for f in frames if f.filename == str(path)), None)
    if isinstance(err, SyntaxError) and err.filename == str(path):
        line = err.lineno
    where = f"{path}:{line}" if line else str(path)
    text = err.msg if isinstance(err, SyntaxError) else str(err)
    return TemplateLoadError(
        f"template file {where} cannot be imported: {type(err).__name__}: {text}",
        hint=f"tvmx schedules check {path}",
    )


def _import_file(path: Path) -> ModuleType:
    source = _read(path)
    key = (str(path), _digest(source))
    if key in _MODULES:
        return _MODULES[key]
    # Not through the import system: its bytecode cache goes by time and size, so that a quick
    # edit could run the old code under the new fingerprint.
    module = ModuleType(f"tvmx_schedules_{path.stem}_{_digest(repr(key).encode())}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    linecache.checkcache(str(path))
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as err:
        del sys.modules[module.__name__]
        raise _explain(path, err) from err
    _MODULES[key] = module
    return module


def templates_in(module: ModuleType, where: str) -> list[ScheduleTemplate]:
    """One instance of every concrete :class:`ScheduleTemplate` that ``module`` itself defines.

    Raises :class:`TemplateLoadError` when there is none, or one has no ``name`` or ``op``.
    """
    found = []
    for cls in vars(module).values():
        if not (inspect.isclass(cls) and issubclass(cls, ScheduleTemplate)):
            continue
        if cls.__module__ != module.__name__ or inspect.isabstract(cls):
            continue
        for attribute in ("name", "op"):
            if not isinstance(getattr(cls, attribute, None), str):
                raise TemplateLoadError(
                    f"{where}: class {cls.__name__} sets no {attribute!r} string"
                )
        try:
            found.append(cls())
        except Exception as err:
            raise TemplateLoadError(
                f"{where}: class {cls.__name__} cannot be created without arguments: {err}"
            ) from err
    if not found:
        raise TemplateLoadError(
            f"{where} defines no concrete ScheduleTemplate subclass",
            hint="see docs/schedules.md, or start from examples/schedules/",
        )
    return found


def load_templates(path: Path) -> list[ScheduleTemplate]:
    """All templates of one file. Raises :class:`TemplateLoadError`."""
    path = path.resolve()
    return templates_in(_import_file(path), str(path))


def load_template(name: str, path: Path | str) -> ScheduleTemplate:
    """Exactly one template by name and file: what a worker process calls.

    The module is cached per file content. Raises :class:`TemplateLoadError`.
    """
    templates = load_templates(Path(path))
    for template in templates:
        if template.name == name:
            return template
    known = ", ".join(t.name for t in templates)
    raise TemplateLoadError(f"{path} has no template {name!r} (it has {known})")
