"""Relay text -> tokens, with the source names that comments carry."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvmx.errors import CorruptModelError

_PATTERN = re.compile(
    r"""(?P<space>\s+)
    |(?P<comment>/\*.*?\*/|//[^\n]*)
    |(?P<graph>%\d+)
    |(?P<local>%[A-Za-z_](?:[\w./]|[:\-](?=\w))*)
    |(?P<global>@[A-Za-z_][\w.]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<number>-?(?:(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|inf|nan)(?:f\d*|i\d+|u\d+|h)?(?![\w]))
    |(?P<arrow>->)
    |(?P<name>[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*)
    |(?P<mark>[()\[\]{}<>=,;:.?\#])""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_SPAN = re.compile(r"span=(.+?):-?\d+:-?\d+")


@dataclass(frozen=True, slots=True)
class Token:
    """``kind`` is the name of a group of the pattern, ``end`` after the last."""

    kind: str
    text: str
    line: int
    span: str = ""
    """The source's name for what ends with this token."""


def tokenize(text: str, where: str) -> list[Token]:
    """All tokens of a text, then ``end``. Raises CorruptModelError at what is none."""
    tokens: list[Token] = []
    position, line = 0, 1
    while position < len(text):
        match = _PATTERN.match(text, position)
        if match is None:
            shown = text[position : position + 20].splitlines()[0]
            raise CorruptModelError(
                f"{where}, line {line}: {shown!r} is not Relay text",
                hint="the text is what mod.astext() returns; docs/relay.md has what is read",
            )
        kind, found = str(match.lastgroup), match.group()
        if kind == "comment" and tokens:
            span = _SPAN.search(found)
            if span is not None:
                last = tokens[-1]
                tokens[-1] = Token(last.kind, last.text, last.line, span.group(1))
        elif kind not in ("space", "comment"):
            tokens.append(Token(kind, found, line))
        line += found.count("\n")
        position = match.end()
    tokens.append(Token("end", "", line))
    return tokens
