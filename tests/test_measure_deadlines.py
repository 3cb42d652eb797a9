"""Deadlines: what users type, what follows from the baseline, what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmx.errors import UsageError
from tvmx.measure import Deadlines, TimingPolicy

PHASES = ("queue", "connect", "upload", "load", "run")


def test_what_is_typed_is_taken_and_kept() -> None:
    found = Deadlines.parse(["run=20", " upload = 1.5", "load=1e2"])
    assert (found.run, found.upload, found.load) == (20.0, 1.5, 100.0)
    assert (found.queue, found.connect) == (Deadlines().queue, Deadlines().connect)
    assert found.pinned == {"run", "upload", "load"}


def test_nothing_typed_is_the_default() -> None:
    assert Deadlines.parse([]) == Deadlines()


@pytest.mark.parametrize(
    "text", ["run=abc", "run", "run=", "=5", "", "foo=3", "RUN=5", "cool=9", "run=nan", "run=1,5"]
)
def test_what_is_no_deadline(text: str) -> None:
    with pytest.raises(UsageError, match="is no deadline") as caught:
        Deadlines.parse([text])
    assert repr(text) in caught.value.message
    for phase in PHASES:
        assert phase in str(caught.value.hint)


@pytest.mark.parametrize("value", ["-1", "0", "inf", "-inf", "86400", "1e99"])
def test_what_is_no_time(value: str) -> None:
    with pytest.raises(UsageError, match=r"deadline run=\S+ must lie between 0 and 86400 seconds"):
        Deadlines.parse([f"run={value}"])


def test_one_phase_has_one_deadline() -> None:
    with pytest.raises(UsageError, match="two deadlines for run: 5 s and 6 s"):
        Deadlines.parse(["run=5", "load=6", "run=6"])
    assert Deadlines.parse(["run=5", "run=5.0"]).run == 5.0


@pytest.mark.parametrize("baseline_us", [10.0, 7_000.0, 300_000.0, 4_000_000.0])
def test_run_follows_from_the_baseline(baseline_us: float) -> None:
    """Enough for a candidate three times as slow: the calls of the check, then of the timing."""
    policy = TimingPolicy.quick()
    found = Deadlines().derive(baseline_us, policy.longest_s)
    slow_us = 3 * baseline_us
    check = 3 * slow_us
    warm_up = (policy.warmup - 1) * slow_us
    timing = warm_up + slow_us * (1 + policy.calls(slow_us) * policy.most_repeats(slow_us))
    assert max(check, timing) / 1e6 <= found.run
    assert found.run <= 5 + policy.longest_s + 12 * baseline_us / 1e6 + 1e-9
    for phase in PHASES[:-1]:
        assert getattr(found, phase) == getattr(Deadlines(), phase)


def test_run_that_the_user_chose_stays() -> None:
    chosen = Deadlines.parse(["run=2"])
    assert chosen.derive(5e6, 1.0) == chosen
    other = Deadlines.parse(["load=2"]).derive(1e6, 1.0)
    assert (other.load, other.pinned) == (2.0, {"load"})
    assert other.run != Deadlines().run


def test_derived_again_it_does_not_add_up() -> None:
    once = Deadlines().derive(1e6, 0.3)
    assert once.derive(1e6, 0.3) == once


def test_a_baseline_of_hours_is_bounded() -> None:
    assert Deadlines().derive(1e12, 0.3).run == 43200.0


def test_the_description_names_every_phase_in_order() -> None:
    text = Deadlines(queue=1200.0, connect=0.25, upload=99.96, run=6.2345).describe()
    assert text == (
        "queue 1200 s, connect 0.25 s, upload 100 s + size, load 20 s + size, run 6.23 s"
    )


def test_size_is_added() -> None:
    deadlines = Deadlines(upload=10.0, load=10.0, run=10.0)
    assert deadlines.transfer(40_000_000) == pytest.approx(20.0)
    assert deadlines.loading(40_000_000) == pytest.approx(12.0)
    assert deadlines.job(40_000_000) == pytest.approx(42.0)
    # The server ends a session after its client would have: else it would cut good jobs short.
    assert deadlines.session(40_000_000) > deadlines.job(40_000_000)


@pytest.mark.parametrize("phase", PHASES)
def test_the_documented_defaults_are_these(phase: str) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "devices.md"
    rows = [line.split("|") for line in page.read_text(encoding="utf-8").splitlines()]
    (default,) = [
        row[2].strip() for row in rows if row[1:2] == [f" `{phase}` "] and " s " in row[2]
    ]
    assert default == f"{Deadlines().of(phase):g} s"
