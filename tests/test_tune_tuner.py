"""KnobTuner: no repeats, failures, determinism, resume, early stop, better than random."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tune_spaces import (
    CONV,
    DENSE,
    TARGET,
    conv_space,
    kernel_features,
    kernel_us,
    small_space,
    tile_features,
)
from tvmx.errors import IllegalConfigError, MeasureError, UsageError
from tvmx.ir import Config, Space
from tvmx.tune import KnobTuner, Ranker, TunerParameters


def tuner(space: Space, seed: int = 0, **parameters: float) -> KnobTuner:
    return KnobTuner(
        space, CONV, "direct", TARGET, seed, TunerParameters(**parameters)  # type: ignore[arg-type]
    )  # fmt: skip


def proposals(tuned: KnobTuner, size: int) -> list[Config]:
    """What is proposed once the shortlist is described."""
    for config in tuned.shortlist(size):
        tuned.describe(config, kernel_features(config))
    return tuned.propose(size)


def run(tuned: KnobTuner, batches: int, size: int = 8) -> list[Config]:
    proposed: list[Config] = []
    for _ in range(batches):
        for config in proposals(tuned, size):
            proposed.append(config)
            tuned.observe(config, kernel_us(config))
    return proposed


def test_default_comes_first() -> None:
    space = conv_space()
    assert tuner(space).propose(4)[0] == space.default
    assert tuner(space, seed=9).propose(1) == [space.default]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 7), max_size=8), st.integers(1, 30))
def test_never_repeats_and_covers_the_space(seed: int, sizes: list[int], points: int) -> None:
    space = small_space(points)
    tuned = tuner(space, seed, first=4)
    seen: list[Config] = []
    for i, size in enumerate([*sizes, points, points]):
        for config in tuned.shortlist(size):
            tuned.describe(config, tile_features(config) if config.int("tile") % 7 else None)
        batch = tuned.propose(size)
        assert len(batch) == min(size, points - len(seen))
        seen += batch
        for config in batch[:: 1 + i % 2]:  # some stay pending
            failed = config.int("tile") % 5 == 0
            tuned.observe(config, None if failed else 10.0 + config.int("tile"))
    assert len(set(seen)) == len(seen) == points
    assert set(seen) == set(space.points())
    assert tuned.exhausted and tuned.propose(5) == []


def test_what_is_not_described_is_proposed_by_spread() -> None:
    space = Space({"a": list(range(16)), "b": list(range(16))}, {"a": 0, "b": 0})
    chosen = tuner(space).propose(9)
    gaps = [
        min(abs(c.int("a") - o.int("a")) + abs(c.int("b") - o.int("b")) for o in chosen if o != c)
        for c in chosen
    ]
    assert min(gaps) >= 6  # nine points of a 16 x 16 grid; drawn at random they come closer


def test_failed_configs_are_never_proposed_again_and_are_avoided() -> None:
    space = conv_space()
    tuned = tuner(space, seed=1)
    proposed = run(tuned, 16)
    failed = [c for c in proposed if kernel_us(c) is None]
    assert failed and len(set(proposed)) == len(proposed)
    share = sum(kernel_us(c) is None for c in space.points()) / len(space)
    late = sum(kernel_us(c) is None for c in proposed[64:]) / len(proposed[64:])
    assert late < share / 2


def test_all_failing_ends_without_a_best() -> None:
    tuned = tuner(conv_space())
    for _ in range(5):
        for config in tuned.propose(8):
            tuned.observe(config, None)
    assert tuned.best() is None
    assert tuned.history() == (math.inf,) * 40
    assert tuned.finished(patience=4)


def test_best_is_the_fastest_and_the_last_word_counts() -> None:
    space = small_space()
    a, b = space.points()[:2]
    tuned = tuner(space)
    assert tuned.best() is None
    tuned.observe(a, 10.0)
    tuned.observe(b, 9.0)
    assert tuned.best() == (b, 9.0)
    tuned.observe(b, 12.0)  # timed again
    assert tuned.best() == (a, 10.0)
    assert tuned.history() == (10.0, 9.0, 10.0)


def test_equal_seeds_propose_equally_and_others_do_not() -> None:
    runs = [run(tuner(conv_space(), seed), 5) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("cut", [1, 7, 16, 33])
def test_replayed_observations_continue_the_run(cut: int) -> None:
    whole = tuner(conv_space(), seed=5)
    records = run(whole, 6)
    resumed = tuner(conv_space(), seed=5)
    for start in range(0, len(records), 8):
        assert proposals(resumed, 8) == records[start : start + 8]
        for config in records[start : start + 8]:
            resumed.observe(config, kernel_us(config))
    assert proposals(resumed, 8) == proposals(whole, 8)
    assert resumed.best() == whole.best() and resumed.history() == whole.history()
    torn = tuner(conv_space(), seed=5)  # killed in the middle of a batch
    for config in records[:cut]:
        torn.observe(config, kernel_us(config))
    assert not set(torn.propose(40)) & set(records[:cut])


def test_finished_after_patience_without_improvement() -> None:
    space = small_space(40)
    tuned = tuner(space, batch=4)
    best = 100.0
    for i, config in enumerate(tuned.propose(20)):
        best *= 0.98 if i < 8 else 0.9999  # below 1 % over two batches: not worth the name
        tuned.observe(config, best)
        assert tuned.finished(patience=2) == (i >= 15)


def test_finished_when_the_space_is_measured() -> None:
    tuned = tuner(small_space(3))
    for config in tuned.propose(3):
        assert not tuned.finished(patience=10)
        tuned.observe(config, 1.0)
    assert tuned.finished(patience=10)


def test_beats_random_at_equal_measurements() -> None:
    space = conv_space()
    optimum = min(us for c in space.points() if (us := kernel_us(c)) is not None)

    def drawn(seed: int) -> float:
        order = random.Random(seed).sample(space.points(), 48)
        return min(us for c in order if (us := kernel_us(c)) is not None)

    def tuned(seed: int) -> float:
        subject = tuner(space, seed)
        run(subject, 6)
        found = subject.best()
        assert found is not None
        return found[1]

    seeds = range(7)
    tuner_gap = [tuned(s) / optimum - 1 for s in seeds]
    random_gap = [drawn(s) / optimum - 1 for s in seeds]
    assert statistics.median(tuner_gap) < 0.6 * statistics.median(random_gap)
    assert sum(t < r for t, r in zip(tuner_gap, random_gap, strict=True)) >= 5


def test_equal_kernels_are_proposed_once_while_there_are_others() -> None:
    space = small_space(30)
    tuned = tuner(space)
    for config in tuned.shortlist(8):
        tuned.describe(config, {"half": float(config.int("tile") // 2), "cycles": 0.0})
    halves = [config.int("tile") // 2 for config in tuned.propose(12)]
    assert len(set(halves)) == len(halves)


def test_a_batch_is_no_row_of_near_copies() -> None:
    """A ranker that knows the order of a grid by heart still looks around."""
    space = Space({"a": list(range(8)), "b": list(range(8)), "c": list(range(4))},
                  {"a": 7, "b": 7, "c": 3})  # fmt: skip

    def copies(alike: float) -> int:
        tuned = KnobTuner(
            space, CONV, "direct", TARGET, 0,
            TunerParameters(first=256, epsilon=0.0, alike=alike),
        )  # fmt: skip
        for config in tuned.shortlist(8):
            slow = 0.02 * (config.int("a") + config.int("b")) + 0.01 * config.int("c")
            tuned.describe(config, {"cycles": slow, "nth": float(space.points().index(config))})
        batch = tuned.propose(9)[1:]  # the default apart
        pairs = [(x, y) for i, x in enumerate(batch) for y in batch[:i]]
        return sum(sum(x[k] != y[k] for k in x) == 1 for x, y in pairs)

    assert copies(0.0) >= 12
    assert copies(0.1) <= 6


def test_exploration_stays_among_the_promising() -> None:
    space = conv_space()
    tuned = tuner(space, first=200, epsilon=1.0, promising=0.25)
    described = tuned.shortlist(8)
    for config in described:
        tuned.describe(config, kernel_features(config))
    modelled = sorted(kernel_features(c)["cycles"] for c in described)
    chosen = tuned.propose(9)[1:]
    assert all(kernel_features(c)["cycles"] <= modelled[len(modelled) // 4 + 1] for c in chosen)


def test_a_shortlist_is_made_of_neighbours_and_a_spread_and_never_repeats() -> None:
    space = conv_space()
    tuned = tuner(space)
    first = tuned.shortlist(8)
    assert first[0] == space.default and len(set(first)) == len(first) == 96
    close = [c for c in first if sum(c[k] != space.default[k] for k in c) == 1]
    assert len(close) >= 12
    for config in first:
        tuned.describe(config, kernel_features(config))
    for config in tuned.propose(8):
        tuned.observe(config, kernel_us(config))
    assert not set(tuned.shortlist(8)) & set(first)


def test_what_the_ranker_learned_elsewhere_saves_measurements() -> None:
    """Of another workload, twice as slow, whose kernels compare as this one's do."""
    space = conv_space()
    optimum = min(us for c in space.points() if (us := kernel_us(c)) is not None)

    def best_of_first_batch(seed: int, *, taught: bool) -> float:
        ranker = Ranker(seed)
        for config in random.Random(seed).sample(space.points(), 120) if taught else []:
            us = kernel_us(config)
            ranker.learn("other", kernel_features(config), None if us is None else 2 * us)
        subject = KnobTuner(space, CONV, "direct", TARGET, seed, ranker=ranker)
        run(subject, 1)
        found = subject.best()
        assert found is not None
        return found[1] / optimum

    cold = [best_of_first_batch(seed, taught=False) for seed in range(7)]
    warm = [best_of_first_batch(seed, taught=True) for seed in range(7)]
    assert statistics.median(warm) - 1 < 0.5 * (statistics.median(cold) - 1)


def test_dense_workload_and_single_knob() -> None:
    tuned = KnobTuner(small_space(30), DENSE, "dense", TARGET)
    for _ in range(4):
        for config in tuned.shortlist(4):
            tuned.describe(config, tile_features(config))
        for config in tuned.propose(4):
            tuned.observe(config, 5.0 + abs(config.int("tile") - 20))
    found = tuned.best()
    assert found is not None and found[1] <= 6.0


def test_refusals() -> None:
    tuned = tuner(small_space())
    with pytest.raises(IllegalConfigError, match="direct"):
        tuned.observe(Config(tile=99), 1.0)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(MeasureError, match="direct"):
            tuned.observe(Config(tile=4), wrong)
    with pytest.raises(UsageError):
        tuned.propose(-1)
    with pytest.raises(UsageError):
        TunerParameters(first=0)
    with pytest.raises(UsageError):
        TunerParameters(epsilon=2)
