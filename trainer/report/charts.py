"""Values → inline SVG, with axes, ticks and a description for screen readers. Colours are the page's CSS classes.

All text goes through markupsafe: `Markup(...).format(...)` escapes whatever is put into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 12, 44
_LEGEND = 22
_FILE_STYLE = (
    "svg { background: var(--sheet); font-family: system-ui, sans-serif; } svg text.start { text-anchor: start; }"
)
"""What a file needs beside the page's style."""
COLOURS = 8
"""Colours of the palette (classes c0 to c7 of the page)."""

MOST_POINTS = 2000
"""Points of a line that are drawn: some four for each pixel of its width."""

_LARGEST = 1e300
"""What is beyond it has no ticks: the distance of two such numbers is infinite."""

Point = tuple[float, float]
Points = npt.NDArray[np.float64]
"""x and y of each point [N, 2]."""


@dataclass(frozen=True)
class Line:
    """A named series; a faint line stands behind the others, unnamed.

    Points that are not finite, or of 1e300 and more, are left out.
    """

    label: str
    points: Sequence[Point] | Points
    colour: int = 0
    faint: bool = False


def number(value: float | None) -> str:
    """Three significant digits, thousands apart, small and large values as powers of ten; a dash for no number."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 100 or value == 0 else 2 - math.floor(math.log10(abs(value)))
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from `low` or below to `high` or above."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around [low, high]; powers of ten alone where that is enough."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(exponents) > 3 else (1, 2, 5)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    first = max((i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9)), default=0)
    last = min((i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9)), default=len(ticks) - 1)
    return ticks[first : last + 1]


def smoothed(points: Sequence[Point] | Points, share: float = 0.04) -> Points:
    """A moving average around each point, over `share` of all points; narrower towards both ends."""
    found = _array(points).copy()
    count = len(found)
    if not count:
        return found
    y, reach = np.ascontiguousarray(found[:, 1]), min(int(count * share / 2), (count - 1) // 2)
    with np.errstate(over="ignore", invalid="ignore"):  # sums of numbers near 1e308 are left out of the chart
        level = y.mean()  # sums of what is around zero keep their digits
        sums = np.concatenate([[0.0], np.cumsum(y - level)])
        sides = np.arange(reach)
        found[:reach, 1] = sums[2 * sides + 1] / (2 * sides + 1)
        found[count - reach :, 1] = ((sums[-1] - sums[count - 1 - 2 * sides]) / (2 * sides + 1))[::-1]
        found[reach : count - reach, 1] = (sums[2 * reach + 1 :] - sums[: count - 2 * reach]) / (2 * reach + 1)
        found[:, 1] += level
    return found


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points, the first and the last among them: of each stretch the highest and the lowest stay.

    So a single spike is drawn, however many points there are.
    """
    if len(points) <= most:
        return points
    kept: Points = points[thinned_rows(points[:, 1], most)]
    return kept


def thinned_rows(y: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.intp]:
    """Which of more than `most` points `thinned` keeps, ascending.

    Args:
        y: of each [N].
        most: of them that are kept.
    """
    count, stretches = len(y), (most - 2) // 2
    size = -(-count // stretches)
    edges = np.arange(0, count, size)
    padded = np.concatenate([y, np.full(len(edges) * size - count, y[-1])]).reshape(-1, size)
    picked = np.concatenate([edges + padded.argmin(axis=1), edges + padded.argmax(axis=1), [0, count - 1]])
    return np.unique(np.minimum(picked, count - 1))


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, y_label: str, log_y: bool = False) -> Markup:
    """Lines over a common x axis, with a legend if more than one has a name; a sentence if there is no point.

    Of a line with more than `MOST_POINTS` points, those that `thinned` leaves are drawn.
    """
    drawable = [Line(line.label, thinned(_drawable(line.points, log_y)), line.colour, line.faint) for line in lines]
    drawn = [line for line in drawable if len(line.points)]
    if not drawn:
        return Markup('<p class="none">Nothing was recorded.</p>')
    (left, low), (right, high) = (
        getattr(np.concatenate([line.points for line in drawn]), end)(axis=0).tolist() for end in ("min", "max")
    )
    first = min(0.0, left)
    x_axis = _Axis(linear_ticks(first, right, 6), _LEFT, WIDTH - _RIGHT, bounds=(first, right))
    y_ticks = log_ticks(low, high) if log_y else linear_ticks(low, high)
    y_axis = _Axis(y_ticks, HEIGHT - _BOTTOM, _TOP, log=log_y)
    paths = [_path(line, x_axis, y_axis) for line in sorted(drawn, key=lambda line: not line.faint)]
    body = [_grid(x_axis, y_axis), *paths, _axis_labels(x_label, y_label)]
    return _svg(title, body) + _legend([line for line in drawn if not line.faint])


def chart_file(lines: Sequence[Line], *, title: str, x_label: str, y_label: str, log_y: bool = False) -> str:
    """The same as an SVG file, with its colours and its legend in it."""
    style = resources.files("trainer.report").joinpath("style.css").read_text()
    chart, _, _ = str(line_chart(lines, title=title, x_label=x_label, y_label=y_label, log_y=log_y)).partition("</svg>")
    if not chart.startswith("<svg"):
        raise ValueError(f"{title}: there is no point to draw")
    head, _, body = chart.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    head = head.replace(f"0 0 {WIDTH} {HEIGHT}", f"0 0 {WIDTH} {HEIGHT + _LEGEND}")
    room = (WIDTH - _LEFT) / len(lines)
    item = Markup('<rect class="c{} fill" x="{:.1f}" y="{}" width="10" height="10" rx="3"/>')
    legend = Markup("")
    for place, line in enumerate(lines):
        x = _LEFT + place * room
        legend += item.format(line.colour % COLOURS, x, HEIGHT + 4)
        legend += Markup('<text class="start" x="{:.1f}" y="{}">{}</text>').format(x + 15, HEIGHT + 13, line.label)
    return f"{head}><style>{style}{_FILE_STYLE}</style>{body}{legend}</svg>\n"


def stacked_files(files: Sequence[str]) -> str:
    """Charts of `chart_file` below each other, as one SVG file."""
    height = HEIGHT + _LEGEND
    placed = [
        file.replace("<svg", f'<svg y="{place * height}" width="{WIDTH}" height="{height}"', 1)
        for place, file in enumerate(files)
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height * len(files)}">'
    return f"{head}\n{''.join(placed)}</svg>\n"


def column_chart(labels: Sequence[str], values: Sequence[float], *, title: str, x_label: str, y_label: str) -> Markup:
    """A column for each value, from zero, with the value above it."""
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    if not finite:
        return Markup('<p class="none">Nothing was recorded.</p>')
    y_axis = _Axis(linear_ticks(0, max(*finite, 1e-12)), HEIGHT - _BOTTOM, _TOP + 8)
    room = (WIDTH - _LEFT - _RIGHT) / len(finite)
    body = [_y_grid(y_axis)]
    for i, (label, value, height) in enumerate(zip(labels, values, finite, strict=True)):
        x, y = _LEFT + room * (i + 0.5), y_axis.place(height)
        bar = Markup('<rect class="c0 fill" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="3"/>').format(
            x - room * 0.32, y, room * 0.64, y_axis.start - y
        )
        body += [bar, _text(x, y - 5, number(value), "value"), _text(x, HEIGHT - _BOTTOM + 17, label, "tick")]
    return _svg(title, [*body, _axis_labels(x_label, y_label)])


def stacked_bar(parts: Sequence[tuple[str, float]], *, title: str) -> Markup:
    """Shares of a whole as one bar, left to right, each in its colour and with its name and value on hover."""
    total = sum(value for _, value in parts)
    body, x = [], 0.0
    for i, (label, value) in enumerate(parts):
        width = WIDTH * value / total if total else 0.0
        rectangle = Markup(
            '<rect class="c{} fill" x="{:.2f}" y="0" width="{:.2f}" height="26"><title>{}</title></rect>'
        )
        body.append(rectangle.format(i % COLOURS, x, max(width - 1, 0.5), label))
        x += width
    return _svg(title, body, height=26, kind="bar")


class _Axis:
    """From values to places on the page."""

    def __init__(
        self,
        ticks: Sequence[float],
        start: float,
        end: float,
        *,
        log: bool = False,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        low, high = bounds or (ticks[0], ticks[-1])
        if high <= low:
            low, high = ticks[0], ticks[-1]
        self.start, self.end, self._log = start, end, log
        self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)
        self.ticks = [tick for tick in ticks if low <= tick <= high]

    def place(self, value: float) -> float:
        scaled = math.log10(value) if self._log else value
        share = (scaled - self._low) / ((self._high - self._low) or 1)
        return self.start + share * (self.end - self.start)


def _array(points: Sequence[Point] | Points) -> Points:
    return np.asarray(points, np.float64).reshape(-1, 2)


def _drawable(points: Sequence[Point] | Points, log_y: bool) -> Points:
    found = _array(points)
    kept = (np.abs(found) < _LARGEST).all(axis=1) & ((found[:, 1] > 1 / _LARGEST) | (not log_y))
    drawable: Points = found[kept]
    return drawable


def _path(line: Line, x_axis: _Axis, y_axis: _Axis) -> Markup:
    corners = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in np.asarray(line.points).tolist())
    kind = "faint" if line.faint else "line"
    if len(line.points) == 1:
        x, y = corners.split(",")
        return Markup('<circle class="c{} fill" cx="{}" cy="{}" r="3"/>').format(line.colour % COLOURS, x, y)
    return Markup('<polyline class="c{} {}" points="{}"/>').format(line.colour % COLOURS, kind, corners)


def _y_grid(y_axis: _Axis) -> Markup:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y, WIDTH - _RIGHT))
        parts.append(_text(_LEFT - 8, y + 4, number(tick), "tick end"))
    return Markup("").join(parts)


def _grid(x_axis: _Axis, y_axis: _Axis) -> Markup:
    floor = HEIGHT - _BOTTOM
    parts = [_y_grid(y_axis)]
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(Markup('<path class="axis" d="M{:.1f} {}v4"/>').format(x, floor))
        parts.append(_text(x, floor + 17, number(tick), "tick"))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(_LEFT, floor, WIDTH - _RIGHT))
    return Markup("").join(parts)


def _axis_labels(x_label: str, y_label: str) -> Markup:
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = Markup('<text class="label" transform="translate(13 {}) rotate(-90)">{}</text>').format(middle, y_label)
    return _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 7, x_label, "label") + turned


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


def _svg(title: str, body: Sequence[Markup], *, height: int = HEIGHT, kind: str = "chart") -> Markup:
    """An image that scales with the page; a bar is stretched to its width."""
    fit = "none" if kind == "bar" else "xMidYMid"
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="{}" role="img" aria-label="{}">')
    return head.format(kind, WIDTH, height, fit, title) + Markup("").join(body) + Markup("</svg>")


def _legend(lines: Sequence[Line]) -> Markup:
    if len(lines) < 2:
        return Markup("")
    item = Markup('<span><i class="c{} swatch"></i>{}</span>')
    items = Markup("").join(item.format(line.colour % COLOURS, line.label) for line in lines)
    return Markup('<p class="legend">{}</p>').format(items)
