"""Output: the only way a command speaks. Human text, or one JSON document with ``--json``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

WIDE = 200
"""Columns of tables where stdout is no terminal: a pipe has no width to fit."""


class Screen:
    """What a human reads, on stdout: lines, name-value pairs, tables."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str = "", *, style: str | None = None) -> None:
        """One paragraph."""
        self._console.print(text, style=style, soft_wrap=True)

    def command(self, text: str) -> None:
        """Something to type or paste: indented, never wrapped."""
        self._console.print(f"    {text}", style="bold", soft_wrap=True)

    def fields(self, pairs: Mapping[str, object]) -> None:
        """Aligned ``name  value`` lines; values that are None are left out."""
        shown = {name: str(value) for name, value in pairs.items() if value is not None}
        width = max(map(len, shown), default=0)
        for name, value in shown.items():
            self.line(f"{name:<{width}}  {value}")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        title: str | None = None,
        right: Sequence[str] = (),
        footer: Sequence[object] = (),
    ) -> None:
        """A table; the columns named in ``right`` are aligned right, None cells are blank."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_footer=bool(footer),
            pad_edge=False,
        )
        texts = [_cell(value) for value in footer] or [""] * len(columns)
        for name, foot in zip(columns, texts, strict=True):
            table.add_column(
                name,
                foot,
                justify="right" if name in right else "left",
                no_wrap=name in right,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self._console.print(table)


class Output:
    """Where a command's result goes.

    ``emit`` is called once per command with the data and how a human sees it. With ``--json``
    the data is the one document on stdout, and nothing else is said.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def emit(self, data: BaseModel | Mapping[str, Any], render: Callable[[Screen], None]) -> None:
        """Show a result."""
        if self.as_json:
            document = data if isinstance(data, Mapping) else data.model_dump(mode="json")
            text = json.dumps(_finite(document), indent=1, default=str, allow_nan=False)
            sys.stdout.write(text + "\n")
        else:
            render(Screen(_console(sys.stdout)))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark beside the result, on stderr; silent with ``--json``."""
        if not self.as_json:
            _console(sys.stderr).print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something that must not be missed, on stderr, with ``--json`` too."""
        _console(sys.stderr).print(text, style="bold red", soft_wrap=True)


def _console(stream: Any) -> Console:
    from rich.console import Console

    width = None if stream.isatty() else WIDE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
