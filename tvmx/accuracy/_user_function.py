"""A function of the user's: ``module:function`` or ``path/to/file.py:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tvmx.errors import UsageError


def load_function(text: str, what: str, option: str) -> tuple[Callable[..., Any], str]:
    """The function, and 16 hex digits over its module's source ("" where there is none to read).

    A module is imported from Python's path: installed packages and ``PYTHONPATH``, never the
    current directory by itself. A file is named with its ending ``.py``, relative to the current
    directory or absolute. Importing either runs it. ``what`` the function is and the ``option``
    it was given with are for messages.

    Raises:
        UsageError: the text has another form; there is no such module, file or function; the
            module raises when it is imported.
    """
    return _Given(text, what, option).load()


@dataclass(frozen=True)
class _Given:
    text: str
    what: str
    option: str

    def load(self) -> tuple[Callable[..., Any], str]:
        place, _, attribute = self.text.rpartition(":")
        if not place or not attribute.isidentifier():
            raise UsageError(f"{self.what} {self.text!r} is no MODULE:FUNCTION", hint=self._form)
        is_file = place.endswith(".py")
        module = self._from_file(Path(place)) if is_file else self._from_path(place)
        function = getattr(module, attribute, None)
        if not callable(function):
            problem = "is no function" if hasattr(module, attribute) else "does not exist"
            raise UsageError(
                f"{self.what} {self.text}: {attribute!r} in {place} {problem}",
                hint=self._functions(module),
            )
        return function, _fingerprint(module, attribute)

    @property
    def _form(self) -> str:
        return f"give {self.option} MODULE:FUNCTION, or FILE.py:FUNCTION for a file"

    def _from_path(self, name: str) -> ModuleType:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(
                f"{self.what} {self.text!r}: {name!r} is no module name", hint=self._form
            )
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as err:
            missing = err.name or ""
            if name == missing or name.startswith(f"{missing}."):
                raise UsageError(
                    f"{self.what} {self.text}: there is no module {missing!r} on Python's path",
                    hint=f"for a file give its name, {self.option} "
                    f"./{name.split('.')[-1]}.py:FUNCTION, or set PYTHONPATH",
                ) from err
            raise self._import_error(err) from err
        except Exception as err:
            raise self._import_error(err) from err

    def _from_file(self, path: Path) -> ModuleType:
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise UsageError(f"{self.what} {self.text}: file {path} {problem}", hint=self._form)
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        spec = importlib.util.spec_from_file_location(f"_tvmx_user_{digest}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as err:
            raise self._import_error(err) from err
        return module

    def _import_error(self, err: Exception) -> UsageError:
        return UsageError(
            f"{self.what} {self.text}: importing it raised {type(err).__name__}: {err}",
            hint="import it in Python to see where",
        )

    def _functions(self, module: ModuleType) -> str:
        found = [
            name for name, value in vars(module).items()
            if inspect.isfunction(value) and not name.startswith("_")
        ]  # fmt: skip
        return f"functions there: {', '.join(sorted(found))}" if found else self._form


def _fingerprint(module: ModuleType, attribute: str) -> str:
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(f"{attribute}\0{source}".encode()).hexdigest()[:16]
