"""Option values: what is understood, and what is refused."""

from __future__ import annotations

import math

import pytest

from tvmx.cli._parse import check_count, check_number, check_port, parse_duration, parse_shapes
from tvmx.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h", 7200), ("1h1m1s", 3661), (" 5M ", 300),
        ("0.5h", 1800), ("1.5s", 1.5),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "10", "0s", "0h0m", "-5m", "10min", "m", "5m1h", "5m5m", "1e3s", "nan", "inf", "10 m",
     "1h-5m", "999999999h", "٣s0"],
)  # fmt: skip
def test_nonsense_durations(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        parse_duration(text)


def test_shapes() -> None:
    assert parse_shapes([]) == {}
    assert parse_shapes(["data=1,3,224,224", "a=b=2"]) == {"data": (1, 3, 224, 224), "a=b": (2,)}


@pytest.mark.parametrize(
    "items",
    [["data"], ["=1,2"], ["data="], ["data=1,,2"], ["data=1,x"], ["data=0,3"], ["data=-1,3"],
     ["data=1.5"], ["a=1", "a=1"]],
)  # fmt: skip
def test_nonsense_shapes(items: list[str]) -> None:
    with pytest.raises(UsageError, match="--shape"):
        parse_shapes(items)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.001, 100.001])
def test_numbers_outside_their_range(value: float) -> None:
    with pytest.raises(UsageError, match="--max-accuracy-drop"):
        check_number(value, "--max-accuracy-drop", 0, 100, "percentage points")
    assert check_number(0.0, "--max-accuracy-drop", 0, 100) == 0.0


def test_counts_and_ports() -> None:
    assert check_count(4, "--threads", 4, "four") == 4
    with pytest.raises(UsageError, match="--threads 5 is too many: four"):
        check_count(5, "--threads", 4, "four")
    with pytest.raises(UsageError, match="--trials 0"):
        check_count(0, "--trials")
    for port in (0, 65536, -1):
        with pytest.raises(UsageError, match=f"port {port}"):
            check_port(port)
