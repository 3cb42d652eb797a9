"""Regret against distinct plans as one SVG: a panel for each case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks._search_results import Summary

_COLOURS = {
    "q-learning": "#0b6e4f", "exact": "#000000", "annealing": "#c1121f", "evolution": "#6a4c93",
    "coordinate": "#1982c4", "tpe": "#b58900", "greedy": "#ff924c", "random": "#7a7a7a",
    "policy": "#e0218a",
}  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 300, 170, 56, 34, 30
_COLUMNS = 3
_FLOOR, _CEILING = 1e-3, 10.0  # regret: what is nearer counts as the optimum


def regret_svg(cases: Sequence[Summary], episodes: int) -> str:
    """Medians over seeds, both axes logarithmic; the dashed line is within 1 %.

    Plans, on the x-axis, are at most as many as ``episodes``.
    """
    rows = -(-len(cases) // _COLUMNS)
    width = _COLUMNS * (_WIDTH + _LEFT + _GAP)
    height = rows * (_HEIGHT + _TOP + _GAP) + 40
    space, font = "http://www.w3.org/2000/svg", 'font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="{space}" viewBox="0 0 {width} {height}" {font}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, case in enumerate(cases):
        row, column = divmod(index, _COLUMNS)
        x, y = column * (_WIDTH + _LEFT + _GAP) + _LEFT, row * (_HEIGHT + _TOP + _GAP) + _TOP
        parts += [f'<g transform="translate({x} {y})">', *_panel(case, episodes), "</g>"]
    agents = [line.agent for line in cases[0].long] if cases else []
    legend = f'<g transform="translate({_LEFT} {height - 14})">'
    return "\n".join([*parts, legend, *_legend(agents), "</g>", "</svg>"]) + "\n"


def _panel(case: Summary, episodes: int) -> list[str]:
    parts = [f'<text x="0" y="-12" font-size="13">{escape(case.case)}</text>']
    for power in range(int(math.log10(_FLOOR)), int(math.log10(_CEILING)) + 1):
        y, text = _y(10.0**power), f"{100 * 10.0**power:g} %"
        dashed = ' stroke-dasharray="4 3"' if power == -2 else ""
        colour = "#999999" if dashed else "#dddddd"
        parts += [
            f'<line x1="0" y1="{y}" x2="{_WIDTH}" y2="{y}" stroke="{colour}"{dashed}/>',
            f'<text x="-6" y="{y + 4}" text-anchor="end">{text}</text>',
        ]
    for count in [10**k for k in range(int(math.log10(episodes)) + 1)]:
        x = _x(count, episodes)
        parts.append(f'<text x="{x}" y="{_HEIGHT + 16}" text-anchor="middle">{count}</text>')
    for line in case.long:
        known = [(n, r) for n, r in line.curve if not math.isinf(r)]
        points = " ".join(f"{_x(n, episodes)},{_y(r)}" for n, r in known)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke-width="2"'
            f' stroke="{_COLOURS[line.agent]}"><title>{line.agent}</title></polyline>'
        )
    return parts


def _legend(agents: Sequence[str]) -> list[str]:
    parts = []
    for index, agent in enumerate(agents):
        x, stroke = index * 92, f'stroke="{_COLOURS[agent]}" stroke-width="3"'
        parts += [
            f'<line x1="{x}" y1="-4" x2="{x + 20}" y2="-4" {stroke}/>',
            f'<text x="{x + 25}" y="0">{agent}</text>',
        ]
    note = "regret against distinct plans, each a measurement if it had to be measured; medians"
    return [*parts, f'<text x="{len(agents) * 92}" y="0">{note}</text>']


def _x(count: int, episodes: int) -> float:
    return round(math.log(count) / math.log(max(2, episodes)) * _WIDTH, 1)


def _y(regret: float) -> float:
    share = math.log(min(_CEILING, max(_FLOOR, regret)) / _FLOOR) / math.log(_CEILING / _FLOOR)
    return round((1 - share) * _HEIGHT, 1)
