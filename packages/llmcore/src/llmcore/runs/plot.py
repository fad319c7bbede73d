"""Curves of runs: in the terminal as dots, and as an SVG file."""

import itertools
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from llmcore.charts import Series, line_chart
from llmcore.errors import DataError
from llmcore.runs.folder import RunFolder
from llmcore.storage import write_durably

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a braille character: 2 columns of 4 dots."""

COLORS = {"blue": "#2563eb", "amber": "#d97706", "green": "#059669", "violet": "#7c3aed", "gray": "#64748b"}
STYLE = """
  .legend{font:13px system-ui,sans-serif;display:flex;gap:16px;flex-wrap:wrap}.legend i{display:inline-block;width:10px;
  height:10px;margin-right:5px}.grid{stroke:#e2e8f0}.tick{font:11px system-ui,sans-serif;fill:#64748b}
  .point{opacity:0}.point:hover{opacity:1}
"""

Points = Sequence[tuple[float, float]]


def curves(runs: Sequence[RunFolder], metric: str) -> dict[str, Points]:
    """The points of one metric, by the run's folder."""
    found: dict[str, Points] = {
        str(run.path): [(row["step"], row[metric]) for row in run.rows if isinstance(row.get(metric), int | float)]
        for run in runs
    }
    kept = {name: points for name, points in found.items() if points}
    if not kept:
        there = sorted({name for run in runs for row in run.rows for name in row} - {"step"})
        raise DataError(f"no run has the metric {metric!r}", hint=f"choose one of {', '.join(there) or 'none yet'}")
    return kept


def svg_file(out: Path, runs: Sequence[RunFolder], metrics: Sequence[str]) -> None:
    """Write one file with a chart for each metric."""
    charts = []
    for metric in metrics:
        lines = [
            Series(name, points, color) for (name, points), color in zip(curves(runs, metric).items(), cycle(COLORS))
        ]
        charts.append(f"<h3>{metric}</h3>" + line_chart(lines, x_name="steps"))
    write_durably(out, svg_page(charts))


def svg_page(charts: Sequence[str]) -> bytes:
    """Charts of `llmcore.charts` below each other as one SVG file."""
    variables = "".join(f"--{name}:{value};" for name, value in COLORS.items())
    height = 340 * len(charts)
    page = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height}" viewBox="0 0 680 {height}">'
        f'<foreignObject width="680" height="{height}"><div xmlns="http://www.w3.org/1999/xhtml" '
        f'style="{variables}background:white;padding:12px"><style>{STYLE}</style>'
        + "".join(charts).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
        + "</div></foreignObject></svg>"
    )
    return page.encode()


def text_chart(points: Points, *, width: int = 60, height: int = 10) -> str:
    """A curve as braille dots, with the range of both axes."""
    steps, values = [x for x, _ in points], [y for _, y in points]
    low, high, first, last = min(values), max(values), min(steps), max(steps)
    cells = [[0] * width for _ in range(height)]
    for x, y in joined(points, 2 * width):
        column = round((x - first) / ((last - first) or 1) * (2 * width - 1))
        row = round((high - y) / ((high - low) or 1) * (4 * height - 1))
        cells[row // 4][column // 2] |= DOTS[column % 2][row % 4]
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    margin = max(map(len, labels))
    rows = [
        f"{label:>{margin}} ┤" + "".join(chr(0x2800 + cell) for cell in row)
        for label, row in zip(labels, cells, strict=True)
    ]
    return "\n".join([*rows, f"{'':>{margin}}  {first:<{width // 2}}{last:>{width - width // 2}}"])


def joined(points: Points, count: int) -> Points:
    """The points, with enough between each two of them that a line of `count` dots has no gaps."""
    found = [points[0]]
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        parts = max(1, round(2 * count * (x2 - x1) / ((points[-1][0] - points[0][0]) or 1)))
        found += [(x1 + (x2 - x1) * part / parts, y1 + (y2 - y1) * part / parts) for part in range(1, parts + 1)]
    return found
