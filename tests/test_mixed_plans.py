"""Neighbours of every combination compute the right numbers: float, int8, sparse, any layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mixed_plans import any_of, check_mixed, mixed_plan, neighbours, params_of
from tests.network_plans import execute, host, inputs_of, narrow, network_of, registry
from tests.random_networks import networks
from tvmx.errors import BuildError
from tvmx.explore._whole import build_plan, network_job, rtol_of
from tvmx.ir import Implementation, Layer, Plan, is_int8
from tvmx.measure import LocalFarm, TimingPolicy
from tvmx.passes import Simulator, lower
from tvmx.testing.models import onnx_reference

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


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_every_pair_of_neighbours(first: str, second: str) -> None:
    def pick(layer: Layer, legal: Sequence[Implementation]) -> Implementation:
        return kind_of(first if layer.name.startswith("A") else second, legal)

    lowered = check_mixed(neighbours(), pick)
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


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 999), st.booleans())
def test_any_mixed_plan_computes_what_is_simulated(
    proto: onnx.ModelProto, seed: int, small: bool
) -> None:
    check_mixed(proto, any_of(seed), narrow() if small else host())


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
