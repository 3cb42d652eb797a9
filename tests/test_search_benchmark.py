"""The search benchmark: its tables, what it keeps, and what it makes of it."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import search as benchmark
from benchmarks._search_cases import NETWORKS, case_of, graph_of, measured_names, names
from benchmarks._search_modelled import CORES, drawn_core, modelled_table
from benchmarks._search_results import FEW, Curve, Report, Step, line_of
from benchmarks._search_runs import Settings, run
from tvmx.search import DeployEnv, plan_us, solve_exact, walk_of


@pytest.mark.parametrize("name", measured_names())
def test_committed_tables_are_searched_as_they_are(name: str) -> None:
    case = case_of(name)
    exact = case.exact()
    assert exact.exact and exact.latency_us <= case.env().baseline_us
    text = case.table.model_dump_json()
    assert "/tmp" not in text and "/home" not in text
    assert case.table.graph is not None and case.table.target


def test_modelled_tables_have_every_kind_and_are_always_the_same() -> None:
    table = modelled_table(graph_of("squeezenet"), CORES["a72"])
    assert table == modelled_table(graph_of("squeezenet"), CORES["a72"])
    assert table != modelled_table(graph_of("squeezenet"), CORES["a72"], seed=1)
    kinds = {i.template for costs in table.layers for i in costs.implementations}
    assert {"conv2d_direct", "conv2d_winograd", "conv2d_int8", "conv1x1_bsr"} <= kinds
    exact = solve_exact(table, walk_of(table))
    assert exact.latency_us < 0.8 * plan_us(table, walk_of(table), table.baseline)
    for seed in range(5):  # every core that is drawn can be searched
        DeployEnv(modelled_table(graph_of("bvlc_alexnet"), drawn_core(seed), seed))


def test_cases_are_the_seven_networks_free_and_limited() -> None:
    for network in NETWORKS:
        assert {f"{network} host", f"{network} a72 modelled"} <= set(names())
        limited = case_of(f"{network} a72 modelled limited")
        assert limited.budgets.additive
        free = case_of(f"{network} a72 modelled").exact().latency_us
        assert limited.exact().latency_us >= free


def test_runs_are_kept_and_made_again_when_the_table_changes(tmp_path: Path) -> None:
    settings = Settings(tmp_path, ("digits a72",), ("random",), 1, 50)
    first = run(settings, "digits a72", "random", None, 0)
    assert (first.played, first.steps[0].episode) == (50, 1)
    path = settings.path("digits a72", "random", 50, 0)
    before = path.stat().st_mtime_ns
    assert run(settings, "digits a72", "random", None, 0) == first
    assert path.stat().st_mtime_ns == before
    first.model_copy(update={"digest": "another"}).save(path)
    again = run(settings, "digits a72", "random", None, 0)
    assert again.steps == first.steps and again.digest == first.digest


def test_what_a_line_says() -> None:
    def curve(seed: int, *steps: tuple[int, float]) -> Curve:
        return Curve(
            case="c", digest="d", agent="a", seed=seed, episodes=20, played=20, plans=15, cpu_s=1,
            steps=tuple(Step(episode=e, plans=e - 1, us=us) for e, us in steps),
        )  # fmt: skip

    line = line_of("a", [curve(0, (1, 200), (5, 100.5)), curve(1, (1, 150), (7, 110)),
                         curve(2, (2, 180), (9, 101))], 100.0)  # fmt: skip
    assert line.regret == pytest.approx(0.01) and line.worst == pytest.approx(0.1)
    assert (line.episodes_within, line.plans_within) == (9, 8)
    known = dict(line.curve)
    assert known[1] == 1.0 and known[5] == pytest.approx(0.5) and set(known) == {1, 2, 5, 10, 20}
    late = line_of("a", [curve(0, (3, 200))], 100.0)
    assert math.isinf(dict(late.curve)[1]) and late.episodes_within is None


def test_the_whole_benchmark_on_a_small_case(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(benchmark.main)
    arguments = ["--out", str(tmp_path), "--cases", "digits a76", "--seeds", "2"]
    arguments += ["--episodes", "60", "--agents", "random,exact,q-learning"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = Report.load(tmp_path / "search.json")
    assert report is not None
    (case,) = report.cases
    exact = case.line("exact")
    assert exact is not None and exact.regret == 0 and exact.episodes_within == 2
    drawn = [case.line("random", few) for few in FEW]
    assert all(line is not None and line.regret > 0 for line in drawn)
    assert "| digits a76 | 11 x 2.4 |" in result.stdout
    svg = ET.fromstring((tmp_path / "search.svg").read_text())
    assert len(svg.findall(".//{http://www.w3.org/2000/svg}polyline")) == 3
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--cases", "alexnet9"])
    assert result.exit_code != 0 and "alexnet9" in result.output
