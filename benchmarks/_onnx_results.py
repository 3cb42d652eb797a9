"""What the node tests came to, as JSON and as the tables of docs/onnx.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks._onnx_cases import FLOAT_OPERATORS
from tvmx.store import write_atomic

RECORD = Path(__file__).with_name("onnx_conformance.json")
"""The committed results."""

PAGE = Path(__file__).resolve().parents[1] / "docs" / "onnx.md"
BEGIN, END = "<!-- conformance -->\n", "<!-- /conformance -->\n"
_LONGEST = 160


class OperatorResult(BaseModel):
    """The tests of one operator by name; ``failed`` and ``apart`` with their reasons."""

    model_config = ConfigDict(extra="forbid")

    passed: list[str] = Field(default_factory=list)
    failed: dict[str, str] = Field(default_factory=dict)
    apart: dict[str, str] = Field(default_factory=dict)

    @property
    def counted(self) -> int:
        """Tests that are not about something else."""
        return len(self.passed) + len(self.failed)


class Conformance(BaseModel):
    """All results by operator; ``versions`` are those they were made with."""

    model_config = ConfigDict(extra="forbid")

    versions: dict[str, str]
    operators: dict[str, OperatorResult] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Conformance | None:
        """What an earlier run left; None where there is nothing that can be read."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None

    def save(self, path: Path) -> None:
        """Write as JSON, in order. Raises UnwritableError."""
        for result in self.operators.values():
            result.passed.sort()
            result.failed = dict(sorted(result.failed.items()))
            result.apart = dict(sorted(result.apart.items()))
        self.operators = dict(sorted(self.operators.items()))
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    def known(self) -> set[str]:
        """Names of the tests with a result."""
        return {n for r in self.operators.values() for n in (*r.passed, *r.failed, *r.apart)}

    def forget_but(self, names: Collection[str]) -> None:
        """Drop results of tests that do not exist any more."""
        for result in self.operators.values():
            result.passed = [name for name in result.passed if name in names]
            for found in (result.failed, result.apart):
                for name in [name for name in found if name not in names]:
                    del found[name]
        self.operators = {n: r for n, r in self.operators.items() if r.counted or r.apart}

    def note(self, operator: str, name: str, reason: str, apart: str) -> None:
        """Keep one test's result, in place of an earlier one."""
        result = self.operators.setdefault(operator, OperatorResult())
        if name in result.passed:
            result.passed.remove(name)
        for found in (result.failed, result.apart):
            found.pop(name, None)
        if apart:
            result.apart[name] = apart
        elif reason:
            result.failed[name] = reason
        else:
            result.passed.append(name)


def share(results: Iterable[OperatorResult]) -> tuple[int, int]:
    """Tests that pass, of how many."""
    found = list(results)
    return sum(len(r.passed) for r in found), sum(r.counted for r in found)


def short_reason(reason: str) -> str:
    """A reason without the names of nodes, on one line of a table."""
    text = re.sub(r"node '[^']*' \(\w+\) (cannot be imported: )?", "", reason)
    text = re.sub(
        r" the model uses operators that cannot be imported:| \([^()]*_[^()]*\)", "", text
    )
    text = re.sub(r"output \d+ is off in \d+ % of its elements", "off", " ".join(text.split()))
    return text.replace("|", "\\|")[:_LONGEST]


def page_section(results: Conformance) -> str:
    """The generated part of docs/onnx.md."""
    aimed = {n: r for n, r in results.operators.items() if n in FLOAT_OPERATORS and r.counted}
    other = {n: r for n, r in results.operators.items() if n not in aimed and r.counted}
    apart = Counter(why for r in results.operators.values() for why in r.apart.values())
    made = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    passed, of = share(aimed.values())
    lines = [
        f"Made with {made}.", "",
        (
            f"**Float operators of inference networks: {passed} of {of} tests pass "
            f"({100 * passed / max(of, 1):.1f} %).**"
        ), "", *_table(aimed), "",
        "Other operators: {} of {} tests pass.".format(*share(other.values())), "",
        *_table(other), "",
        "Set apart, because they are about something else: "
        + ", ".join(f"{why} ({count})" for why, count in sorted(apart.items())) + ".",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(results: dict[str, OperatorResult]) -> list[str]:
    whole = [f"{name} ({r.counted})" for name, r in results.items() if not r.failed]
    lines = ["| operator | pass | what does not |", "|---|---|---|"]
    for name, result in results.items():
        if not result.failed:
            continue
        reasons = Counter(short_reason(reason) for reason in result.failed.values())
        told = "; ".join(f"{why} ({n})" for why, n in sorted(reasons.items()))
        lines.append(f"| {name} | {len(result.passed)}/{result.counted} | {told} |")
    return [f"All tests pass of {', '.join(whole)}.", "", *lines]


def with_section(page: str, section: str) -> str:
    """The page with its generated part replaced."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + section + END + rest.split(END)[1]
