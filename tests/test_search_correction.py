"""The correction of cost tables: prices that are known are found again, and put into tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.search_tables import random_table, walk_of
from tvmx.search import TERMS, Correction, Sample, conversion_terms, held_out, plan_us, solve_exact

PRICES = {"conversions": 3.0, "conversion_kib": 0.2, "cold_kib": 0.05}


def sample(rng: np.random.Generator, factor: float = 1.1, noise: float = 0.0) -> Sample:
    terms = {name: float(rng.integers(0, 40)) for name in TERMS}
    predicted = float(rng.uniform(200, 900))
    us = factor * predicted + sum(price * terms[name] for name, price in PRICES.items())
    return Sample(predicted, us * (1 + noise * float(rng.standard_normal())), terms)


def samples(count: int, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [sample(rng, noise=noise) for _ in range(count)]


def test_known_prices_are_found() -> None:
    found = Correction.fit(samples(200))
    assert found.factor == pytest.approx(1.1, abs=0.01)
    for name in TERMS:
        assert found.prices[name] == pytest.approx(PRICES.get(name, 0.0), abs=0.05), name


def test_plans_that_were_not_seen_are_predicted_better() -> None:
    seen = samples(30, noise=0.02)
    guessed = held_out(seen)

    def error(predicted: list[float]) -> float:
        pairs = zip(predicted, seen, strict=True)
        return float(np.mean([abs(us / s.measured_us - 1) for us, s in pairs]))

    assert error(guessed) < 0.04 < 0.15 < error([s.predicted_us for s in seen])


def test_left_out_samples_do_not_teach() -> None:
    """What is held out could be anything: its prediction stays the same."""
    seen = samples(20)
    other = Sample(seen[3].predicted_us, 7 * seen[3].measured_us, seen[3].terms)
    changed = [*seen[:3], other, *seen[4:]]
    assert held_out(changed)[3] == held_out(seen)[3]
    groups = ["a"] * 4 + ["b"] * 16
    first = held_out(seen, groups)[:4]
    assert first == [Correction.fit(seen[4:]).us(s.predicted_us, s.terms) for s in seen[:4]]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_plans_teach_no_more_than_a_factor(count: int) -> None:
    seen = samples(count)
    found = Correction.fit(seen)
    assert not found.prices
    expected = 1 + (np.mean([s.residual for s in seen]) if seen else 0.0)
    assert found.factor == pytest.approx(expected)
    assert found.us(100.0, {"conversions": 9.0}) == pytest.approx(100 * expected)


def test_noise_alone_teaches_little() -> None:
    """Where nothing but noise is there, leaving one out chooses a large penalty."""
    rng = np.random.default_rng(5)
    seen = [
        Sample(s.predicted_us, s.predicted_us * (1 + 0.05 * float(rng.standard_normal())), s.terms)
        for s in samples(40)
    ]
    error = np.mean(
        [abs(us / s.measured_us - 1) for us, s in zip(held_out(seen), seen, strict=True)]
    )
    assert error < 0.06


def test_no_correction_runs_away() -> None:
    wild = Correction(1.0, {"conversions": 1e6})
    assert wild.us(100.0, {"conversions": 5.0}) == 500.0
    assert Correction(-3.0).us(100.0, {}) == 20.0


def test_a_corrected_table_prices_conversions_as_whole_plans_do() -> None:
    """Its total is the corrected latency over the factor, whatever the plan."""
    table = random_table(3, layers=5)
    correction = Correction(1.25, {"conversions": 30.0, "conversion_kib": 2.0, "kernels": 5.0})
    corrected = correction.applied(table, cold=False)
    shape = next(iter(table.workloads.values())).out_shape
    one = conversion_terms((shape, "NCHW", "NCHW8c"))
    size = math.prod(shape) * 4 / 1024
    assert one == {"kernels": 1, "conversions": 1, "conversion_kib": 2 * size, "switches": 0}
    price = (30.0 + 5.0 + 2.0 * 2 * size) / 1.25
    for key, us in table.transitions.items():
        assert corrected.transitions[key] == pytest.approx(us + price)
    before, after = (solve_exact(t, walk_of(t)).actions for t in (table, corrected))
    layouts = [
        {table.layers[i].implementations[a].layout for i, a in enumerate(plan)}
        for plan in (before, after)
    ]
    assert len(layouts[1]) <= len(layouts[0])
    assert plan_us(corrected, walk_of(corrected), after) <= plan_us(
        corrected, walk_of(corrected), before
    )


def test_constants_that_are_never_warm_cost_by_the_byte() -> None:
    table = random_table(4)
    corrected = Correction(2.0, {"cold_kib": 1.0}).applied(table, cold=True)
    for old, new in zip(table.layers, corrected.layers, strict=True):
        for us, got, size in zip(old.latency_us, new.latency_us, old.weights_bytes, strict=True):
            assert us is not None
            assert got == pytest.approx(us + size / 1024 / 2)
    assert Correction(2.0, {"cold_kib": 1.0}).applied(table, cold=False).layers == table.layers
