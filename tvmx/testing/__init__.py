"""Suites and helpers that third parties use to test their extensions of tvmx."""

from tvmx.testing.templates import (
    CheckReport,
    TemplateTestCase,
    check_template_file,
    evaluate_template,
    measured_peak_gflops,
    odd_workloads,
)

__all__ = [
    "CheckReport", "TemplateTestCase", "check_template_file", "evaluate_template",
    "measured_peak_gflops", "odd_workloads",
]  # fmt: skip
