"""Why something cannot be imported: a converter's own sentence, or what somebody else raised."""

from __future__ import annotations


class RuleError(ValueError):
    """What is wrong with a node, as a sentence; the importer adds the node's name."""


def quoted(err: BaseException) -> str:
    """The kind of an exception and the first line of what it says."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    kind = type(err).__name__
    return f"{kind}: {lines[0][:300]}" if lines else kind


def reason_of(err: BaseException) -> str:
    """Why a converter did not convert a node.

    Only a :class:`RuleError` says it in a sentence of ours. Everything else is a library's or
    Python's, and is told as such: out of its place in the code it can mean anything.
    """
    if isinstance(err, RuleError):
        return str(err)
    return f"its converter does not take it ({quoted(err)})"
