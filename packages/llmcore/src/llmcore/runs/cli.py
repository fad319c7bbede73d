"""`llmcore runs`: which runs there are, one of them, how two differ, their curves, and room on the disk."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llmcore import command
from llmcore.errors import ConfigError, LLMError
from llmcore.options import ResultJsonOption
from llmcore.runs.diff import differences
from llmcore.runs.folder import RunFolder, find_runs, read_run, readable_runs
from llmcore.runs.plot import curves, svg_file, text_chart
from llmcore.runs.prune import removable, remove_all
from llmcore.train.retention import step_name, write_pins
from llmcore.train.view import amount, number

app = command.new_app("Runs on this disk: list, show, compare, plot, pin, and make room.")

RunArgument = Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")]
RunsArgument = Annotated[list[Path], typer.Argument(metavar="OUT...", help="Output folders of runs.")]
StepArgument = Annotated[int, typer.Argument(metavar="STEP", help="The step of a saved checkpoint.")]


@app.command()
def ls(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look; runs, if absent.")] = Path("runs"),
    json: ResultJsonOption = False,
) -> None:
    """The runs at and below a folder: state, step, last and best figures, size."""
    found = list(readable_runs(root))
    if json:
        print(json_library.dumps([facts_of(run) for _, run in found if isinstance(run, RunFolder)]))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "made by", "state", "step", "loss", "best", "size"):
        table.add_column(name, justify="right" if name in ("step", "loss", "size") else "left")
    for path, run in found:
        if isinstance(run, LLMError):
            table.add_row(str(path), "", f"unreadable: {run.message}")
            continue
        loss, best = run.last("loss"), run.best()
        table.add_row(
            str(path),
            run.identity.made_by,
            run.state,
            f"{run.step:,}/{run.train.steps:,}",
            "" if loss is None else number(loss),
            "" if best is None else f"{best[0]} {number(best[1])} @{best[2]}",
            amount(run.bytes, "B"),
        )
    Console(highlight=False, markup=False, soft_wrap=True).print(table if found else f"no runs in {root}")


@app.command()
def show(out: RunArgument, json: ResultJsonOption = False) -> None:
    """One run: where it stands, what it is made from, its checkpoints, its last figures."""
    run = read_run(out)
    facts = facts_of(run)
    if json:
        print(json_library.dumps(facts))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        if isinstance(value, dict):
            table.add_row(name, "")
            for inner, item in value.items():
                table.add_row(f"  {inner}", number(item) if isinstance(item, int | float) else str(item))
        else:
            table.add_row(name, str(value))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    if run.last("loss") is not None:
        console.print(text_chart(curves([run], "loss")[str(run.path)]))


@app.command()
def diff(left: RunArgument, right: RunArgument, json: ResultJsonOption = False) -> None:
    """How two runs differ: settings, parents, surroundings, and the last value of each metric."""
    found = differences(read_run(left), read_run(right))
    if json:
        print(json_library.dumps([difference._asdict() for difference in found]))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "", str(left), str(right)):
        table.add_column(name)
    for difference in found:
        values = ("not set" if v is None else number(v) for v in (difference.left, difference.right))
        table.add_row(difference.kind, difference.name, *values)
    Console(highlight=False, markup=False, soft_wrap=True).print(table if found else "they are the same")


@app.command()
def plot(
    outs: RunsArgument,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="What to draw; may be given again. loss, if absent.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.svg", help="Write a picture too.")] = None,
) -> None:
    """Draw metrics over steps, here and as an SVG file."""
    runs = [read_run(path) for path in outs]
    for name in metric or ["loss"]:
        for run, points in curves(runs, name).items():
            print(f"{name} · {run}\n{text_chart(points)}")
    if out is not None:
        if out.suffix != ".svg":
            raise ConfigError(f"--out {str(out)!r} is no .svg file", hint="name it FILE.svg")
        svg_file(out, runs, metric or ["loss"])
        print(out)


@app.command()
def prune(
    roots: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, or folders of runs.")],
    keep: Annotated[int, typer.Option(min=0, help="Newest checkpoints to keep; 0 for finished runs only.")] = 1,
    keep_best: Annotated[int, typer.Option(min=0, help="Best checkpoints to keep.")] = 1,
    dumps: Annotated[bool, typer.Option("--dumps", help="Remove nan-dumps too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without this, only say what would go.")] = False,
) -> None:
    """Remove checkpoints that nothing needs; never an artifact, a pinned checkpoint, or anything of a running run."""
    runs = [read_run(path) for root in roots for path in find_runs(root)]
    doomed = [item for run in runs for item in removable(run, keep=keep, keep_best=keep_best, dumps=dumps)]
    for item in doomed:
        print(f"{item.path}  {amount(item.bytes, 'B')}")
    if yes:
        remove_all(doomed)
    total = amount(sum(item.bytes for item in doomed), "B")
    print(
        f"{len(doomed)} removed, {total} free" if yes else f"{len(doomed)} would go, {total}: add --yes to remove them"
    )


@app.command()
def pin(out: RunArgument, step: StepArgument) -> None:
    """Keep a checkpoint for good, also while the run goes on."""
    run = read_run(out)
    if step not in run.checkpoints:
        there = ", ".join(map(str, run.checkpoints)) or "none"
        raise ConfigError(
            f"{out} has no checkpoint of step {step} (there are: {there})", hint="give the number of one of these"
        )
    write_pins(run.folder, run.pins | {step})
    if not run.checkpoints[step].exists():  # removed by the run in between
        write_pins(run.folder, run.pins)
        raise ConfigError(f"{out}: step {step} was just removed by the run itself", hint="pin a newer one")
    print(f"{out}: {step_name(step)} stays")


@app.command()
def unpin(out: RunArgument, step: StepArgument) -> None:
    """Let a pinned checkpoint go when newer ones come."""
    run = read_run(out)
    if step not in run.pins:
        raise ConfigError(
            f"{out} has no pin of step {step} (there are: {sorted(run.pins) or 'none'})",
            hint="give the number of one of these",
        )
    write_pins(run.folder, run.pins - {step})
    print(f"{out}: {step_name(step)} may go")


def facts_of(run: RunFolder) -> dict[str, object]:
    """A run as JSON."""
    best = run.best()
    marks: dict[int, list[str]] = {step: [] for step in run.checkpoints}
    for step in run.checkpoints:
        marks[step] += ["pinned"] * (step in run.pins) + ["best"] * (best is not None and step == best[2])
    return {
        "run": str(run.path),
        "state": run.state,
        "made by": run.identity.made_by,
        "step": run.step,
        "steps": run.train.steps,
        "bytes": run.bytes,
        "best": None if best is None else {"metric": best[0], "value": best[1], "step": best[2]},
        "checkpoints": {str(step): " ".join(words) for step, words in marks.items()},
        "parents": run.identity.parents,
        "inputs": {name: value for name, value in run.identity.inputs.items() if value is not None},
        "environment": run.identity.environment,
        "last": dict(run.rows[-1]) if run.rows else {},
    }
