"""Every built-in template, and the example of a user's, keeps the contract."""

from __future__ import annotations

from pathlib import Path

from tvmx._resources import schedules_dir
from tvmx.templates import load_template
from tvmx.testing.templates import TemplateTestCase

EXAMPLES = Path(__file__).parents[1] / "examples" / "schedules"


class TestConv2dDirect(TemplateTestCase):
    template = load_template("conv2d_direct", schedules_dir() / "conv2d_direct.py")
    random_configs = 1


class TestConv2dWinograd(TemplateTestCase):
    template = load_template("conv2d_winograd", schedules_dir() / "conv2d_winograd.py")


class TestConv2dIm2col(TemplateTestCase):
    template = load_template("conv2d_im2col", schedules_dir() / "conv2d_im2col.py")
    random_configs = 1

    def test_it_supports_every_convolution(self) -> None:
        from tvmx.testing.templates import odd_workloads

        assert self.cases == odd_workloads("conv2d")


class TestDepthwise(TemplateTestCase):
    template = load_template("depthwise_nchwc", schedules_dir() / "depthwise_nchwc.py")


class TestDense(TemplateTestCase):
    template = load_template("dense_packed", schedules_dir() / "dense_packed.py")


class TestWinogradExample(TemplateTestCase):
    template = load_template("winograd_f2", EXAMPLES / "winograd_f2.py")
