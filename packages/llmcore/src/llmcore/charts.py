"""Charts as inline SVG: lines over steps, values with their intervals. Colours are the page's CSS variables."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 620, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 38

Points = Sequence[tuple[float, float]]


class Series(NamedTuple):
    """One line of a chart."""

    name: str
    points: Points
    color: str = "blue"
    """A CSS variable of the page, without its dashes."""
    smooth: bool = False
    """Draw the noisy line faintly and its moving mean above it."""


class Ruler(NamedTuple):
    """A horizontal line to measure against."""

    name: str
    value: float


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    color: str = "blue"


class Axis(NamedTuple):
    """From data to pixels, with round ticks."""

    low: float
    high: float
    first: float
    last: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def line_chart(series: Sequence[Series], *, x_name: str, rulers: Sequence[Ruler] = (), percent: bool = False) -> str:
    """Lines over steps with a legend; every point tells its value when pointed at."""
    drawn = [line for line in series if line.points]
    if not drawn:
        return '<p class="quiet">nothing was recorded</p>'
    values = [y for line in drawn for y in visible(line.points)] + [ruler.value for ruler in rulers]
    x = axis(0.0, max(px for line in drawn for px, _ in line.points), LEFT, WIDTH - RIGHT, whole=True)
    y = axis(min(values), max(values), HEIGHT - BOTTOM, TOP)
    parts = [grid(x, y, x_name=x_name, percent=percent)]
    parts += ruler_lines(rulers, y, percent=percent)
    parts += [one_line(line, x, y, percent=percent) for line in drawn]
    legend = "".join(
        f'<span><i style="background:var(--{line.color})"></i>{escape(line.name)} '
        f"<b>{number(shown(line)[-1][1], percent=percent)}</b></span>"
        for line in drawn
    )
    names = ", ".join(line.name for line in drawn)
    return f'<div class="legend">{legend}</div>' + svg(parts, HEIGHT, label=f"{names} over {x_name}")


def interval_chart(rows: Sequence[Interval], *, rulers: Sequence[Ruler] = (), percent: bool = True) -> str:
    """One row for each value: a dot and its interval."""
    left, step = 92, 38
    height = TOP + step * len(rows) + BOTTOM
    edges = [edge for row in rows for edge in (row.low, row.high)] + [ruler.value for ruler in rulers]
    x = axis(min(0.0, *edges), max(edges), left, WIDTH - 64)
    parts = []
    for tick in x.ticks:
        parts.append(rule("grid", x.at(tick), x.at(tick), TOP, height - BOTTOM))
        parts.append(text(x.at(tick), height - BOTTOM + 18, number(tick, percent=percent), "middle"))
    for ruler in rulers:
        parts.append(rule("ruler", x.at(ruler.value), x.at(ruler.value), TOP, height - BOTTOM))
        parts.append(text(x.at(ruler.value) + 5, TOP + 10, ruler.name, "start", "rulername"))
    for place, row in enumerate(rows):
        middle = TOP + step * (place + 0.5)
        hint = f"{row.name}: {number(row.value, percent=percent)} " + (
            f"[{number(row.low, percent=percent)}, {number(row.high, percent=percent)}]"
        )
        color = f"var(--{row.color})"
        parts.append(
            f"<g><title>{escape(hint)}</title>"
            f'<rect x="{left}" y="{middle - 14:.1f}" width="{WIDTH - left}" height="28" fill="transparent"/>'
            f'<line x1="{x.at(row.low):.1f}" x2="{x.at(row.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}" '
            f'stroke="{color}" stroke-width="10" stroke-linecap="round" opacity=".28"/>'
            f'<circle cx="{x.at(row.value):.1f}" cy="{middle:.1f}" r="6" fill="{color}"/></g>'
        )
        parts.append(text(left - 14, middle + 4.5, row.name, "end", "rowname"))
        parts.append(text(x.at(row.high) + 14, middle + 4.5, number(row.value, percent=percent), "start", "rowvalue"))
    return svg(parts, height, label=", ".join(f"{row.name} {number(row.value, percent=percent)}" for row in rows))


def one_line(line: Series, x: Axis, y: Axis, *, percent: bool) -> str:
    """A line, its faint noisy self where it is smoothed, and a place to point at for every value."""
    color = f"var(--{line.color})"
    parts = []
    if line.smooth and len(line.points) > 4:
        parts.append(f'<path d="{path(line.points, x, y)}" fill="none" stroke="{color}" opacity=".35"/>')
    points = shown(line)
    parts.append(
        f'<path d="{path(points, x, y)}" fill="none" stroke="{color}" stroke-width="2.4" stroke-linejoin="round" '
        'stroke-linecap="round"/>'
    )
    for px, py in points:
        hint = f"{line.name}: {number(py, percent=percent)} at {number(px)}"
        parts.append(f'<circle class="point" cx="{x.at(px):.1f}" cy="{clamp(y, py):.1f}" r="5" fill="{color}">')
        parts.append(f"<title>{escape(hint)}</title></circle>")
    return "".join(parts)


def ruler_lines(rulers: Sequence[Ruler], y: Axis, *, percent: bool) -> list[str]:
    """Dashed lines with names above them; below, where the name of the line above would be in the way."""
    parts = []
    free = 0.0
    for ruler in sorted(rulers, key=lambda ruler: -ruler.value):
        place = y.at(ruler.value)
        baseline = place - 5 if place - 16 > free else place + 14
        free = baseline
        name = f"{ruler.name} {number(ruler.value, percent=percent)}"
        parts.append(rule("ruler", LEFT, WIDTH - RIGHT, place, place))
        parts.append(text(WIDTH - RIGHT - 4, baseline, name, "end", "rulername"))
    return parts


def grid(x: Axis, y: Axis, *, x_name: str, percent: bool) -> str:
    parts = []
    for tick in y.ticks:
        parts.append(rule("grid", LEFT, WIDTH - RIGHT, y.at(tick), y.at(tick)))
        parts.append(text(LEFT - 8, y.at(tick) + 4, number(tick, percent=percent), "end"))
    for tick in x.ticks:
        parts.append(text(x.at(tick), HEIGHT - BOTTOM + 17, number(tick), "middle"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 4, x_name, "end"))
    return "".join(parts)


def axis(low: float, high: float, first: float, last: float, *, whole: bool = False) -> Axis:
    """A range that holds the data, and about five round ticks inside it."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    step = math.ceil(step) if whole else step
    if whole:
        low, top = 0.0, high
    else:
        low, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    count = int((top - low) / step + 1e-9)
    return Axis(low, top, first, last, tuple(low + step * place for place in range(count + 1)))


def visible(points: Points) -> list[float]:
    """Values that decide the height of a chart: the first few of a training run may tower over all others."""
    values = [y for _, y in points]
    if len(values) < 20:
        return values
    later = values[len(values) // 20 :]
    room = max(later) - min(later)
    return [min(value, max(later) + room) for value in values]


def shown(line: Series) -> Points:
    """The points of the bold line."""
    return moving_mean(line.points) if line.smooth else line.points


def moving_mean(points: Points) -> list[tuple[float, float]]:
    """Each point's mean over its neighbours, a twentieth of the curve to either side."""
    reach = max(1, len(points) // 20)
    windows = [points[max(0, place - reach) : place + reach + 1] for place in range(len(points))]
    return [(x, sum(y for _, y in window) / len(window)) for (x, _), window in zip(points, windows, strict=True)]


def path(points: Points, x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{x.at(px):.1f} {clamp(y, py):.1f}" for px, py in points)


def clamp(y: Axis, value: float) -> float:
    return y.at(min(max(value, y.low), y.high))


def number(value: float, *, percent: bool = False) -> str:
    """As few digits as tell values of a chart apart."""
    if percent:
        return f"{100 * value:.3g} %"
    if abs(value) >= 1000 and value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) >= 1e-9 else "0"


def rule(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, content: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def svg(parts: Sequence[str], height: float, *, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
