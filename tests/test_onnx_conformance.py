"""The onnx package's node tests: a part of what passed still does, and the page says what is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks._onnx_cases import FLOAT_OPERATORS, Case, node_cases
from benchmarks._onnx_results import BEGIN, END, PAGE, RECORD, Conformance, page_section, share
from benchmarks._onnx_run import run_case
from tvmx.frontends._onnx_ops import EXPANDED, OWN, SUPPORTED

MODULES = (
    "affinegrid", "averagepool", "batch_normalization", "celu", "clip", "concat", "conv",
    "convtranspose", "cumsum", "depthtospace", "einsum", "gather", "gathernd", "gemm",
    "groupnormalization", "instance_normalization", "lppool", "lrn", "maxpool", "mod", "onehot",
    "pad", "prelu", "qlinearmatmul", "reducemax", "resize", "rmsnormalization",
    "rotaryembedding", "scatterelements", "slice", "softmax", "spacetodepth", "split", "squeeze",
    "topk", "upsample",
)  # fmt: skip
"""Operators with rules of tvmx's own, or that networks are made of; a node test file each."""


@pytest.fixture(scope="module")
def recorded() -> Conformance:
    results = Conformance.load(RECORD)
    assert results is not None
    return results


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {case.name: case for case in node_cases(MODULES)}


def test_the_record_knows_these_tests(recorded: Conformance, cases: dict[str, Case]) -> None:
    assert len(cases) > 300
    assert set(cases) <= recorded.known()
    for case in cases.values():
        assert (case.name in recorded.operators[case.operator].apart) == bool(case.apart)


def test_what_passed_still_passes(recorded: Conformance, cases: dict[str, Case]) -> None:
    """Two of each operator: of many results one would say little, and all take minutes."""
    chosen = []
    for result in recorded.operators.values():
        names = [name for name in result.passed if name in cases]
        chosen += [*names[:1], *names[1:][len(names) // 2 :][:1]]
    assert len(chosen) > 55
    failed = {name: reason for name in chosen if (reason := run_case(cases[name]))}
    assert not failed


def test_a_wrong_figure_is_seen(cases: dict[str, Case]) -> None:
    case = cases["test_clip"]
    assert run_case(case) == ""
    (wanted,) = case.outputs
    wrong = dataclasses.replace(case, outputs=(wanted + np.float32(0.01),))
    assert run_case(wrong).startswith("wrong figures: output 0 is off in 100 %")
    shape = dataclasses.replace(case, outputs=(wanted[:1],))
    assert "instead of float32" in run_case(shape)


def test_the_aim_is_met(recorded: Conformance) -> None:
    results = [r for name, r in recorded.operators.items() if name in FLOAT_OPERATORS]
    passed, of = share(results)
    assert of > 1100
    assert passed > 0.95 * of
    reasons = [why for result in results for why in result.failed.values()]
    assert not [why for why in reasons if why.startswith(("untyped", "crashes", "hangs", "wrong"))]


def test_every_operator_that_is_supported_is_tested(recorded: Conformance) -> None:
    """But those without a node test, and those whose tests are of other types or opsets."""
    without = {name for name in SUPPORTED | OWN | EXPANDED
               if not (found := recorded.operators.get(name)) or not found.passed}  # fmt: skip
    assert without <= UNTESTED, without - UNTESTED


UNTESTED = {"Cast", "CastLike", "GlobalLpPool", "MaxRoiPool", "Not"}


def test_the_page_is_up_to_date(recorded: Conformance) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0] == page_section(recorded), (
        "run: python benchmarks/onnx_conformance.py --update-docs"
    )
