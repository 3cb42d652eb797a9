"""int8 templates in the fixed-point roundings: to the bit what ``tvmx.numerics`` computes.

That is compared with Relay's and TFLite's code in ``test_numerics_fixed_point.py``.
"""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import test_schedules_smmla as arm
from tests.disassembly import inner_loop
from tests.network_plans import narrow
from tests.test_disassembly_int8 import WORKLOADS, assembly, count, spills
from tests.test_numerics_fixed_point import FIXED, theirs
from tests.test_schedules_depthwise_int8 import CORNERS
from tests.test_schedules_int8 import vectors
from tvmx import _tvm
from tvmx._resources import schedules_dir
from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue, Rounding
from tvmx.numerics import LayerConstants, Requantise
from tvmx.targets import Target, load_target
from tvmx.templates import (
    PARAMS,
    Registry,
    ScheduleTemplate,
    epilogue_constants,
    factor,
    load,
    load_template,
    requantised,
    store,
)
from tvmx.testing.templates import evaluate_template, odd_workloads

Workload = Conv2dWorkload | DenseWorkload
TEMPLATES = ("conv2d_int8", "dense_int8", "depthwise_int8", "depthwise_vnni")


def named(name: str) -> ScheduleTemplate:
    return load_template(name, schedules_dir() / f"{name}.py")


def in_fixed_point(workload: Workload, rounding: Rounding) -> Workload:
    """The workload in int8 with another rounding, and therefore without a residual."""
    old = workload.epilogue
    epilogue = Epilogue(
        bias=old.bias, clip_min=old.clip_min, clip_max=old.clip_max, rounding=rounding
    )
    fields = {name: getattr(workload, name) for name in type(workload).model_fields}
    return type(workload).model_validate(fields | {"dtype": "int8", "epilogue": epilogue})


def cases(name: str, target: Target, count: int) -> list[Workload]:
    """Odd layers that a template supports, drawn by its name, roundings in turn."""
    template = named(name)
    known = [*odd_workloads(template.op), *(CORNERS if name.startswith("depthwise") else [])]
    known = [w for w in known if template.supports(in_fixed_point(w, "upward"), target) is None]
    assert len(known) >= count
    drawn = random.Random(name).sample(known, count)
    return [in_fixed_point(w, FIXED[i % len(FIXED)]) for i, w in enumerate(drawn)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_on_this_machine(name: str) -> None:
    target, template = load_target("host"), named(name)
    if name == "depthwise_vnni" and "+avx512vnni" not in target.features:
        pytest.skip("this machine has no AVX-512 VNNI")
    for index, workload in enumerate(cases(name, target, 6)):
        # Each rounding at a default config, and at another.
        space = template.space(workload, target)
        other = random.Random(workload.digest).choice(space.points())
        config = space.default if index < len(FIXED) else other
        error = evaluate_template(template, workload, target, config).absolute
        assert error == 0, (workload.describe(), config)


@pytest.mark.parametrize(
    "target", [narrow(), vectors(256, ()), vectors(64, ())], ids=["4 lanes", "8 lanes", "plain"]
)
@pytest.mark.parametrize("name", ["conv2d_int8", "dense_int8", "depthwise_int8"])
def test_on_shorter_vectors(name: str, target: Target) -> None:
    for workload in cases(name, target, 3):
        assert evaluate_template(named(name), workload, target).absolute == 0, workload.describe()


@pytest.mark.parametrize("rounding", FIXED)
@pytest.mark.parametrize("op", ["conv2d", "dense"])
def test_matrix_products_spelt_out(
    op: str, rounding: Rounding, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = arm.load(f"{op}_smmla")
    names: dict[str, Any] = type(template).supports.__globals__
    monkeypatch.setitem(names, "smmla", arm.spelt_out)
    monkeypatch.setitem(names, "has_mmla", lambda _: True)
    every: list[Workload] = [*(arm.ODD[::3] if op == "conv2d" else arm.DENSE[1:])]
    for workload in every[FIXED.index(rounding) :: len(FIXED)]:
        fixed = in_fixed_point(workload, rounding)
        assert evaluate_template(template, fixed, narrow()).absolute == 0, workload.describe()


@pytest.mark.parametrize("rounding", FIXED)
@pytest.mark.parametrize("form", ["host", "rpi4"])
@pytest.mark.parametrize("zero", [-128, 3, 127])
def test_the_end_of_a_kernel_on_ties_and_the_ends_of_int32(
    rounding: Rounding, form: str, zero: int
) -> None:
    """16 channels of multipliers and shifts of their own, against the code they stand for."""
    huge = [-(2**31), -(2**31) + 1, -(2**24) - 1, 2**24 + 1, 2**31 - 2, 2**31 - 1, 2**30, -(2**30)]
    columns = np.array([*range(-320, 320), *(97 * n for n in range(-300, 300)), *huge * 2])
    sums = np.ascontiguousarray(np.broadcast_to(columns[:, None], (len(columns), 16)), np.int32)
    multiplier = np.array([2**30, 2**30, 3 * 2**29, 2**31 - 1] * 4, np.int32)
    shift = np.array([31, 32, 33, 34, 35, 38, 40, 45, 50, 55, 60, 61, 62, 31, 36, 37], np.int32)
    how = Requantise(
        multiplier=multiplier, shift=shift, rounding=rounding, low=max(-100, zero), high=127,
        out_zero_point=zero, data_zero_point=0,
    )  # fmt: skip
    layer = LayerConstants(np.zeros((16, 1), np.int8), np.zeros(16, np.int32), how)
    epilogue = Epilogue(bias=True, rounding=rounding)
    _, packed, params = epilogue_constants(layer, epilogue, 16)
    out = _tvm.tvm.runtime.tensor(np.full(sums.shape, 0x5B, np.int8))
    _requantising(len(sums), form, rounding)(
        *map(_tvm.tvm.runtime.tensor, (sums, packed, params)), out
    )
    pairs = list(zip(multiplier, shift, strict=True))
    scaled = np.array([
        [_theirs(int(s), int(m), 31 - int(r), rounding) for m, r in pairs]
        for s in columns
    ])  # fmt: skip
    np.testing.assert_array_equal(out.numpy(), np.clip(scaled + zero, how.low, how.high))


_theirs = functools.cache(theirs)  # the same for each form and zero point


@functools.cache
def _requantising(rows: int, form: str, rounding: Rounding) -> Any:
    """``requantised`` in the form for a target, of rows of 16 sums."""
    builder, epilogue = _tvm.builder, Epilogue(bias=True, rounding=rounding)
    with _tvm.IRBuilder() as ir, builder.prim_func(s_tir=True):
        builder.func_name("kernel")
        builder.func_attr({"tirx.is_scheduled": True, "global_symbol": "kernel"})
        sums = builder.arg("sums", builder.buffer((rows, 16), "int32"))
        scales = builder.arg("scales", builder.buffer((2, 1, 16), "int32"))
        params = builder.arg("params", builder.buffer((PARAMS,), "float32"))
        out = builder.arg("out", builder.buffer((rows, 16), "int8"))
        with builder.serial(0, rows) as i:
            read = factor(epilogue, lambda part: load(scales, part, 0, 0, lanes=16))
            total = load(sums, i, 0, lanes=16)
            found = requantised(total, read, params, load_target(form), None, 16, rounding)
            store(out, found, i, 0, lanes=16)
    module = _tvm.build_module(_tvm.tvm.IRModule({"kernel": ir.get()}), load_target("host"))
    return module["kernel"]


@functools.cache
def _in_even(board: str) -> str:
    return assembly(WORKLOADS["3x3"], load_target(board))


@pytest.mark.parametrize(("board", "dot"), [("rpi4", "sadalp"), ("rpi5", "sdot")])
@pytest.mark.parametrize("rounding", FIXED)
def test_no_more_spills_in_the_inner_loop_on_arm(rounding: Rounding, board: str, dot: str) -> None:
    """64-bit products of two lanes each, and shifts of vectors: nothing is done lane by lane."""
    target = load_target(board)
    text = assembly(in_fixed_point(WORKLOADS["3x3"], rounding), target)
    same = inner_loop(_in_even(board), dot)
    body = inner_loop(text, dot)
    assert len(body) == len(same) and spills(body) == spills(same) == 0
    assert len(re.findall(r"\s[us]?s?shl\s+v\d+\.2d, v\d+\.2d", text)) >= 14
    assert count("asr", text) == count("smulh", text) == 0


def test_no_spills_in_the_inner_loop_with_vnni() -> None:
    target = vectors(512, ("+avx512vnni",)).model_copy(
        update={"triple": "x86_64-linux-gnu", "cpu": "x86-64-v4"}
    )
    text = assembly(in_fixed_point(WORKLOADS["3x3"], "upward"), target)
    assert count("vpmuldq", text) >= 14 and count("vpsravq", text) >= 14
    body = inner_loop(text, "vpdpbusd")
    assert not [x for x in body if re.search(r"%[xyz]mm\d+, -?\d*\(%rsp\)", x)]


OLD = """
from tvmx.templates import ScheduleTemplate

class Old(ScheduleTemplate):
    name, op, precision, priority = "old", "dense", "int8", 1

    def supports(self, workload, target):
        return None

    def layouts(self, workload, target):
        return ("NC", "NC")

    def space(self, workload, target):
        raise NotImplementedError

    def build(self, workload, config, target):
        raise NotImplementedError
"""


def test_only_templates_that_know_a_rounding_are_asked(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(OLD)
    registry, target = Registry(), load_target("host")
    registry.load_builtin()
    registry.add_folder(tmp_path)
    even = DenseWorkload(batch=1, in_features=64, out_features=64, dtype="int8")
    for workload, names in (
        (even, ["old", "dense_int8"]),
        (in_fixed_point(even, "upward"), ["dense_int8"]),
    ):
        assert [e.name for e in registry.legal(workload, target)] == names
