"""Neighbours of every combination compute the right numbers: float, int8, sparse, any layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.mixed_plans import any_of, check_mixed, mixed_plan, neighbours, params_of
from tests.network_plans import execute, host, inputs_of, narrow, network_of, registry
from tests.random_networks import networks
from tests.rounding_borders import error_of, other_sides, simulated
from tvmx.errors import BuildError
from tvmx.explore._whole import build_plan, network_job, rtol_of
from tvmx.ir import Implementation, Layer, Plan, is_int8
from tvmx.measure import LocalFarm, TimingPolicy
from tvmx.passes import Simulator, lower
from tvmx.testing.models import graph_model, onnx_reference

KINDS = {
    "float blocked": ("conv2d_direct", "f32", "dense"),
    "float plain": ("conv2d_im2col", "f32", "dense"),
    "int8": ("conv2d_int8", "int8", "dense"),
    "sparse blocked": ("conv1x1_bsr", "f32", "@50"),
    "sparse plain": ("conv1x1_bsr_nchw", "f32", "@50"),
    "sparse int8": ("conv1x1_bsr_int8", "int8", "@50"),
}


def kind_of(name: str, legal: Sequence[Implementation]) -> Implementation:
    template, precision, sparsity = KINDS[name]
    return next(
        i for i in legal
        if (i.template, i.precision) == (template, precision) and i.sparsity.endswith(sparsity)
    )  # fmt: skip


def every_pair() -> list[tuple[str, ...]]:
    """Kinds of A0, B0, A1, B1 and A2, where A0 -> B0 -> A1, B1 -> A2 and A1 + A0.

    One layer reads another's output in every pair of kinds, both orders; every pair is added up.
    """
    left = set(itertools.product(KINDS, KINDS))
    rows = []
    for first, third in itertools.combinations_with_replacement(KINDS, 2):
        second = max(KINDS, key=lambda kind: len({(first, kind), (kind, third)} & left))
        left -= {(first, second), (second, third)}
        rows.append((first, second, third))
    more = [*sorted(left), *((third, first) for first, _, third in rows)]
    return [(*row, *pair) for row, pair in zip(rows, more, strict=False)]


PAIRS = every_pair()


def test_every_pair_is_among_them() -> None:
    reads = {pair for a0, b0, a1, b1, a2 in PAIRS for pair in ((a0, b0), (b0, a1), (b1, a2))}
    assert reads == set(itertools.product(KINDS, KINDS))
    assert len({frozenset((a0, a1)) for a0, _, a1, _, _ in PAIRS}) == 21 == len(PAIRS)


@pytest.mark.parametrize("kinds", PAIRS, ids=", ".join)
def test_every_pair_of_neighbours(kinds: tuple[str, ...]) -> None:
    chosen = dict(zip(("A0", "B0", "A1", "B1", "A2"), kinds, strict=True))
    lowered = check_mixed(neighbours(), lambda layer, i: kind_of(chosen[layer.name], i))
    assert lowered.hits == lowered.total == 5


@pytest.mark.rpc
def test_float_int8_and_both_sparse_side_by_side_over_rpc(tmp_path: Path) -> None:
    kinds = {
        "A0": "sparse blocked", "B0": "int8", "A1": "sparse int8", "B1": "float blocked",
        "A2": "sparse int8",
    }  # fmt: skip
    proto = neighbours()
    network, inputs = network_of(proto), inputs_of(proto)
    simulator = Simulator(network, host())
    params = params_of(simulator, list(inputs.values()))
    plan = mixed_plan(network, host(), params, lambda layer, i: kind_of(kinds[layer.name], i))
    assert {c.layer: c.implementation.template for c in plan.choices} == {
        layer: KINDS[kind][0] for layer, kind in kinds.items()
    }
    built = build_plan("mixed", plan, network, registry(), host(), tmp_path)
    expected = tuple(simulator.expected(plan, list(inputs.values())))
    right = network_job(built, inputs, expected, rtol_of(plan, network.graph))
    wrong = network_job(built, inputs, tuple(-e for e in expected), 0.03)
    with LocalFarm(threads=1) as farm, farm.runner() as runner:
        good, bad = runner.measure([right, wrong], TimingPolicy(repeats=1, min_repeats=1))
    assert good.ok, good.message
    assert not bad.ok and bad.status == "wrong-output"


@dataclass(frozen=True, repr=False)
class Drawn:
    """A network that is printed without its weights."""

    proto: onnx.ModelProto

    def __repr__(self) -> str:
        return onnx.helper.printable_graph(self.proto.graph)


# Not shrunk: an example takes a second or more, and hundreds of them would take longer than a
# test may. What failed is printed with its plan, kept in .hypothesis and tried first next time.
@settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip
@given(networks().map(Drawn), st.integers(0, 999), st.booleans())
def test_any_mixed_plan_computes_what_is_simulated(drawn: Drawn, seed: int, small: bool) -> None:
    check_mixed(drawn.proto, any_of(seed), narrow() if small else host())


def test_an_output_without_a_range() -> None:
    """The mean of an image of one channel, summed up in other orders than the simulation's."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((1, 17, 3, 3)).astype(np.float32) / 12
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="A0", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["a"], ["y"]),
    ]
    proto = graph_model(nodes, {"x": (1, 17, 9, 11)}, {"y": (1, 1, 1, 1)}, {"w": weight})
    for kind in ("float blocked", "float plain", "int8"):
        check_mixed(proto, lambda _, legal, kind=kind: kind_of(kind, legal))


def test_last_bits_are_allowed_and_no_more() -> None:
    one = np.array([-0.74314], np.float32)
    assert error_of(np.nextafter(one, one + 1), one) < 0.1
    assert error_of(one + np.float32(1e-5), one) > 1
    many = np.array([-2.0, 1.0, 3.0], np.float32)
    assert error_of(many + np.float32(4e-4), many).max() < 1 < error_of(many + 6e-4, many).min()


def test_only_elements_at_a_border_may_go_to_its_other_side() -> None:
    proto = neighbours(16)
    network, inputs = network_of(proto), list(inputs_of(proto).values())
    simulator = Simulator(network, host())
    params = params_of(simulator, inputs)
    kinds = {"A0": "float blocked", "A1": "float plain"}
    plan = mixed_plan(
        network, host(), params, lambda layer, i: kind_of(kinds.get(layer.name, "int8"), i)
    )
    want, near = simulated(simulator, plan, inputs)
    assert 2 < len(near) < 500  # about a hundredth of the elements
    got, _ = simulated(simulator, plan, inputs, (near[0], near[2]))
    assert max(error_of(a, b).max() for a, b in zip(got, want, strict=True)) > 1
    told = other_sides(simulator, plan, inputs, got, want, near)
    assert all(error_of(a, b).max() < 1 for a, b in zip(got, told, strict=True))
    # A step of an output that no such element can make.
    wrong = tuple(b + 0.01 * np.ptp(b) for b in got)
    told = other_sides(simulator, plan, inputs, wrong, want, near)
    assert any(error_of(a, b).max() > 1 for a, b in zip(wrong, told, strict=True))


def all_int8(layer: Layer, legal: Sequence[Implementation]) -> Implementation:
    return next((i for i in legal if i.precision == "int8"), legal[0])


def test_int8_passes_between_layers_and_leaves_only_at_the_ends() -> None:
    lowered = check_mixed(neighbours(), all_int8)
    # The last layer itself makes float.
    assert [(c.source, c.destination) for c in lowered.conversions] == [
        ("NCHW", f"NCHW{host().lanes()}c/s8"), (f"NCHW{host().lanes()}c", "NCHW")
    ]  # fmt: skip


def test_int8_is_close_to_the_float_network() -> None:
    proto = neighbours()
    network, inputs = network_of(proto), inputs_of(proto)
    simulator = Simulator(network, host())
    params = params_of(simulator, list(inputs.values()))
    plan = mixed_plan(network, host(), params, all_int8)
    lowered = lower(network, plan, registry(), host())
    (got,) = execute(lowered.mod, host(), list(inputs.values()))
    (want,) = onnx_reference(proto, inputs)
    noise = float(np.square(got - want).mean() / np.square(want).mean())
    assert 1e-7 < noise < 0.01, f"signal-to-noise ratio {-10 * np.log10(noise):.1f} dB"


def test_only_plans_that_round_float_results_get_room() -> None:
    proto = neighbours()
    network = network_of(proto)
    simulator = Simulator(network, host())
    params = params_of(simulator, list(inputs_of(proto).values()))

    def first_float(layer: Layer, legal: Sequence[Implementation]) -> Implementation:
        return legal[0] if layer.name == "A0" else all_int8(layer, legal)

    def last_float(layer: Layer, legal: Sequence[Implementation]) -> Implementation:
        return legal[0] if layer.name == "A2" else all_int8(layer, legal)

    limits = [
        rtol_of(mixed_plan(network, host(), params, pick), network.graph)
        for pick in (all_int8, last_float, first_float)
    ]
    assert limits == [1e-3, 1e-3, 0.03]


def test_a_plan_without_scales_is_refused_by_layer_name() -> None:
    proto = neighbours()
    network = network_of(proto)
    simulator = Simulator(network, host())
    params = params_of(simulator, list(inputs_of(proto).values()))
    plan = mixed_plan(network, host(), params, all_int8)
    bare = Plan.model_validate(plan.model_dump() | {"activations": ()})
    with pytest.raises(BuildError, match=r"'A0' is int8, but value"):
        lower(network, bare, registry(), host())
    foreign = plan.model_dump() | {"activations": [{"value": 999, "scale": 1.0, "zero_point": 0}]}
    with pytest.raises(BuildError, match="value 999"):
        lower(network, Plan.model_validate(foreign), registry(), host())


def test_plans_survive_json() -> None:
    proto = neighbours()
    network = network_of(proto)
    simulator = Simulator(network, host())
    params = params_of(simulator, list(inputs_of(proto).values()))
    plan = mixed_plan(network, host(), params, all_int8)
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan and again.digest == plan.digest
    assert any(is_int8(c.implementation.writes) for c in again.choices)
    assert not plan.exact
