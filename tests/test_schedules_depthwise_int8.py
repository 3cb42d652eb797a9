"""The int8 depthwise templates keep the contract, on layers chosen for their corner cases too."""

from __future__ import annotations

import re

import pytest

from tvmx._resources import schedules_dir
from tvmx._tvm import build_module, tvm
from tvmx.targets import load_target
from tvmx.templates import load_template
from tvmx.testing._workloads import BIAS, EVERYTHING, PLAIN_SUM, conv
from tvmx.testing.templates import TemplateTestCase

CORNERS = [
    conv(33, 33, 9, groups=33, dilation=(2, 2), padding=(2, 1, 3, 2), epilogue=EVERYTHING),
    conv(20, 20, 13, 5, groups=20, width=10, strides=(2, 2), padding=(1, 2, 2, 3),
         dilation=(1, 2), epilogue=BIAS, batch=2),
    conv(16, 16, 11, 5, groups=16, strides=(1, 2)),
    conv(16, 16, 11, 7, groups=16, strides=(2, 1), padding=(0, 5, 3, 0), epilogue=PLAIN_SUM),
    conv(18, 18, 1, 1, groups=18, width=9),
    conv(18, 18, 2, groups=18, width=40, padding=(3, 4, 3, 4)),
    conv(18, 18, 8, 2, groups=18, strides=(2, 2), padding=(0, 0, 0, 0)),
    conv(40, 40, 15, groups=40, strides=(3, 2), padding=(1, 0, 1, 1)),
    conv(40, 40, 3, groups=40, width=2, padding=(1, 6, 1, 6), strides=(2, 2)),
    conv(18, 18, 15, groups=18, strides=(3, 3)),
    conv(2, 2, 3, groups=2, width=2),
]  # fmt: skip
PLAIN = load_template("depthwise_int8", schedules_dir() / "depthwise_int8.py")
VNNI = load_template("depthwise_vnni", schedules_dir() / "depthwise_vnni.py")
has_vnni = pytest.mark.skipif(
    "+avx512vnni" not in load_target("host").features, reason="this machine has no AVX-512 VNNI"
)


class TestDepthwise(TemplateTestCase):
    template = PLAIN
    random_configs = 1


class TestDepthwiseCorners(TestDepthwise):
    workloads = CORNERS

    def test_it_supports_every_depthwise_convolution(self) -> None:
        quantised = [case for case in self.cases if not case.epilogue.float_out]
        assert len(quantised) == len(CORNERS)


@has_vnni
class TestVnni(TemplateTestCase):
    template = VNNI
    random_configs = 1


@has_vnni
class TestVnniCorners(TestVnni):
    workloads = CORNERS

    def test_what_it_leaves_to_the_other_template(self) -> None:
        left = {w.describe() for w in CORNERS} - {
            w.variant("float32").describe() for w in self.cases
        }
        assert left == {CORNERS[-1].describe(), CORNERS[-2].describe()}


def code(template: object, target: str, kind: str) -> str:
    board = load_target(target)
    layer = conv(64, 64, 14, groups=64).variant("int8")
    config = template.space(layer, board).default  # type: ignore[attr-defined]
    func = template.build(layer, config, board).func  # type: ignore[attr-defined]
    module = build_module(tvm.IRModule({"f": func.with_attr("global_symbol", "f")}), board)
    text: str = module.inspect_source(kind)
    return text


def test_neon_multiplies_bytes_of_two_pixels_at_once() -> None:
    text = code(PLAIN, "rpi3b+", "asm")
    assert re.search(r"smull\s+v\d+\.8h, v\d+\.8b, v\d+\.8b", text)
    assert re.search(r"smlal\s+v\d+\.8h, v\d+\.8b, v\d+\.8b", text)
    assert "sdot" not in text


@has_vnni
def test_vnni_packs_the_output_without_crossing_lanes() -> None:
    text = code(VNNI, "host", "asm")
    for instruction in ("vpdpbusd", "vpunpcklbw", "vpackssdw", "vpacksswb", "vcvtps2dq"):
        assert re.search(rf"{instruction}\s.*%zmm", text), instruction
    assert "gather" not in text and "vpmovdb" not in text
