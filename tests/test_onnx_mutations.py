"""Damaged ONNX files: a typed error or a right result, never a crash, a hang or much memory.

``python -m tests.onnx_mutations --count 2000`` does the same at length, in processes of their own.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests import onnx_mutations as mutations
from tvmx.errors import TvmxError
from tvmx.frontends import check_model


@pytest.mark.parametrize("number", range(len(mutations.seeds())))
def test_the_files_themselves_are_right(number: int) -> None:
    assert mutations.judge(mutations.seeds()[number]) == "right"


def test_damaged_files_are_checked_without_tvm(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    path = tmp_path / "net.onnx"
    for number in range(400):
        path.write_bytes(mutations.mutant(number, seed=1))
        started = time.monotonic()
        try:
            check_model(path)
            seen[""] += 1
        except TvmxError as err:
            assert err.message
            seen[type(err).__name__] += 1
        assert time.monotonic() - started < 10
    assert seen["CorruptModelError"] > 60, seen
    assert seen[""] > 60, seen


def test_damaged_files_through_the_whole_import(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for number in range(150):
        started = time.monotonic()
        kind, _ = mutations.imported(mutations.mutant(number, seed=2), tmp_path)
        assert time.monotonic() - started < 10
        seen[kind] += 1
    assert seen["CorruptModelError"] > 20, seen
    assert seen[""] > 20, seen


def test_damaged_files_that_import_compute_what_they_say() -> None:
    """Built, run and compared with ONNX Runtime."""
    seen = Counter(mutations.judge(mutations.mutant(number, seed=3)) for number in range(12))
    assert seen["right"] > 0, seen
