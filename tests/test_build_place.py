"""Memory planning in real networks: never above TVM's own planner, concatenations in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.network_plans import execute, host
from tvmx import _tvm
from tvmx._tvm import relax, tvm
from tvmx.build import build_network
from tvmx.build._lifetimes import lifetimes
from tvmx.build._memory import arena_bytes
from tvmx.build._network import _lower
from tvmx.build._place import plan_memory
from tvmx.build._sharing import share
from tvmx.explore._context import Context
from tvmx.passes import baseline_plan, finish_relax, lower
from tvmx.testing.models import save_light_model

BEFORE = (
    relax.transform.LegalizeOps(), relax.transform.RewriteDataflowReshape(),
    relax.transform.ToNonDataflow(), relax.transform.RemovePurityChecking(),
    relax.transform.CallTIRRewrite(),
)  # fmt: skip
BEHIND = (
    relax.transform.LowerAllocTensor(), relax.transform.KillAfterLastUse(),
    relax.transform.LowerRuntimeBuiltin(),
)  # fmt: skip


def apply(mod: Any, passes: Sequence[Any]) -> Any:
    with _tvm.make_target(host()):
        return tvm.transform.Sequential(list(passes))(mod)


@pytest.mark.parametrize(
    ("name", "at_most"),
    [("squeezenet", 0.65), ("inception_v1", 0.65), ("resnet50", 0.55), ("shufflenet", 1.0)],
)
def test_no_network_needs_more_than_under_tvms_planner(
    tmp_path: Path, name: str, at_most: float
) -> None:
    context = Context.open(save_light_model(name, tmp_path, 0), {}, "host", (), exact=True)
    plan = baseline_plan(context.network, context.registry, context.target)
    mod = lower(context.network, plan, context.registry, context.target).mod
    tvms = arena_bytes(apply(mod, [*BEFORE, relax.transform.StaticPlanBlockMemory(), *BEHIND]))
    ours = arena_bytes(_lower(mod, context.target))
    assert ours <= at_most * tvms
    ready = apply(mod, BEFORE)
    found = lifetimes(ready, ready["main"])
    sharing = share(found)
    if name in ("squeezenet", "inception_v1"):
        assert found.joins
        assert all(len(sharing.in_place[j.step]) == len(j.parts) for j in found.joins)
        names = [gv.name_hint for gv in plan_memory(ready).get_global_vars()]
        assert not [n for n in names if "concat" in n or "copy" in n]
    if name == "resnet50":
        assert len(sharing.updated) >= 13  # of 16 sums


Build = Any


def network(build: Build, *shapes: tuple[int, ...], dtype: str = "float32") -> Any:
    """A module of what ``build`` makes of a builder and inputs, legalised and scheduled."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(s, dtype)) for i, s in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            output = builder.emit_output(build(builder, *params))
        builder.emit_func_output(output)
    return finish_relax(builder.get(), host())


def joined(builder: Any, x: Any, y: Any) -> Any:
    """Concatenations of an input, a constant, a result, the same twice, ragged and of rank 2."""
    op = relax.op
    a, b = builder.emit(op.exp(x)), builder.emit(op.tanh(y))
    c = builder.emit(op.concat([a, x, b, b, relax.const(np.full((1, 2, 3), 7.0, "float32"))], 1))
    d = builder.emit(op.concat([builder.emit(op.negative(c)), c], 1))
    flat = builder.emit(op.reshape(d, (1, -1)))
    e = builder.emit(op.concat([flat, builder.emit(op.abs(flat))], axis=-1))
    return relax.Tuple([e, a, builder.emit(op.negative(d))])


def test_parts_that_cannot_be_in_place_are_copied() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((1, n, 3)).astype("float32") for n in (5, 16))
    got = execute(network(joined, x.shape, y.shape), host(), [x, y])
    a, b = np.exp(x), np.tanh(y)
    c = np.concatenate([a, x, b, b, np.full((1, 2, 3), 7.0, "float32")], 1)
    d = np.concatenate([-c, c], 1)
    flat = d.reshape(1, -1)
    for actual, right in zip(got, [np.concatenate([flat, abs(flat)], 1), a, -d], strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-5, atol=1e-6)


def test_a_batch_is_not_one_behind_the_other() -> None:
    def build(builder: Any, x: Any, y: Any) -> Any:
        parts = [builder.emit(relax.op.negative(x)), builder.emit(relax.op.negative(y))]
        return builder.emit(relax.op.concat(parts, axis=1))

    x, y = (np.arange(2 * n * 4, dtype="int8").reshape(2, n, 4) for n in (2, 3))
    mod = network(build, x.shape, y.shape, dtype="int8")
    ready = apply(mod, BEFORE)
    assert not lifetimes(ready, ready["main"]).joins
    (got,) = execute(mod, host(), [x, y])
    np.testing.assert_array_equal(got, np.concatenate([-x, -y], 1))


def test_results_of_an_earlier_run_stay(tmp_path: Path) -> None:
    """A result that is a concatenation has its parts in its own storage, not in the arena."""

    def build(builder: Any, x: Any) -> Any:
        twice = builder.emit(relax.op.add(x, x))
        parts = [builder.emit(relax.op.exp(twice)), builder.emit(relax.op.negative(twice))]
        return builder.emit(relax.op.concat(parts, axis=0))

    mod = network(build, (16, 16))
    built = build_network(mod, host(), tmp_path / "net.so")
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(built.path)), tvm.cpu())
    first, second = (np.full((16, 16), value, "float32") for value in (0.5, -1.0))
    kept = [machine["main"](tvm.runtime.tensor(x)) for x in (first, second)]
    for x, tensor in zip((first, second), kept, strict=True):
        right = np.concatenate([np.exp(2 * x), -2 * x])
        np.testing.assert_allclose(tensor.numpy(), right, rtol=1e-6)
    assert built.arena_bytes == 3 * 4 * 16 * 16  # the sum, and the result with its parts


def test_a_view_outside_of_its_arena_is_refused(tmp_path: Path) -> None:
    def build(builder: Any, x: Any) -> Any:
        return builder.emit(relax.op.exp(builder.emit(relax.op.tanh(x))))

    built = build_network(network(build, (64,)), host(), tmp_path / "net.so")
    view = tvm.runtime.load_module(str(built.path)).get_function("tvmx_view", query_imports=True)
    arena = tvm.runtime.tensor(np.arange(256, dtype="uint8"))
    inside = view(arena, 128, tvm.runtime.ShapeTuple([2, 4]), 0, 32, 1)
    assert (inside.shape, str(inside.dtype)) == ((2, 4), "int32")
    np.testing.assert_array_equal(
        inside.numpy().ravel(), np.arange(128, 160, dtype="uint8").view("int32")
    )
    for offset, shape in ((-64, [1]), (192, [17]), (256, [1])):
        with pytest.raises(ValueError, match="not inside the arena"):
            view(arena, offset, tvm.runtime.ShapeTuple(shape), 2, 32, 1)
    with pytest.raises(ValueError, match="too many axes"):
        view(arena, 0, tvm.runtime.ShapeTuple([1] * 17), 2, 32, 1)
    with pytest.raises(TypeError, match="arena, offset"):
        view(arena, 0)
