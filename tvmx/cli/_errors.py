"""How a command ends when it does not end well: one message, one hint, an exit code."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer

from tvmx.errors import TvmxError, UnsupportedOpError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
INTERNAL = 70


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a line that says what is kept."""


class Stopped(Interrupted):
    """Ctrl-C as the ordinary end of a command that has said what it had to say."""


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """A command that turns every exception into a message and an exit code.

    Exit codes: 2 usage, 1 other tvmx errors, 130 interrupted, 70 an error in tvmx itself (its
    traceback goes to a file). The command's ``as_json`` parameter adds the error as one JSON
    document on stdout.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except BaseException as err:
            fail(err, as_json=bool(kwargs.get("as_json")))

    return wrapper


def fail(err: BaseException, *, as_json: bool) -> NoReturn:
    """Report ``err`` and leave by typer.Exit; SystemExit and GeneratorExit pass through."""
    if isinstance(err, TvmxError):
        _report(_describe(err), as_json=as_json)
        raise typer.Exit(err.exit_code)
    if isinstance(err, KeyboardInterrupt):
        told = as_json and not isinstance(err, Stopped)
        kept = str(err) if isinstance(err, Interrupted) else "nothing was written"
        _report({"type": "Interrupted", "message": f"interrupted; {kept}"}, as_json=told)
        raise typer.Exit(INTERRUPTED)
    if not isinstance(err, Exception):
        raise err
    _report(_internal(err), as_json=as_json)
    raise typer.Exit(INTERNAL)


def _describe(err: TvmxError) -> dict[str, Any]:
    found: dict[str, Any] = {"type": type(err).__name__, "message": err.message}
    if err.hint:
        found["hint"] = err.hint
    if isinstance(err, UnsupportedOpError):
        found["ops"] = err.ops
    return found


def _internal(err: Exception) -> dict[str, Any]:
    handle, path = tempfile.mkstemp(prefix="tvmx-error-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(f"command: {' '.join(sys.argv)}\n\n")
        traceback.print_exception(err, file=stream)
    text = str(err).strip().splitlines()
    return {
        "type": "InternalError",
        "message": f"internal error: {type(err).__name__}: {text[0] if text else ''}".rstrip(": "),
        "hint": f"the traceback is in {path}; please report it with that file",
    }


def _report(found: dict[str, Any], *, as_json: bool) -> None:
    prefix = "" if found["type"] in ("Interrupted", "InternalError") else "error: "
    sys.stderr.write(f"{prefix}{found['message']}\n")
    if "hint" in found:
        sys.stderr.write(f"hint: {found['hint']}\n")
    sys.stderr.flush()
    if as_json:
        sys.stdout.write(json.dumps({"error": found}) + "\n")
        sys.stdout.flush()
