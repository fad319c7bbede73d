"""Figures of tasks with their 95 % intervals, beside chance, for all items and for each sub-task.

What counts as right: of a pair, the good sentence has the higher Σ log p; of a continuation, greedy decoding would say
it; of a choice, it beats every other by Σ log p, by that per byte of the choice, and by that per scored token (three
figures: the sum favours short choices, the others correct for length). A tie is wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llmcore.checkpoint import Checkpoint
from llmcore.errors import ConfigError
from llmcore.evaluate.likelihood import Likelihood, likelihoods
from llmcore.evaluate.options import chat_rows, text_rows
from llmcore.evaluate.tasks import Item, Task, read_task
from llmcore.intervals import exponential, mean, share


class Result(NamedTuple):
    """A task under one model; None where an item does not fit the model's context."""

    task: Task
    judged: list[dict[str, float] | None]
    """By item and figure: right (1.0) or wrong (0.0), or nats."""
    cut: int
    """Items whose context lost its beginning."""


Tell = Callable[[int], None]


def read_tasks(paths: Sequence[Path], *, count: int | None = None, chat: bool = False) -> list[Task]:
    """Tasks from files and folders, of each `count` items, drawn with a fixed seed, or all.

    Raises DataError for what cannot be read, ConfigError where `count` or `chat` would do nothing.
    """
    tasks = [thinned(read_task(path), count) for path in paths]
    if count is not None and not tasks:
        raise ConfigError(f"--task-count {count!r} without a task", hint="add --tasks PATH")
    if chat and not any(map(asks, tasks)):
        raise ConfigError("--chat without a task of questions, which a chat model could be asked", hint="leave it out")
    return tasks


def score_tasks(policy: Checkpoint, tasks: Sequence[Task], *, chat: bool = False) -> list[Result]:
    """Every task under one model, with a bar on stderr."""
    found = []
    for task in tasks:
        with progress(task.name, len(task.items)) as tell:
            found.append(score_task(policy, task, chat=chat, tell=tell))
    return found


def asks(task: Task) -> bool:
    """Whether its items are questions."""
    return all(item.question is not None for item in task.items)


def thinned(task: Task, count: int | None) -> Task:
    """The same task with at most `count` items, always the same; files have patterns, so not every n-th."""
    if count is None or count >= len(task.items):
        return task
    numbers = np.sort(np.random.default_rng(0).permutation(len(task.items))[:count]).tolist()
    return task._replace(items=[task.items[number] for number in numbers])


def score_task(policy: Checkpoint, task: Task, *, chat: bool = False, tell: Tell = lambda _done: None) -> Result:
    """One task under one model; with `chat`, questions are put in the model's chat format."""
    model, tokenizer = policy.model, policy.tokenizer
    rows = (chat_rows if chat and asks(task) else text_rows)(task.items, tokenizer, context=model.config.context)
    found = likelihoods(model, [row.options for row in rows], pad_id=tokenizer.pad_id, tell=tell)
    judged = [judge(task, item, scores) if scores else None for item, scores in zip(task.items, found, strict=True)]
    return Result(task, judged, sum(row.cut for row in rows))


def judge(task: Task, item: Item, scores: Sequence[Likelihood]) -> dict[str, float]:
    """The figures of one item."""
    totals = [score.total for score in scores]
    if task.kind == "continuation":
        return {"accuracy": float(scores[0].greedy), "nats": -totals[0]}
    figures = {"accuracy": beats(totals, item.right)}
    if task.kind == "choice":
        sizes = [len(option.continuation.strip().encode("utf-8", "surrogatepass")) for option in item.options]
        by_byte = [total / size for total, size in zip(totals, sizes, strict=True)]
        by_token = [score.total / score.tokens for score in scores]
        figures |= {"accuracy_per_byte": beats(by_byte, item.right), "accuracy_per_token": beats(by_token, item.right)}
    return figures


def beats(values: Sequence[float], number: int) -> float:
    """1.0 if this value is above every other."""
    return float(all(values[number] > value for i, value in enumerate(values) if i != number))


def report(result: Result, *, first: Result | None = None) -> dict[str, Any]:
    """A result as JSON: figures with intervals, chance, counts, and the same of each sub-task.

    With the result of a first model, `gain/accuracy` is the difference item by item.
    """
    items, judged = result.task.items, result.judged
    before: Sequence[dict[str, float] | None] = first.judged if first else [None] * len(items)
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        numbers.setdefault(item.subtask, []).append(number)
    summary: dict[str, Any] = {"kind": result.task.kind, "cut": result.cut}
    summary |= summarise(items, judged, before, range(len(items)))
    if len(numbers) > 1:
        summary["subtasks"] = {name: summarise(items, judged, before, those) for name, those in numbers.items()}
    return summary


def summarise(
    items: Sequence[Item],
    judged: Sequence[dict[str, float] | None],
    before: Sequence[dict[str, float] | None],
    numbers: Iterable[int],
) -> dict[str, Any]:
    """The figures of some items."""
    numbers = list(numbers)
    known = [(number, found) for number in numbers if (found := judged[number]) is not None]
    summary: dict[str, Any] = {"count": len(known), "left_out": len(numbers) - len(known)}
    options = [len(items[number].options) for number, _ in known]
    if options and min(options) > 1:
        summary["chance"] = float(np.mean([1 / count for count in options]))
    for name in known[0][1] if known else ():
        values = [found[name] for _, found in known]
        figure = mean(values) if name == "nats" else share(sum(values), len(values))
        summary[name] = figure.as_json()
        if name == "nats":
            summary["perplexity"] = exponential(figure).as_json()
    gains = [found["accuracy"] - old["accuracy"] for number, found in known if (old := before[number]) is not None]
    if gains:
        summary["gain/accuracy"] = mean(gains).as_json()
    return summary


def report_all(results: Sequence[Result], *, first: Sequence[Result] | None = None) -> dict[str, dict[str, Any]]:
    """The reports of several tasks, by name."""
    others: Sequence[Result | None] = first or [None] * len(results)
    return {one.task.name: report(one, first=other) for one, other in zip(results, others, strict=True)}


def report_lines(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Reports for a terminal: each task, and its sub-tasks below it."""
    lines = []
    for name, found in reports.items():
        cut = f", {found['cut']:,} with the beginning cut off" if found["cut"] else ""
        lines.append(f"{name}: {found['count']:,} items ({found['kind']}){left_out(found)}{cut}")
        chance = f" · chance {found['chance']:.1%}" if "chance" in found else ""
        lines.append(f"  {figures_of(found)}{chance}")
        lines += [f"    {sub:<52} {figures_of(one)}" for sub, one in found.get("subtasks", {}).items()]
    return lines


def left_out(found: Mapping[str, Any]) -> str:
    return f", {found['left_out']:,} left out: longer than the context" if found["left_out"] else ""


def figures_of(found: Mapping[str, Any]) -> str:
    """The figures of one task or sub-task on one line."""
    parts = []
    for name, value in found.items():
        if not isinstance(value, dict) or name == "subtasks":
            continue
        form = "{:.1%}" if name.startswith("accuracy") else "{:+.1%}" if name.startswith("gain") else "{:.4g}"
        shown, low, high = ("?" if figure is None else form.format(figure) for figure in value.values())
        parts.append(f"{name.replace('_', ' ')} {shown} [{low}, {high}]")
    return " · ".join(parts) or "nothing scored"


@contextmanager
def progress(name: str, total: int) -> Iterator[Tell]:
    """A bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(Path(name).name), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.advance(task, done)
