"""Picking candidates by rule, and the front of a run: on results written by hand."""

from __future__ import annotations

import pytest

from tvmx.errors import UsageError
from tvmx.explore import CandidateSummary, ExploreResult, check_pick
from tvmx.explore._front import dominated_share, front_of, reference_of
from tvmx.explore._pick import pick_candidate


def candidate(
    name: str, us: float, weights: int, arena: int, drop: float | None = None
) -> CandidateSummary:
    return CandidateSummary(
        name=name, plan=name, latency_us=us, spread_us=1.0, ratio=us / 1000, weights_bytes=weights,
        arena_bytes=arena, scratch_bytes=0, library_bytes=weights + 5000, accuracy_drop=drop,
    )  # fmt: skip


def result(*candidates: CandidateSummary) -> ExploreResult:
    return ExploreResult(
        run="r", model="m", target="host", device="d", threads=1, objective="latency",
        candidates=list(candidates), baseline=0, best=1, best_memory=2, layers=[], measurements=1,
        failures=0, seconds=1.0, reference="", notes=[],
    )  # fmt: skip


BASELINE = candidate("baseline", 1000.0, 4_000_000, 300_000, 0.0)
FAST = candidate("fast", 250.0, 2_500_000, 400_000, 1.5)
SMALL = candidate("small", 600.0, 1_000_000, 100_000, 0.4)
MIDDLE = candidate("middle", 400.0, 2_000_000, 200_000, 0.5)
WORSE = candidate("worse", 700.0, 2_000_000, 250_000, 0.5)
RUN = result(BASELINE, FAST, SMALL, MIDDLE, WORSE)


@pytest.mark.parametrize(
    ("pick", "name"),
    [("best", "fast"), ("memory", "small"), ("baseline", "baseline"), ("3", "middle"),
     ("latency", "fast"), ("latency; drop<=0.5", "middle"),
     ("latency; drop<=0.5; weights<=2MB", "middle"),
     ("latency;weights <= 1.9MiB", "small"), ("latency; weights<=2000000B", "middle"),
     ("weights; latency<=0.5ms", "middle"), ("drop; latency<=650us", "small"),
     ("memory", "small"), ("arena; drop<=0", "baseline"),
     ("latency; library<=2.1MB; memory<=3MB", "middle")],
)  # fmt: skip
def test_rules(pick: str, name: str) -> None:
    check_pick(pick)
    assert pick_candidate(RUN, pick).name == name


def test_of_equals_the_first_is_picked() -> None:
    twins = result(BASELINE, FAST.model_copy(update={"name": "one"}), FAST)
    assert pick_candidate(twins, "latency").name == "one"


@pytest.mark.parametrize(
    ("pick", "told"),
    [("speed; drop<=1", "no figure 'speed'"), ("latency; size<=2MB", "no figure 'size'"),
     ("latency; drop<1", "no limit such as"), ("latency; weights<=2", "is no weights; units: B"),
     ("latency; weights<=2ms", "is no weights"), ("latency; latency<=3", "is no latency"),
     ("latency; drop<=1MB", "percentage points"), ("latency; drop<=1.2.3", "is no drop"),
     ("worst", "none of best"), ("", "none of best"), ("-1", "none of best")],
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused_without_a_run(pick: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_pick(pick)
    with pytest.raises(UsageError, match=told):
        pick_candidate(RUN, pick)


def test_what_comes_nearest_is_told() -> None:
    with pytest.raises(
        UsageError, match=r"drop<=0\.5 and latency<=350us; middle comes nearest: latency 400 us"
    ):
        pick_candidate(RUN, "weights; drop<=0.5; latency<=350us")
    with pytest.raises(UsageError, match=r"small comes nearest: weights 1000000 bytes"):
        pick_candidate(RUN, "latency; weights<=900kB")
    with pytest.raises(UsageError, match=r"no candidate '9' in the run \(0 baseline, 1 fast"):
        pick_candidate(RUN, "9")


def test_a_drop_that_was_not_measured_is_no_figure() -> None:
    bare = result(*(c.model_copy(update={"accuracy_drop": None}) for c in RUN.candidates))
    assert pick_candidate(bare, "latency; weights<=2MB").name == "middle"
    with pytest.raises(UsageError, match="no data to measure accuracy on"):
        pick_candidate(bare, "latency; drop<=1")


def test_the_front_and_its_hypervolume() -> None:
    assert front_of(RUN.candidates) == [0, 1, 2, 3]
    reference = reference_of(BASELINE, 1.0)
    assert reference["latency"] == pytest.approx(1100) and reference["drop"] == 1.0
    # One candidate: the box between it and the reference. The baseline's is small.
    one = (1 - 600 / 1100) * (1 - 1e6 / 4.4e6) * (1 - 1e5 / 3.3e5) * (1 - 0.4)
    assert dominated_share([SMALL], reference) == pytest.approx(one)
    assert dominated_share([BASELINE], reference) == pytest.approx((1 - 1 / 1.1) ** 3)
    both = dominated_share([SMALL, MIDDLE], reference)
    assert (
        max(one, dominated_share([MIDDLE], reference))
        < both
        < one + dominated_share([MIDDLE], reference)
    )
    assert dominated_share([SMALL, MIDDLE, WORSE], reference) == both
    assert dominated_share([FAST], reference) == 0, "it loses more than may be lost"


def test_without_data_the_front_has_three_objectives() -> None:
    bare = [c.model_copy(update={"accuracy_drop": None}) for c in RUN.candidates]
    assert front_of(bare) == [1, 2, 3]
    assert set(reference_of(bare[0], 1.0)) == {"latency", "weights", "arena"}
    assert reference_of(BASELINE, 0.0)["drop"] == 1.0
