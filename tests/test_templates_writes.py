"""Which kernels may add to the residual in place: found out from the code, held against a run."""

from __future__ import annotations

from typing import Any

import pytest

from tvmx._tvm import s_tir, te
from tvmx.ir import Conv2dWorkload
from tvmx.targets import Target, load_target
from tvmx.templates import Kernel, Registry, ScheduleTemplate
from tvmx.templates._writes import writes_once
from tvmx.testing._conformance import check_in_place
from tvmx.testing._workloads import RESIDUAL, conv

HOST = load_target("host")


def template(name: str) -> ScheduleTemplate:
    registry = Registry()
    registry.load_builtin()
    return registry.get(name).template


def configs(workload: Conv2dWorkload, chosen: ScheduleTemplate, target: Target) -> dict[bool, Any]:
    """One config that works in place and one that does not, so far as there are such."""
    found: dict[bool, Any] = {}
    for config in chosen.space(workload, target).points():
        found.setdefault(chosen.build(workload, config, target).in_place, config)
        if len(found) == 2:
            break
    return found


RAGGED = conv(16, 40, 9, epilogue=RESIDUAL)


def test_tiles_that_move_back_over_others_are_not_in_place() -> None:
    found = configs(RAGGED, template("conv2d_direct"), HOST)
    assert set(found) == {True, False}
    whole, moved = (template("conv2d_direct").build(RAGGED, found[k], HOST) for k in (True, False))
    assert whole.in_place and not moved.in_place


def test_the_check_finds_kernels_that_add_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = template("conv2d_direct")
    moved = configs(RAGGED, chosen, HOST)[False]
    space = chosen.space(RAGGED, HOST)
    monkeypatch.setattr(Kernel, "in_place", property(lambda self: True))
    monkeypatch.setattr(chosen, "space", lambda w, t: _Only(space, moved))
    with pytest.raises(AssertionError, match="in place: off by"):
        check_in_place(chosen, [RAGGED], HOST)


class _Only:
    """A space whose default is another one."""

    def __init__(self, space: Any, default: Any) -> None:
        self._space, self.default = space, default

    def points(self) -> list[Any]:
        return [self.default]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)


@pytest.mark.parametrize("board", ["rpi4", "rpi5", "host"])
def test_whole_tiles_are_in_place_at_the_defaults(board: str) -> None:
    """ResNet-50's first residual layer, the largest of its sums."""
    target, workload = load_target(board), conv(64, 256, 56, 1, epilogue=RESIDUAL)
    chosen = template("conv2d_direct")
    default = chosen.space(workload, target).default
    assert chosen.build(workload, default, target).in_place


def sums(split: int | None) -> Any:
    """Row sums of a (10, 12) matrix, kept in the output unless it is written at the end."""
    x = te.placeholder((10, 12), name="x")
    k = te.reduce_axis((0, 12), name="k")
    y = te.compute((10,), lambda i: te.sum(x[i, k], axis=k), name="y")
    out = te.compute((10,), lambda i: y[i] + x[i, 0], name="out")
    schedule = s_tir.Schedule(te.create_prim_func([x, out] if split else [x, y]))
    if split:
        schedule.split(schedule.get_loops(schedule.get_sblock("out"))[0], [None, split])
    return schedule.mod["main"]


def test_writes_are_counted() -> None:
    assert writes_once(sums(5))
    assert not writes_once(sums(4))  # 12 turns behind a condition: not provable by counting
    assert not writes_once(sums(None))  # the output is set to 0, then summed up in
