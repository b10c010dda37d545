"""Plots as SVG, written by hand: lines over time and bars side by side. Pure: numbers in, text out.

A run makes a handful of small plots; a plotting library would be fifty times the rest of the
bench, and what it draws changes with its version.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from bench.stats import number

WIDTH, MARGIN_LEFT, MARGIN_RIGHT = 860, 70, 20
PANEL_HEIGHT, PANEL_GAP, HEAD_HEIGHT, FOOT_HEIGHT = 150, 44, 56, 40
BAR_HEIGHT, BAR_GAP, GROUP_GAP, NAME_WIDTH, VALUE_WIDTH = 16, 3, 30, 130, 150
TICKS = 4
COLOURS = ("#2563a8", "#d1632a", "#3c8d4f", "#8a4fa3", "#6b6b6b", "#b8932c", "#2a9d9d")
SHADE = "#f3e3d3"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """Values over time, seconds first, in the order of time; a NaN breaks the line."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines on one scale. ``level``: a value that is drawn across as a dashed line, with its name;
    0 is always on the scale.
    """

    title: str
    lines: Sequence[Line]
    level: tuple[float, str] | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A time that is shaded in all panels, from and to in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One value; ``low`` and ``high`` are drawn as a whisker. ``None``: there was no run."""

    name: str
    value: float | None
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that are compared with each other."""

    title: str
    bars: Sequence[Bar] = field(default_factory=tuple)


def over_time(title: str, panels: Sequence[Panel], spans: Sequence[Span] = ()) -> str:
    """An SVG of ``panels`` below each other on one axis of seconds."""
    end = max((x for panel in panels for line in panel.lines for x, _ in line.points), default=0.0)
    seconds = max(end, max((span.end for span in spans), default=0.0), 1e-9)
    height = HEAD_HEIGHT + len(panels) * (PANEL_HEIGHT + PANEL_GAP) + FOOT_HEIGHT
    parts = [_text(MARGIN_LEFT, 22, title, "title")]
    top = float(HEAD_HEIGHT)
    for panel in panels:
        parts += _panel(panel, top, seconds, spans)
        top += PANEL_HEIGHT + PANEL_GAP
    parts += _seconds_axis(top - PANEL_GAP, seconds)
    return _svg(height, parts)


def bars(title: str, groups: Sequence[Group]) -> str:
    """An SVG of horizontal bars from 0, each group on a scale of its own."""
    parts = [_text(MARGIN_LEFT - 60, 22, title, "title")]
    top = float(HEAD_HEIGHT)
    for group in groups:
        parts.append(_text(MARGIN_LEFT - 60, top, group.title, "name"))
        top += 10
        greatest = max((max(bar.value or 0.0, bar.high) for bar in group.bars), default=0.0)
        for index, bar in enumerate(group.bars):
            parts += _bar(bar, top, greatest or 1.0, COLOURS[index % len(COLOURS)])
            top += BAR_HEIGHT + BAR_GAP
        top += GROUP_GAP
    return _svg(top, parts)


def scale_end(greatest: float) -> float:
    """A round number not below ``greatest``: 1, 2, 2.5 or 5 times a power of ten."""
    if not greatest > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(greatest))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= greatest * 0.999999)


def _panel(panel: Panel, top: float, seconds: float, spans: Sequence[Span]) -> list[str]:
    values = [y for line in panel.lines for _, y in line.points if not math.isnan(y)]
    greatest = max([*values, panel.level[0] if panel.level else 0.0], default=0.0)
    end = scale_end(greatest)
    parts = [_shade(span, top, seconds) for span in spans]
    parts += [_grid(top, share, number(end * share)) for share in _shares()]
    parts.append(_text(MARGIN_LEFT, top - 8, panel.title, "name"))
    if panel.level:
        y = _y(panel.level[0], top, end)
        parts.append(_rule(y, "level"))
        parts.append(_text(WIDTH - MARGIN_RIGHT, y - 4, panel.level[1], "end"))
    for index, line in enumerate(panel.lines):
        colour = COLOURS[index % len(COLOURS)]
        parts += _polylines(line, top, seconds, end, colour)
        if len(panel.lines) > 1:
            parts.append(_text(MARGIN_LEFT + 200 + 160 * index, top - 8, line.name, "", colour))
    return parts


def _polylines(line: Line, top: float, seconds: float, end: float, colour: str) -> list[str]:
    """The line in pieces, broken where a value is missing; a lone point is a dot."""
    pieces: list[list[Point]] = [[]]
    for x, y in line.points:
        if math.isnan(y):
            pieces.append([])
        else:
            pieces[-1].append((_x(x, seconds), _y(y, top, end)))
    drawn = [f'<circle cx="{p[0][0]:.1f}" cy="{p[0][1]:.1f}" r="2" fill="{colour}"/>' for p in
             pieces if len(p) == 1]  # fmt: skip
    for piece in pieces:
        if len(piece) > 1:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            drawn.append(f'<polyline points="{points}" stroke="{colour}"/>')
    return drawn


def _shade(span: Span, top: float, seconds: float) -> str:
    left, right = _x(span.start, seconds), _x(span.end, seconds)
    box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{PANEL_HEIGHT}"'
    name = _text(left + 4, top + 13, span.name, "small")
    return f'<rect {box} fill="{SHADE}"/>{name}'


def _bar(bar: Bar, top: float, greatest: float, colour: str) -> list[str]:
    left, middle = float(NAME_WIDTH), top + BAR_HEIGHT / 2
    room = WIDTH - NAME_WIDTH - VALUE_WIDTH
    parts = [_text(left - 8, top + BAR_HEIGHT - 4, bar.name, "end")]
    if bar.value is None:
        return [*parts, _text(left, top + BAR_HEIGHT - 4, "-", "small")]
    width = room * bar.value / greatest
    box = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BAR_HEIGHT}"'
    parts.append(f'<rect {box} fill="{colour}"/>')
    farthest = width
    if bar.low < bar.high:
        low, high = (left + room * value / greatest for value in (bar.low, bar.high))
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" {_across(middle)}/>')
        farthest = max(width, high - left)
    parts.append(_text(left + farthest + 6, top + BAR_HEIGHT - 4, number(bar.value), ""))
    return parts


def _seconds_axis(bottom: float, seconds: float) -> list[str]:
    step = scale_end(seconds / 8)
    marks = [step * count for count in range(int(seconds / step) + 1)]
    parts = [_text(_x(mark, seconds), bottom + 16, f"{mark:g}", "middle") for mark in marks]
    return [*parts, _text(WIDTH - MARGIN_RIGHT, bottom + 32, "seconds", "end")]


def _grid(top: float, share: float, label: str) -> str:
    y = top + PANEL_HEIGHT * (1 - share)
    return _rule(y, "grid") + _text(MARGIN_LEFT - 6, y + 4, label, "end")


def _rule(y: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" {_across(y)}/>'


def _across(y: float) -> str:
    return f'y1="{y:.1f}" y2="{y:.1f}"'


def _shares() -> list[float]:
    return [count / TICKS for count in range(TICKS + 1)]


def _x(seconds: float, end: float) -> float:
    return MARGIN_LEFT + (WIDTH - MARGIN_LEFT - MARGIN_RIGHT) * seconds / end


def _y(value: float, top: float, end: float) -> float:
    return top + PANEL_HEIGHT * (1 - value / end)


def _text(x: float, y: float, text: str, kind: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" fill="{colour}">{escape(text)}</text>'


STYLE = (
    "text{font:12px sans-serif}.title{font-size:15px;font-weight:bold}.name{font-weight:bold}"
    ".small{font-size:10px}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".grid{stroke:#ddd}.level{stroke:#b00;stroke-dasharray:5 4}.whisker{stroke:#222}"
    "polyline{fill:none;stroke-width:1.6}"
)


def _svg(height: float, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>\n{body}\n</svg>\n'
    )
