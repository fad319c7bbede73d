"""What a person sees of a run, on stderr: a live bar on a terminal, plain `key=value` lines elsewhere, or nothing.

The truth is `metrics.jsonl`; nothing here is read by a program.
"""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
BARS = "▁▂▃▄▅▆▇█"


class View(Protocol):
    """What a run tells: the start, each step, each line of metrics, what it did, and the end."""

    def start(self, title: str, facts: Mapping[str, str]) -> None: ...

    def begin(self, *, step: int, steps: int) -> None: ...

    def step(self, row: Row) -> None: ...

    def log(self, row: Row) -> None: ...

    def say(self, text: str) -> None: ...

    def pause(self) -> None: ...

    def end(self, figures: Mapping[str, str], places: Mapping[str, str]) -> None: ...


def choose_view(*, quiet: bool, console: Console | None = None) -> View:
    """Nothing if quiet, a live bar on a terminal, plain lines otherwise (also where CI is set)."""
    if quiet:
        return QuietView()
    console = console or Console(stderr=True, soft_wrap=True)
    continuous = os.environ.get("CI", "").lower() in ("1", "true")
    return LiveView(console) if console.is_terminal and not continuous else PlainView(console)


class QuietView:
    """Says nothing."""

    def start(self, title: str, facts: Mapping[str, str]) -> None: ...

    def begin(self, *, step: int, steps: int) -> None: ...

    def step(self, row: Row) -> None: ...

    def log(self, row: Row) -> None: ...

    def say(self, text: str) -> None: ...

    def pause(self) -> None: ...

    def end(self, figures: Mapping[str, str], places: Mapping[str, str]) -> None: ...


class PlainView:
    """One line for each thing; the names are those of metrics.jsonl, and `eta` is the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.first: tuple[int, float] | None = None
        self.steps = 0

    def start(self, title: str, facts: Mapping[str, str]) -> None:
        self.say(title)
        for name, value in facts.items():
            self.say(f"  {name:<7} {value}")

    def begin(self, *, step: int, steps: int) -> None:  # noqa: ARG002
        self.steps = steps

    def step(self, row: Row) -> None:
        if self.first is None:
            self.first = row["step"], row["seconds"]

    def log(self, row: Row) -> None:
        told = [f"{name}={number(value)}" for name, value in row.items()]
        self.say(" ".join(told + self.eta(row)))

    def eta(self, row: Row) -> list[str]:
        """The time that the steps to come will take, from those of this start but its first."""
        if self.first is None or "seconds" not in row or row["step"] <= self.first[0]:
            return []
        each = (row["seconds"] - self.first[1]) / (row["step"] - self.first[0])
        return [f"eta={duration(each * (self.steps - row['step']))}"]

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def pause(self) -> None: ...

    def end(self, figures: Mapping[str, str], places: Mapping[str, str]) -> None:
        rows = [*figures.items(), *places.items()]
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.say(f"  {name:<{width}}  {value}")


class LiveView:
    """One bar and two lines, redrawn four times a second."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("train", total=None)
        self.row: Row = {}
        self.validation: Row = {}
        self.losses: deque[float] = deque(maxlen=24)
        self.smooth: float | None = None

    def start(self, title: str, facts: Mapping[str, str]) -> None:
        grid = Table.grid(padding=(0, 2))
        for name, value in facts.items():
            grid.add_row(Text(name, style="bold cyan"), Text(value))
        self.console.print(Panel(grid, title=Text(title, style="bold"), title_align="left", expand=False))

    def begin(self, *, step: int, steps: int) -> None:
        self.bar.update(self.task, completed=step, total=steps)
        self.bar.reset(self.task, completed=step, total=steps, start=True)
        self.live = Live(console=self.console, get_renderable=self.render, refresh_per_second=4, transient=False)
        self.live.start()

    def step(self, row: Row) -> None:
        self.row = row
        self.smooth = row["loss"] if self.smooth is None else 0.95 * self.smooth + 0.05 * row["loss"]
        self.bar.update(self.task, completed=row["step"])

    def log(self, row: Row) -> None:
        if "loss" in row:
            self.losses.append(self.smooth if self.smooth is not None else row["loss"])
        validation = {name: value for name, value in row.items() if name.startswith("val_")}
        if validation:
            self.validation = {"step": row["step"], **validation}

    def say(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))

    def pause(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def end(self, figures: Mapping[str, str], places: Mapping[str, str]) -> None:
        self.pause()
        table = Table(show_header=False)
        for name, value in figures.items():
            table.add_row(name, Text(value, style="bold"))
        where = Table.grid(padding=(0, 2))
        for name, value in places.items():
            where.add_row(Text(name, style="cyan"), Text(value))
        both = Table.grid(padding=(0, 3))
        both.add_row(table, where)
        self.console.print(both)

    def render(self) -> RenderableType:
        return Group(self.bar, Text(self.line()))

    def line(self) -> str:
        """Loss with its recent course, validation, then the other figures of the last step."""
        if not self.row:
            return "starting …"
        parts = [f"loss {number(self.row['loss'])} (ema {number(self.smooth)}) {sparkline(self.losses)}".rstrip()]
        if self.validation:
            figures = " ".join(
                f"{name.removeprefix('val_')} {number(value)}"
                for name, value in self.validation.items()
                if name != "step"
            )
            parts.append(f"val {figures} @{self.validation['step']}")
        short = {"grad_norm": "|g|", "tokens_per_s": "tok/s", "memory": "mem"}
        hidden = {"step", "loss", "tokens", "seconds", "memory_gib"}
        parts += [f"{short.get(n, n)} {number(v)}" for n, v in self.row.items() if n not in hidden]
        return " · ".join(parts)


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """A row of bars from the lowest to the highest of the values."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1))] for value in values)


def number(value: object) -> str:
    """Four significant digits; large numbers with thousands, integers as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def amount(value: float, unit: str = "") -> str:
    """12345678 -> `12.3 M`, with a unit after it."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # what rounds to 1,000 of the smaller unit is 1 of the larger
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """75 -> `1:15`, 3700 -> `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
