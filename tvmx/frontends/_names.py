"""Names of source nodes as names of Relax variables."""

from __future__ import annotations

import re


def identifier(name: str) -> str:
    """``name`` as a Relax variable name: letters, digits and underscores."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return text if text and not text[0].isdigit() else f"_{text}"
