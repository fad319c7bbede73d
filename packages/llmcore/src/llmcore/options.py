"""Options that the commands of several packages have: their types, and what is read from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmcore.errors import ConfigError

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="SETTINGS", help="TOML files and key=value settings, applied in order."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Output folder; runs/<stage>-<settings file> by default.")
]
ResumeOption = Annotated[
    str, typer.Option("--resume", metavar="auto|never|STEP", help="auto: start, or go on where it stopped.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout: metrics lines, then the manifest.")]
ResultJsonOption = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="auto: CUDA, then Apple's MPS, then the CPU.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="auto|fp32|bf16", help="Precision of the activations; weights stay fp32.")
]
TasksOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks",
        metavar="PATH",
        help="Score by log-likelihood: BLiMP pairs, LAMBADA, multiple choice; a file, or a folder of sub-tasks; "
        "may be given again. Without --data nothing else is measured.",
    ),
]
TaskCountOption = Annotated[
    int | None, typer.Option("--task-count", min=1, help="Score this many items of each task, drawn with a fixed seed.")
]
BaseOption = Annotated[
    Path | None, typer.Option("--base", metavar="DIR", help="The model below an adapter, if it is not where it was.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def given(**options: object) -> dict[str, object]:
    """The named options that were given, as dotted keys: `given(inputs__base=base)` -> {"inputs.base": base}."""
    return {name.replace("__", "."): str(value) for name, value in options.items() if value is not None}


def required(value: str | None, option: str, what: str) -> Path:
    """An input that must be given."""
    if not value:
        raise ConfigError(f"{option} is missing: it names {what}", hint=f"add {option} FOLDER")
    return Path(value)


def default_out(stage: str, settings: Sequence[str]) -> Path:
    """`runs/<stage>-<config stem>`: the same command finds its own folder again."""
    stems = [Path(setting).stem for setting in settings if "=" not in setting]
    if not stems:
        return Path("runs") / stage
    return Path("runs") / (stems[-1] if stems[-1].startswith(f"{stage}-") else f"{stage}-{stems[-1]}")


def refuse_unused(why: str, **options: object) -> None:
    """Options that would do nothing are a mistake: `refuse_unused("without --tasks", task_count=task_count)`."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise ConfigError(
                f"--{name.replace('_', '-')} {'' if value is True else f'{value} '}does nothing {why}",
                hint="leave it out, or give what it is for",
            )
