# ruff: noqa: D102 -- the names of the tests are their documentation
"""TemplateTestCase and the checker behind ``tvmx schedules check``: what every template must do.

::

    class TestMyTemplate(TemplateTestCase):
        template = load_template("my_template", "schedules/my_template.py")

Needs nothing but a test runner that collects methods named ``test_*``, such as pytest. Kernels
are built for this machine and run in this process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, computed_field

from tvmx.errors import TvmxError
from tvmx.targets import Target, load_target
from tvmx.templates import ScheduleTemplate, load_templates, make_operands, reference
from tvmx.testing import _conformance as conformance
from tvmx.testing._evaluate import (
    AnyWorkload,
    Evaluation,
    evaluate_template,
    kernel_arrays,
    measured_peak_gflops,
)
from tvmx.testing._workloads import odd_workloads, timed_workloads

__all__ = [
    "CheckReport", "CheckResult", "Evaluation", "Performance", "TemplateTestCase",
    "check_template_file", "evaluate_template", "kernel_arrays", "make_operands",
    "measured_peak_gflops", "odd_workloads", "reference",
]  # fmt: skip


class TemplateTestCase:
    """The contract of :class:`tvmx.templates.ScheduleTemplate` as tests.

    Set ``template``; ``workloads`` replaces the conformance list, ``random_configs`` is how many
    configs are run per workload beside the default.
    """

    template: ClassVar[ScheduleTemplate]
    workloads: ClassVar[Sequence[AnyWorkload] | None] = None
    random_configs: ClassVar[int] = 2

    @functools.cached_property
    def target(self) -> Target:
        """What kernels are built for: this machine."""
        return load_target("host")

    @functools.cached_property
    def cases(self) -> list[AnyWorkload]:
        """The workloads the template supports."""
        return conformance.supported(self.template, self.target, self.workloads)

    def test_supports_gives_reasons(self) -> None:
        conformance.check_supports(self.template, self.cases, self.target)

    def test_layouts_are_valid(self) -> None:
        conformance.check_layouts(self.template, self.cases, self.target)

    def test_space_is_bounded_and_holds_its_default(self) -> None:
        conformance.check_space(self.template, self.cases, self.target)

    def test_illegal_config_is_refused(self) -> None:
        conformance.check_illegal_config(self.template, self.cases, self.target)

    def test_build_is_pure(self) -> None:
        conformance.check_purity(self.template, self.cases, self.target)

    def test_kernels_agree_with_pytorch(self) -> None:
        conformance.check_correctness(
            self.template, self.cases, self.target, random_configs=self.random_configs
        )

    def test_kernels_in_place_compute_the_same(self) -> None:
        conformance.check_in_place(self.template, self.cases, self.target)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckResult(_Record):
    """One check of one template; ``detail`` is what was seen, or why it failed."""

    template: str
    check: str
    passed: bool
    detail: str


class Performance(_Record):
    """A default config on one layer, 1 thread; ``peak_share`` is of the core's measured peak."""

    template: str
    workload: str
    gflops: float
    peak_share: float


class CheckReport(_Record):
    """Conformance of one template file on one target. ``peak_gflops`` is measured, 1 core."""

    file: str
    target: str
    checks: tuple[CheckResult, ...]
    performance: tuple[Performance, ...]
    peak_gflops: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def check_template_file(path: Path, target: Target | None = None) -> CheckReport:
    """Run the conformance checks on every template of a file, and time its default configs.

    ``target`` is this machine unless given; it must be able to run here. The file is executed
    in this process.

    Raises:
        TemplateLoadError: the file cannot be imported or defines no template.
        UsageError: ``target`` is not this machine's architecture.
    """
    target = target or load_target("host")
    templates = load_templates(path)
    peak = measured_peak_gflops(target)
    checks = [result for t in templates for result in _check(t, target)]
    right = {c.template for c in checks} - {c.template for c in checks if not c.passed}
    figures = [p for t in templates if t.name in right for p in _performance(t, target, peak)]
    return CheckReport(
        file=str(path),
        target=target.name,
        checks=tuple(checks),
        performance=tuple(figures),
        peak_gflops=peak,
    )


def _check(template: ScheduleTemplate, target: Target) -> list[CheckResult]:
    """Every check, in order; one that needs supported workloads is skipped when there are none."""
    results = []
    try:
        cases = conformance.supported(template, target)
    except Exception as err:
        return [_result(template, "supports", False, f"{type(err).__name__}: {err}")]
    for name, check in conformance.CHECKS.items():
        try:
            results.append(_result(template, name, True, check(template, cases, target)))
        except AssertionError as err:
            results.append(_result(template, name, False, str(err)))
        except Exception as err:
            text = err.message if isinstance(err, TvmxError) else f"{type(err).__name__}: {err}"
            results.append(_result(template, name, False, text))
        if not cases:
            break
    return results


def _result(template: ScheduleTemplate, check: str, passed: bool, detail: str) -> CheckResult:
    return CheckResult(template=template.name, check=check, passed=passed, detail=detail)


def _performance(template: ScheduleTemplate, target: Target, peak: float) -> list[Performance]:
    candidates = conformance.supported(
        template, target, [*template.examples[:1], *timed_workloads(template.op)]
    )
    figures = []
    for workload in candidates[:3] or conformance.supported(template, target)[:1]:
        gflops = evaluate_template(template, workload, target, timed=True).gflops or 0.0
        figures.append(
            Performance(
                template=template.name,
                workload=workload.describe(),
                gflops=round(gflops, 2),
                peak_share=round(gflops / peak, 4),
            )
        )
    return figures
