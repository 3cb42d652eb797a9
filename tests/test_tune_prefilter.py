"""Prefilter: which loop is the inner one, what is dropped, and what llvm-mca says of real tiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.explorations import FakePool, explored, save_model, scripted
from tests.simulated import tools_or_skip
from tvmx import _tvm
from tvmx.errors import UsageError
from tvmx.ir import Config, Conv2dWorkload
from tvmx.store import Journal
from tvmx.targets import Target, load_target
from tvmx.templates import Registry
from tvmx.tune import Prefilter
from tvmx.tune._prefilter import inner_loop

NEST = """
kernel:
\tmov\tx8, #4
.LBB0_1:                                // outer
\tfmla\tv9.4s, v8.4s, v7.s[0]
\tmov\tx9, #8
.LBB0_2:                                // inner
\tldr\tq0, [x0], #16
\tfmla\tv1.4s, v0.4s, v2.s[0]           // a comment
\tfmla\tv3.4s, v0.4s, v2.s[1]
\tcbz\tx9, .LBB0_4
\tsub\tx9, x9, #1
\tb\t.LBB0_2
.LBB0_4:
\tsubs\tx8, x8, #1
\tb.ne\t.LBB0_1
.LBB0_5:                                // another, of fewer multiplies
\tfmul\tv4.4s, v5.4s, v6.4s
\tstr\tq4, [x1], #16
\ttbnz\tw2, #3, .LBB0_5
\tret
"""


def test_the_inner_loop_multiplies_most_and_holds_no_other() -> None:
    assert inner_loop(NEST) == [
        "\tldr\tq0, [x0], #16",
        "\tfmla\tv1.4s, v0.4s, v2.s[0]",
        "\tfmla\tv3.4s, v0.4s, v2.s[1]",
        "\tcbz\tx9, .LBB0_4",
        "\tsub\tx9, x9, #1",
        "\tb\t.LBB0_2",
    ]
    assert inner_loop("") == inner_loop("f:\n\tfmul\tv4.4s, v5.4s, v6.4s\n\tret\n") == []


def test_no_core_that_llvm_knows() -> None:
    x86 = Target.model_validate(
        load_target("rpi4").model_dump() | {"triple": "x86_64-linux-gnu", "name": "pc"}
    )
    with pytest.raises(UsageError, match=r"--prefilter.*pc"):
        Prefilter(x86)


@pytest.fixture
def a53() -> Prefilter:
    tools_or_skip("llvm-mca-22")
    return Prefilter(load_target("rpi3b+"))


def test_dropped_is_what_is_much_slower_than_the_best_of_its_group(
    a53: Prefilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"fast": 1.0, "near": 1.2, "slow": 2.0, "odd": None}
    monkeypatch.setattr(a53, "cycles", lambda codes: [known[code] for code in codes])
    assert a53.keep("a", ["slow", "odd"]) == [True, True]  # nothing better is known yet
    assert a53.keep("a", ["near", "slow", "fast", "odd"]) == [True, False, True, True]
    assert a53.keep("b", ["slow"]) == [True]
    assert a53.keep("a", ["slow"]) == [False]
    assert a53.dropped == 2


def test_real_tiles_on_a_cortex_a53(a53: Prefilter) -> None:
    """4x2 reads five vectors of weights for eight multiply-adds of each pixel: too many loads."""
    target = load_target("rpi3b+")
    template = Registry.with_builtin().get("conv2d_direct").template
    layer = Conv2dWorkload(
        batch=1, in_channels=64, height=28, width=28, out_channels=64, kernel=(3, 3),
        padding=(1, 1, 1, 1),
    )  # fmt: skip
    code = []
    for oc_tile, ow_tile in ((2, 7), (3, 2)):
        config = Config(
            oc_tile=oc_tile,
            oh_tile=1,
            ow_tile=ow_tile,
            order="row",
            chunk=1,
            pad="root",
            ic_chunk=0,
        )
        func = template.build(layer, config, target).func.with_attr("global_symbol", "k")
        module = _tvm.build_module(_tvm.tvm.IRModule({"k": func}), target)
        code.append(str(module.inspect_source("asm")))
    good, bad = a53.cycles(code)
    assert good is not None and bad is not None
    assert 1.5 < good < 2.5 and bad > 1.3 * good
    assert a53.keep("layer", code) == [True, False]


def test_defaults_are_measured_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Everything:
        dropped = 7

        def __init__(self, target: Target) -> None:
            del target

        def keep(self, group: str, code: list[str]) -> list[bool]:
            assert group
            return [False for _ in code]

    monkeypatch.setattr("tvmx.explore._explore.Prefilter", Everything)
    jobs: list[bool] = []
    submit = FakePool.submit

    def noted(self: FakePool, job: object) -> object:
        jobs.append(job.with_assembly)  # type: ignore[attr-defined]
        return submit(self, job)  # type: ignore[arg-type]

    monkeypatch.setattr(FakePool, "submit", noted)
    with scripted():
        result = explored(save_model(tmp_path), tmp_path / "run", prefilter=True, trials=60)
    assert jobs and all(jobs)
    assert any("7 kernels were not measured" in note for note in result.notes)
    keys = [
        record.key for record in Journal(tmp_path / "run" / "journal.jsonl").records()
        if record.key.config != "{}"
    ]  # fmt: skip
    # One config, the default, of each workload and template.
    assert len({(k.workload, k.implementation) for k in keys}) == len(keys)
