"""What prune found, for people."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tvmx.cli._quantise_view import decibels, model_words, points
from tvmx.cli._units import clock, count, size

if TYPE_CHECKING:
    from tvmx.cli._output import Screen
    from tvmx.explore import PrunedNetwork, PruneRequest, PruneResult, Work


def render_prune(screen: Screen, result: PruneResult, request: PruneRequest) -> None:
    """Zeros, levels, what is chosen, then the curve, then the whole network."""
    _zeros(screen, result)
    _levels(screen, result)
    _chosen(screen, result)
    _curve(screen, result)
    _network(screen, result)
    screen.fields(
        {
            "method": result.method,
            "pattern": result.pattern,
            "simulated": f"{result.visible} of {result.visible_total} visible and "
            f"{result.held_out} of {result.held_out_total} held-out samples, "
            f"in {clock(result.seconds)}",
            "report": result.report,
            "plan": result.plan,
        }
    )
    for note in result.notes:
        screen.line(f"note: {note}")
    if result.plan is None:
        screen.line("note: --out DIR writes the report, the plan and its weights")
        return
    screen.line("next:")
    words = ["tvmx", "build", *model_words(request), "--target", result.target]
    screen.command(shlex.join([*words, "--plan", result.plan, "--out", "BUNDLE"]))


def _zeros(screen: Screen, result: PruneResult) -> None:
    rows = [row for row in result.layers if row.zeros >= 0.01]
    if not rows:
        return
    screen.table(
        ("layer", "zeros", "largest blocks", "of them zero"),
        (
            (row.layer, f"{row.zeros:.0%}", row.zero_pattern, f"{row.zero_blocks:.0%}")
            for row in rows
        ),
        title="Layers that arrive sparse",
        right=("zeros", "of them zero"),
    )


def _levels(screen: Screen, result: PruneResult) -> None:
    screen.table(
        ("layer", "sparsity", "by", "its SQNR", "network's", "drop"),
        (
            (
                row.layer if level is row.levels[0] else "",
                level.sparsity,
                level.method,
                decibels(level.sqnr_db),
                decibels(level.output_sqnr_db),
                points(level.drop),
            )
            for row in result.layers
            for level in row.levels
        ),
        title="Each layer at each level alone (visible half)",
        right=("its SQNR", "network's", "drop"),
    )


def _chosen(screen: Screen, result: PruneResult) -> None:
    screen.table(
        ("layer", "chosen", "kernel", "operations", "of", "bytes", "of"),
        (
            (
                row.layer,
                row.chosen,
                (row.kernel or "none: no latency gained") if row.levels else "",
                *_work(row.after, row.dense),
            )
            for row in result.layers
        ),
        title="Levels of the whole network",
        right=("operations", "of", "bytes", "of"),
    )


def _curve(screen: Screen, result: PruneResult) -> None:
    screen.table(
        ("left out", "SQNR", "drop"),
        ((p.left_out, decibels(p.output_sqnr_db), points(p.drop)) for p in result.curve),
        title="Most costly levels left out (visible half)",
        right=("left out", "SQNR", "drop"),
    )


def _network(screen: Screen, result: PruneResult) -> None:
    total = len(result.layers)

    def row(name: str, figures: PrunedNetwork) -> tuple[object, ...]:
        layers, accuracy = f"{figures.pruned_layers} of {total}", f"{figures.accuracy:.2f} %"
        work = count(figures.work.flops), size(figures.work.bytes)
        return name, layers, *work, decibels(figures.sqnr_db), accuracy, points(figures.drop)

    best = "levels chosen" if result.meets else "levels chosen (past the limit)"
    dense = count(result.dense.flops), size(result.dense.bytes)
    screen.table(
        ("network", "pruned layers", "operations", "bytes", "SQNR", result.metric, "drop"),
        (
            ("dense", f"0 of {total}", *dense, "", f"{result.float_accuracy:.2f} %", ""),
            row("highest levels", result.most),
            row(best, result.best),
        ),
        title=f"Whole networks (held-out half; limit {result.max_accuracy_drop:g})",
        right=("pruned layers", "operations", "bytes", "SQNR", result.metric, "drop"),
    )


def _work(after: Work, dense: Work) -> tuple[str, str, str, str]:
    return count(after.flops), count(dense.flops), size(after.bytes), size(dense.bytes)
