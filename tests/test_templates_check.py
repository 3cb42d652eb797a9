"""The conformance checker must find what is wrong with a template: every check can fail."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tvmx.errors import TemplateLoadError
from tvmx.targets import load_target
from tvmx.templates import load_templates
from tvmx.testing._conformance import CHECKS, supported
from tvmx.testing.templates import check_template_file, measured_peak_gflops

TOY = textwrap.dedent(
    '''
    from tvmx._tvm import te
    from tvmx.ir import Config, Space
    from tvmx.templates import Kernel, ScheduleTemplate, apply_epilogue, kernel_arguments

    COUNTER = iter(range(10**6))

    class Toy(ScheduleTemplate):
        """Dense, not scheduled at all."""

        name = "toy"
        op = "dense"

        def supports(self, workload, target):
            return None if workload.op == "dense" else "computes dense only"

        def layouts(self, workload, target):
            return ("NC", "NC")

        def space(self, workload, target):
            return Space({"knob": [1, 2]}, default={"knob": 1})

        def build(self, workload, config, target):
            self.space(workload, target).check(config, self.name)
            w = workload
            x = te.placeholder((w.batch, w.in_features), name="x")
            g = te.placeholder((w.out_features, w.in_features), name="g")
            b = te.placeholder((w.out_features,), name="b")
            r = te.placeholder((w.batch, w.out_features), name="r")
            k = te.reduce_axis((0, w.in_features), name="k")
            y = te.compute(w.out_shape, lambda m, n: te.sum(x[m, k] * g[n, k], axis=k), name="y")
            o = te.compute(w.out_shape, lambda m, n: apply_epilogue(
                y[m, n], w.epilogue, lambda: b[n], lambda: r[m, n]), name="o")
            func = te.create_prim_func(kernel_arguments(x, g, b, r, w.epilogue, o))
            return Kernel(func.with_attr("tirx.is_scheduled", True), lambda w: w, lambda b: b)
    '''
)


def write(folder: Path, *edits: tuple[str, str]) -> Path:
    text = TOY
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    file = folder / "toy.py"
    file.write_text(text)
    return file


def test_a_right_template_passes_and_is_timed(tmp_path: Path) -> None:
    result = check_template_file(write(tmp_path))
    assert result.passed, [c for c in result.checks if not c.passed]
    assert {c.check for c in result.checks} == {
        "supports", "layouts", "space", "illegal config", "purity", "correctness",
        "in place", "description",
    }  # fmt: skip
    (described,) = (c.detail for c in result.checks if c.check == "description")
    assert described.endswith("loop nests described: the tuner ranks configs by them")
    assert result.performance
    for figure in result.performance:
        assert figure.gflops > 0
        assert figure.peak_share == pytest.approx(figure.gflops / result.peak_gflops, rel=0.02)
    assert result.model_dump(mode="json")["passed"] is True


def test_what_the_tuner_cannot_rank_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise ValueError("a loop nest of another kind\nand more")

    monkeypatch.setattr("tvmx.build._nest_features.nest_features", refuse)
    result = check_template_file(write(tmp_path))
    (told,) = (c for c in result.checks if c.check == "description")
    assert told.passed and result.passed
    assert "cannot be described, so the tuner does not rank their configs" in told.detail
    assert told.detail.endswith("ValueError: a loop nest of another kind")


@pytest.mark.parametrize(
    ("check", "old", "new", "says"),
    [
        ("supports", 'else "computes dense only"', "else None", "accepts conv2d"),
        ("supports", 'else "computes dense only"', "else False", "returned False"),
        ("supports", 'return None if workload.op == "dense"', "return 'never' if True", "examples"),
        ("layouts", '("NC", "NC")', '("NC", "CN")', "'CN'"),
        ("space", '{"knob": [1, 2]}', '{"knob": list(range(9000))}', "9000 points"),
        ("space", '{"knob": [1, 2]}', '{"knob": [1, next(COUNTER) + 2]}', "differ"),
        ("illegal config", "self.space(workload, target).check", "print", "built"),
        ("purity", "y[m, n], w.ep", "y[m, n] + next(COUNTER) * 1e-9, w.ep", "differ"),
        ("purity", '.with_attr("tirx.is_scheduled", True)', "", "is_scheduled"),
        ("correctness", "x[m, k] * g[n, k]", "x[m, k] * g[n, k] * 1.01", "off by"),
        ("correctness", "y[m, n], w.ep", "te.sqrt(y[m, n] * 0.0 - 1.0), w.ep", "not all finite"),
        ("correctness", "lambda w: w,", "lambda w: w[:, :1],", "contract gives it"),
        ("correctness", "te.sum(x", "te.max(x", "off by"),
    ],
)
def test_mistakes_are_found(tmp_path: Path, check: str, old: str, new: str, says: str) -> None:
    (template,) = load_templates(write(tmp_path, (old, new)))
    target = load_target("host")
    cases = supported(template, target)
    with pytest.raises(AssertionError) as caught:
        CHECKS[check](template, cases[:2], target)
    assert says in str(caught.value)


def test_a_wrong_template_fails_and_is_not_timed(tmp_path: Path) -> None:
    result = check_template_file(write(tmp_path, ("x[m, k] * g[n, k]", "x[m, k] * g[n, 0]")))
    assert not result.passed
    assert [c.check for c in result.checks if not c.passed] == ["correctness"]
    assert not result.performance, "a wrong kernel's speed is nobody's business"


def test_a_file_that_does_not_import(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(TemplateLoadError, match=r"broken\.py:1 .*ZeroDivisionError"):
        check_template_file(file)


def test_measured_peak_is_plausible() -> None:
    target = load_target("host")
    peak = measured_peak_gflops(target)
    per_cycle = 2 * target.lanes("float32")
    # From a badly throttled core to three multiply-add pipes at 6 GHz.
    assert 0.2 * per_cycle < peak < 3 * 6 * per_cycle


def test_timing_leaves_the_process_on_all_its_cores() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no CPU affinity on this system")
    before = os.sched_getaffinity(0)
    assert measured_peak_gflops.__wrapped__(load_target("host")) > 1
    assert os.sched_getaffinity(0) == before
