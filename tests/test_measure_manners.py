"""Measuring manners: repeats until the figure is known, cold caches, the cores asked for."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.measure_libraries import Libraries
from tvmx.errors import UsageError
from tvmx.measure import (
    Cores,
    Deadlines,
    KernelJob,
    LocalFarm,
    RpcRunner,
    TimingPolicy,
)
from tvmx.measure._cores import count_little, parse_cpu_list
from tvmx.measure._prepared import Prepared

QUICK = TimingPolicy.quick()
SHORT = Deadlines(queue=5, connect=5, upload=10, load=5, run=10)


class Source:
    """Repeats from a sequence that starts again at its end; remembers what was asked for."""

    def __init__(self, latencies: Sequence[float]) -> None:
        self._endless = itertools.cycle(latencies)
        self.asked: list[int] = []

    def __call__(self, count: int) -> list[float]:
        self.asked.append(count)
        return [next(self._endless) for _ in range(count)]


def test_equal_repeats_are_enough_after_six() -> None:
    source = Source([100.0])
    assert QUICK.collect(100.0, source) == (100.0,) * 6
    assert source.asked == [6]


def test_an_outlier_costs_three_more() -> None:
    source = Source([100.0, 100.0, 150.0, *[100.0] * 12])
    assert len(QUICK.collect(100.0, source)) == 9
    assert source.asked == [6, 3]


def test_what_never_agrees_ends_at_the_cap() -> None:
    source = Source([90.0, 110.0])
    assert len(QUICK.collect(100.0, source)) == QUICK.repeats
    assert source.asked == [6, 3, 3, 3]
    assert Source([90.0, 110.0])(4) == [90.0, 110.0] * 2


@pytest.mark.parametrize(
    ("estimate_us", "repeats"),
    # 300 ms in all: 15 of up to 20 ms, then as many as fit, then two however long they last.
    [(10.0, 15), (2_500.0, 15), (20_000.0, 15), (50_000.0, 6), (100_000.0, 3), (9e6, 2)],
)
def test_the_time_is_bounded(estimate_us: float, repeats: int) -> None:
    noisy = Source([0.5 * estimate_us, 1.5 * estimate_us])
    latencies = QUICK.collect(estimate_us, noisy)
    assert len(latencies) == repeats
    spent_ms = sum(latencies) * QUICK.calls(estimate_us) / 1e3
    assert spent_ms <= max(QUICK.max_total_ms * 1.05, 2.01 * estimate_us / 1e3)


def test_careful_takes_its_five_seconds_at_most() -> None:
    careful = TimingPolicy.careful()
    for ms, repeats in ((0.01, 15), (5.0, 15), (333.0, 15), (1000.0, 5), (1300.0, 3), (8e3, 3)):
        found = careful.collect(ms * 1e3, Source([0.9 * ms * 1e3, 1.1 * ms * 1e3]))
        assert len(found) == repeats
        assert careful.calls(ms * 1e3) * ms >= 20.0


def _left_out(count: int) -> int:
    """Values outside of a 95 % interval of the median, at either end. By scipy; ours counts."""
    return int(np.sum(stats.binom.cdf(np.arange(count), count, 0.5) <= 0.025)) - 1


def test_the_interval_is_as_wide_as_the_binomial_distribution_has_it() -> None:
    for count in range(6, 40):
        outside = _left_out(count)
        for border, settled in ((101.99, True), (102.01, False), (98.01, True), (97.99, False)):
            values = [100.0] * (count - outside) + [border] * outside
            assert QUICK.settled(values)  # as many as may lie outside do not matter
            assert QUICK.settled([*values[1:], border]) is settled


def test_too_few_repeats_are_never_settled() -> None:
    assert not QUICK.settled([])
    assert not QUICK.settled([100.0] * 5)
    assert not TimingPolicy(min_repeats=9).settled([100.0] * 8)
    assert TimingPolicy(min_repeats=9).settled([100.0] * 9)


NOISE: dict[str, tuple[Callable[[np.random.Generator], Any], float]] = {
    "normal": (lambda rng: rng.standard_normal(15), 0.93),
    "one-sided": (lambda rng: rng.exponential(size=15) - math.log(2), 0.93),
    "two peaks": (lambda rng: rng.choice([-1.0, 1.0], 15) + rng.normal(0, 0.01, 15), 0.90),
}


@pytest.mark.parametrize("noise", NOISE)
def test_the_interval_of_repeats_that_ended_early_is_nearly_honest(noise: str) -> None:
    """The share of intervals that hold the true median, 1, is what the docstring says."""
    draw, least = NOISE[noise]
    rng = np.random.default_rng(0)
    for scale in (0.25, 1.0, 2.0):  # of the tolerance: ends at once, half way, hardly ever
        held = 0
        for _ in range(1000):
            values = 1 + scale * QUICK.tolerance * draw(rng)
            found = QUICK.collect(2500.0, Source(values.tolist()))
            outside = _left_out(len(found))
            low, high = sorted(found)[outside], sorted(found)[-1 - outside]
            held += low <= 1 <= high
        assert held >= 1000 * least


@pytest.mark.parametrize(
    "settings",
    [
        {"repeats": 0}, {"min_repeats": 0}, {"number": 0}, {"warmup": -1}, {"flush_bytes": -1},
        {"min_repeat_ms": 0.0}, {"max_total_ms": -1.0}, {"tolerance": 0.0},
        {"tolerance": math.nan}, {"number": 2, "flush_bytes": 1},
    ],
)  # fmt: skip
def test_a_policy_that_makes_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TimingPolicy(**settings)


def test_cold_is_one_call_after_each_flush() -> None:
    cold = QUICK.cold(64 << 20)
    assert [cold.calls(us) for us in (0.01, 100.0, 1e6)] == [1, 1, 1]
    assert cold.most_repeats(10.0) == QUICK.repeats
    assert cold.longest_s > QUICK.longest_s + 1  # 1 GB is written: not done in no time


class FakeSession:
    """What Prepared needs of a session."""

    def simulated_run(self) -> None:
        """A real device."""

    def __init__(self, celsius: float | None) -> None:
        self.thermometer = self
        self._celsius = celsius

    def read(self) -> float | None:
        return self._celsius

    def phase(self, name: str) -> Any:
        assert name == "run"
        return self

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


class Scripted(Prepared):
    """A kernel of 1000 us, or whatever the log's length makes of it."""

    def __init__(self, celsius: float | None = None) -> None:
        super().__init__(FakeSession(celsius))  # type: ignore[arg-type]
        self.log: list[str] = []

    def _evaluate(self, number: int, repeat: int, flush_bytes: int) -> list[float]:
        self.log.append(f"time {number} x {repeat}" + (f" cold {flush_bytes}" * (flush_bytes > 0)))
        return [1000.0 * (1 + 0.1 * (i % 2)) for i in range(repeat)]

    def _call(self) -> None:
        self.log.append("call")

    def _verify(self) -> float | None:
        self.log.append("verify")
        return 0.25


def test_checked_first_warmed_up_once_then_timed() -> None:
    kernel = Scripted(celsius=55.5)
    timed = kernel.measure(TimingPolicy(warmup=3, repeats=10))
    # The third warm-up call is the time evaluator's own.
    assert kernel.log == [
        "time 1 x 1", "verify", "call", "call", "time 3 x 6", "time 3 x 3", "time 3 x 1",
    ]  # fmt: skip
    assert (len(timed.latencies_us), timed.max_error, timed.temperature_c) == (10, 0.25, 55.5)


def test_the_number_of_calls_can_be_fixed_and_caches_flushed() -> None:
    kernel = Scripted()
    kernel.measure(TimingPolicy(number=7, repeats=2))
    assert kernel.log == ["time 1 x 1", "verify", "time 7 x 2"]
    kernel = Scripted()
    kernel.measure(TimingPolicy(repeats=2).cold(4096))
    assert kernel.log == ["time 1 x 1", "verify", "time 1 x 2 cold 4096"]


def test_rounds_are_warmed_up_each() -> None:
    """Other candidates ran in between."""
    kernel = Scripted()
    for _ in range(2):
        kernel.time(3, 1, TimingPolicy(warmup=2))
    assert kernel.log == ["call", "time 3 x 1"] * 2


# Cores


@pytest.mark.parametrize(
    ("text", "threads", "want"),
    [
        (None, None, "big:1"), (None, 3, "big:3"), ("little", None, "little:1"),
        ("big:4", None, "big:4"), ("little", 2, "little:2"), (" little:2 ", 2, "little:2"),
    ],
)  # fmt: skip
def test_cores_as_typed(text: str | None, threads: int | None, want: str) -> None:
    found = Cores.parse(text, threads)
    assert str(found) == want
    assert found.mode == (1 if want.startswith("big") else -1)


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("middle", None), ("big:", None), ("big:x", None), ("big:-1", None), ("big:0", None),
        ("big:2", 3), ("big", 0), ("big", -1), ("little:9999", None), ("Big", None), ("", 0),
    ],
)  # fmt: skip
def test_cores_that_make_no_sense(text: str, threads: int | None) -> None:
    with pytest.raises(UsageError):
        Cores.parse(text, threads)


def test_the_default_threads_of_a_device_are_on_its_big_cores() -> None:
    assert Cores("big", 0).threads == 0
    with pytest.raises(UsageError, match="say how many"):
        Cores("little", 0)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0", [0]), ("0-3\n", [0, 1, 2, 3]), ("0,2-3,6", [0, 2, 3, 6]),
        ("", []), ("x", []), ("1-", []),
    ],
)  # fmt: skip
def test_lists_of_processors(text: str, want: list[int]) -> None:
    assert parse_cpu_list(text) == want


BOARDS = {
    "four alike": [1800] * 4,
    "2+4": [1416] * 4 + [1800] * 2,
    "1+3+4": [2000] * 4 + [2400] * 3 + [2800],
    "no frequencies": [0, 0],
    "one": [1000],
}


def _tvm_counts_little(clocks: list[int]) -> int:
    """The loop of threading_backend.cc."""
    ordered = sorted(clocks, reverse=True)
    big, little = ordered[0], ordered[-1]
    return sum(1 for clock in ordered if big != little and clock == little)


@pytest.mark.parametrize("board", BOARDS)
def test_little_cores_are_counted_as_tvm_does(board: str) -> None:
    assert count_little(BOARDS[board]) == _tvm_counts_little(BOARDS[board])


def _files(clocks: list[int]) -> dict[str, str]:
    root = "/sys/devices/system/cpu"
    files = {f"{root}/online": f"0-{len(clocks) - 1}"}
    for cpu, clock in enumerate(clocks):
        if clock:
            files[f"{root}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = str(clock * 1000)
    return files


@pytest.mark.parametrize(
    ("board", "cores", "problem"),
    [
        ("four alike", "big:4", None),
        ("four alike", "big:5", "has 4 cores, big:5 were asked for: give --cores big:4 or fewer"),
        ("four alike", "little:1", "none are little: give --cores big:1"),
        ("2+4", "little:4", None),
        ("2+4", "little:5", "has 4 little cores, little:5 were asked for: give --cores little:4"),
        ("2+4", "big:6", None),
        ("1+3+4", "little:4", None),
        ("no frequencies", "little:2", "none are little: give --cores big:2"),
        ("no frequencies", "big:2", None),
    ],
)
def test_what_a_device_cannot_do(board: str, cores: str, problem: str | None) -> None:
    files = _files(BOARDS[board])
    found = Cores.parse(cores).problem(lambda path: files.get(path, ""))
    assert found == problem if problem is None else problem in str(found)


def test_a_device_that_shows_nothing_is_believed() -> None:
    assert Cores("little", 64).problem(lambda path: "") is None


# Real servers


@pytest.fixture(scope="module")
def farm() -> Iterator[LocalFarm]:
    with LocalFarm(threads=1) as farm:
        yield farm


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory) -> KernelJob:
    """y = 2 x + 1 over 1 MiB: all it does is to read and write memory."""
    import tvm
    from tvm import s_tir, te, tirx

    x = np.random.default_rng(0).random((4096, 64), np.float32)
    a = te.placeholder(x.shape, name="a")
    b = te.compute(x.shape, lambda i, j: a[i, j] * 2.0 + 1.0, name="b")
    schedule = s_tir.Schedule(te.create_prim_func([a, b]))
    schedule.vectorize(schedule.get_loops(schedule.get_sblock("b"))[1])
    func = schedule.mod["main"].with_attr("global_symbol", "k")
    library = tirx.build(tvm.IRModule({"k": func}), target=tvm.target.Target({"kind": "llvm"}))
    path = tmp_path_factory.mktemp("copying") / "copying.so"
    library.export_library(str(path))
    return KernelJob(path, "k", (x,), x.shape, expected=x * 2 + 1)


@pytest.mark.rpc
def test_repeats_of_a_steady_kernel_end_early(farm: LocalFarm, libraries: Libraries) -> None:
    """Asleep for 5 ms a call: as steady as a busy machine lets anything be."""
    policy = TimingPolicy(tolerance=0.2, repeats=30, max_total_ms=1e6)
    with farm.runner(deadlines=SHORT) as runner:
        (result,) = runner.measure([libraries.sleeping()], policy)
    assert result.ok, result.message
    assert 6 <= len(result.latencies_us) < 30
    assert result.interval_us is not None and result.median_us is not None
    low, high = result.interval_us
    assert 5000 <= low <= result.median_us <= high
    assert max(high - result.median_us, result.median_us - low) <= 0.2 * result.median_us


@pytest.mark.rpc
def test_the_cap_holds_on_a_device(farm: LocalFarm, libraries: Libraries) -> None:
    policy = TimingPolicy(tolerance=1e-9, repeats=8)
    with farm.runner(deadlines=SHORT) as runner:
        (result,) = runner.measure([libraries.sleeping()], policy)
    assert len(result.latencies_us) == 8


@pytest.mark.rpc
def test_cold_caches_cost_time(farm: LocalFarm, copying: KernelJob) -> None:
    """Seen: 85 us from a 1 MiB cache, 270 us after a flush of 64 MiB."""
    with farm.runner(deadlines=SHORT) as runner:
        ratios = []
        for _ in range(3):  # apart, so that one disturbance cannot decide
            (warm,) = runner.measure([copying])
            (cold,) = runner.measure([copying], TimingPolicy(repeats=9).cold(64 << 20))
            assert warm.median_us and cold.median_us, (warm.message, cold.message)
            ratios.append(cold.median_us / warm.median_us)
    assert statistics.median(ratios) > 1.3, ratios


def _clocks() -> set[str]:
    folder = Path("/sys/devices/system/cpu")
    return {path.read_text() for path in folder.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")}


@pytest.mark.rpc
@pytest.mark.skipif(len(_clocks()) > 1, reason="this machine has cores of several kinds")
def test_little_is_refused_where_all_cores_are_alike(farm: LocalFarm, libraries: Libraries) -> None:
    """TVM itself would take them from the end of the list and say nothing."""
    with RpcRunner(farm.address, cores=Cores("little", 1), deadlines=SHORT) as runner:
        (result,) = runner.measure([libraries.kernel("good")])
        assert result.status == "connect"
        assert "none are little: give --cores big:1" in result.message
    with RpcRunner(farm.address, cores=Cores("big", 1), deadlines=SHORT) as runner:
        assert runner.measure([libraries.kernel("good")])[0].ok


@pytest.mark.rpc
def test_more_threads_than_the_server_was_started_with(
    farm: LocalFarm, libraries: Libraries
) -> None:
    import psutil

    enough = (psutil.cpu_count() or 1) >= 2
    with RpcRunner(farm.address, cores=Cores("big", 2), deadlines=SHORT) as runner:
        (result,) = runner.measure([libraries.kernel("good")])
    assert result.status == "connect"
    assert ("start its server with TVM_NUM_THREADS=2" if enough else "big:1") in result.message
