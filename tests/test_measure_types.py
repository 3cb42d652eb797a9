from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from tvmx.errors import UsageError
from tvmx.ir import to_physical
from tvmx.measure import (
    Deadlines,
    DeviceAddress,
    Measurement,
    SimulatedRun,
    TimingPolicy,
    check_output,
    compare_measured,
    elf_machine,
    library_problem,
    parse_host_port,
    relative_error,
    simulation_id,
)
from tvmx.measure._jobs import poison
from tvmx.measure._spool import Spool
from tvmx.measure._verify import WrongOutputError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:9190", ("127.0.0.1", 9190)),
        ("board.local:1", ("board.local", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_host_port(text: str, parts: tuple[str, int]) -> None:
    assert parse_host_port(text) == parts


@pytest.mark.parametrize("text", ["", "localhost", ":9190", "h:", "h:x", "h:0", "h:65536", "h:-1"])
def test_host_port_nonsense(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_host_port(text)


@pytest.mark.parametrize("key", ["", "a b", "a:b", "a\n"])
def test_key_nonsense(key: str) -> None:
    with pytest.raises(UsageError, match="key"):
        DeviceAddress.parse("h:1", key)


def test_address_prints_what_it_parses() -> None:
    address = DeviceAddress.parse("[::1]:9190", "rpi4")
    assert DeviceAddress.parse(address.tracker, address.key) == address
    assert str(address) == "rpi4 at [::1]:9190"


@pytest.mark.parametrize("value", [0, -1, float("nan"), 1e9])
def test_timeouts_refuse_nonsense(value: float) -> None:
    with pytest.raises(UsageError, match="run"):
        Deadlines(run=value)


def test_statistics() -> None:
    result = Measurement.success([4.0, 1.0, 3.0, 2.0, 100.0])
    assert result.median_us == 3.0
    assert result.spread_us == 2.0  # 4 - 2: one outlier does not move it
    assert result.latencies_us == (4.0, 1.0, 3.0, 2.0, 100.0)


def test_only_the_device_is_to_blame_for_its_own_phases() -> None:
    blamed = {"queue", "connect", "upload"}
    for status in ("build", "queue", "connect", "upload", "load", "run", "timeout", "crash"):
        assert Measurement.failure(status, "m").device_fault is (status in blamed)


@pytest.mark.parametrize("estimate", [0.05, 3.0, 800.0, 5000.0, 250_000.0, 9e6])
def test_policies_bound_the_time(estimate: float) -> None:
    for policy in (TimingPolicy.quick(), TimingPolicy.careful()):
        number, rounds = policy.calls(estimate), policy.most_repeats(estimate)
        repeat_ms = number * max(estimate, 0.1) / 1e3
        assert repeat_ms >= min(policy.min_repeat_ms, estimate / 1e3)
        assert policy.min_repeats <= rounds <= policy.repeats
        assert rounds == policy.min_repeats or rounds * number * estimate / 1e3 <= (
            policy.max_total_ms * 1.01
        )
    assert TimingPolicy(number=7).calls(estimate) == 7


def test_relative_error_is_relative_to_the_range() -> None:
    expected = np.array([100.0, 110.0], np.float32)
    assert relative_error(expected + 1, expected) == pytest.approx(0.1)
    constant = np.full(3, 8.0, np.float32)
    assert relative_error(constant + 2, constant) == pytest.approx(0.25)


def test_values_that_differ_by_rounding_alone_have_no_range() -> None:
    constant = np.full(3, 8.0, np.float32)
    almost = np.nextafter(constant, np.array([9, 8, 8], np.float32))
    assert relative_error(constant, almost) < 1e-3 < relative_error(constant + 1e-4, almost)


def test_integers_do_not_wrap_around() -> None:
    expected = np.array([-128, 127], np.int8)
    assert relative_error(np.array([127, -128], np.int8), expected) == pytest.approx(1.0)


def test_padding_lanes_are_ignored_if_finite() -> None:
    logical = np.random.default_rng(0).random((1, 5, 2, 3), np.float32)
    expected = to_physical(logical, "NCHW4c")
    actual = expected.copy()
    actual[:, 1, :, :, 1:] = 77.0
    assert check_output(actual, expected, 1e-3, layout="NCHW4c", channels=5) == 0.0
    actual[0, 1, 0, 0, 3] = np.nan
    with pytest.raises(WrongOutputError, match=r"1 of 48 values are NaN"):
        check_output(actual, expected, 1e-3, layout="NCHW4c", channels=5)


def test_a_wrong_channel_is_found() -> None:
    logical = np.random.default_rng(0).random((1, 5, 2, 3), np.float32)
    expected = to_physical(logical, "NCHW4c")
    actual = expected.copy()
    actual[0, 1, 1, 2, 0] += 0.1
    with pytest.raises(WrongOutputError, match="of the range") as caught:
        check_output(actual, expected, 1e-3, layout="NCHW4c", channels=5)
    assert caught.value.max_error == pytest.approx(0.1, rel=0.2)


def test_another_shape_is_wrong() -> None:
    with pytest.raises(WrongOutputError, match="shape"):
        check_output(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32"])
def test_poison_is_no_plausible_result(dtype: str) -> None:
    array = poison((2, 3), dtype)
    assert array.shape == (2, 3) and array.dtype == dtype
    with pytest.raises(WrongOutputError):
        check_output(array, np.zeros((2, 3), dtype), 1e-3)


@pytest.mark.parametrize(
    ("code", "name"), [(183, "aarch64"), (62, "x86_64"), (40, "arm"), (9999, "machine 9999")]
)
def test_elf_machine(tmp_path: Path, code: int, name: str) -> None:
    library = tmp_path / "lib.so"
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, code)
    library.write_bytes(head + bytes(44))
    assert elf_machine(library) == name
    problem = library_problem(library, "aarch64")
    assert (problem is None) is (name == "aarch64")
    if problem:
        assert name in problem and "aarch64" in problem
    assert library_problem(library, None) is None


def test_no_library_at_all(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    assert "not an ELF" in str(library_problem(text, None))
    assert "No such file" in str(library_problem(tmp_path / "gone.so", None))


def test_the_spool_writes_equal_contents_once_and_stays_small(tmp_path: Path) -> None:
    spool = Spool(tmp_path, keep_bytes=1000)
    first = spool.put(np.arange(100, dtype=np.float32))
    assert spool.put(np.arange(100, dtype=np.float32)) == first
    other = spool.put(np.arange(100, dtype=np.int32))
    reshaped = spool.put(np.arange(100, dtype=np.float32).reshape(10, 10))
    assert len({first.digest, other.digest, reshaped.digest}) == 3
    spool.put(np.arange(100, dtype=np.float32))  # used again: not the oldest now
    spool.trim()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        Path(r.path).name for r in (first, reshaped)
    )
    np.testing.assert_array_equal(np.load(first.path), np.arange(100, dtype=np.float32))


def test_a_simulation_is_named_by_all_its_figures_depend_on() -> None:
    facts = {"board": "rpi4", "core": "cortex-a72", "figure": "core", "clock_mhz": 1500,
             "model": "m", "parameters": {"l2_miss": 170}, "plugin": "p"}  # fmt: skip
    name = simulation_id(json.dumps(facts))
    assert simulation_id("") == ""
    assert name.startswith("simulated:")
    assert simulation_id(json.dumps(facts | {"board": "other", "figure_source": "s"})) == name
    for change in ({"figure": "core+memory"}, {"parameters": {"l2_miss": 171}}, {"plugin": "q"}):
        assert simulation_id(json.dumps(facts | change)) != name


def test_simulated_latencies_are_told_apart_by_the_models_worth_only() -> None:
    def run(us: float) -> Measurement:
        counts = SimulatedRun(
            figure="core", clock_mhz=1000, core_cycles=us * 1000, memory_cycles=0, instructions=1,
            l1_misses=0, l2_hits=0, prefetched_lines=0, l2_misses=0,
        )  # fmt: skip
        return Measurement.success([us], simulated=counts)

    verdicts = [compare_measured(run(us), run(100.0)).verdict for us in (70, 90, 100, 115, 130)]
    assert verdicts == ["faster", "tie", "tie", "tie", "slower"]
    assert "ties" in compare_measured(run(90.0), run(100.0)).describe("a", "b")
    # one repeat on a real device decides nothing either
    assert compare_measured(Measurement.success([1.0]), run(100.0)).verdict == "tie"
