"""Grouped bar charts as SVG. Pure: data in, text out, the same text for the same data. No dependency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 84, 44
# Okabe and Ito's palette: told apart by everybody, and in grey.
COLOURS: Final = ("#999999", "#56b4e9", "#0072b2", "#d55e00", "#e0c060", "#cc79a7", "#009e73")
_STEPS: Final = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_LEGEND_COLUMN: Final = 220
_FONT: Final = 'font-family="sans-serif"'


@dataclass(frozen=True, slots=True)
class Bar:
    """A median with its extremes."""

    value: float
    low: float
    high: float


def grouped_bars(title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[Bar]]) -> str:
    """One cluster per group, in it one bar per series; a thin line from the lowest to the highest round."""
    top = _ceiling(max(bar.high for bars in series.values() for bar in bars))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"',
        f' aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" {_FONT} font-size="16" font-weight="bold" fill="#222222">{escape(title)}</text>',
        *_legend(list(series)),
        *_grid(top, unit),
    ]
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    width = step * 0.86 / len(series)
    for at, group in enumerate(groups):
        start = LEFT + at * step
        parts.append(_label(start + step / 2, HEIGHT - 16, group, "middle"))
        for number, bars in enumerate(series.values()):
            parts += _bar(
                bars[at], start + step * 0.07 + number * width, width, top, COLOURS[number % len(COLOURS)]
            )
    return "\n".join([*parts, "</svg>", ""])


def _bar(bar: Bar, x: float, width: float, top: float, colour: str) -> list[str]:
    height, middle = _scaled(bar.value, top), x + width / 2
    floor = HEIGHT - BOTTOM
    return [
        f'<rect x="{x:.1f}" y="{floor - height:.1f}" width="{width * 0.9:.1f}" height="{height:.1f}" fill="{colour}"/>',
        f'<path d="M{middle:.1f} {floor - _scaled(bar.low, top):.1f}V{floor - _scaled(bar.high, top):.1f}" '
        'stroke="#222222" stroke-width="1"/>',
    ]


def _grid(top: float, unit: str) -> list[str]:
    parts = [_label(LEFT - 8, TOP - 10, unit, "end")]
    for part in range(6):
        value = top * part / 5
        y = HEIGHT - BOTTOM - _scaled(value, top)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(_label(LEFT - 8, y + 4, f"{value:,.0f}" if top >= 10 else f"{value:.1f}", "end"))
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    columns = (WIDTH - LEFT - RIGHT) // _LEGEND_COLUMN
    for number, name in enumerate(names):
        x, y = LEFT + number % columns * _LEGEND_COLUMN, 36 + number // columns * 17
        parts.append(
            f'<rect x="{x}" y="{y}" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        parts.append(_label(x + 17, y + 10, name, "start"))
    return parts


def _label(x: float, y: float, text: str, anchor: str) -> str:
    style = f'{_FONT} font-size="12" fill="#222222" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _scaled(value: float, top: float) -> float:
    return max(value, 0.0) / top * (HEIGHT - TOP - BOTTOM)


def _ceiling(value: float) -> float:
    """The next round number: five equal steps to it can be read."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in _STEPS if step * power >= value)
