"""Output, units, progress and the guard around commands."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.clock import Clock
from tvmx.cli import _progress
from tvmx.cli import _units as units
from tvmx.cli._errors import INTERNAL, INTERRUPTED, Interrupted, guarded
from tvmx.cli._output import Output
from tvmx.cli._progress import (
    BarProgress,
    JsonProgress,
    LineProgress,
    QuietProgress,
    describe_best,
    open_progress,
)
from tvmx.errors import DataError, UnknownTargetError, UnsupportedOpError


def test_json_is_one_document_and_nothing_is_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    def never(_: object) -> None:
        raise AssertionError

    output = Output(as_json=True)
    output.note("a remark")
    output.emit({"x": float("nan"), "y": [float("inf"), 1.5], "z": {"p": Path("a")}}, never)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"x": None, "y": [None, 1.5], "z": {"p": "a"}}
    assert captured.err == ""


def test_tables_show_cells_literally_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "layer [bold]1[/bold] :smile: " + "x" * 90
    Output(as_json=False).emit(
        {}, lambda screen: screen.table(("name", "n"), [(name, 3), (None, None)], right=("n",))
    )
    assert name in capsys.readouterr().out


def test_fields_leave_out_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    Output(False).emit({}, lambda screen: screen.fields({"a": 1, "long": "x", "gone": None}))
    assert capsys.readouterr().out == "a     1\nlong  x\n"


def test_warnings_are_said_with_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).warn("look out")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "look out\n")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (units.duration(None), "-"), (units.duration(7.4), "7.40 us"),
        (units.duration(999.6), "1000 us"), (units.duration(1234.0), "1.23 ms"),
        (units.duration(2.5e6), "2.50 s"), (units.size(0), "0 B"), (units.size(1023), "1023 B"),
        (units.size(1536), "1.50 KiB"), (units.size(5 << 30), "5.00 GiB"),
        (units.count(999), "999"), (units.count(3.858e9), "3.86 G"), (units.clock(59.6), "1m00s"),
        (units.clock(12), "12s"), (units.clock(3700), "1h01m"), (units.shape((1, 3, 8)), "1x3x8"),
    ],
)  # fmt: skip
def test_units(text: str, want: str) -> None:
    assert text == want


def test_lines_when_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every_s=0.0)
    progress.stage("tune")
    progress.update(5, 10, best_us=1000, baseline_us=2000, seconds_left=65)
    progress.message("a server was restarted")
    assert stream.getvalue().splitlines() == [
        "tune ...",
        "tune 50 %, best 1.00 ms, 2.00 x as fast as the baseline, 1m05s left",
        "a server was restarted",
    ]


def test_lines_are_rare() -> None:
    stream = io.StringIO()
    with LineProgress(stream) as progress:
        progress.stage("tune")
        for step in range(100):
            progress.update(step, 100, best_us=None, baseline_us=None, seconds_left=None)
    assert stream.getvalue() == "tune ...\n"


def test_the_bar_shows_best_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    stream = io.StringIO()
    with BarProgress(stream) as progress:
        progress.update(1, 4, best_us=10.0, baseline_us=None, seconds_left=90)
        progress.stage("measure [x]")
        progress.update(3, 4, best_us=10.0, baseline_us=15.0, seconds_left=5)
        progress.message("kept")
        progress._bar.refresh()
    text = stream.getvalue()
    for part in ("measure [x]", "75 %", "1.50 x as fast", "5s left", "kept"):
        assert part in text


def test_json_has_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress(Output(as_json=True)) as progress:
        progress.stage("tune")
        progress.message("x")
    assert capsys.readouterr() == ("", "")
    with open_progress(Output(as_json=False)) as progress:
        progress.stage("tune")
    assert capsys.readouterr() == ("", "tune ...\n")


def test_best_without_a_baseline() -> None:
    assert describe_best(None, 3.0) == ""
    assert describe_best(3.0, None) == "best 3.00 us"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


NO_DEVICE = "no device rpi4 at h:1 is registered"


def wait(progress: QuietProgress, seconds: Clock, count: int, text: str = NO_DEVICE) -> None:
    """``count`` seconds of a wait of ten minutes, then work goes on."""
    for left in range(600, 600 - count, -1):
        progress.waiting(text, float(left))
        seconds.now += 1
    progress.waiting("", None)


def test_lines_count_down_while_there_is_no_device(seconds: Clock) -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    wait(progress, seconds, 40)
    assert stream.getvalue().splitlines() == [
        f"waiting, 10:00 left: {NO_DEVICE}",
        f"waiting, 09:45 left: {NO_DEVICE}",
        f"waiting, 09:30 left: {NO_DEVICE}",
        "going on",
    ]


def test_lines_of_waits_that_follow_each_other_are_rare(seconds: Clock) -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    for celsius in range(80, 92):
        wait(progress, seconds, 3, f"{celsius} °C")
    assert stream.getvalue().splitlines() == [
        "waiting, 10:00 left: 80 °C", "going on",
        "waiting, 10:00 left: 85 °C", "going on",
        "waiting, 10:00 left: 90 °C", "going on",
    ]  # fmt: skip


@pytest.mark.parametrize("event", ["stage", "update"])
def test_a_wait_that_nobody_ends_is_over_when_work_goes_on(seconds: Clock, event: str) -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.waiting("88 °C: cooling", None)
    seconds.now += 4
    _go_on(progress, event)
    assert "going on" not in stream.getvalue()  # another device works meanwhile
    seconds.now += 2
    _go_on(progress, event)
    assert stream.getvalue().splitlines().count("going on") == 1
    assert stream.getvalue().startswith("waiting: 88 °C: cooling\n")


def _go_on(progress: QuietProgress, event: str) -> None:
    if event == "stage":
        progress.stage("tune")
    else:
        progress.update(1, 2, best_us=None, baseline_us=None, seconds_left=None)


def test_the_bar_counts_down_and_returns_to_normal(
    monkeypatch: pytest.MonkeyPatch, seconds: Clock
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()

    def screen() -> str:
        before = len(stream.getvalue())
        progress._bar.refresh()
        return stream.getvalue()[before:]

    with BarProgress(stream) as progress:
        progress.stage("tune")
        progress.update(1, 4, best_us=None, baseline_us=None, seconds_left=90)
        assert "waiting" not in screen()
        progress.waiting(f"[b]{NO_DEVICE}[/b]", 75.0)
        assert f"waiting, 01:15 left: [b]{NO_DEVICE}[/b]" in screen()
        seconds.now += 3
        assert "01:12 left" in screen() and "25 %" in screen()
        progress.waiting("", None)
        assert "waiting" not in screen() and "25 %" in screen()
        progress.waiting("cooling", 75.0)
        assert "cooling" in screen()
        seconds.now += 6
        assert "cooling" not in screen()


def test_json_says_only_that_a_wait_is_long(
    seconds: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = JsonProgress(Output(as_json=True))
    wait(progress, seconds, 15)
    assert capsys.readouterr() == ("", "")
    wait(progress, seconds, 100)
    assert capsys.readouterr() == ("", f"waiting, 09:45 left: {NO_DEVICE}\n")
    seconds.now += 60
    wait(progress, seconds, 20)
    assert capsys.readouterr().err.count("waiting") == 1


def _leave(error: BaseException, *, as_json: bool = False) -> int:
    @guarded
    def command(as_json: bool) -> None:
        raise error

    with pytest.raises(typer.Exit) as leave:
        command(as_json=as_json)
    return leave.value.exit_code


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("x[0] is nan", hint="fix it"), 1, "error: x[0] is nan\nhint: fix it\n"),
        (UnknownTargetError("no target 'x'"), 2, "error: no target 'x'\n"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted; nothing was written\n"),
        (Interrupted("all is kept"), INTERRUPTED, "interrupted; all is kept\n"),
    ],
)
def test_errors_are_a_message_a_hint_and_an_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _leave(error) == code
    assert capsys.readouterr() == ("", text)


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    error = UnsupportedOpError("2 operators", ops={"Foo": ["a", "b"]}, hint="h")
    assert _leave(error, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {
        "error": {
            "type": "UnsupportedOpError",
            "message": "2 operators",
            "hint": "h",
            "ops": {"Foo": ["a", "b"]},
        }
    }


def test_internal_errors_go_to_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _leave(ZeroDivisionError("by zero\nand more")) == INTERNAL
    (log,) = tmp_path.iterdir()
    assert "Traceback" in log.read_text()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "internal error: ZeroDivisionError: by zero"
    assert str(log) in err
    assert "Traceback" not in err


@pytest.mark.parametrize("passing", [typer.Exit(3), typer.BadParameter("x"), SystemExit(4)])
def test_what_ends_on_purpose_passes_the_guard(passing: BaseException) -> None:
    @guarded
    def command() -> None:
        raise passing

    with pytest.raises(type(passing)) as found:
        command()
    assert found.value is passing


def test_main_reports_errors_outside_of_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvmx.cli import _main

    def broken(*_: Any) -> None:
        raise DataError("broken")

    monkeypatch.setattr(_main, "app", broken)
    monkeypatch.setattr(sys, "argv", ["tvmx", "--json"])
    with pytest.raises(SystemExit) as leave:
        _main.main()
    assert leave.value.code == 1
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "broken"
