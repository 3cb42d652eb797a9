"""Best-so-far curves as one SVG: a panel for each workload."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks._tuner_results import COLD, GRID, METASCHEDULE, METHODS, RANDOM, WARM
from benchmarks._tuner_summary import Summary

_COLOURS = {
    COLD: "#0b6e4f", WARM: "#08a045", RANDOM: "#7a7a7a", GRID: "#b58900", METASCHEDULE: "#c1121f",
}  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 300, 190, 46, 34, 30
_COLUMNS = 3
_LINES = (0.0, 0.25, 0.5, 0.75, 1.0)


def best_so_far_svg(summaries: Sequence[Summary], trials: int) -> str:
    """Speed held over that of the best known config, against measurements; medians of the seeds."""
    rows = -(-len(summaries) // _COLUMNS)
    width = _COLUMNS * (_WIDTH + _LEFT + _GAP)
    height = rows * (_HEIGHT + _TOP + _GAP) + 40
    space, font = "http://www.w3.org/2000/svg", 'font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="{space}" viewBox="0 0 {width} {height}" {font}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, summary in enumerate(summaries):
        row, column = divmod(index, _COLUMNS)
        x, y = column * (_WIDTH + _LEFT + _GAP) + _LEFT, row * (_HEIGHT + _TOP + _GAP) + _TOP
        parts += [f'<g transform="translate({x} {y})">', *_panel(summary, trials), "</g>"]
    parts += [f'<g transform="translate({_LEFT} {height - 14})">', *_legend(), "</g>", "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(summary: Summary, trials: int) -> list[str]:
    parts = [f'<text x="0" y="-12" font-size="13">{escape(summary.description)}</text>']
    for share in _LINES:
        y = _y(share)
        parts += [
            f'<line x1="0" y1="{y}" x2="{_WIDTH}" y2="{y}" stroke="#dddddd"/>',
            f'<text x="-6" y="{y + 4}" text-anchor="end">{share:.0%}</text>',
        ]
    for count in sorted({1, trials // 4, trials // 2, 3 * trials // 4, trials} - {0}):
        parts.append(
            f'<text x="{_x(count, trials)}" y="{_HEIGHT + 16}" text-anchor="middle">{count}</text>'
        )
    within = _y(1 / 1.05)
    parts.append(
        f'<line x1="0" y1="{within}" x2="{_WIDTH}" y2="{within}" stroke="#999999"'
        ' stroke-dasharray="4 3"/>'
    )
    for method, speeds in summary.progress.items():
        points = " ".join(f"{_x(n, trials)},{_y(s)}" for n, s in enumerate(speeds, 1))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke-width="2"'
            f' stroke="{_COLOURS[method]}"><title>{method}</title></polyline>'
        )
    return parts


def _legend() -> list[str]:
    parts = []
    for index, method in enumerate(METHODS):
        x, stroke = index * 120, f'stroke="{_COLOURS[method]}" stroke-width="3"'
        parts += [
            f'<line x1="{x}" y1="-4" x2="{x + 24}" y2="-4" {stroke}/>',
            f'<text x="{x + 30}" y="0">{method}</text>',
        ]
    note = "speed held / best known, against measurements; medians; dashed: within 5 %"
    return [*parts, f'<text x="{len(METHODS) * 120}" y="0">{note}</text>']


def _x(count: int, trials: int) -> float:
    return round((count - 1) / max(1, trials - 1) * _WIDTH, 1)


def _y(share: float) -> float:
    return round((1 - share) * _HEIGHT, 1)
