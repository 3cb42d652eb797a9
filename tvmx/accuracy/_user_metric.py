"""A metric of the user's: ``--metric module:function`` or ``--metric path/to/file.py:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._metric import Score
from tvmx.errors import DataError, UsageError

Array = npt.NDArray[Any]
Function = Callable[[Array, Array | None], Any]

_FORM = "give --metric MODULE:FUNCTION, or FILE.py:FUNCTION for a file"
_CONTRACT = (
    "it is called as function(outputs, labels) with NumPy arrays (labels None where the data "
    "has none) and returns percent, more is better"
)


@dataclass(frozen=True)
class UserMetric:
    """A function ``(outputs (samples, ...), labels (samples,) or None) -> percent``.

    ``name`` is what the user typed; scores are of that kind.
    """

    name: str
    function: Function
    fingerprint: str = ""

    def score(self, outputs: Array, *, labels: Array | None, reference: Array) -> Score:
        """What the function returns for copies of the arrays.

        Raises:
            DataError: it raised, or returned something that is no finite number.
        """
        if len(outputs) == 0:
            raise DataError("there is no sample to score")
        try:
            found = self.function(outputs.copy(), None if labels is None else labels.copy())
        except Exception as err:
            raise DataError(
                f"metric {self.name} raised {type(err).__name__}: {err}", hint=_CONTRACT
            ) from err
        return Score(self.name, self._number(found), len(outputs))

    def margins(self, outputs: Array, *, labels: Array | None, reference: Array) -> None:
        """None: nothing is known about its decisions."""

    def _number(self, found: Any) -> float:
        try:
            array = np.asarray(found)
            number = float(array.reshape(())) if array.dtype.kind in "iuf" else None
        except (TypeError, ValueError):
            number = None
        if number is None:
            raise DataError(
                f"metric {self.name} returned {type(found).__name__}, not a number",
                hint=_CONTRACT,
            )
        if not math.isfinite(number):
            raise DataError(f"metric {self.name} returned {number}", hint=_CONTRACT)
        return number


def load_metric(text: str) -> UserMetric:
    """The metric ``module:function`` or ``file.py:function``.

    A module is imported from Python's path: installed packages and ``PYTHONPATH``, never the
    current directory by itself. A file is named with its ending ``.py``, relative to the current
    directory or absolute. Importing either runs it.

    Raises:
        UsageError: the text has another form; there is no such module, file or function; the
            module raises when it is imported.
    """
    place, _, attribute = text.rpartition(":")
    if not place or not attribute.isidentifier():
        raise UsageError(f"metric {text!r} is no MODULE:FUNCTION", hint=_FORM)
    is_file = place.endswith(".py")
    module = _from_file(Path(place), text) if is_file else _from_path(place, text)
    function = getattr(module, attribute, None)
    if not callable(function):
        what = "is no function" if hasattr(module, attribute) else "does not exist"
        raise UsageError(f"metric {text}: {attribute!r} in {place} {what}", hint=_functions(module))
    return UserMetric(text, function, _fingerprint(module, attribute))


def _from_path(name: str, text: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"metric {text!r}: {name!r} is no module name", hint=_FORM)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        missing = err.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(
                f"metric {text}: there is no module {missing!r} on Python's path",
                hint=f"for a file give its name, --metric ./{name.split('.')[-1]}.py:FUNCTION, "
                "or set PYTHONPATH",
            ) from err
        raise _import_error(text, err) from err
    except Exception as err:
        raise _import_error(text, err) from err


def _from_file(path: Path, text: str) -> ModuleType:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"metric {text}: file {path} {what}", hint=_FORM)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_tvmx_metric_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise _import_error(text, err) from err
    return module


def _import_error(text: str, err: Exception) -> UsageError:
    return UsageError(
        f"metric {text}: importing it raised {type(err).__name__}: {err}",
        hint="import it in Python to see where",
    )


def _functions(module: ModuleType) -> str:
    found = [
        name for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]  # fmt: skip
    return f"functions there: {', '.join(sorted(found))}" if found else _FORM


def _fingerprint(module: ModuleType, attribute: str) -> str:
    """16 hex digits over the module's source, "" where there is none to read."""
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(f"{attribute}\0{source}".encode()).hexdigest()[:16]
