"""The search benchmark: its tables, what it keeps, and what it makes of it."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import cross_level
from benchmarks import search as benchmark
from benchmarks._search_cases import NETWORKS, case_of, graph_of, measured_names, names
from benchmarks._search_modelled import CORES, drawn_core, modelled_table
from benchmarks._search_results import FEW, Curve, Line, Report, Step, Summary, line_of
from benchmarks._search_runs import Settings, run
from benchmarks._search_summary import print_summary
from tests.search_tables import mixed_table, within
from tests.search_tables import plan_us as plainly_us
from tvmx.ir import CostTable, Implementation
from tvmx.search import Budgets, DeployEnv, plan_us, solve_exact, walk_of


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
            case="c", digest="d", agent="a", seed=seed, episodes=20, played=20, plans=15,
            cpu_s=1, wall_s=3,
            steps=tuple(Step(episode=e, plans=e - 1, us=us) for e, us in steps),
        )  # fmt: skip

    line = line_of("a", [curve(0, (1, 200), (5, 100.5)), curve(1, (1, 150), (7, 110)),
                         curve(2, (2, 180), (9, 101))], 100.0)  # fmt: skip
    assert line.regret == pytest.approx(0.01) and line.worst == pytest.approx(0.1)
    assert (line.episodes_within, line.plans_within) == (9, 8)
    known = dict(line.curve)  # against plans, of which there is one less than episodes
    assert known[1] == pytest.approx(0.8) and set(known) == {1, 2, 5, 10, 15}
    assert (known[5], known[10]) == (pytest.approx(0.5), pytest.approx(0.01))
    late = line_of("a", [curve(0, (3, 200))], 100.0)
    assert math.isinf(dict(late.curve)[1]) and late.episodes_within is None
    assert line.wall_s == 3.0 and late.wall_s == 3.0


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


def test_what_leaves_the_baseline_on_which_level() -> None:
    baseline = Implementation(template="direct", layout="NCHW4c", data_layout="NCHW4c")

    def of(**changes: str) -> set[str]:
        return cross_level.levels(baseline.model_copy(update=changes), baseline)

    assert of() == set()
    assert of(template="winograd") == {"template"}
    assert of(template="im2col", layout="NCHW") == {"layout"}
    assert of(template="int8", precision="int8") == {"int8"}
    assert of(template="bsr", sparsity="4x1@50") == {"sparsity"}
    assert of(template="bsr", sparsity="4x1@50", data_layout="NCHW") == {"sparsity", "layout"}


@pytest.mark.parametrize("seed", range(4))
def test_gains_by_trying_every_plan(seed: int) -> None:
    table = mixed_table(seed, layers=3)
    plans = within(table, Budgets(max_accuracy_drop=cross_level.POINTS))

    def least(level: str | None) -> float:
        return min(plainly_us(table, plan) for plan in plans if _only(table, plan, level))

    gain = cross_level.gain_of("case", table)
    assert gain.joint_us == pytest.approx(least(None))
    for level in cross_level.LEVELS:
        assert gain.level_us[level] == pytest.approx(least(level)), level
    assert gain.baseline_us == pytest.approx(plainly_us(table, table.baseline))
    assert gain.gain == pytest.approx(min(map(least, cross_level.LEVELS)) / least(None))


def _only(table: CostTable, plan: tuple[int, ...], level: str | None) -> bool:
    """Whether a plan's layers differ from the baseline in nothing but one level."""
    free = {"layout": {"layout", "data_layout"}, "int8": {"precision"}, "sparsity": {"sparsity"}}
    for costs, index in zip(table.layers, plan, strict=True):
        own, base = (costs.implementations[i].model_dump() for i in (index, costs.baseline))
        changed = {field for field in own if own[field] != base[field]}
        if level is not None and not changed <= free.get(level, set()):
            return False
    return True


def test_cross_level_prints_a_row_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    cross_level.main("digits a76,resnet50 host")
    shown = capsys.readouterr().out
    assert shown.count("| digits a76 |") == 1 and "resnet50 host |" not in shown
    assert "resnet50 host modelled" in shown and "limited" not in shown


def test_the_summary_takes_medians_over_cases(capsys: pytest.CaptureFixture[str]) -> None:
    def line(agent: str, regret: float) -> Line:
        return Line(
            agent=agent, regret=regret, worst=regret, episodes_within=None, plans_within=None,
            plans=9, cpu_s=1, wall_s=None, curve=(),
        )  # fmt: skip

    def case(name: str, policy: tuple[float, ...], random: tuple[float, ...]) -> Summary:
        lines = [
            (line("policy", p), line("random", r)) for p, r in zip(policy, random, strict=True)
        ]
        return Summary(
            case=name, layers=3, choices=2, baseline_us=9, exact_us=5, proven=True, exact_cpu_s=1,
            exact_wall_s=1, few=tuple(lines[:3]), long=lines[3],
        )  # fmt: skip

    cases = (
        case("a", (0.3, 0.1, 0.0, 0.0), (0.9, 0.5, 0.2, 0.1)),
        case("b", (0.6, 0.2, 0.1, 0.0), (0.9, 0.7, 0.1, 0.1)),
        case("c", (0.2, 0.4, 0.3, 0.2), (0.9, 0.3, 0.2, 0.1)),
        case("a limited", (0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)),
    )
    print_summary(Report(machine="m", versions={}, seeds=1, episodes=9, cases=cases))
    shown = capsys.readouterr().out
    assert "median of 3 free cases" in shown and "median of 1 limited cases" in shown
    assert "| policy | 30.0 % | 20.0 % | 10.0 % | 0.0 % | 20.0 % |" in shown
    assert "| random | 90.0 % | 50.0 % | 20.0 % | 10.0 % | 10.0 % |" in shown
    assert "| b | 60.0 % | 20.0 % | 10.0 % | 70.0 % | 10.0 % |" in shown
    assert "10 ahead of others' 100 1, 10 level with others' 100 1" in shown
